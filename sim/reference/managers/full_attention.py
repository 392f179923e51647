"""Full attention: every token reads all tokens before it.

Mirrors vLLM 0.32.0, ``FullAttentionManager`` (``vllm/v1/core/single_type_kv_cache_manager.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.reference.block_hash import resolve_block_hashes
from sim.reference.managers.base import BlocksByGroup, SingleTypeKVCacheManager, cdiv
from sim.reference.request import Request


class FullAttentionManager(SingleTypeKVCacheManager):
    """Nothing is skipped, hits are prefixes without a gap; the last block of a hit may be partly filled."""

    supports_fine_grained_lookup = True

    def find_longest_cache_hit(
        self,
        block_hashes: Sequence[int],
        max_length: int,
        group_ids: Sequence[int],
        alignment_tokens: int,
        drop_eagle_block: bool = False,
    ) -> tuple[BlocksByGroup, int]:
        """Full blocks from the left to the first miss, then the longest cached part of the next block.

        The second phase exists only where hits may end inside a block (alignment below the block size).
        """
        size = self.block_size
        hits: BlocksByGroup = tuple([] for _ in group_ids)

        def match(block_hash: int) -> bool:
            found = self.block_pool.get_cached_block(block_hash, group_ids)
            for blocks, block in zip(hits, found or (), strict=False):
                blocks.append(block)
            return found is not None

        coarse = resolve_block_hashes(block_hashes, self.block_pool.hash_block_size, size)
        for block_hash in coarse[: max_length // size]:
            if not match(block_hash):
                break
        length = len(hits[0]) * size
        if alignment_tokens < size and size % alignment_tokens == 0:
            first = length // alignment_tokens
            last = min(first + size // alignment_tokens - 1, max_length // alignment_tokens)
            for i in range(min(last, len(block_hashes)) - 1, first - 1, -1):
                if match(block_hashes[i]):
                    length = (i + 1) * alignment_tokens
                    break
        if drop_eagle_block and length > 0:
            length -= min(alignment_tokens, size)
        length -= length % alignment_tokens
        for blocks in hits:
            del blocks[cdiv(length, size) :]
        return hits, length

    def cache_blocks(
        self, request: Request, num_tokens: int, retention_interval: int | None, boundaries: Sequence[int]
    ) -> None:
        """Cache full blocks, and the prompt's last part of a block where the hash unit is finer than that.

        The part ends at the last unit that a request with the same prompt can hit (before 0.32: at the
        prompt's last unit).
        """
        super().cache_blocks(request, num_tokens, retention_interval, boundaries)
        unit = self.block_pool.hash_block_size
        if self.block_size == unit or self.limits.rules.partial_tail_keys == "off":
            return
        whole = self.use_eagle or self.limits.rules.partial_tail_keys == "whole"
        usable = request.num_prompt_tokens if whole else request.num_prompt_tokens - 1
        boundary = min(usable // unit, len(request.block_hashes)) * unit
        if not 0 < boundary <= num_tokens or boundary % self.block_size == 0:
            return
        table = self.req_to_blocks[request.request_id]
        if boundary // self.block_size < len(table):
            block = table[boundary // self.block_size]
            self.block_pool.cache_partial_block(request, block, boundary, self.kv_cache_group_id)
