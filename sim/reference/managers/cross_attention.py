"""Cross attention: decoder tokens read the encoder's output of their request.

Mirrors vLLM 0.32.0, ``CrossAttentionManager`` (``vllm/v1/core/single_type_kv_cache_manager.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.reference.block_pool import KVCacheBlock
from sim.reference.managers.base import BlocksByGroup, SingleTypeKVCacheManager, Slots
from sim.reference.request import Request


class CrossAttentionManager(SingleTypeKVCacheManager):
    """One allocation for all encoder tokens, at the step that runs the encoder; nothing is ever shared."""

    def _encoder_slots(self, slots: Slots) -> Slots:
        return Slots(slots.encoder_tokens, slots.encoder_tokens, 0)

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        slots: Slots,
        new_computed_blocks: Sequence[KVCacheBlock],
        apply_admission_cap: bool = False,
    ) -> int:
        """Blocks for the encoder tokens that enter with this step."""
        return super().get_num_blocks_to_allocate(
            request_id, self._encoder_slots(slots), (), apply_admission_cap
        )

    def allocate_new_blocks(self, request_id: str, slots: Slots) -> list[KVCacheBlock]:
        """Take the blocks for the encoder tokens that enter with this step."""
        return super().allocate_new_blocks(request_id, self._encoder_slots(slots))

    def add_local_computed_blocks(
        self, request_id: str, new_computed_blocks: Sequence[KVCacheBlock], num_computed_tokens: int
    ) -> None:
        """There are no hits."""
        assert not new_computed_blocks

    def find_longest_cache_hit(
        self,
        block_hashes: Sequence[int],
        max_length: int,
        group_ids: Sequence[int],
        alignment_tokens: int,
        drop_eagle_block: bool = False,
    ) -> tuple[BlocksByGroup, int]:
        """Not possible: prefix caching is off."""
        raise NotImplementedError("cross attention has no prefix cache")

    def cache_blocks(
        self, request: Request, num_tokens: int, retention_interval: int | None, boundaries: Sequence[int]
    ) -> None:
        """Not possible: prefix caching is off."""
        raise NotImplementedError("cross attention has no prefix cache")
