"""Mamba and other linear attention: a block holds the state after some token, not the tokens themselves.

Mirrors vLLM 0.32.0, ``MambaManager`` (``vllm/v1/core/single_type_kv_cache_manager.py``) and two functions of
``vllm/v1/kv_cache_interface.py`` that it shares with the scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.reference.block_hash import BlockKey, resolve_block_hashes
from sim.reference.block_pool import BlockPool, KVCacheBlock
from sim.reference.managers.base import (
    BlocksByGroup,
    Limits,
    SingleTypeKVCacheManager,
    Slots,
    cdiv,
    evictable,
)
from sim.reference.request import Request
from sim.reference.settings import KVCacheGroup


def checkpoint_position(num_tokens: int, unit: int, drop_eagle_block: bool) -> int:
    """The last multiple of ``unit`` at which a request with the same ``num_tokens`` tokens can resume.

    A token must be left to compute; with a drafter the dropped unit leaves one anyway.
    """
    position = (num_tokens if drop_eagle_block else num_tokens - 1) // unit * unit
    return max(0, position - unit if drop_eagle_block else position)


def tail_position(rule: str, num_prompt_tokens: int, unit: int, drop_eagle_block: bool) -> int:
    """Where the state at the end of a prompt gets a key, under a value of ``state_tails``."""
    if rule == "on":
        return checkpoint_position(num_prompt_tokens, unit, drop_eagle_block)
    position = num_prompt_tokens // unit * unit
    drops = drop_eagle_block and rule not in ("unit", "inside")
    return max(0, position - unit) if drops else position


def export_position(rule: str, num_tokens: int, hash_unit: int, hit_unit: int, drop_eagle_block: bool) -> int:
    """Which state a step that ends at ``num_tokens`` exports, under a value of ``state_exports``."""
    if rule == "hits":
        return checkpoint_position(num_tokens, hit_unit, drop_eagle_block)
    position = (num_tokens - 1) // hash_unit * hash_unit
    return max(0, position - hash_unit if drop_eagle_block else position)


def is_exported(
    start: int, end: int, position: int, hash_block_size: int, block_size: int, alignment: int | None
) -> bool:
    """Whether a kernel can export the state at ``position`` while it computes ``start .. end - 1``.

    vLLM 0.32.0, ``is_mamba_prefill_checkpoint_valid``. The state goes to the position in the table before the
    running state's, so that must lie behind the state that the chunk begins with.
    """
    return (
        alignment is not None
        and start % hash_block_size == 0
        and cdiv(end, block_size) - 2 > (start - 1) // block_size
        and start + hash_block_size <= position < end
        and (position - start) % alignment == 0
    )


class MambaManager(SingleTypeKVCacheManager):
    """Only the latest state matters; what stays cached are states at the ends of blocks.

    Without prefix caching (mode ``none``) a table is as in other types, and all blocks but the last are freed
    as it grows. With it (mode ``align``) a table is positional: it has real blocks at the running state, at
    the positions of the drafts after it, and, until they are retired, at states of earlier steps; null blocks
    fill the gaps.

    Attributes:
        last_state: position of the state that the step before left, by request.
        retired: positions before this one hold no state any more, by request.
        allocated: requests that were given blocks since they were admitted.
        cached_this_step: keys that this step's batch will fill: nobody may hit them before the next step. The
            state at the prompt's end counts again in each step in which it stands in its request's table.
        checkpoints: states that this step's kernel exports from inside a chunk: number of tokens, and the
            position in the table of the block for it, by request.
        drop_eagle_checkpoint: states are kept one unit further left, where the hit of a drafter's group ends.
    """

    supports_fine_grained_lookup = True
    holds_tokens = False

    def __init__(
        self,
        group: KVCacheGroup,
        block_pool: BlockPool,
        enable_caching: bool,
        kv_cache_group_id: int,
        limits: Limits,
    ) -> None:
        super().__init__(group, block_pool, enable_caching, kv_cache_group_id, limits)
        self.aligned = group.mamba_cache_mode == "align"
        self.num_speculative_blocks = limits.num_speculative_tokens
        self.last_state: dict[str, int] = {}
        self.retired: dict[str, int] = {}
        self.allocated: set[str] = set()
        self.cached_this_step: set[BlockKey] = set()
        self.checkpoints: dict[str, tuple[int, int]] = {}
        self.drop_eagle_checkpoint = False

    # ---- hits ----------------------------------------------------------------------------------------------

    def find_longest_cache_hit(
        self,
        block_hashes: Sequence[int],
        max_length: int,
        group_ids: Sequence[int],
        alignment_tokens: int,
        drop_eagle_block: bool = False,
    ) -> tuple[BlocksByGroup, int]:
        """The rightmost cached state at an aligned position; the positions before it are null.

        A drafter has no such layers: nothing is dropped here.
        """
        size = self.block_size
        fine = alignment_tokens < size and size % alignment_tokens == 0
        step = alignment_tokens if fine else size
        hashes = (
            block_hashes
            if fine
            else resolve_block_hashes(block_hashes, self.block_pool.hash_block_size, size)
        )
        for i in range(min(max_length // step, len(hashes)) - 1, -1, -1):
            length = (i + 1) * step
            found = self.block_pool.get_cached_block(hashes[i], group_ids)
            if found is not None and length % alignment_tokens == 0:
                gap = [self.block_pool.null_block] * (cdiv(length, size) - 1)
                return tuple([*gap, block] for block in found), length
        return tuple([] for _ in group_ids), 0

    def reachable_block_mask(
        self, first_block: int, last_block: int, retention_interval: int | None, boundaries: Sequence[int]
    ) -> list[bool] | None:
        """The state at each kept position: multiples of the interval, and the boundaries."""
        if retention_interval is None or self.limits.rules.state_retention == "off":
            return None
        size, align = self.block_size, self.alignment_tokens
        per_segment = retention_interval // size
        if retention_interval and per_segment <= 1:
            return None
        kept = {boundary // align * align // size - 1 for boundary in boundaries}
        return [
            i in kept or (retention_interval > 0 and (i + 1) % per_segment == 0)
            for i in range(first_block, last_block)
        ]

    def get_num_skipped_tokens(self, num_computed_tokens: int) -> int:
        """All but the last: its state has them in it. 0.13 keeps all states."""
        return 0 if self.limits.rules.states_retired == "never" else num_computed_tokens - 1

    # ---- allocation ----------------------------------------------------------------------------------------

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        slots: Slots,
        new_computed_blocks: Sequence[KVCacheBlock],
        apply_admission_cap: bool = False,
    ) -> int:
        """Blocks that the free queue will lose; more than there are for a state that is not computed yet.

        Attention may hit what the same batch computes, since layers run one after the other over all
        requests; a state must exist before the batch begins, so such a request waits for the next step.
        """
        waits = new_computed_blocks and new_computed_blocks[-1].block_hash in self.cached_this_step
        if waits and self.limits.rules.state_wait == "on":
            return self.block_pool.num_gpu_blocks + 1
        if not self.aligned:
            return super().get_num_blocks_to_allocate(
                request_id, self._with_drafts(slots), new_computed_blocks, apply_admission_cap
            )
        required = cdiv(slots.main_model_tokens, self.block_size) + self.num_speculative_blocks
        new = required - len(new_computed_blocks) - len(self.req_to_blocks.get(request_id, ()))
        partial = request_id in self.partial_hits or self._ends_inside_a_block(
            new_computed_blocks, slots.computed_tokens
        )
        if partial:
            new = max(new, 0) + 1
        checkpoint = self._checkpoint_to_export(request_id, slots)
        if not apply_admission_cap:
            self.checkpoints.pop(request_id, None)
            if checkpoint is not None:
                self.checkpoints[request_id] = checkpoint
        if new > 0:
            known = request_id in self.allocated
            most = self._most_new_blocks(known, partial, checkpoint is not None)
            if known and checkpoint is not None and self.limits.rules.state_exports == "each":
                most = new
            copies = partial and self.limits.rules.state_copies == "two"
            new = most if copies else min(new, most)
        return new + evictable(new_computed_blocks)

    def _checkpoint_to_export(self, request_id: str, slots: Slots) -> tuple[int, int] | None:
        end, rule = slots.main_model_tokens, self.limits.rules.state_exports
        unit, alignment = self.block_pool.hash_block_size, self.group.prefill_checkpoint_alignment
        tokens = export_position(rule, end, unit, self.alignment_tokens, self.drop_eagle_checkpoint)
        position = cdiv(end, self.block_size) - 2
        if end < slots.prefill_end or tokens == 0 or position < 0:
            return None
        if not is_exported(slots.computed_tokens, end, tokens, unit, self.block_size, alignment):
            return None
        table = self.req_to_blocks.get(request_id, [])
        # There must be no state yet at that position; a block of a draft will do.
        drafts = self.num_speculative_blocks if request_id in self.allocated else 0
        if position >= len(table) - drafts or table[position].is_null:
            return tokens, position
        return None

    def _most_new_blocks(self, known: bool, partial: bool, checkpoint: bool) -> int:
        # One for the new running state, a copy, a checkpoint, and once for each request those of the drafts.
        # Up to 0.31 a step that exports a state takes those of the drafts anew.
        anew = checkpoint and self.limits.rules.state_exports != "hits"
        return 1 + partial + checkpoint + (0 if known and not anew else self.num_speculative_blocks)

    def _with_drafts(self, slots: Slots) -> Slots:
        return slots._replace(num_tokens=slots.num_tokens + self.block_size * self.num_speculative_blocks)

    def allocate_new_blocks(self, request_id: str, slots: Slots) -> list[KVCacheBlock]:
        """Give the request a block for the state that this step ends with, nulls up to it, and a copy if due.

        Lookahead tokens get none: a drafter has no such layers.
        """
        if not self.aligned:
            return super().allocate_new_blocks(request_id, self._with_drafts(slots))
        table = self.req_to_blocks.setdefault(request_id, [])
        drafts = self.num_speculative_blocks
        required = cdiv(slots.main_model_tokens, self.block_size) + drafts
        partial = self.partial_hits.pop(request_id, None)
        known = request_id in self.allocated
        self.allocated.add(request_id)
        checkpoint = request_id in self.checkpoints
        held = len(table)
        if required <= held and partial is None and not checkpoint:
            return []
        if known:
            self.last_state[request_id] = held - 1 - drafts
        elif held > 0:
            self.last_state[request_id] = held - 1
        skipped = required - drafts - 1 - checkpoint
        table.extend([self.block_pool.null_block] * (skipped - held))
        if known and not (checkpoint and self.limits.rules.state_exports != "hits"):
            # Blocks of drafts that this step leaves behind move to its end.
            for i in range(held - drafts, min(held, skipped)):
                block = table[i]
                assert block.ref_cnt == 1
                assert block.block_hash is None
                table.append(block)
                table[i] = self.block_pool.null_block
        new_blocks = self.block_pool.get_new_blocks(max(required - len(table), 0) + (partial is not None))
        assert len(new_blocks) <= self._most_new_blocks(known, partial is not None, checkpoint)
        replaced: list[KVCacheBlock] = []
        if partial is not None:
            copy = new_blocks.pop(0)
            if known:
                self._move_cached_state_away(table, *partial, copy)
            else:
                self._copy_on_write(request_id, *partial, copy)
                replaced = [copy]
        added = table[held:] + new_blocks
        table.extend(new_blocks)
        return replaced + added

    def _move_cached_state_away(
        self, table: list[KVCacheBlock], position: int, source: KVCacheBlock, copy: KVCacheBlock
    ) -> None:
        # A running request's block stays where its worker knows it; the cached content moves to the copy.
        assert table[position] is source
        self.block_pool.move_block_hashes(source, copy)
        self.pending_copies.append((source, copy))
        source.ref_cnt += 1
        if copy.block_hash is not None:
            self.cached_this_step.add(copy.block_hash)

    # ---- caching -------------------------------------------------------------------------------------------

    def cache_blocks(
        self, request: Request, num_tokens: int, retention_interval: int | None, boundaries: Sequence[int]
    ) -> None:
        """Cache the states at the ends of blocks, and one at the prompt's last hash unit."""
        before = self.num_cached_block.get(request.request_id, 0)
        super().cache_blocks(request, num_tokens, retention_interval, boundaries)
        after = self.num_cached_block.get(request.request_id, 0)
        if self.aligned:
            if request.request_id in self.checkpoints:
                key = self._cache_checkpoint(request, num_tokens, retention_interval)
            elif self.limits.rules.state_tails != "off":
                key = self._cache_partial_tail(request, num_tokens)
            else:
                key = None
            if key is not None:
                self.cached_this_step.add(key)
        for block in self.req_to_blocks.get(request.request_id, [])[before:after]:
            if block.block_hash is not None:
                self.cached_this_step.add(block.block_hash)

    def _cache_checkpoint(
        self, request: Request, num_tokens: int, retention_interval: int | None
    ) -> BlockKey | None:
        """Let the exported state stand for its tokens, if somebody may resume there; else for nothing."""
        tokens, position = self.checkpoints[request.request_id]
        block = self.req_to_blocks[request.request_id][position]
        rule, prompt = self.limits.rules.state_exports, request.num_prompt_tokens
        wanted = tokens == request.shared_prefix_boundary or (
            rule != "each"
            and tokens
            == export_position(
                rule,
                prompt,
                self.block_pool.hash_block_size,
                self.alignment_tokens,
                self.drop_eagle_checkpoint,
            )
        )
        if rule != "hits":
            wanted = wanted or retention_interval != 0 or num_tokens >= prompt
        elif not wanted and tokens % self.block_size == 0:
            last = tokens // self.block_size
            mask = self.reachable_block_mask(last - 1, last, retention_interval, ())
            wanted = mask is None or mask[0]
        if not wanted:
            self.block_pool.evict_blocks([block.block_id])
            return None
        if block.block_hash_num_tokens == tokens:
            return None
        return self.block_pool.cache_partial_block(
            request, block, tokens, self.kv_cache_group_id, replace=True
        )

    def _cache_partial_tail(self, request: Request, num_tokens: int) -> BlockKey | None:
        unit, rule = self.block_pool.hash_block_size, self.limits.rules.state_tails
        if num_tokens <= 0 or num_tokens % unit:
            return None
        if rule != "on" and num_tokens % self.block_size == 0:
            return None
        drops = self.use_eagle if rule == "marked" else self.drop_eagle_checkpoint
        if num_tokens != tail_position(rule, request.num_prompt_tokens, unit, drops):
            return None
        position = cdiv(num_tokens, self.block_size) - 1
        table = self.req_to_blocks.get(request.request_id, [])
        if position >= len(table) or table[position].is_null:
            return None
        block = table[position]
        if block.block_hash_num_tokens == num_tokens and self.limits.rules.state_renewal == "off":
            return None
        key = self.block_pool.cache_partial_block(request, block, num_tokens, self.kv_cache_group_id)
        if key is not None and num_tokens % self.block_size:
            # The next step overwrites this state: it must be copied first.
            self.partial_hits[request.request_id] = (position, block)
            self.num_cached_block[request.request_id] = position
        return key

    def new_step_starts(self) -> None:
        """What earlier batches were to fill can be hit now."""
        self.cached_this_step.clear()

    # ---- freeing -------------------------------------------------------------------------------------------

    def remove_skipped_blocks(self, request_id: str, num_computed_tokens: int) -> None:
        """Free the states before the last one.

        From 0.17 to 0.25 tokens in flight count as computed, but for drafts, which may be taken back.
        """
        if self.limits.rules.state_free_basis == "less_drafts":
            num_computed_tokens = max(0, num_computed_tokens - self.num_speculative_blocks)
        super().remove_skipped_blocks(request_id, num_computed_tokens)
        position = self.last_state.get(request_id)
        if position is not None and position < cdiv(num_computed_tokens, self.block_size) - 1:
            table = self.req_to_blocks[request_id]
            if not table[position].is_null:
                self.block_pool.free_blocks([table[position]])
                table[position] = self.block_pool.null_block

    def _null_out(self, request_id: str, num_blocks: int) -> None:
        if not self.aligned or self.limits.rules.states_retired != "all":
            super()._null_out(request_id, num_blocks)
            return
        # Null blocks are gaps here, not the mark of what was freed before.
        table = self.req_to_blocks.get(request_id, [])
        first, last = self.retired.get(request_id, 0), min(num_blocks, len(table))
        if first >= last:
            return
        freed = [table[i] for i in range(last - 1, first - 1, -1) if not table[i].is_null]
        table[first:last] = [self.block_pool.null_block] * (last - first)
        if freed:
            self.block_pool.free_blocks(freed, windows=True)
        self.retired[request_id] = last

    def free(self, request_id: str) -> None:
        """Give all states back, the last first, and forget the request."""
        self.allocated.discard(request_id)
        self.last_state.pop(request_id, None)
        self.retired.pop(request_id, None)
        self.checkpoints.pop(request_id, None)
        super().free(request_id)
