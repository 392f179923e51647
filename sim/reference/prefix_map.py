"""From block key to the cached blocks that hold this content.

Mirrors vLLM 0.32.0, ``BlockHashToBlockMap`` (``vllm/v1/core/block_pool.py``): blocks are not de-duplicated,
so a key may stand for several; a lookup answers with the one that was inserted first and is still there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.reference.block_hash import BlockKey
    from sim.reference.block_pool import KVCacheBlock


class BlockHashToBlockMap:
    """Key to insertion-ordered blocks; a key with no block left does not exist."""

    def __init__(self) -> None:
        self._cache: dict[BlockKey, dict[int, KVCacheBlock]] = {}

    def __len__(self) -> int:
        return len(self._cache)

    def __iter__(self) -> Iterator[BlockKey]:
        return iter(self._cache)

    def get_one_block(self, key: BlockKey) -> KVCacheBlock | None:
        """The oldest insertion under ``key`` that is still present, or None."""
        blocks = self._cache.get(key)
        if blocks is None:
            return None
        return next(iter(blocks.values()))

    def blocks_of(self, key: BlockKey) -> list[KVCacheBlock]:
        """All blocks under ``key``, oldest insertion first."""
        return list(self._cache.get(key, {}).values())

    def contain(self, key: BlockKey, block_id: int) -> bool:
        """Whether block ``block_id`` is stored under ``key``."""
        return block_id in self._cache.get(key, {})

    def insert(self, key: BlockKey, block: KVCacheBlock) -> None:
        """Store ``block`` last under ``key``; a block that is there already keeps its place."""
        self._cache.setdefault(key, {})[block.block_id] = block

    def pop(self, key: BlockKey, block_id: int) -> KVCacheBlock | None:
        """Remove block ``block_id`` from ``key``; None when it was not there."""
        blocks = self._cache.get(key)
        if blocks is None:
            return None
        block = blocks.pop(block_id, None)
        if not blocks:
            del self._cache[key]
        return block
