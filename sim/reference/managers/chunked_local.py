"""Chunked local attention: a token reads the tokens of its chunk up to itself.

Mirrors vLLM 0.32.0, ``ChunkedLocalAttentionManager`` (``vllm/v1/core/single_type_kv_cache_manager.py``) and
``ChunkedLocalAttentionSpec.max_admission_blocks_per_request`` (``vllm/v1/kv_cache_interface.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.reference.block_hash import resolve_block_hashes
from sim.reference.managers.base import BlocksByGroup, SingleTypeKVCacheManager, cdiv


class ChunkedLocalAttentionManager(SingleTypeKVCacheManager):
    """Blocks of earlier chunks are freed; a hit needs only the blocks of the chunk that it ends in."""

    @property
    def attention_chunk_size(self) -> int:
        """Tokens of one chunk."""
        assert self.group.attention_chunk_size is not None
        return self.group.attention_chunk_size

    def get_num_skipped_tokens(self, num_computed_tokens: int) -> int:
        """Tokens of the chunks before the next token's."""
        return num_computed_tokens // self.attention_chunk_size * self.attention_chunk_size

    def admission_cap(self) -> int | None:
        """A chunk and what is in flight beyond it."""
        if self.limits.max_in_flight_tokens is None:
            return None
        reach = self.attention_chunk_size + self.limits.max_in_flight_tokens
        return cdiv(min(reach, self.limits.max_model_len), self.block_size)

    def find_longest_cache_hit(
        self,
        block_hashes: Sequence[int],
        max_length: int,
        group_ids: Sequence[int],
        alignment_tokens: int,
        drop_eagle_block: bool = False,
    ) -> tuple[BlocksByGroup, int]:
        """Everything before the chunk of token ``max_length``, unseen, and what is cached from there on.

        The blocks before the chunk count as hits whether or not anything is cached: attention would not read
        them. Beside full attention that does no harm; a model with chunked groups alone "hits" in an empty
        cache.
        """
        assert not drop_eagle_block
        assert alignment_tokens == self.block_size
        hashes = resolve_block_hashes(block_hashes, self.block_pool.hash_block_size, self.block_size)
        first = self.get_num_skipped_tokens(max_length) // self.block_size
        hits: BlocksByGroup = tuple([self.block_pool.null_block] * first for _ in group_ids)
        for i in range(first, max_length // self.block_size):
            found = self.block_pool.get_cached_block(hashes[i], group_ids)
            if found is None:
                break
            for blocks, block in zip(hits, found, strict=True):
                blocks.append(block)
        return hits, len(hits[0]) * self.block_size
