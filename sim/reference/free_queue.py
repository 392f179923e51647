"""The free list of the block pool, in reuse order: front = next to be handed out.

Mirrors the order rules of vLLM 0.32.0, ``FreeKVCacheBlockQueue`` (``vllm/v1/core/kv_cache_utils.py``). vLLM
threads a doubly linked list through the blocks; here an ordered dictionary keeps the same order, because only
the order can be observed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.reference.block_pool import KVCacheBlock


class FreeKVCacheBlockQueue:
    """Ordered set of free blocks with O(1) removal anywhere.

    Args:
        blocks: the blocks that are free at the start, front first.
    """

    def __init__(self, blocks: Iterable[KVCacheBlock]) -> None:
        self._order: OrderedDict[int, KVCacheBlock] = OrderedDict((b.block_id, b) for b in blocks)

    @property
    def num_free_blocks(self) -> int:
        """Number of blocks in the queue."""
        return len(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, block: KVCacheBlock) -> bool:
        return block.block_id in self._order

    def __iter__(self) -> Iterator[KVCacheBlock]:
        return iter(self._order.values())

    def block_ids(self) -> list[int]:
        """Ids of the free blocks, front first."""
        return list(self._order)

    def get_all_free_blocks(self) -> list[KVCacheBlock]:
        """The free blocks, front first."""
        return list(self._order.values())

    def popleft(self) -> KVCacheBlock:
        """Take the front block.

        Raises:
            ValueError: the queue is empty.
        """
        if not self._order:
            raise ValueError("the free queue is empty")
        return self._order.popitem(last=False)[1]

    def popleft_n(self, n: int) -> list[KVCacheBlock]:
        """Take the ``n`` front blocks, in queue order.

        Raises:
            AssertionError: fewer than ``n`` blocks are free; nothing is taken.
        """
        assert n <= len(self._order), f"{n} blocks wanted, {len(self._order)} free"
        return [self._order.popitem(last=False)[1] for _ in range(n)]

    def remove(self, block: KVCacheBlock) -> None:
        """Take ``block`` out of the middle; the others keep their order.

        Raises:
            RuntimeError: the block is not in the queue.
        """
        if block.block_id not in self._order:
            raise RuntimeError(f"block {block.block_id} is not in the free queue")
        del self._order[block.block_id]

    def append(self, block: KVCacheBlock) -> None:
        """Put ``block`` at the tail (reused last)."""
        self.append_n((block,))

    def append_n(self, blocks: Sequence[KVCacheBlock]) -> None:
        """Put ``blocks`` at the tail in list order: the last of the list is reused last of all."""
        self._refuse_members(blocks)
        for block in blocks:
            self._order[block.block_id] = block

    def prepend_n(self, blocks: Sequence[KVCacheBlock]) -> None:
        """Put ``blocks`` at the front in list order: the first of the list is the next to be handed out."""
        self._refuse_members(blocks)
        for block in reversed(blocks):
            self._order[block.block_id] = block
            self._order.move_to_end(block.block_id, last=False)

    def _refuse_members(self, blocks: Sequence[KVCacheBlock]) -> None:
        # vLLM would corrupt its links in silence here; a twin must not.
        for block in blocks:
            if block.block_id in self._order:
                raise RuntimeError(f"block {block.block_id} is already in the free queue")
