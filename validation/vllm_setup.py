"""Configuration objects of a real vLLM 0.32.0 from the simulator's settings, with no download and no device.

vllm is imported inside functions only.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sim.engine_settings import EngineSettings, KVCacheGroup
from sim.errors import InputError
from validation import vllm_release

VLLM_VERSION = "0.32.0"
TINY_VOCABULARY = 4096


def require_vllm(exactly: bool = True) -> None:
    """Raise InputError, with what to do, unless the vLLM that this is written for can be imported.

    exactly: False where other releases do as well (the scheduler without an engine).
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        import vllm  # noqa: F401
    except ImportError as exc:
        raise InputError(
            f"vLLM can't be imported here: {exc}",
            hint="`make validate` builds an environment that has it; run this command with its Python",
        ) from exc
    logging.getLogger("vllm").setLevel(logging.ERROR)
    found = vllm_release.installed()
    if exactly and found != VLLM_VERSION:
        raise InputError(f"this recorder is written for vLLM {VLLM_VERSION}, found {found}")
    if vllm_release.minor_of(found) < vllm_release.OLDEST:
        oldest = ".".join(map(str, vllm_release.OLDEST))
        raise InputError(f"the recorder knows releases from {oldest} on, found vLLM {found}")


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """vLLM's own refusal of a configuration as an InputError."""
    try:
        yield
    except (ValueError, AssertionError) as exc:
        text = " ".join(str(exc).split())[:500] or type(exc).__name__
        raise InputError(f"vLLM {vllm_release.installed()} refuses {what}: {text}") from exc


def tiny_llama_config(max_model_len: int) -> dict[str, Any]:
    """config.json of the model that stands in for a real one: 2 layers, hidden 128, 4 heads, 2 KV heads."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": TINY_VOCABULARY,
        "max_position_embeddings": max_model_len,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def vllm_config(settings: EngineSettings, folder: Path, device: str = "cpu") -> Any:
    """vLLM's configuration object for these settings.

    folder: an existing folder, which becomes the model: a config.json and no weights.
    """
    from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig

    (folder / "config.json").write_text(json.dumps(tiny_llama_config(settings.max_model_len)))
    vllm_release.let_model_be_inspected()
    with refusals("this configuration"):
        model = ModelConfig(
            model=str(folder),
            tokenizer=str(folder),
            skip_tokenizer_init=True,
            max_model_len=settings.max_model_len,
            dtype="float32" if device == "cpu" else "bfloat16",
            enforce_eager=True,
        )
        scheduler_values = {
            "max_model_len": settings.max_model_len,
            "is_encoder_decoder": False,
            "max_num_seqs": settings.max_num_seqs,
            "max_num_batched_tokens": settings.max_num_batched_tokens,
            "max_num_scheduled_tokens": settings.max_num_scheduled_tokens,
            "max_num_active_seqs": settings.max_num_active_seqs,
            "enable_chunked_prefill": settings.enable_chunked_prefill,
            "long_prefill_token_threshold": settings.long_prefill_token_threshold,
            "long_prefill_token_threshold_adaptive": settings.long_prefill_token_threshold_adaptive,
            "policy": settings.policy,
            "scheduler_reserve_full_isl": settings.scheduler_reserve_full_isl,
            "watermark": settings.watermark,
            "async_scheduling": settings.async_scheduling,
        }
        # InitVar-s are no fields, and every release has these two
        known = vllm_release.known_fields(SchedulerConfig, scheduler_values)
        always = {name: scheduler_values[name] for name in ("max_model_len", "is_encoder_decoder")}
        scheduler = SchedulerConfig(**(known | always))
        cache_values = vllm_release.cache_config_values(settings)
        cache = CacheConfig(**vllm_release.known_fields(CacheConfig, cache_values))
        config = VllmConfig(
            model_config=model,
            scheduler_config=scheduler,
            cache_config=cache,
            device_config=DeviceConfig(device),
        )
    # The CPU platform turns async scheduling off and may choose another block size: neither concerns the
    # control plane, which runs here without a device.
    config.scheduler_config.async_scheduling = settings.async_scheduling
    if hasattr(config.scheduler_config, "max_num_scheduled_tokens"):
        config.scheduler_config.max_num_scheduled_tokens = settings.max_num_scheduled_tokens
    config.scheduler_config.max_num_batched_tokens = settings.max_num_batched_tokens
    config.cache_config.block_size = settings.block_size
    config.cache_config.enable_prefix_caching = settings.enable_prefix_caching
    config.cache_config.num_gpu_blocks = settings.num_gpu_blocks
    if any(group.type == "mamba" for group in settings.kv_cache_groups):
        config.cache_config.mamba_cache_mode = settings.mamba_cache_mode
        config.cache_config.mamba_block_size = settings.block_size
    if settings.num_speculative_tokens:
        with refusals("this drafter"):
            config.speculative_config = _speculative_config(settings)
            vllm_release.reserve_draft_inputs(config)
    return config


def _speculative_config(settings: EngineSettings) -> Any:
    """A drafter's configuration without a drafter: the control plane asks for the kind and a number."""
    from vllm.config import SpeculativeConfig

    config = SpeculativeConfig(
        method="ngram",
        num_speculative_tokens=settings.num_speculative_tokens,
        prompt_lookup_max=2,
        prompt_lookup_min=1,
    )
    config.method = settings.speculative_method
    return config


def kv_cache_config(settings: EngineSettings) -> Any:
    """vLLM's KVCacheConfig for the groups of these settings, one made-up layer a group."""
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec

    groups = [
        KVCacheGroupSpec(
            [f"layer.{i}"],
            _group_spec(group, settings),
            **({"is_eagle_group": True} if group.is_eagle_group else {}),
        )
        for i, group in enumerate(settings.kv_cache_groups)
    ]
    values = {
        "num_blocks": settings.num_gpu_blocks,
        "kv_cache_tensors": [],
        "kv_cache_groups": groups,
        "prefix_cache_retention_interval": settings.prefix_cache_retention_interval,
    }
    return KVCacheConfig(**vllm_release.known_fields(KVCacheConfig, values))


def _exported_states(group: KVCacheGroup) -> dict[str, int]:
    """The fields of a MambaSpec for a kernel that exports states from inside a chunk."""
    if group.prefill_checkpoint_alignment is None:
        return {}
    return {
        "num_prefill_checkpoint_blocks": 1,
        "prefill_checkpoint_alignment": group.prefill_checkpoint_alignment,
    }


def _group_spec(group: KVCacheGroup, settings: EngineSettings) -> Any:
    import torch
    from vllm.v1.kv_cache_interface import (
        ChunkedLocalAttentionSpec,
        CrossAttentionSpec,
        FullAttentionSpec,
        MambaSpec,
        SlidingWindowSpec,
    )

    block_size = group.block_size or settings.block_size
    attention = {"block_size": block_size, "num_kv_heads": 2, "head_size": 32, "dtype": torch.float32}
    if group.type == "full":
        return FullAttentionSpec(**attention)
    if group.type == "sliding_window":
        return SlidingWindowSpec(**attention, sliding_window=group.sliding_window)
    if group.type == "chunked_local":
        return ChunkedLocalAttentionSpec(**attention, attention_chunk_size=group.attention_chunk_size)
    if group.type == "cross_attention":
        return CrossAttentionSpec(**attention)
    if group.type == "mamba":
        page = 2 * block_size * 2 * 32
        drafts = settings.num_speculative_tokens
        mode = {"mamba_cache_mode": settings.mamba_cache_mode}
        return MambaSpec(
            block_size=block_size,
            **({"num_speculative_blocks": drafts} if drafts else {}),
            **_exported_states(group),
            shapes=((page,),),
            dtypes=(torch.float32,),
            **vllm_release.known_fields(MambaSpec, mode),
        )
    raise InputError(f"kv_cache_groups: type {group.type!r} is unknown to this recorder")
