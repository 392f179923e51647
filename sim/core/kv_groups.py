"""Rules of one KV-cache group (vLLM 0.32.0, v1/core/single_type_kv_cache_manager.py).

Each function that depends on the attention type dispatches on ``groups.attention[g]``; full attention (and
MLA, which differs in page size alone) is ``FullAttentionManager``: left-to-right look-up, nothing skipped.
"""

from __future__ import annotations

import numpy as np

from sim.core.block_hash import ensure_hashes
from sim.core.block_pool import cache_full_block, free_block, get_cached_block, get_new_blocks, touch
from sim.core.jit import inner, leaf
from sim.core.prefetch import prefetch
from sim.core.prefix_map import map_prefetch
from sim.core.residency import follow_chain
from sim.core.state import KVCache

_NO_PARENT = np.uint64(0)

# Hashes are made in chunks while a look-up goes on; those behind the first miss are needed soon after anyway.
_LOOKUP_CHUNK = 32
# How far ahead of their use keys and blocks are fetched.
_PREFETCH_KEYS = 12
_PREFETCH_BLOCKS = 8


@leaf
def cdiv(a: int, b: int) -> int:
    """Ceiling division of non-negative integers."""
    return (a + b - 1) // b


@inner
def find_longest_cache_hit(kv: KVCache, r: int, slot: int, max_length: int) -> int:
    """Leading blocks that are cached in every group, looked up left to right until the first miss.

    Writes the hit blocks to the front of the slot's tables, whose lengths stay 0, and returns their number
    (``FullAttentionManager.find_longest_cache_hit``); groups have one block size here. A remembered look-up
    of the same request goes on where it ended.
    """
    limit = max_length // kv.groups.block_size[0]
    ratio = kv.groups.hash_ratio[0]
    n = 0
    if kv.ctl.memo_req == r:
        n = kv.ctl.memo_hits
        _unmark_from(kv, n)
    while n < limit:
        if (n + 1) * ratio > kv.slots.num_hashed[slot]:
            ensure_hashes(kv, r, slot, min(limit, n + _LOOKUP_CHUNK) * ratio)
        # the hash of a larger block is that of its last unit, which chains over the others (>= 0.24)
        h = kv.hashes[slot, (n + 1) * ratio - 1]
        for g in range(kv.params.num_groups):
            b = get_cached_block(kv.pool, h, g)
            if b < 0:
                return n
            kv.table_blocks[g, slot, n] = b
        n += 1
    return n


@inner
def _unmark_from(kv: KVCache, position: int) -> None:
    """Take the marks of the remembered look-up off, from ``position`` on."""
    for g in range(kv.params.num_groups):
        for i in range(position, kv.ctl.memo_marked):
            b = kv.table_blocks[g, kv.ctl.memo_slot, i]
            # a block that was evicted meanwhile has lost its mark, and may be anything now
            if kv.pool.blocks.mark[b] == i + 1:
                kv.pool.blocks.mark[b] = 0
                if kv.pool.blocks.ref_cnt[b] == 0:
                    kv.ctl.memo_free -= 1
    kv.ctl.memo_marked = min(kv.ctl.memo_marked, position)


@inner
def forget_lookup(kv: KVCache) -> None:
    """Drop the remembered look-up."""
    if kv.ctl.memo_req >= 0:
        _unmark_from(kv, 0)
        kv.ctl.memo_req = -1


@inner
def remember_lookup(kv: KVCache, r: int, slot: int, num_hits: int) -> None:
    """Keep the hits of a request that could not be admitted, since vLLM looks it up again in every step.

    The hit blocks are marked: an eviction shortens the remembered prefix, and a reference that comes or goes
    changes ``memo_free``, so that the next look-up starts at the first miss.
    """
    if kv.ctl.memo_req != r:
        forget_lookup(kv)
        kv.ctl.memo_req = r
        kv.ctl.memo_slot = slot
        kv.ctl.memo_marked = 0
        kv.ctl.memo_free = 0
    for g in range(kv.params.num_groups):
        for i in range(kv.ctl.memo_marked, num_hits):
            b = kv.table_blocks[g, slot, i]
            kv.pool.blocks.mark[b] = i + 1
            if kv.pool.blocks.ref_cnt[b] == 0:
                kv.ctl.memo_free += 1
    kv.ctl.memo_marked = num_hits
    kv.ctl.memo_hits = num_hits


@inner
def count_free_hits(kv: KVCache, r: int, slot: int, num_hits: int) -> int:
    """Hit blocks without a reference, over all groups: touching them takes them out of the free queue."""
    free = 0
    known = 0
    if kv.ctl.memo_req == r:
        free = kv.ctl.memo_free
        known = kv.ctl.memo_marked
    for g in range(kv.params.num_groups):
        for i in range(known, num_hits):
            if kv.pool.blocks.ref_cnt[kv.table_blocks[g, slot, i]] == 0:
                free += 1
    return free


@leaf
def get_num_new_blocks(kv: KVCache, slot: int, g: int, num_tokens: int, num_hits: int) -> int:
    """Blocks that slots for ``num_tokens`` tokens need beyond the hits and the table."""
    return max(cdiv(num_tokens, kv.groups.block_size[g]) - num_hits - kv.tables.length[g, slot], 0)


@leaf
def _append_to_table(kv: KVCache, slot: int, g: int, n: int, count: int) -> None:
    """Account for ``count`` blocks, which stand behind the table's n blocks already."""
    runs = 1 if n == 0 and count > 0 else 0
    for i in range(max(n, 1), n + count):
        runs += kv.table_blocks[g, slot, i - 1] + 1 != kv.table_blocks[g, slot, i]
    kv.tables.runs[g, slot] += runs
    kv.count.table_runs += runs
    kv.tables.length[g, slot] = n + count
    kv.count.table_blocks += count
    kv.groups.allocated[g] += count


@inner
def add_local_computed_blocks(kv: KVCache, slot: int, g: int, num_hits: int) -> None:
    """Touch the hit blocks in ascending position and make them the beginning of the table."""
    for i in range(num_hits):
        b = kv.table_blocks[g, slot, i]
        touch(kv.pool, b)
    _append_to_table(kv, slot, g, 0, num_hits)
    kv.tables.num_cached[g, slot] = num_hits


@leaf
def allocate_new_blocks(kv: KVCache, slot: int, g: int, num_tokens: int) -> None:
    """Append blocks from the front of the free queue until the table has slots for ``num_tokens``."""
    need = cdiv(num_tokens, kv.groups.block_size[g]) - kv.tables.length[g, slot]
    if need > 0:
        kv.count.grants += 1
        if need > kv.pool.meta.largest_free_run:
            kv.count.contiguous_fit_failures += 1
        n = np.int64(kv.tables.length[g, slot])
        get_new_blocks(kv.pool, kv.table_blocks, g, slot, n, need)
        _append_to_table(kv, slot, g, n, need)


@inner
def cache_blocks(kv: KVCache, r: int, slot: int, g: int, num_tokens: int) -> None:
    """Offer the blocks that ``num_tokens`` known tokens fill to the prefix map, in order of position."""
    full = num_tokens // kv.groups.block_size[g]
    done = kv.tables.num_cached[g, slot]
    if done >= full:
        return
    ratio = kv.groups.hash_ratio[g]
    ensure_hashes(kv, r, slot, full * ratio)
    for i in range(done, full):
        if i + _PREFETCH_KEYS < full:
            map_prefetch(kv.pool, kv.hashes[slot, (i + _PREFETCH_KEYS + 1) * ratio - 1])
        h = kv.hashes[slot, (i + 1) * ratio - 1]
        b = kv.table_blocks[g, slot, i]
        cache_full_block(kv.pool, r, b, h, g)
        follow_chain(kv.pool, b, h, kv.hashes[slot, i * ratio - 1] if i > 0 else _NO_PARENT)
    kv.tables.num_cached[g, slot] = full


@inner
def free_table(kv: KVCache, slot: int, g: int) -> None:
    """Free the slot's blocks of the group, the tail of the table first, and empty the table."""
    front = kv.params.num_blocks
    n = kv.tables.length[g, slot]
    for i in range(n - 1, -1, -1):
        if i >= _PREFETCH_BLOCKS:
            prefetch(kv.pool.blocks, kv.table_blocks[g, slot, i - _PREFETCH_BLOCKS])
        front = free_block(kv.pool, kv.table_blocks[g, slot, i], front)
    kv.count.table_blocks -= n
    kv.count.table_runs -= kv.tables.runs[g, slot]
    kv.groups.allocated[g] -= n
    kv.tables.length[g, slot] = 0
    kv.tables.num_cached[g, slot] = 0
    kv.tables.runs[g, slot] = 0
