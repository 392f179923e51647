"""BlockPool (vLLM 0.32.0, v1/core/block_pool.py) on arrays.

Block 0 is the null block: never in the free queue, never hashed, its reference count is not kept.
"""

from __future__ import annotations

import numpy as np

from sim.core import codes as c
from sim.core.block_hash import group_key
from sim.core.events import emit
from sim.core.free_queue import (
    queue_append,
    queue_first,
    queue_make_room,
    queue_place,
    queue_prepend,
    queue_remove,
    queue_reset,
)
from sim.core.jit import apart, inner, leaf
from sim.core.partial_keys import clear_partial_keys, drop_partial_keys, has_partial_key
from sim.core.prefetch import prefetch
from sim.core.prefix_map import map_clear, map_get_one_block, map_insert, map_pop, map_prefetch
from sim.core.probes import probe_free, probe_reset, probe_take
from sim.core.residency import follow_access, follow_allocation, follow_eviction, follow_nothing
from sim.core.state import Pool

NULL_BLOCK = 0
# How far ahead records of blocks, and places of keys, are fetched from a table being freed or from the queue.
_PREFETCH_BLOCKS = 8
_PREFETCH_RECORDS = 20
_PREFETCH_KEYS = 8
_NO_HASH = np.uint64(0)


@leaf
def init_pool(pool: Pool) -> None:
    """Fill the free queue with all blocks but the null block in ascending order."""
    n = pool.params.num_blocks
    for b in range(pool.blocks.size):
        pool.blocks.dup_prev[b] = -1
        pool.blocks.dup_next[b] = -1
    queue_reset(pool, n)
    probe_reset(pool, n)


@leaf
def get_num_free_blocks(pool: Pool) -> int:
    """Length of the free queue."""
    return pool.meta.num_free


@leaf
def get_cached_block(pool: Pool, block_hash: np.uint64, group: int) -> int:
    """First block cached under the hash in one group, -1 on a miss."""
    return map_get_one_block(pool, group_key(block_hash, group))


@inner
def _unmark(pool: Pool, b: int) -> None:
    """An evicted block ends the remembered look-up in front of it."""
    pool.ctl.memo_hits = min(pool.ctl.memo_hits, pool.blocks.mark[b] - 1)
    pool.blocks.mark[b] = 0
    if pool.blocks.ref_cnt[b] == 0:
        pool.ctl.memo_free -= 1


@inner
def maybe_evict_cached_block(pool: Pool, b: int) -> bool:
    """Take the block's key out of the prefix map; True when it had one (``_maybe_evict_cached_block``)."""
    key = pool.blocks.block_hash[b]
    if key == _NO_HASH:
        return False
    if pool.blocks.mark[b] > 0:
        _unmark(pool, b)
    if pool.params.partial_width == 0 or not has_partial_key(pool, b, key):
        map_pop(pool, key, b)
        emit(pool, c.EV_BLOCK_REMOVED, -1, b, np.int64(key), 0)
    pool.blocks.block_hash[b] = _NO_HASH
    pool.meta.num_cached -= 1
    pool.meta.evictions += 1
    pool.meta.evicted_unused += pool.blocks.reused[b] == 0
    if pool.params.partial_width:
        drop_partial_keys(pool, b)
    return True


@leaf
def _give_out(pool: Pool, b: int) -> None:
    """Evict what a block taken from the queue caches, and give it one reference."""
    probe_take(pool, b)
    if maybe_evict_cached_block(pool, b):
        pool.meta.num_cached_free -= 1
    pool.blocks.ref_cnt[b] = 1
    pool.meta.allocations += 1
    follow_allocation(pool, b)


@apart
def get_new_blocks(pool: Pool, out: np.ndarray, group: int, slot: int, first: int, count: int) -> None:
    """Take blocks from the front, evict what they cache, and give each one reference (``get_new_blocks``).

    Writes their ids to ``out[group, slot, first : first + count]``. The caller has made sure that so many are
    free.
    """
    position = np.int64(pool.queue.first)
    for i in range(first, first + count):
        position = queue_first(pool, position)
        b = np.int64(pool.ring[queue_place(pool, position)])
        # what the next blocks will need is fetched meanwhile; behind the queue's end stand ids too
        prefetch(pool.blocks, pool.ring[queue_place(pool, position + _PREFETCH_RECORDS)])
        soon = pool.ring[queue_place(pool, position + _PREFETCH_KEYS)]
        map_prefetch(pool, pool.blocks.block_hash[soon])
        position += 1
        pool.blocks.place[b] = -1
        _give_out(pool, b)
        out[group, slot, i] = b
    pool.queue.first = position
    pool.meta.num_free -= count


@leaf
def touch(pool: Pool, b: int) -> None:
    """Add a reference to a hit block; a free one leaves the queue."""
    if pool.blocks.ref_cnt[b] == 0:
        queue_remove(pool, b)
        probe_take(pool, b)
        if pool.blocks.block_hash[b] != _NO_HASH:
            pool.meta.num_cached_free -= 1
        if pool.blocks.mark[b] > 0:
            pool.ctl.memo_free -= 1
    pool.blocks.ref_cnt[b] += 1
    pool.blocks.reused[b] = 1
    follow_access(pool, b)


@leaf
def _drop_reference(pool: Pool, b: int) -> bool:
    """One reference less; True when it was the last one."""
    pool.blocks.ref_cnt[b] -= 1
    return pool.blocks.ref_cnt[b] == 0


@leaf
def _enqueue(pool: Pool, b: int, last: bool) -> None:
    """Put a block without references into the free queue, which has room for it, as the last or the first."""
    if pool.blocks.block_hash[b] != _NO_HASH:
        pool.meta.num_cached_free += 1
        if pool.blocks.mark[b] > 0:
            pool.ctl.memo_free += 1
    if last:
        queue_append(pool, b)
    else:
        queue_prepend(pool, b)
    probe_free(pool, b)


@leaf
def free_block(pool: Pool, b: int, last: bool) -> None:
    """Drop one reference of one block (``free_blocks`` of one); see there for ``last``."""
    if b != NULL_BLOCK and _drop_reference(pool, b):
        queue_make_room(pool, 1)
        _enqueue(pool, b, last or pool.blocks.block_hash[b] != _NO_HASH)


@leaf
def free_blocks(
    pool: Pool, places: np.ndarray, group: int, slot: int, first: int, end: int, last: bool
) -> None:
    """Drop one reference of each block at the places first..end-1 of a table, the last place first.

    Hashed blocks go to the tail of the free queue, the others to its front unless ``last`` sends them to the
    tail too. What the table holds at those places is lost: blocks that go to the front keep their order, so
    they are collected at the last places and then put there backwards.
    """
    queue_make_room(pool, end - first)
    kept = end
    for i in range(end - 1, first - 1, -1):
        if i >= _PREFETCH_BLOCKS:
            prefetch(pool.blocks, places[group, slot, i - _PREFETCH_BLOCKS])
        b = np.int64(places[group, slot, i])
        if b == NULL_BLOCK or not _drop_reference(pool, b):
            continue
        if last or pool.blocks.block_hash[b] != _NO_HASH:
            _enqueue(pool, b, True)
        else:
            kept -= 1
            places[group, slot, kept] = b
    for i in range(kept, end):
        _enqueue(pool, np.int64(places[group, slot, i]), False)


@leaf
def settled(pool: Pool) -> None:
    """Every block that was freed knows that it stands in the free queue, and its free run is measured."""


@leaf
def cache_full_block(pool: Pool, request: int, b: int, block_hash: np.uint64, group: int) -> None:
    """Put a full block without a key into the prefix map (one step of ``cache_full_blocks``)."""
    key = group_key(block_hash, group)
    pool.blocks.block_hash[b] = key
    pool.blocks.reused[b] = 0
    map_insert(pool, key, b)
    pool.meta.num_cached += 1
    emit(pool, c.EV_BLOCK_STORED, request, b, np.int64(key), group)


@leaf
def evict_block(pool: Pool, b: int) -> bool:
    """Un-key a block without moving it in the queue (``evict_blocks`` of one id)."""
    was_free = pool.blocks.ref_cnt[b] == 0
    follow_eviction(pool, b)
    if not maybe_evict_cached_block(pool, b):
        return False
    if was_free:
        pool.meta.num_cached_free -= 1
    return True


@leaf
def reset_prefix_cache(pool: Pool) -> bool:
    """Empty the prefix map; refused (False) while a block other than the null block is in use.

    The order of the free queue stays.
    """
    if pool.params.num_blocks - get_num_free_blocks(pool) != 1:
        return False
    map_clear(pool)
    clear_partial_keys(pool)
    follow_nothing(pool)
    for b in range(pool.params.num_blocks):
        pool.blocks.block_hash[b] = _NO_HASH
        pool.blocks.mark[b] = 0
    pool.ctl.memo_hits = 0
    pool.ctl.memo_free = 0
    pool.meta.num_cached = 0
    pool.meta.num_cached_free = 0
    emit(pool, c.EV_ALL_BLOCKS_CLEARED, -1, -1, 0, 0)
    return True
