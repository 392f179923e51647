"""Look-up of cached prefixes, one rule for each attention type (vLLM 0.32.0,
v1/core/single_type_kv_cache_manager.py, ``find_longest_cache_hit``).

A look-up changes nothing in the pool. It writes the hit blocks to the front of the slot's tables, whose
lengths stay 0, and their number to ``tables.hits``; the hits before ``tables.first_hit`` are null blocks.
"""

from __future__ import annotations

import numpy as np

from sim.core import codes as c
from sim.core.block_hash import ensure_hashes, group_key
from sim.core.jit import apart, inner, leaf
from sim.core.prefetch import prefetch
from sim.core.prefix_map import map_candidate, map_get_one_block, map_prefetch
from sim.core.state import KVCache

# Hashes are made in chunks while a look-up goes on; those behind the first miss are needed soon after anyway.
_LOOKUP_CHUNK = 32
# So far ahead of a block being looked up its buckets are fetched, and its records.
_BUCKETS_AHEAD = 24
_RECORDS_AHEAD = 12
# So many windows' first buckets are fetched at once.
_WINDOWS_AHEAD = 32


@leaf
def _key(kv: KVCache, slot: int, s: int, g: int, i: int) -> np.uint64:
    """Key of block i of the prefix in group g, which has spec s."""
    # the hash of a larger block is that of its last unit, which chains over the others (>= 0.24)
    return group_key(kv.hashes[slot, (i + 1) * kv.specs.hash_ratio[s] - 1], g)


@inner
def _is_hit(kv: KVCache, slot: int, s: int, i: int) -> bool:
    """Whether block i of the prefix is cached in every group of the spec; notes the blocks."""
    for g in range(kv.specs.first_group[s], kv.specs.end_group[s]):
        if kv.groups.spec[g] != s:
            continue
        b = map_get_one_block(kv.pool, _key(kv, slot, s, g, i))
        if b < 0:
            return False
        kv.table_blocks[g, slot, i] = b
    return True


@leaf
def _note_candidate(kv: KVCache, slot: int, s: int, g: int, i: int) -> None:
    """Note which block the bucket of block i's key names, and fetch its record."""
    candidate = map_candidate(kv.pool, _key(kv, slot, s, g, i))
    kv.table_blocks[g, slot, i] = candidate
    prefetch(kv.pool.blocks, candidate)


@leaf
def _first_miss_in_group(kv: KVCache, slot: int, s: int, g: int, first: int, end: int) -> int:
    """``_first_miss`` of one group, whose first buckets are fetched."""
    for i in range(first, min(first + _RECORDS_AHEAD, end)):
        _note_candidate(kv, slot, s, g, i)
    for i in range(first, end):
        if i + _BUCKETS_AHEAD < end:
            map_prefetch(kv.pool, _key(kv, slot, s, g, i + _BUCKETS_AHEAD))
        if i + _RECORDS_AHEAD < end:
            _note_candidate(kv, slot, s, g, i + _RECORDS_AHEAD)
        key = _key(kv, slot, s, g, i)
        if kv.pool.blocks.block_hash[kv.table_blocks[g, slot, i]] != key:
            b = map_get_one_block(kv.pool, key)
            if b < 0:
                return i
            kv.table_blocks[g, slot, i] = b
    return end


@inner
def _first_miss(kv: KVCache, slot: int, s: int, first: int, end: int) -> int:
    """The first of the blocks first..end-1, which are hashed, that some group of the spec lacks, or ``end``;
    notes the blocks before it.

    Group by group: most often all groups have the same blocks of a prefix.
    """
    first_group, end_group = np.int64(kv.specs.first_group[s]), np.int64(kv.specs.end_group[s])
    for g in range(first_group, end_group):
        if kv.groups.spec[g] == s:
            for i in range(first, min(first + _BUCKETS_AHEAD, end)):
                map_prefetch(kv.pool, _key(kv, slot, s, g, i))
    for g in range(first_group, end_group):
        if kv.groups.spec[g] == s:
            end = _first_miss_in_group(kv, slot, s, g, first, end)
    return end


@inner
def set_hits(kv: KVCache, slot: int, s: int, hits: int, first_hit: int) -> None:
    """Note the result of a look-up in the tables of the spec's groups."""
    for g in range(kv.specs.first_group[s], kv.specs.end_group[s]):
        if kv.groups.spec[g] == s:
            kv.tables.hits[g, slot] = hits
            kv.tables.first_hit[g, slot] = min(first_hit, hits)


@inner
def find_in_full(kv: KVCache, r: int, slot: int, s: int, max_length: int) -> int:
    """``FullAttentionManager``: left to right until the first miss. Returns the number of hit blocks.

    A remembered look-up of the same request goes on where it ended.
    """
    limit = max_length // kv.specs.block_size[s]
    ratio = kv.specs.hash_ratio[s]
    n = 0
    if s == 0 and kv.ctl.memo_req == r:
        n = kv.ctl.memo_hits
        _unmark_from(kv, n)
    while n < limit:
        # those made before are all looked up
        hashed = min(limit, max(n + _LOOKUP_CHUNK, kv.slots.num_hashed[slot] // ratio))
        ensure_hashes(kv, r, slot, hashed * ratio)
        n = _first_miss(kv, slot, s, n, hashed)
        if n < hashed:
            break
    return n


@leaf
def _ends_well(kv: KVCache, s: int, end: int, alignment: int) -> bool:
    """Whether a hit may end with block ``end - 1``."""
    size = kv.specs.block_size[s]
    return size == alignment or end * size % alignment == 0


@leaf
def _is_in_first_group(kv: KVCache, slot: int, s: int, i: int) -> bool:
    """Whether the first group of the spec has block i, which most often tells whether all have."""
    return map_get_one_block(kv.pool, _key(kv, slot, s, np.int64(kv.specs.first_group[s]), i)) >= 0


@leaf
def _fetch_window_starts(kv: KVCache, slot: int, s: int, end: int, need: int) -> None:
    """Fetch the buckets of the first blocks of windows side by side, the last of which ends at ``end``."""
    g = np.int64(kv.specs.first_group[s])
    for i in range(end - need, max(end - need * _WINDOWS_AHEAD, -1), -need):
        map_prefetch(kv.pool, _key(kv, slot, s, g, i))


@inner
def find_in_window(
    kv: KVCache, r: int, slot: int, s: int, max_length: int, alignment: int, drop: bool
) -> int:
    """``SlidingWindowManager``: the rightmost run of cached blocks as long as the window, or the cached
    beginning if it is shorter. Returns the number of hit blocks, null blocks in front of the run included.

    vLLM probes each block from the right; here a window is probed from its left, since a miss there rules
    out every window that holds the block, and no further than the hits of the one before. A block that is
    dropped lies behind the window.
    """
    behind = 1 if drop else 0
    # up to 0.19 the run itself must end where a hit may
    after = 0 if kv.params.draft_lookup == c.LOOKUP_EACH_ROUND else behind
    limit = max_length // kv.specs.block_size[s]
    ensure_hashes(kv, r, slot, limit * kv.specs.hash_ratio[s])
    need = max(kv.specs.tail_blocks[s] + behind, 1)
    _fetch_window_starts(kv, slot, s, limit, need)
    end = miss = known = limit  # the blocks known..miss-1 are hits
    while end >= need:
        if not _ends_well(kv, s, end - after, alignment):
            end -= 1
            continue
        first = end - need
        unknown_end = min(known, end)
        i = first
        if _is_in_first_group(kv, slot, s, first):
            i = _first_miss(kv, slot, s, first, unknown_end)
        if i == unknown_end:
            n = end - behind
            while not _ends_well(kv, s, n, alignment):
                n -= 1
            set_hits(kv, slot, s, n, first)
            return n
        known = first
        end = miss = i
    n = _first_miss(kv, slot, s, 0, known)
    if n == known:
        n = miss
    while n > 0 and not _ends_well(kv, s, n - after, alignment):
        n -= 1
    while not _ends_well(kv, s, n, alignment):
        n -= 1
    if drop and n > 0:
        n -= 1
        while not _ends_well(kv, s, n, alignment):
            n -= 1
    set_hits(kv, slot, s, n, 0)
    return n


@inner
def find_in_chunk(kv: KVCache, r: int, slot: int, s: int, max_length: int) -> int:
    """``ChunkedLocalAttentionManager``: what lies before the current chunk counts as a hit unseen."""
    size = kv.specs.block_size[s]
    limit = max_length // size
    chunk = kv.specs.window[s]
    first = max_length // chunk * chunk // size
    ensure_hashes(kv, r, slot, limit * kv.specs.hash_ratio[s])
    n = _first_miss(kv, slot, s, first, limit)
    set_hits(kv, slot, s, n, first)
    return n


@inner
def find_state(kv: KVCache, r: int, slot: int, s: int, max_length: int, alignment: int) -> int:
    """``MambaManager``: the last cached state alone is needed."""
    limit = max_length // kv.specs.block_size[s]
    ensure_hashes(kv, r, slot, limit * kv.specs.hash_ratio[s])
    n = limit
    while n > 0 and not (_ends_well(kv, s, n, alignment) and _is_hit(kv, slot, s, n - 1)):
        n -= 1
    set_hits(kv, slot, s, n, max(n - 1, 0))
    return n


@inner
def find_in_spec(kv: KVCache, r: int, slot: int, s: int, max_length: int, alignment: int, drop: bool) -> int:
    """Longest hit of one spec, in tokens; ``drop``: without its last block, which a drafter wants computed.

    A drafter has no states, so that none of them is dropped.
    """
    kind = kv.specs.attention[s]
    if kind == c.GROUP_FULL:
        n = find_in_full(kv, r, slot, s, max_length)
        if drop and n > 0:
            n -= 1
        while not _ends_well(kv, s, n, alignment):
            n -= 1
        set_hits(kv, slot, s, n, 0)
    elif kind == c.GROUP_SLIDING_WINDOW:
        n = find_in_window(kv, r, slot, s, max_length, alignment, drop)
    elif kind == c.GROUP_CHUNKED_LOCAL:
        n = find_in_chunk(kv, r, slot, s, max_length)
    else:
        n = find_state(kv, r, slot, s, max_length, alignment)
    return n * kv.specs.block_size[s]


@inner
def _unmark_from(kv: KVCache, position: int) -> None:
    """Take the marks of the remembered look-up off, from ``position`` on."""
    for g in range(kv.specs.first_group[0], kv.specs.end_group[0]):
        if kv.groups.spec[g] != 0:
            continue
        for i in range(position, kv.ctl.memo_marked):
            b = kv.table_blocks[g, kv.ctl.memo_slot, i]
            # a block that was evicted meanwhile has lost its mark, and may be anything now
            if kv.pool.blocks.mark[b] == i + 1:
                kv.pool.blocks.mark[b] = 0
                if kv.pool.blocks.ref_cnt[b] == 0:
                    kv.ctl.memo_free -= 1
    kv.ctl.memo_marked = min(kv.ctl.memo_marked, position)


@apart
def forget_lookup(kv: KVCache) -> None:
    """Drop the remembered look-up."""
    if kv.ctl.memo_req >= 0:
        _unmark_from(kv, 0)
        kv.ctl.memo_req = -1


@apart
def remember_lookup(kv: KVCache, r: int, slot: int) -> None:
    """Keep the hits of a request that could not be admitted, since vLLM looks it up again in every step.

    The hit blocks of the full-attention groups are marked: an eviction shortens the remembered prefix, and a
    reference that comes or goes changes ``memo_free``, so that the next look-up starts at the first miss.
    """
    if kv.params.enable_caching == 0 or kv.specs.attention[0] != c.GROUP_FULL:
        return
    if kv.ctl.memo_req != r:
        forget_lookup(kv)
        kv.ctl.memo_req = r
        kv.ctl.memo_slot = slot
        kv.ctl.memo_marked = 0
        kv.ctl.memo_free = 0
    hits = kv.specs.hit_tokens[0] // kv.specs.block_size[0]
    # fewer than before, where the block that was dropped is no hit any more
    _unmark_from(kv, hits)
    for g in range(kv.specs.first_group[0], kv.specs.end_group[0]):
        if kv.groups.spec[g] != 0:
            continue
        for i in range(kv.ctl.memo_marked, hits):
            b = kv.table_blocks[g, slot, i]
            kv.pool.blocks.mark[b] = i + 1
            if kv.pool.blocks.ref_cnt[b] == 0:
                kv.ctl.memo_free += 1
    kv.ctl.memo_marked = hits
    kv.ctl.memo_hits = hits


@inner
def count_free_hits(kv: KVCache, r: int, slot: int, g: int, skipped: int) -> int:
    """Hit blocks of one group without a reference: touching them takes them out of the free queue.

    The first ``skipped`` hits are not touched. The marked hits of the groups of the first spec are counted
    once for all of them, with the first group.
    """
    first = max(skipped, kv.tables.first_hit[g, slot])
    free = 0
    if kv.groups.spec[g] == 0 and kv.ctl.memo_req == r and kv.tables.hits[g, slot] >= kv.ctl.memo_marked:
        first = kv.ctl.memo_marked
        free = kv.ctl.memo_free if g == kv.specs.first_group[0] else 0
    for i in range(first, kv.tables.hits[g, slot]):
        if kv.pool.blocks.ref_cnt[kv.table_blocks[g, slot, i]] == 0:
            free += 1
    return free
