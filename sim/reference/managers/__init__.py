"""Block tables of one KV-cache group, a class for each attention type."""

from sim.reference.managers.base import BlocksByGroup, Limits, SingleTypeKVCacheManager, Slots, cdiv
from sim.reference.managers.chunked_local import ChunkedLocalAttentionManager
from sim.reference.managers.cross_attention import CrossAttentionManager
from sim.reference.managers.full_attention import FullAttentionManager
from sim.reference.managers.mamba import MambaManager
from sim.reference.managers.sliding_window import SlidingWindowManager

MANAGERS: dict[str, type[SingleTypeKVCacheManager]] = {
    "full": FullAttentionManager,
    "sliding_window": SlidingWindowManager,
    "chunked_local": ChunkedLocalAttentionManager,
    "mamba": MambaManager,
    "cross_attention": CrossAttentionManager,
}
"""Manager class by group type."""

__all__ = [
    "MANAGERS",
    "BlocksByGroup",
    "ChunkedLocalAttentionManager",
    "CrossAttentionManager",
    "FullAttentionManager",
    "Limits",
    "MambaManager",
    "SingleTypeKVCacheManager",
    "SlidingWindowManager",
    "Slots",
    "cdiv",
]
