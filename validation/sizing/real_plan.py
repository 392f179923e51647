"""vLLM's own planner on given layer specs: `get_kv_cache_configs`, as a dictionary to compare and store."""

from __future__ import annotations

from typing import Any

from sim.sizing.specs import LayerSpec


def real_plan(config: Any, specs: dict[str, Any], available: int) -> dict[str, Any]:
    """Groups, blocks and concurrency as vLLM plans them, or {"refused": its sentence}.

    Args:
        config: VllmConfig.
        specs: layer name -> KVCacheSpec; not changed.
        available: bytes on one GPU.
    """
    from vllm.v1.core.kv_cache_utils import (
        generate_scheduler_kv_cache_config,
        get_kv_cache_capacity,
        get_kv_cache_configs,
    )

    names = list(specs)
    try:
        made = get_kv_cache_configs(config, [dict(specs)], [available])[0]
    except (ValueError, NotImplementedError, AssertionError) as why:
        return {"refused": " ".join(str(why).split())[:200] or type(why).__name__}
    groups = [_group(g, names) for g in made.kv_cache_groups]
    if not made.kv_cache_groups:
        return {"groups": [], "num_blocks": made.num_blocks}
    tokens, concurrency = get_kv_cache_capacity(config, generate_scheduler_kv_cache_config([made]))
    sizes = {t.size for t in made.kv_cache_tensors}
    return {
        "groups": groups,
        "num_blocks": made.num_blocks,
        "tokens": tokens,
        "max_concurrency": concurrency,
        "pool_bytes": max(sizes),
    }


def _group(group: Any, names: list[str]) -> dict[str, Any]:
    from vllm.v1.kv_cache_interface import UniformTypeKVCacheSpecs, get_kv_cache_spec_kind

    spec = group.kv_cache_spec
    first = spec.first_spec if isinstance(spec, UniformTypeKVCacheSpecs) else spec
    kind = get_kv_cache_spec_kind(first).value
    pages = (
        [s.page_size_bytes for s in spec.kv_cache_specs.values()]
        if isinstance(spec, UniformTypeKVCacheSpecs)
        else [spec.page_size_bytes] * len(group.layer_names)
    )
    return {
        "kind": _KINDS[kind],
        "layers": [names.index(n) for n in group.layer_names],
        "block_size": first.block_size,
        "page_bytes": pages[0] if len(set(pages)) == 1 else pages,
    } | ({"is_eagle_group": True} if group.is_eagle_group else {})


_KINDS = {
    "full_attention": "full",
    "mla_attention": "mla",
    "sliding_window": "sliding_window",
    "chunked_local_attention": "chunked_local",
    "mamba": "mamba",
    "cross_attention": "cross_attention",
}


def to_vllm(spec: LayerSpec) -> Any:
    """Our spec as vLLM's, for made-up mixes of layers."""
    import torch
    from vllm.v1 import kv_cache_interface as k

    dtype = {1: torch.uint8, 2: torch.bfloat16, 4: torch.float32}[spec.element_bytes]
    if spec.kind == "mamba":
        return k.MambaSpec(
            block_size=spec.block_size,
            shapes=((spec.state_bytes,),),
            dtypes=(torch.uint8,),
            page_size_padded=spec.page_size_padded,
            mamba_cache_mode=spec.mamba_cache_mode,
            num_speculative_blocks=spec.speculative_blocks,
            num_prefill_checkpoint_blocks=spec.checkpoint_blocks,
        )
    shape: dict[str, Any] = {
        "block_size": spec.block_size,
        "num_kv_heads": spec.heads,
        "head_size": spec.head_size,
        "dtype": dtype,
    }
    if spec.page_size_padded is not None:
        shape["page_size_padded"] = spec.page_size_padded
    if spec.kind == "mla":
        return k.MLAAttentionSpec(**shape)
    shape["head_size_v"] = spec.head_size_v
    if spec.kind == "full":
        return k.FullAttentionSpec(**shape)
    if spec.kind == "sliding_window":
        return k.SlidingWindowSpec(**shape, sliding_window=spec.sliding_window)
    if spec.kind == "chunked_local":
        return k.ChunkedLocalAttentionSpec(**shape, attention_chunk_size=spec.attention_chunk_size)
    return k.CrossAttentionSpec(**shape)
