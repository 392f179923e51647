"""What differs between vLLM releases where layers and plans are made: moved names and missing fields.

vllm is imported inside functions only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from validation.vllm_release import installed, minor_of

#: Fields of CacheConfig before the release's own adjustments.
FRESH_CACHE: dict[str, Any] = {
    "mamba_block_size": None,
    "user_specified_mamba_block_size": False,
    "mamba_page_size_padded": None,
    "mamba_cache_dtype": "auto",
    "mamba_ssm_cache_dtype": "auto",
    "mamba_cache_mode": "none",
    "kv_cache_layout": "LBNHC",
}
#: How releases end the start-up: errors that they mean, and those of a calculation with None or no block.
REFUSALS = (ValueError, NotImplementedError, AssertionError, TypeError, ZeroDivisionError)
_OTHERS = ("block_size", "user_specified_block_size", "cache_dtype", "enable_prefix_caching")


def version() -> tuple[int, int]:
    """The release that is imported here, (0, 25)."""
    return minor_of(installed())


def set_cache(config: Any, values: dict[str, Any]) -> None:
    """Set those fields of the cache's configuration that the release has."""
    cache = config.cache_config
    for name, value in values.items():
        if hasattr(cache, name):
            object.__setattr__(cache, name, value)


def cache_values(config: Any) -> dict[str, Any]:
    """The fields that `set_cache` can set, as they are."""
    cache = config.cache_config
    return {n: getattr(cache, n) for n in (*FRESH_CACHE, *_OTHERS) if hasattr(cache, n)}


def backend_base() -> tuple[Any, Any, Any]:
    """AttentionBackend, MultipleOf and AttentionMetadataBuilder."""
    import importlib

    old = version() < (0, 14)
    module = importlib.import_module(
        "vllm.attention.backends.abstract" if old else "vllm.v1.attention.backend"
    )
    builders = importlib.import_module("vllm.v1.attention.backends.utils") if old else module
    return module.AttentionBackend, module.MultipleOf, builders.AttentionMetadataBuilder


def latent_layers() -> Any:
    """The module of the layers for multi-head latent attention; None where it is not one of its own."""
    import importlib

    try:
        return importlib.import_module("vllm.model_executor.layers.attention.mla_attention")
    except ModuleNotFoundError:
        return None


def unset_block_size() -> int | None:
    """The block size without `--block-size` while a configuration is made."""
    return None if version() < (0, 18) else 16


def update_block_size(config: Any) -> None:
    """What the executor does once the model is loaded (Platform.update_block_size_for_backend, since 0.18).

    The CPU platform has an adjustment of its own; this is that of CUDA.
    """
    from vllm.platforms.interface import Platform

    update = getattr(Platform, "update_block_size_for_backend", None)
    if update is not None:
        update.__func__(Platform, config)


def layer_specs(config: Any) -> dict[str, Any]:
    """The KV-cache spec of each layer, in the order in which they were made, as the model runner asks."""
    specs = {}
    for name, layer in config.compilation_config.static_forward_context.items():
        ask = getattr(layer, "get_kv_cache_spec", None)
        spec = ask(config) if ask is not None else None
        if spec is not None:
            specs[name] = padding_allowed(spec)
    return specs


def padding_allowed(spec: Any) -> Any:
    """The spec, which may be padded.

    0.24 to 0.28: the runner notes whether the layer's backend can read padded pages.
    Those of CUDA can (AttentionBackend.indexes_kv_by_block_stride).
    """
    if not hasattr(spec, "indexes_kv_by_block_stride"):
        return spec
    from dataclasses import replace

    return replace(spec, indexes_kv_by_block_stride=True)


def engine_facts(config: Any) -> dict[str, Any]:
    """What the release made of the arguments: block size, prefix caching, mode of states."""
    cache = config.cache_config
    states = config.model_config.is_hybrid or config.model_config.is_attention_free
    caching = bool(cache.enable_prefix_caching)
    # before 0.15 there is one way to cache states
    mode = getattr(cache, "mamba_cache_mode", "all" if caching else "none")
    return {"enable_prefix_caching": caching} | ({"mamba_cache_mode": mode} if states else {})


def kv_cache_config(config: Any, specs: dict[str, Any], available: int) -> Any:
    """KVCacheConfig of one worker, as the engine makes it at start-up."""
    if version() >= (0, 33):
        from vllm.v1.core.kv_cache_planning import get_global_kv_cache_groups
        from vllm.v1.core.kv_cache_planning import get_kv_cache_configs as make

        groups = get_global_kv_cache_groups(config, [specs])
        return make(config, [specs], [available], groups)[0]
    from vllm.v1.core.kv_cache_utils import get_kv_cache_configs

    return get_kv_cache_configs(config, [specs], [available])[0]


@contextmanager
def printed_capacity() -> Iterator[list[int]]:
    """The sizes in tokens that a release before 0.24 prints meanwhile; later ones are asked (`capacity`)."""
    from vllm.v1.core import kv_cache_utils

    printed: list[int] = []

    class Listener:
        def __getattr__(self, name: str) -> Any:
            def note(text: str, *args: Any, **_values: Any) -> None:
                if text.startswith("GPU KV cache size"):
                    printed.append(int(args[0].replace(",", "")))

            return note

    if version() >= (0, 24):
        yield printed
        return
    with patch.object(kv_cache_utils, "logger", Listener()):
        yield printed


def capacity(config: Any, made: Any, printed: list[int]) -> tuple[int, float]:
    """'GPU KV cache size' in tokens, and the maximum concurrency."""
    from vllm.v1.core import kv_cache_utils as k

    if version() >= (0, 24):
        tokens, concurrency = k.get_kv_cache_capacity(config, k.generate_scheduler_kv_cache_config([made]))
        return int(tokens), float(concurrency)
    return printed[-1], float(k.get_max_concurrency_for_kv_cache_config(config, made))


def pool_bytes(made: Any) -> int:
    """Bytes of all blocks; since 0.29 each tensor is a view of the whole pool."""
    sizes = [t.size for t in made.kv_cache_tensors]
    return max(sizes) if version() >= (0, 29) else sum(sizes)
