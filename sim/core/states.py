"""Mamba and linear attention under prefix caching (vLLM 0.32.0, ``MambaManager``, mode "align"): a block
holds the state after some token. Which states a table has, which are exported from inside a chunk, which are
cached.
"""

from __future__ import annotations

import numpy as np

from sim.core import codes as c
from sim.core.block_hash import ensure_hashes, group_key
from sim.core.block_pool import NULL_BLOCK
from sim.core.copies import copy_shared_block, move_keys_to_copy
from sim.core.jit import inner, leaf
from sim.core.kv_tables import append_nulls, cdiv, give_up, grow_table, move_block
from sim.core.partial_tail import cache_prefix, drop_keys
from sim.core.residency import follow_eviction
from sim.core.retention import keeps_multiple
from sim.core.state import KVCache


@leaf
def last_checkpoint(kv: KVCache, num_tokens: int, unit: int) -> int:
    """The last multiple of ``unit`` at which a request with the same ``num_tokens`` tokens can resume.

    A token must be left to compute; where a hit loses its last unit, that one leaves some anyway.
    """
    if kv.params.drops_checkpoint:
        return max(num_tokens // unit * unit - unit, 0)
    return (num_tokens - 1) // unit * unit


@leaf
def tail_checkpoint(kv: KVCache, prompt_len: int, drops: bool) -> int:
    """Where the state at the end of a prompt gets a key; ``drops``: a unit earlier (0.30 and 0.31)."""
    unit = kv.hash_mult.size
    if kv.params.state_tails == c.STATE_TAIL_USABLE:
        return last_checkpoint(kv, prompt_len, unit)
    tail = prompt_len // unit * unit
    return max(tail - unit, 0) if drops else tail


@leaf
def exported_checkpoint(kv: KVCache, num_tokens: int) -> int:
    """Which state a step that ends at ``num_tokens`` exports."""
    if kv.params.state_exports == c.EXPORTS_HITS:
        return last_checkpoint(kv, num_tokens, kv.params.hit_alignment)
    unit = kv.hash_mult.size
    position = (num_tokens - 1) // unit * unit
    return max(position - unit, 0) if kv.params.drops_checkpoint else position


@leaf
def note_state(kv: KVCache, key: np.uint64) -> None:
    """Remember the key of a Mamba state that this step's forward pass has yet to write."""
    n = kv.ctl.num_step_keys
    kv.step_keys[n] = key
    kv.ctl.num_step_keys = n + 1


@inner
def is_state_of_this_step(kv: KVCache, key: np.uint64) -> bool:
    """Whether a state under the key was cached since the schedule() call began."""
    for i in range(kv.ctl.num_step_keys):
        if kv.step_keys[i] == key:
            return True
    return False


@leaf
def is_exported(kv: KVCache, start: int, end: int, position: int, alignment: int, size: int) -> bool:
    """Whether a kernel can export the state at ``position`` while it computes ``start .. end - 1``
    (``is_mamba_prefill_checkpoint_valid``).

    The state goes to the place before the running state's, which must lie behind the state at the beginning.
    """
    unit = kv.hash_mult.size
    if alignment == 0 or start % unit != 0 or cdiv(end, size) - 2 <= (start - 1) // size:
        return False
    return start + unit <= position < end and (position - start) % alignment == 0


@inner
def _tokens_to_export(kv: KVCache, r: int, slot: int, g: int, start: int, end: int, fresh: bool) -> int:
    """Tokens of the state that a step over ``start .. end - 1`` exports for a later hit, 0: none.

    With retention 0 only steps that reach the end of the known text do (>= 0.31).
    """
    alignment = kv.groups.export_alignment[g]
    if alignment == 0:
        return 0
    if kv.params.retention == 0 and kv.params.state_exports != c.EXPORTS_EACH:
        if end < max(kv.requests.prompt_len[r], kv.requests.num_tokens[r] - 1):
            return 0
    size = kv.groups.block_size[g]
    tokens = exported_checkpoint(kv, end)
    if not is_exported(kv, start, end, tokens, alignment, size):
        return 0
    place = cdiv(end, size) - 2
    # a running request must have no state there yet; the block of a draft will do
    taken = not fresh and place < kv.tables.length[g, slot] - kv.params.num_drafts
    if taken and kv.table_blocks[g, slot, place] != NULL_BLOCK:
        return 0
    return tokens


@inner
def num_new_states(
    kv: KVCache, r: int, slot: int, g: int, num_tokens: int, computed: int, fresh: bool
) -> int:
    """Blocks that a step which ends at ``num_tokens`` tokens takes: below 0 where drafts were rejected.

    Between the states that are kept lie null blocks: one running state at a time, those of drafts once, a
    copy of a shared block, an exported state.
    """
    drafts = kv.params.num_drafts
    hits = kv.tables.hits[g, slot] if fresh else 0
    need = cdiv(num_tokens, kv.groups.block_size[g]) + drafts - hits - kv.tables.length[g, slot]
    most = 1 + drafts if fresh else 1
    shared = kv.states.shared[g, slot] >= 0
    if shared:
        need = max(need, 0) + 1
        most += 1
    if _tokens_to_export(kv, r, slot, g, computed, num_tokens, fresh) > 0:
        most += 1
        if not fresh and kv.params.state_exports != c.EXPORTS_HITS:
            # up to 0.31 blocks of drafts stay where they are, and their states get new ones
            most = need if kv.params.state_exports == c.EXPORTS_EACH else most + drafts
    if shared and kv.params.copies_want_two:
        return most
    return min(need, most)


@inner
def allocate_states(
    kv: KVCache, r: int, slot: int, g: int, num_tokens: int, computed: int, fresh: bool
) -> None:
    """A block for the state that the step ends with, those of the drafts behind it, nulls in front of it, and
    before it one for an exported state.

    Blocks of drafts that the step leaves behind move to its end. A drafter itself has no states.
    """
    drafts = kv.params.num_drafts
    size = kv.groups.block_size[g]
    state = cdiv(num_tokens, size) - 1
    n = np.int64(kv.tables.length[g, slot])
    # the hits of a fresh request stand in its table by now, but not where a state is exported to
    exported = _tokens_to_export(kv, r, slot, g, computed, num_tokens, fresh)
    kv.states.exported[g, slot] = exported
    kv.states.exported_at[g, slot] = state - 1 if exported > 0 else -1
    shared = kv.states.shared[g, slot] >= 0
    if state + 1 + drafts <= n and not shared and exported == 0:
        return
    kv.tables.last_state[g, slot] = n - 1 if fresh else n - 1 - drafts
    first = state - 1 if exported > 0 else state
    append_nulls(kv, slot, g, first)
    if not fresh and (exported == 0 or kv.params.state_exports == c.EXPORTS_HITS):
        for i in range(n - drafts, n):
            if i < first:
                move_block(kv, slot, g, i)
    if shared and fresh:
        copy_shared_block(kv, slot, g)
    elif shared:
        note_state(kv, move_keys_to_copy(kv, slot, g))
    grow_table(kv, slot, g, state + 1 + drafts)


@inner
def retire_states(kv: KVCache, slot: int, g: int, end: int, processed: int) -> None:
    """Free the states that lie behind, and the one before the running state once it has been copied
    (``remove_skipped_blocks``).
    """
    append = kv.params.free_order == c.FREE_APPEND
    if kv.params.states_to_gap:
        # up to 0.29 what lies behind a gap stays until its request ends
        first = end
        while first > 0 and kv.table_blocks[g, slot, first - 1] != NULL_BLOCK:
            first -= 1
        give_up(kv, slot, g, first, end, append)
    elif end > kv.tables.retired[g, slot]:
        give_up(kv, slot, g, kv.tables.retired[g, slot], end, append)
        kv.tables.retired[g, slot] = end
    last = kv.tables.last_state[g, slot]
    if 0 <= last < cdiv(processed, kv.groups.block_size[g]) - 1:
        # in 0.23 only what attention has left behind goes to the front
        give_up(kv, slot, g, last, last + 1, kv.params.free_order != c.FREE_SPLIT)


@inner
def cache_special_state(kv: KVCache, r: int, slot: int, g: int, before: int, num_tokens: int) -> None:
    """Cache the state that was exported, or else the one at the prompt's last boundary.

    ``before``: blocks that caching had dealt with before ``num_tokens`` tokens were offered.
    """
    place = np.int64(kv.states.exported_at[g, slot])
    if place < 0:
        _cache_prompt_state(kv, r, slot, g, num_tokens)
        return
    b = np.int64(kv.table_blocks[g, slot, place])
    if b == NULL_BLOCK:
        return
    tokens = np.int64(kv.states.exported[g, slot])
    if not _is_wanted(kv, r, g, tokens, num_tokens):
        # the block was new: a key that its place gave it was no content that is lost
        follow_eviction(kv.pool, b)
        drop_keys(kv.pool, b)
    elif _stand_for(kv, r, slot, g, b, tokens) or before <= place < kv.tables.num_cached[g, slot]:
        note_state(kv, kv.pool.blocks.block_hash[b])


@inner
def _is_wanted(kv: KVCache, r: int, g: int, tokens: int, num_tokens: int) -> bool:
    """Whether somebody may resume at a state that was exported from a step up to ``num_tokens``. One behind
    drafts has no identity yet.
    """
    if tokens > kv.requests.num_tokens[r] - kv.params.hash_lookahead:
        return False
    if tokens == kv.requests.shared_boundary[r]:
        return True
    rule = kv.params.state_exports
    prompt = kv.requests.prompt_len[r]
    if rule != c.EXPORTS_EACH and tokens == exported_checkpoint(kv, prompt):
        return True
    if rule != c.EXPORTS_HITS:
        return kv.params.retention != 0 or num_tokens >= prompt
    return keeps_multiple(kv, g, tokens)


@inner
def _stand_for(kv: KVCache, r: int, slot: int, g: int, b: int, tokens: int) -> bool:
    """Let block b stand for the state after so many tokens, and nothing else; whether it did not before."""
    units = tokens // kv.hash_mult.size
    ensure_hashes(kv, r, slot, units)
    if kv.pool.blocks.block_hash[b] == group_key(kv.hashes[slot, units - 1], g):
        return False
    drop_keys(kv.pool, b)
    cache_prefix(kv, r, slot, g, b, units)
    return True


@inner
def _cache_prompt_state(kv: KVCache, r: int, slot: int, g: int, num_tokens: int) -> None:
    """While a request stands at the last boundary that a hit on its prompt can use, the state there counts as
    cached in this step again (``_cache_partial_tail_block``; no more in 0.33).

    Inside a block the next step would overwrite it, and copies it first.
    """
    size = kv.groups.block_size[g]
    rule = kv.params.state_tails
    if num_tokens == 0 or (rule != c.STATE_TAIL_USABLE and num_tokens % size == 0):
        return
    drops = (rule == c.STATE_TAIL_MARKED and kv.groups.drops[g] != 0) or (
        rule == c.STATE_TAIL_DROPPED and kv.params.drops_checkpoint != 0
    )
    if num_tokens != tail_checkpoint(kv, kv.requests.prompt_len[r], drops):
        return
    i = cdiv(num_tokens, size) - 1
    if i >= kv.tables.length[g, slot] or kv.table_blocks[g, slot, i] == NULL_BLOCK:
        return
    b = np.int64(kv.table_blocks[g, slot, i])
    if not _stand_for(kv, r, slot, g, b, num_tokens) and kv.params.renews_states == 0:
        return
    note_state(kv, kv.pool.blocks.block_hash[b])
    if num_tokens % size != 0:
        kv.states.shared[g, slot] = i
        kv.tables.num_cached[g, slot] = i
