"""Sliding window: a token reads the window of tokens that ends with itself.

Mirrors vLLM 0.32.0, ``SlidingWindowManager`` (``vllm/v1/core/single_type_kv_cache_manager.py``) and
``SlidingWindowSpec.max_admission_blocks_per_request`` (``vllm/v1/kv_cache_interface.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.reference.block_hash import resolve_block_hashes
from sim.reference.block_pool import KVCacheBlock
from sim.reference.managers.base import BlocksByGroup, SingleTypeKVCacheManager, cdiv


class SlidingWindowManager(SingleTypeKVCacheManager):
    """Blocks left of the window are freed; a hit needs only the blocks that the next window touches."""

    @property
    def sliding_window(self) -> int:
        """Tokens that a token reads, itself included."""
        assert self.group.sliding_window is not None
        return self.group.sliding_window

    def get_num_skipped_tokens(self, num_computed_tokens: int) -> int:
        """Tokens left of the next token's window."""
        return max(0, num_computed_tokens - self.sliding_window + 1)

    def admission_cap(self) -> int | None:
        """The window before the next token, what is in flight beyond it, and a block for their offset."""
        if self.limits.max_in_flight_tokens is None:
            return None
        reach = self.sliding_window - 1 + self.limits.max_in_flight_tokens
        return cdiv(min(reach, self.limits.max_model_len), self.block_size) + 1

    def _blocks_for_hit(self, eagle: bool) -> int:
        # The drafter's block lies behind the window and is dropped after the match.
        return cdiv(self.sliding_window - 1, self.block_size) + eagle

    def find_longest_cache_hit(
        self,
        block_hashes: Sequence[int],
        max_length: int,
        group_ids: Sequence[int],
        alignment_tokens: int,
        drop_eagle_block: bool = False,
    ) -> tuple[BlocksByGroup, int]:
        """The rightmost run of cached blocks that is as long as a window, or a run from the beginning.

        The run must end where a hit may end: at a multiple of the alignment, once the drafter's block is
        dropped.
        """
        size = self.block_size
        hashes = resolve_block_hashes(block_hashes, self.block_pool.hash_block_size, size)
        needed = self._blocks_for_hit(drop_eagle_block)
        start = end = run = 0
        found: dict[int, list[KVCacheBlock]] = {}
        # Before 0.20 the run itself must end where a hit may end.
        behind = int(drop_eagle_block and self.limits.rules.draft_lookup != "each_round")
        for i in range(max_length // size - 1, -1, -1):
            blocks = self.block_pool.get_cached_block(hashes[i], group_ids)
            if blocks is None:
                run = 0
                continue
            if run == 0 and (i + 1 - behind) * size % alignment_tokens:
                continue
            found[i] = blocks
            run += 1
            if run >= needed:
                start, end = i, i + run
                break
        else:
            # A run from the beginning is as good as a window, whatever its length.
            end = self._aligned(run, alignment_tokens)
        if drop_eagle_block and end:
            end = self._aligned(end - 1, alignment_tokens)
        null = self.block_pool.null_block
        hits: BlocksByGroup = tuple([] for _ in group_ids)
        for i in range(end):
            row = found.get(i) if i >= start else None
            for g, blocks_of_group in enumerate(hits):
                blocks_of_group.append(null if row is None else row[g])
        return hits, end * size

    def _aligned(self, num_blocks: int, alignment_tokens: int) -> int:
        while num_blocks * self.block_size % alignment_tokens:
            num_blocks -= 1
        return num_blocks

    def reachable_block_mask(
        self, first_block: int, last_block: int, retention_interval: int | None, boundaries: Sequence[int]
    ) -> list[bool] | None:
        """The window before each kept position: multiples of the interval, and the boundaries.

        With a drafter the kept blocks lie one block further right.
        """
        size, align = self.block_size, self.alignment_tokens
        if align % size:
            return None
        # 0.22 forgets the block behind the window that a drafter's group drops.
        drops = self.use_eagle and self.limits.rules.retention != "uneven"
        needed = self._blocks_for_hit(drops)
        shift = int(drops)
        mask = [False] * (last_block - first_block)
        interval = align if retention_interval is None else retention_interval
        if interval:
            per_segment = interval // size
            if needed >= per_segment:
                return None
            for i in range(max(first_block, shift), last_block):
                mask[i - first_block] = (i - shift) % per_segment >= per_segment - needed
        if retention_interval is not None:
            for boundary in boundaries:
                end = boundary // align * align // size + shift
                for i in range(max(first_block, end - needed), min(last_block, end)):
                    mask[i - first_block] = True
        return mask
