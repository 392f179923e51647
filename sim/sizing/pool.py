"""A pool's size, where it comes from, and the KV-cache groups that the core simulates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sim.engine_settings import KVCacheGroup
from sim.sizing.groups import Group
from sim.sizing.layers import CacheLayout
from sim.sizing.plan import PoolPlan

#: Kinds that the block manager treats alike.
_MANAGED_AS = {"mla": "full"}


@dataclass(frozen=True)
class PoolSize:
    """A pool's size and where it comes from.

    Attributes:
        num_gpu_blocks: blocks, the null block included; may be below 1 if the weights don't fit.
        available_bytes: memory for the pool on each GPU; None if unknown.
        page_bytes: bytes of one block in all layers on one GPU.
        how: "given", "kv_cache_memory_bytes" or "estimated".
        parts: the terms of the estimate in bytes.
        plan: groups, pages and concurrency; None without a model.
        layout: the layers' specs; None without a model.
    """

    num_gpu_blocks: int
    available_bytes: int | None
    page_bytes: int | None
    how: str
    parts: dict[str, int]
    plan: PoolPlan | None = None
    layout: CacheLayout | None = None

    def describe(self) -> dict[str, Any]:
        """For provenance."""
        out: dict[str, Any] = {
            "how": self.how,
            "num_gpu_blocks": self.num_gpu_blocks,
            "available_kv_cache_bytes_per_gpu": self.available_bytes,
            "block_bytes_per_gpu": self.page_bytes,
            "estimate_bytes": self.parts,
        }
        if self.plan is not None:
            out["max_concurrency"] = self.plan.max_concurrency
            out["kv_cache_size_tokens"] = self.plan.tokens
        return out


def core_groups(plan: PoolPlan, block_size: int, encoder_tokens: int = 0) -> tuple[KVCacheGroup, ...]:
    """The groups of a plan as the core takes them; one plain full-attention group is the core's default.

    Args:
        plan: of the model.
        block_size: the engine's.
        encoder_tokens: of one request, for cross attention.
    """
    groups = tuple(core_group(g, block_size, encoder_tokens) for g in plan.groups)
    return groups or (KVCacheGroup(),)


def core_group(group: Group, block_size: int, encoder_tokens: int = 0) -> KVCacheGroup:
    """One group as the core takes it; see `core_groups`."""
    s = group.spec
    kind = _MANAGED_AS.get(s.kind, s.kind)
    return KVCacheGroup(
        type=kind,
        block_size=None if s.block_size == block_size else s.block_size,
        sliding_window=s.sliding_window if kind == "sliding_window" else None,
        attention_chunk_size=s.attention_chunk_size if kind == "chunked_local" else None,
        mamba_cache_mode=s.mamba_cache_mode if kind == "mamba" else None,
        # Mamba 2 exports a state after any token (MambaMixer2.get_kv_cache_spec).
        prefill_checkpoint_alignment=1 if s.checkpoint_blocks and s.mamba_cache_mode == "align" else None,
        encoder_tokens=encoder_tokens if kind == "cross_attention" else None,
        is_eagle_group=group.is_eagle_group,
    )
