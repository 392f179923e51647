"""Block tables of one KV-cache group, with the rules of its attention type.

Mirrors vLLM 0.32.0, ``SingleTypeKVCacheManager`` and ``FullAttentionManager``
(``vllm/v1/core/single_type_kv_cache_manager.py``). Another attention type is another subclass, registered in
``MANAGERS``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from sim.reference.block_hash import resolve_block_hashes
from sim.reference.block_pool import BlockPool, KVCacheBlock
from sim.reference.request import Request
from sim.reference.settings import KVCacheGroup


def cdiv(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


class SingleTypeKVCacheManager(ABC):
    """Tables of one group.

    Args:
        group: the group's settings.
        block_size: tokens per block.
        block_pool: the pool that all groups share.
        enable_caching: whether prefix caching is on.
        kv_cache_group_id: index of the group.

    Attributes:
        req_to_blocks: block table by request id; absent for a request that holds nothing.
        num_cached_block: leading blocks of the table that caching has dealt with; present once a request has
            been given blocks or hits.
    """

    def __init__(
        self,
        group: KVCacheGroup,
        block_size: int,
        block_pool: BlockPool,
        enable_caching: bool,
        kv_cache_group_id: int,
    ) -> None:
        self.group = group
        self.block_size = block_size
        self.block_pool = block_pool
        self.enable_caching = enable_caching
        self.kv_cache_group_id = kv_cache_group_id
        self.req_to_blocks: dict[str, list[KVCacheBlock]] = {}
        self.num_cached_block: dict[str, int] = {}

    @abstractmethod
    def find_longest_cache_hit(
        self, block_hashes: Sequence[int], max_length: int
    ) -> tuple[list[KVCacheBlock], int]:
        """Blocks of the longest usable prefix of at most ``max_length`` tokens, and its length in tokens."""

    def get_num_skipped_tokens(self, num_computed_tokens: int) -> int:
        """Leading tokens that attention will never read again after ``num_computed_tokens``."""
        return 0

    def admission_cap(self) -> int | None:
        """Most blocks that one request can hold at once, or None when it keeps them all."""
        return None

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Sequence[KVCacheBlock],
        total_computed_tokens: int,
        apply_admission_cap: bool = False,
    ) -> int:
        """Blocks that the free queue will lose if the request gets slots for ``num_tokens`` in all.

        Hit blocks with no reference count too: touching them takes them out of the queue.
        """
        required = cdiv(num_tokens, self.block_size)
        cap = self.admission_cap()
        if apply_admission_cap and cap is not None:
            required = min(required, cap)
        held = len(self.req_to_blocks.get(request_id, ()))
        if request_id in self.num_cached_block:
            assert not new_computed_blocks, "a request with a table has no hits to add"
            return max(required - held, 0)
        skipped = self.get_num_skipped_tokens(total_computed_tokens) // self.block_size
        new = max(required - max(skipped, len(new_computed_blocks) + held), 0)
        visible = new_computed_blocks[max(0, skipped - held) :]
        return new + sum(b.ref_cnt == 0 and not b.is_null for b in visible)

    def add_local_computed_blocks(
        self, request_id: str, new_computed_blocks: Sequence[KVCacheBlock], num_computed_tokens: int
    ) -> None:
        """Give the request its prefix hits; positions outside the window become null blocks."""
        table = self.req_to_blocks.setdefault(request_id, [])
        assert not table, "hits are added to an empty table only"
        skipped = self.get_num_skipped_tokens(num_computed_tokens) // self.block_size
        visible = new_computed_blocks[skipped:]
        if self.enable_caching:
            self.block_pool.touch(visible)
        else:
            assert not visible, "hits without prefix caching"
        table.extend([self.block_pool.null_block] * skipped)
        table.extend(visible)
        self.num_cached_block[request_id] = len(table)

    def allocate_new_blocks(self, request_id: str, num_tokens: int) -> list[KVCacheBlock]:
        """Extend the table to hold ``num_tokens``; returns the blocks that were added."""
        table = self.req_to_blocks.setdefault(request_id, [])
        missing = cdiv(num_tokens, self.block_size) - len(table)
        if missing <= 0:
            return []
        new_blocks = self.block_pool.get_new_blocks(missing)
        table.extend(new_blocks)
        return new_blocks

    def reachable_block_mask(self, first_block: int, last_block: int) -> Sequence[bool] | None:
        """Which blocks of ``first_block .. last_block - 1`` may be hit later; None means all."""
        return None

    def cache_blocks(self, request: Request, num_tokens: int) -> None:
        """Cache the blocks that the first ``num_tokens`` tokens fill and that were not cached before."""
        cached = self.num_cached_block.get(request.request_id, 0)
        full = num_tokens // self.block_size
        if cached >= full:
            return
        self.block_pool.cache_full_blocks(
            request,
            self.req_to_blocks[request.request_id],
            cached,
            full,
            self.block_size,
            self.kv_cache_group_id,
            self.reachable_block_mask(cached, full),
        )
        self.num_cached_block[request.request_id] = full

    def remove_skipped_blocks(self, request_id: str, num_computed_tokens: int) -> None:
        """Free the blocks that left the attention window, last first; null blocks take their places."""
        skipped = self.get_num_skipped_tokens(num_computed_tokens) // self.block_size
        table = self.req_to_blocks.get(request_id)
        if not skipped or table is None:
            return
        freed: list[KVCacheBlock] = []
        for i in range(min(skipped, len(table)) - 1, -1, -1):
            if table[i].is_null:
                break
            freed.append(table[i])
            table[i] = self.block_pool.null_block
        if freed:
            self.block_pool.free_blocks(freed)

    def free(self, request_id: str) -> None:
        """Give the table back, its last block first, and forget the request."""
        table = self.req_to_blocks.pop(request_id, [])
        self.num_cached_block.pop(request_id, None)
        self.block_pool.free_blocks(reversed(table))


class FullAttentionManager(SingleTypeKVCacheManager):
    """Every token reads all tokens before it: nothing is skipped, hits are prefixes without a gap."""

    def find_longest_cache_hit(
        self, block_hashes: Sequence[int], max_length: int
    ) -> tuple[list[KVCacheBlock], int]:
        hashes = resolve_block_hashes(block_hashes, self.block_pool.hash_block_size, self.block_size)
        hits: list[KVCacheBlock] = []
        for block_hash in hashes[: max_length // self.block_size]:
            found = self.block_pool.get_cached_block(block_hash, (self.kv_cache_group_id,))
            if found is None:
                break
            hits.append(found[0])
        return hits, len(hits) * self.block_size


MANAGERS: dict[str, type[SingleTypeKVCacheManager]] = {"full": FullAttentionManager}
"""Manager class by group type."""
