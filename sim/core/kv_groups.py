"""Rules of one KV-cache group (vLLM 0.32.0, v1/core/single_type_kv_cache_manager.py), dispatched on the type
of its attention: what leaves the window, how many blocks are needed, which are offered to the prefix map.
"""

from __future__ import annotations

import numpy as np

from sim.core import codes as c
from sim.core.block_hash import ensure_hashes, group_key
from sim.core.block_pool import NULL_BLOCK, cache_full_block
from sim.core.copies import copy_shared_block
from sim.core.cross_attention import allocate_encoder_blocks, num_encoder_blocks
from sim.core.jit import inner, leaf
from sim.core.kv_tables import NO_PARENT, PREFETCH_KEYS, cdiv, give_up_window, grow_table, note_keys
from sim.core.partial_tail import drop_keys
from sim.core.prefetch import prefetch
from sim.core.prefix_map import map_prefetch
from sim.core.residency import follow_chain
from sim.core.retention import Selection, next_selected, selected, selects_all
from sim.core.state import KVCache
from sim.core.states import allocate_states, note_state, num_new_states, retire_states

_NO_HASH = np.uint64(0)


@leaf
def skipped_blocks(kv: KVCache, g: int, num_computed: int) -> int:
    """Leading blocks that attention will not read again (``get_num_skipped_tokens``), whole ones only."""
    kind = kv.groups.attention[g]
    if kind in (c.GROUP_FULL, c.GROUP_CROSS):
        return 0
    window = kv.groups.window[g]
    if kind == c.GROUP_SLIDING_WINDOW:
        tokens = num_computed - window + 1
    elif kind == c.GROUP_CHUNKED_LOCAL:
        tokens = num_computed // window * window
    else:
        tokens = 0 if kv.params.keeps_states else num_computed - 1
    return max(tokens, 0) // kv.groups.block_size[g]


@inner
def remove_left_behind(kv: KVCache, r: int, slot: int) -> None:
    """Free what the attention of a running request has left behind, group by group.

    Batches in flight still read the windows that their tokens have moved on, so only tokens that were
    delivered count (>= 0.26).
    """
    processed = kv.requests.num_computed[r]
    if kv.params.window_free_basis == c.WINDOW_PROCESSED:
        processed = max(processed - kv.requests.in_flight[r], 0)
    if kv.windows_only and processed < kv.due.leaves[slot]:
        return
    for g in range(kv.params.num_groups):
        if kv.groups.attention[g] != c.GROUP_FULL:
            prefetch(kv.pool.blocks, kv.table_blocks[g, slot, kv.tables.nulls[g, slot]])
    end = 0
    for g in range(kv.params.num_groups):
        kind = kv.groups.attention[g]
        if kind in (c.GROUP_FULL, c.GROUP_CROSS):
            continue
        left = max(processed - kv.params.state_drafts, 0) if kind == c.GROUP_MAMBA else processed
        if kv.groups.like_last[g] == 0:
            end = min(skipped_blocks(kv, g, left), np.int64(kv.tables.length[g, slot]))
        if not kv.windows_only and kind == c.GROUP_MAMBA and kv.params.mamba_align:
            retire_states(kv, slot, g, end, left)
        elif end > kv.tables.nulls[g, slot]:
            give_up_window(kv, slot, g, end)


@leaf
def _with_lookahead(kv: KVCache, g: int, num_tokens: int, fresh: bool) -> int:
    """Tokens that a step over ``num_tokens`` in all needs slots for: a drafter writes some beyond them.

    A Mamba group whose tables are like those of other kinds has a block for the state of each draft.
    """
    if kv.windows_only:
        return min(num_tokens, kv.params.max_model_len)
    lookahead = kv.params.admission_lookahead if fresh else kv.params.lookahead
    tokens = min(num_tokens + lookahead, kv.params.max_model_len)
    return tokens + _draft_states(kv, g) * kv.groups.block_size[g]


@leaf
def _draft_states(kv: KVCache, g: int) -> int:
    if kv.windows_only or kv.groups.attention[g] != c.GROUP_MAMBA:
        return 0
    return kv.params.num_drafts


@leaf
def num_new_blocks(
    kv: KVCache, r: int, slot: int, g: int, num_tokens: int, computed: int, whole: bool, fresh: bool
) -> int:
    """Blocks that slots for ``num_tokens`` tokens, of which so many are computed, need beyond hits and table.

    ``whole``: the full-sequence reserve asks, and counts no more than the request can hold at once, and no
    lookahead. ``fresh``: the request is to be admitted. Below 0 where a Mamba request has more blocks than it
    needs since drafts were rejected: vLLM sets them off against the other groups.
    """
    size = kv.groups.block_size[g]
    if not kv.windows_only:
        if kv.groups.attention[g] == c.GROUP_CROSS:
            return num_encoder_blocks(kv, slot, g, fresh)
        if kv.groups.attention[g] == c.GROUP_MAMBA and kv.params.mamba_align:
            return num_new_states(kv, r, slot, g, num_tokens, computed, fresh)
    if whole:
        required = cdiv(num_tokens + _draft_states(kv, g) * size, size)
    else:
        required = cdiv(_with_lookahead(kv, g, num_tokens, fresh), size)
    if whole and kv.groups.admission_cap[g] > 0:
        required = min(required, kv.groups.admission_cap[g])
    if not fresh:
        return max(required - kv.tables.length[g, slot], 0)
    need = max(required - kv.tables.hits[g, slot], 0)
    if not kv.windows_only and kv.states.shared[g, slot] >= 0:
        need += 1  # the block in which the hit ends is copied
    return need


@inner
def allocate_new_blocks(
    kv: KVCache, r: int, slot: int, g: int, num_tokens: int, computed: int, fresh: bool
) -> None:
    """Append blocks until the table has slots for ``num_tokens`` and for what a drafter writes."""
    if kv.groups.like_last[g]:
        grow_table(kv, slot, g, np.int64(kv.tables.length[g - 1, slot]))
        return
    if not kv.windows_only:
        if kv.groups.attention[g] == c.GROUP_MAMBA and kv.params.mamba_align:
            allocate_states(kv, r, slot, g, num_tokens, computed, fresh)
            return
        if kv.groups.attention[g] == c.GROUP_CROSS:
            allocate_encoder_blocks(kv, slot, g, fresh)
            return
        if kv.states.shared[g, slot] >= 0:
            copy_shared_block(kv, slot, g)
    grow_table(kv, slot, g, cdiv(_with_lookahead(kv, g, num_tokens, fresh), kv.groups.block_size[g]))


@leaf
def _cache_block(kv: KVCache, r: int, slot: int, g: int, i: int) -> None:
    """Put the block at place i into the prefix map."""
    ratio = kv.groups.hash_ratio[g]
    b = kv.table_blocks[g, slot, i]
    h = kv.hashes[slot, (i + 1) * ratio - 1]
    if not kv.windows_only and kv.pool.blocks.block_hash[b] != _NO_HASH:
        # a key of the prompt's partial tail, which grows into the full one
        drop_keys(kv.pool, b)
    cache_full_block(kv.pool, r, b, h, g)
    follow_chain(kv.pool, b, h, kv.hashes[slot, i * ratio - 1] if i > 0 else NO_PARENT)
    if not kv.windows_only and kv.params.state_wait and kv.groups.attention[g] == c.GROUP_MAMBA:
        if i != kv.states.exported_at[g, slot]:
            note_state(kv, kv.pool.blocks.block_hash[b])


@leaf
def outgrows_tables(kv: KVCache, slot: int, num_tokens: int) -> bool:
    """Whether slots for ``num_tokens`` may take a block."""
    return not kv.windows_only or num_tokens >= kv.due.grows[slot]


@leaf
def _fetch_keys(kv: KVCache, slot: int, g: int, first: int, end: int) -> None:
    """Fetch the buckets that the first blocks of those at the places first..end-1 will be put into."""
    ratio = kv.groups.hash_ratio[g]
    for near in range(first, min(first + PREFETCH_KEYS, end)):
        map_prefetch(kv.pool, group_key(kv.hashes[slot, (near + 1) * ratio - 1], g))


@leaf
def _cache_selected(
    kv: KVCache, r: int, slot: int, g: int, first: int, full: int, selection: Selection
) -> None:
    """Put the selected blocks of those at the places first..full-1 into the prefix map."""
    note_keys(kv, slot, g, first, full)
    ratio = kv.groups.hash_ratio[g]
    every = selects_all(selection)
    i = first
    while i < full:
        if i + PREFETCH_KEYS < full:
            map_prefetch(kv.pool, group_key(kv.hashes[slot, (i + PREFETCH_KEYS + 1) * ratio - 1], g))
        if kv.table_blocks[g, slot, i] != NULL_BLOCK:
            _cache_block(kv, r, slot, g, i)
        i = i + 1 if every else next_selected(selection, i + 1, full)


@inner
def cache_blocks(kv: KVCache, r: int, slot: int, g: int, num_tokens: int) -> None:
    """Offer the blocks that ``num_tokens`` known tokens fill to the prefix map, in order of position: those
    of the group, and of the groups behind it that are like it.
    """
    full = num_tokens // kv.groups.block_size[g]
    if not kv.windows_only and kv.params.hash_lookahead:
        unit = kv.hash_mult.size
        hashed = (kv.requests.num_tokens[r] - kv.params.hash_lookahead) // unit * unit
        full = min(full, hashed // kv.groups.block_size[g])
    done = kv.tables.num_cached[g, slot]
    if done >= full:
        return
    selection = selected(kv, r, g)
    first = next_selected(selection, done, full)
    end = g + 1
    while end < kv.params.num_groups and kv.groups.like_last[end]:
        end += 1
    if first < full:
        ensure_hashes(kv, r, slot, full * kv.groups.hash_ratio[g])
        for like in range(g, end):
            _fetch_keys(kv, slot, like, first, full)
    for like in range(g, end):
        if first < full:
            _cache_selected(kv, r, slot, like, first, full, selection)
        kv.tables.num_cached[like, slot] = full


@leaf
def _changes_within_block(kv: KVCache, r: int, slot: int, g: int) -> bool:
    """Whether a step within the last block may change something: states move with drafts, are to be copied or
    were exported, and the key of a partial tail may come before its block is full.
    """
    if kv.params.fine_grained and kv.requests.num_computed[r] <= kv.requests.prompt_len[r]:
        return True
    if kv.groups.attention[g] == c.GROUP_MAMBA:
        if kv.states.shared[g, slot] >= 0 or kv.states.exported_at[g, slot] >= 0:
            return True
        return kv.params.num_drafts > 0 or kv.params.eagle_groups > 0
    return kv.groups.drops[g] > 0 and kv.groups.hash_ratio[g] > 1


@inner
def _note_due(kv: KVCache, slot: int) -> int:
    """Note when the tables of a running request change next; its quiet tokens."""
    leaves = np.int64(kv.params.max_model_len + 1)
    grows = leaves
    fills = leaves
    for s in range(kv.params.num_specs):
        g = kv.specs.first_group[s]
        size = kv.specs.block_size[s]
        nulls = kv.tables.nulls[g, slot]
        grows = min(grows, kv.tables.length[g, slot] * size + 1)
        if kv.params.enable_caching:
            fills = min(fills, (kv.tables.num_cached[g, slot] + 1) * size)
        if kv.specs.attention[s] == c.GROUP_SLIDING_WINDOW:
            leaves = min(leaves, (nulls + 1) * size + kv.specs.window[s] - 1)
        elif kv.specs.attention[s] == c.GROUP_CHUNKED_LOCAL:
            chunk = kv.specs.window[s]
            leaves = min(leaves, (nulls * size // chunk + 1) * chunk)
    kv.due.leaves[slot] = leaves
    kv.due.grows[slot] = grows
    kv.due.fills[slot] = fills
    return min(leaves, grows - 1, fills - 1)


@inner
def quiet_tokens(kv: KVCache, r: int, slot: int) -> int:
    """Up to how many computed tokens a running request will need no block, fill none and give none up."""
    if kv.windows_only:
        return _note_due(kv, slot)
    quiet = np.int64(kv.params.max_model_len)
    for g in range(kv.params.num_groups):
        size = kv.groups.block_size[g]
        length = kv.tables.length[g, slot]
        nulls = kv.tables.nulls[g, slot]
        kind = kv.groups.attention[g]
        if kind == c.GROUP_CROSS:
            continue
        if _changes_within_block(kv, r, slot, g):
            return 0
        if length * size < kv.params.max_model_len:
            quiet = min(quiet, length * size - kv.params.lookahead)
        if kv.params.enable_caching:
            quiet = min(quiet, kv.tables.num_cached[g, slot] * size + size - 1)
        if kind == c.GROUP_SLIDING_WINDOW:
            quiet = min(quiet, (nulls + 1) * size + kv.groups.window[g] - 2)
        elif kind == c.GROUP_CHUNKED_LOCAL:
            chunk = kv.groups.window[g]
            quiet = min(quiet, (nulls * size // chunk + 1) * chunk - 1)
        elif kind == c.GROUP_MAMBA and length - nulls > 1:
            # a state behind the running one is waiting to be given up
            return 0
    return quiet
