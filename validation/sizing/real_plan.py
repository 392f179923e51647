"""A release's own planner on given layer specs, as a dictionary to compare and store."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sim.sizing.plan import Limits
from sim.sizing.specs import LayerSpec
from validation.sizing import release


def real_plan(config: Any, specs: dict[str, Any], available: int) -> dict[str, Any]:
    """Groups, blocks and concurrency as the release plans them, or {"refused": its sentence}.

    Args:
        config: VllmConfig.
        specs: layer name -> KVCacheSpec; not changed.
        available: bytes on one GPU.
    """
    names, length = list(specs), config.model_config.max_model_len
    try:
        with release.printed_capacity() as printed:
            made = release.kv_cache_config(config, dict(specs), available)
            if not made.kv_cache_groups:
                return {"groups": [], "num_blocks": made.num_blocks}
            tokens, concurrency = release.capacity(config, made, printed)
    except release.REFUSALS as why:
        # 0.13 leaves the length with which it looked for one that fits
        config.model_config.max_model_len = length
        return {"refused": " ".join(str(why).split())[:200] or type(why).__name__}
    return {
        "groups": [_group(g, names) for g in made.kv_cache_groups],
        "num_blocks": made.num_blocks,
        "tokens": tokens,
        "max_concurrency": concurrency,
        "pool_bytes": release.pool_bytes(made),
    }


def _group(group: Any, names: list[str]) -> dict[str, Any]:
    spec = group.kv_cache_spec
    layers = getattr(spec, "kv_cache_specs", None)
    first = next(iter(layers.values())) if layers else spec
    pages = (
        [s.page_size_bytes for s in layers.values()]
        if layers
        else [spec.page_size_bytes] * len(group.layer_names)
    )
    return {
        "kind": _KINDS[type(first).__name__],
        "layers": [names.index(n) for n in group.layer_names],
        "block_size": first.block_size,
        "page_bytes": pages[0] if len(set(pages)) == 1 else pages,
    } | ({"is_eagle_group": True} if getattr(group, "is_eagle_group", False) else {})


_KINDS = {
    "FullAttentionSpec": "full",
    "MLAAttentionSpec": "mla",
    "SlidingWindowSpec": "sliding_window",
    "ChunkedLocalAttentionSpec": "chunked_local",
    "MambaSpec": "mamba",
    "CrossAttentionSpec": "cross_attention",
}
_CLASSES = {kind: name for name, kind in _KINDS.items()}


def plan_specs(
    config: Any, specs: list[LayerSpec], available: int, limits: Limits, hybrid: bool, override: int | None
) -> dict[str, Any]:
    """The release's plan for layers of ours.

    Args:
        config: VllmConfig of any model; it takes the limits.
        specs, available, limits, hybrid, override: as `sim.sizing.plan_pool` takes them.
    """
    config.model_config.max_model_len = limits.max_model_len
    tokens = limits.encoder_tokens or limits.in_flight_tokens
    batches = max(1, limits.in_flight_tokens // tokens)
    config.scheduler_config.max_num_batched_tokens = tokens
    config.scheduler_config.max_num_encoder_input_tokens = tokens
    config.scheduler_config.async_scheduling = batches == 2
    config.scheduler_config.disable_hybrid_kv_cache_manager = not hybrid
    config.cache_config.num_gpu_blocks_override = override
    modes = {s.mamba_cache_mode for s in specs if s.kind == "mamba"}
    release.set_cache(config, {"mamba_cache_mode": next(iter(modes), "none")})
    return real_plan(config, {f"layer.{i}": to_vllm(s) for i, s in enumerate(specs)}, available)


def to_vllm(spec: LayerSpec) -> Any:
    """Our spec as the release's.

    Raises:
        AttributeError: something that the release's specs do not have.
    """
    import torch
    from vllm.v1 import kv_cache_interface as k

    dtype = {1: torch.uint8, 2: torch.bfloat16, 4: torch.float32}[spec.element_bytes]
    cls = getattr(k, _CLASSES[spec.kind])
    if spec.kind == "mamba":
        values: dict[str, Any] = {
            "shapes": ((spec.state_bytes,),),
            "dtypes": (torch.uint8,),
            "mamba_cache_mode": spec.mamba_cache_mode,
            "num_speculative_blocks": spec.speculative_blocks,
            "num_prefill_checkpoint_blocks": spec.checkpoint_blocks,
        }
    else:
        values = {"num_kv_heads": spec.heads, "head_size": spec.head_size, "dtype": dtype}
        values["sliding_window"] = spec.sliding_window
        values["attention_chunk_size"] = spec.attention_chunk_size
        if spec.kind != "mla":
            values["head_size_v"] = spec.head_size_v
    values |= {"block_size": spec.block_size, "page_size_padded": spec.page_size_padded}
    known = {f.name for f in fields(cls)}
    # without a field, these are what the release does anyway
    absent = {"head_size_v": spec.head_size, "num_prefill_checkpoint_blocks": 0, "num_speculative_blocks": 0}
    for name in values.keys() - known - {"mamba_cache_mode"}:
        if values[name] != absent.get(name):
            raise AttributeError(f"{cls.__name__} has no {name}")
    return release.padding_allowed(cls(**{n: v for n, v in values.items() if n in known}))
