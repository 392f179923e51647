"""Block tables of one KV-cache group: what all attention types have in common.

Mirrors vLLM 0.32.0, ``SingleTypeKVCacheManager`` (``vllm/v1/core/single_type_kv_cache_manager.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sim.profiles import Rules
from sim.reference.block_pool import BlockPool, KVCacheBlock
from sim.reference.request import Request
from sim.reference.settings import KVCacheGroup

BlocksByGroup = tuple[list[KVCacheBlock], ...]


def cdiv(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


@dataclass(frozen=True)
class Limits:
    """What the managers know of the engine.

    Attributes:
        max_model_len: longest sequence.
        scheduler_block_size: least common multiple of all groups' block sizes.
        max_in_flight_tokens: tokens beyond the window that the admission cap counts; None: there is no cap.
        num_speculative_tokens: draft tokens of a decode step.
        rules: the rules of the release.
    """

    max_model_len: int
    scheduler_block_size: int
    max_in_flight_tokens: int | None
    num_speculative_tokens: int = 0
    rules: Rules = field(default_factory=Rules)


class Slots(NamedTuple):
    """What a request is to get slots for.

    Attributes:
        num_tokens: tokens in all that need a slot, lookahead included.
        main_model_tokens: those of them that the model itself computes.
        computed_tokens: tokens computed before this step, prefix hits included.
        encoder_tokens: encoder inputs that enter cross attention with this step.
        prefill_end: states are exported only from steps that reach it.
    """

    num_tokens: int
    main_model_tokens: int
    computed_tokens: int
    encoder_tokens: int = 0
    prefill_end: int = 0


class SingleTypeKVCacheManager(ABC):
    """Tables of one group.

    Args:
        group: the group's settings, with its block size filled in.
        block_pool: the pool that all groups share.
        enable_caching: whether prefix caching is on.
        kv_cache_group_id: index of the group.
        limits: what it must know of the engine.

    Attributes:
        req_to_blocks: block table by request id; absent for a request that holds nothing.
        num_cached_block: leading blocks of the table that caching has dealt with; present once a request has
            been given hits or has filled a block.
        use_eagle: hits of this group lose their last block to the drafter.
        alignment_tokens: every hit's length is a multiple of it; set by the coordinator.
        partial_hits: requests whose last block in use is shared and only partly theirs, with its position;
            their next allocation makes a private copy of it.
        pending_copies: (source, copy) pairs that this step's batch will carry out; both are held until then.
    """

    supports_fine_grained_lookup = False
    holds_tokens = True

    def __init__(
        self,
        group: KVCacheGroup,
        block_pool: BlockPool,
        enable_caching: bool,
        kv_cache_group_id: int,
        limits: Limits,
    ) -> None:
        assert group.block_size is not None
        self.group = group
        self.block_size: int = group.block_size
        self.block_pool = block_pool
        self.enable_caching = enable_caching
        self.kv_cache_group_id = kv_cache_group_id
        self.limits = limits
        self.req_to_blocks: dict[str, list[KVCacheBlock]] = {}
        self.num_cached_block: dict[str, int] = {}
        self.use_eagle = False
        self.alignment_tokens = limits.scheduler_block_size
        self.partial_hits: dict[str, tuple[int, KVCacheBlock]] = {}
        self.pending_copies: list[tuple[KVCacheBlock, KVCacheBlock]] = []

    # ---- what an attention type decides --------------------------------------------------------------------

    @abstractmethod
    def find_longest_cache_hit(
        self,
        block_hashes: Sequence[int],
        max_length: int,
        group_ids: Sequence[int],
        alignment_tokens: int,
        drop_eagle_block: bool = False,
    ) -> tuple[BlocksByGroup, int]:
        """The longest usable prefix that all ``group_ids`` have cached, looked up for all of them at once.

        Args:
            block_hashes: the request's hashes, at the pool's hash unit.
            max_length: most tokens that may hit.
            group_ids: groups of this type and shape.
            alignment_tokens: the length must be a multiple of it.
            drop_eagle_block: give the last matched unit up, so that it is computed again for the drafter.

        Returns:
            For each group the blocks, null where attention does not look, and the length in tokens.
        """

    def get_num_skipped_tokens(self, num_computed_tokens: int) -> int:
        """Leading tokens that attention will never read again after ``num_computed_tokens``."""
        return 0

    def admission_cap(self) -> int | None:
        """Most blocks that one request can hold at once, or None when it keeps them all."""
        return None

    def reachable_block_mask(
        self, first_block: int, last_block: int, retention_interval: int | None, boundaries: Sequence[int]
    ) -> list[bool] | None:
        """Which blocks of ``first_block .. last_block - 1`` may be hit later; None means all.

        Args:
            first_block, last_block: range of positions in the table.
            retention_interval: None keeps what a hit of any length needs, 0 only what one that ends at a
                boundary needs, r also one in every r tokens.
            boundaries: token positions at which a later request is expected to resume.
        """
        return None

    # ---- allocation ----------------------------------------------------------------------------------------

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        slots: Slots,
        new_computed_blocks: Sequence[KVCacheBlock],
        apply_admission_cap: bool = False,
    ) -> int:
        """Blocks that the free queue will lose if the request gets these slots.

        Hit blocks with no reference count too: touching them takes them out of the queue.
        """
        required = cdiv(slots.num_tokens, self.block_size)
        cap = self.admission_cap()
        if apply_admission_cap and cap is not None:
            required = min(required, cap)
        held = len(self.req_to_blocks.get(request_id, ()))
        if request_id in self.num_cached_block:
            assert not new_computed_blocks, "a request with a table has no hits to add"
            return max(required - held, 0)
        skipped = self._skipped_hits(slots.computed_tokens)
        new = max(required - max(skipped, len(new_computed_blocks) + held), 0)
        new += self._ends_inside_a_block(new_computed_blocks, slots.computed_tokens)
        return new + evictable(new_computed_blocks[max(0, skipped - held) :])

    def add_local_computed_blocks(
        self, request_id: str, new_computed_blocks: Sequence[KVCacheBlock], num_computed_tokens: int
    ) -> None:
        """Give the request its prefix hits; positions outside the window become null blocks."""
        table = self.req_to_blocks.setdefault(request_id, [])
        assert not table, "hits are added to an empty table only"
        skipped = self._skipped_hits(num_computed_tokens)
        visible = new_computed_blocks[skipped:]
        if self.enable_caching:
            self.block_pool.touch(visible)
        else:
            assert not visible, "hits without prefix caching"
        table.extend([self.block_pool.null_block] * skipped)
        table.extend(visible)
        self.num_cached_block[request_id] = len(table)
        if self._ends_inside_a_block(visible, num_computed_tokens):
            position = num_computed_tokens // self.block_size
            self.partial_hits[request_id] = (position, visible[-1])
            self.num_cached_block[request_id] = position

    def allocate_new_blocks(self, request_id: str, slots: Slots) -> list[KVCacheBlock]:
        """Extend the table to hold the slots; returns the blocks that were added or replaced a shared one."""
        copies: list[KVCacheBlock] = []
        if request_id in self.partial_hits:
            position, source = self.partial_hits.pop(request_id)
            copies = self.block_pool.get_new_blocks(1)
            self._copy_on_write(request_id, position, source, copies[0])
        table = self.req_to_blocks.setdefault(request_id, [])
        missing = cdiv(slots.num_tokens, self.block_size) - len(table)
        if missing <= 0:
            return copies
        new_blocks = self.block_pool.get_new_blocks(missing)
        table.extend(new_blocks)
        return copies + new_blocks

    def _copy_on_write(
        self, request_id: str, position: int, source: KVCacheBlock, copy: KVCacheBlock
    ) -> None:
        # The request's reference of the source and one more of the copy last until the copy has been made.
        table = self.req_to_blocks[request_id]
        assert table[position] is source
        assert source.ref_cnt > 0
        assert not source.is_null
        table[position] = copy
        copy.ref_cnt += 1
        self.pending_copies.append((source, copy))

    def _skipped_hits(self, num_computed_tokens: int) -> int:
        # Up to 0.13 a hit takes what its next step gives up again.
        taken = self.limits.rules.skipped_hits == "taken"
        return 0 if taken else self._skipped_blocks(num_computed_tokens)

    def _skipped_blocks(self, num_computed_tokens: int) -> int:
        return max(self.get_num_skipped_tokens(num_computed_tokens), 0) // self.block_size

    def _ends_inside_a_block(self, hits: Sequence[KVCacheBlock], num_computed_tokens: int) -> bool:
        return len(hits) > 0 and num_computed_tokens % self.block_size != 0

    # ---- caching -------------------------------------------------------------------------------------------

    def cache_blocks(
        self, request: Request, num_tokens: int, retention_interval: int | None, boundaries: Sequence[int]
    ) -> None:
        """Cache the blocks that the first ``num_tokens`` tokens fill and that were not dealt with before.

        Args:
            request: gives hashes, and a boundary of its own where one is known.
            num_tokens: tokens whose ids are known and whose content is or will be there.
            retention_interval: see ``reachable_block_mask``.
            boundaries: token positions at which a later request can replay this prompt.
        """
        cached = self.num_cached_block.get(request.request_id, 0)
        hashed = len(request.block_hashes) * self.block_pool.hash_block_size
        full = min(num_tokens, hashed) // self.block_size
        if cached >= full:
            return
        reachable = [*boundaries]
        if request.shared_prefix_boundary and self.limits.rules.shared_prefix_boundary == "on":
            reachable.append(request.shared_prefix_boundary)
        mask = None
        rule = self.limits.rules.retention
        if rule in ("dense", "boundary") or (rule == "uneven" and self.alignment_tokens > self.block_size):
            mask = self.reachable_block_mask(cached, full, retention_interval, reachable)
        self.block_pool.cache_full_blocks(
            request,
            self.req_to_blocks[request.request_id],
            cached,
            full,
            self.block_size,
            self.kv_cache_group_id,
            mask,
        )
        self.num_cached_block[request.request_id] = full

    # ---- freeing -------------------------------------------------------------------------------------------

    def remove_skipped_blocks(self, request_id: str, num_computed_tokens: int) -> None:
        """Free the blocks that left the attention window, last first; null blocks take their places."""
        if self.get_num_skipped_tokens(num_computed_tokens) > 0:
            self._null_out(request_id, self._skipped_blocks(num_computed_tokens))

    def _null_out(self, request_id: str, num_blocks: int) -> None:
        # From the right to the first null block: everything before it was freed at an earlier time.
        table = self.req_to_blocks.get(request_id, [])
        freed: list[KVCacheBlock] = []
        for i in range(min(num_blocks, len(table)) - 1, -1, -1):
            if table[i].is_null:
                break
            freed.append(table[i])
            table[i] = self.block_pool.null_block
        if freed:
            self.block_pool.free_blocks(freed, windows=True)

    def free(self, request_id: str) -> None:
        """Give the table back, its last block first, and forget the request."""
        table = self.req_to_blocks.pop(request_id, [])
        self.num_cached_block.pop(request_id, None)
        self.partial_hits.pop(request_id, None)
        self.block_pool.free_blocks(reversed(table), windows=self.group.type == "sliding_window")

    def take_pending_copies(self) -> list[tuple[KVCacheBlock, KVCacheBlock]]:
        """The copies asked for since the last call."""
        copies, self.pending_copies = self.pending_copies, []
        return copies

    def new_step_starts(self) -> None:  # noqa: B027
        """A schedule call begins; most types don't care."""


def evictable(blocks: Sequence[KVCacheBlock]) -> int:
    """How many of these blocks are in the free queue."""
    return sum(b.ref_cnt == 0 and not b.is_null for b in blocks)
