"""Blocks that one step gives back and takes again.

Attention windows move on with every chunk of a prompt: some blocks fall behind, as many are needed in front.
Most of those that fall behind have no key, so they go to the front of the free queue and are the next ones to
be taken. Until then they stand in the queue without a note in their records, which look as if the blocks were
in use. ``settle`` makes up for it, with those that are left, before anybody outside the engine can look.
While a step lasts they are not in the free set's bitmap, either; ``rank`` puts those there that are left at
its end, or when their runs matter.
"""

from __future__ import annotations

import numpy as np

from sim.core import block_pool, probes
from sim.core.free_queue import queue_make_room, queue_place
from sim.core.jit import inner, leaf
from sim.core.prefetch import prefetch
from sim.core.probes import blocks_in_full_words, hide_free, leave, probe_free, show_free
from sim.core.residency import follow_allocation
from sim.core.state import Pool

_PREFETCH_BLOCKS = 28
_NO_HASH = np.uint64(0)


@leaf
def make_spare(pool: Pool, places: np.ndarray, group: int, slot: int, first: int, end: int) -> None:
    """Free the blocks at the places first..end-1 of a table, the last place first.

    None of them has a key or another owner, nor is the null block among them.
    """
    if first >= end:
        return
    queue_make_room(pool, end - first)
    position = np.int64(pool.queue.first)
    for i in range(first, end):
        position -= 1
        pool.ring[queue_place(pool, position)] = places[group, slot, i]
    pool.queue.first = position
    pool.queue.spare += end - first
    pool.queue.pending += end - first
    pool.meta.num_free += end - first


@leaf
def free_blocks(pool: Pool, places: np.ndarray, group: int, slot: int, first: int, end: int) -> None:
    """Drop one reference of each block at the places first..end-1 of a table, the last place first.

    Hashed blocks go to the tail of the free queue, the others to its front. Places may hold the null block.
    What the table holds at those places is lost.
    """
    kept = end
    for i in range(max(first, end - _PREFETCH_BLOCKS), end):
        prefetch(pool.blocks, places[group, slot, i])
    for i in range(end - 1, first - 1, -1):
        if i >= first + _PREFETCH_BLOCKS:
            prefetch(pool.blocks, places[group, slot, i - _PREFETCH_BLOCKS])
        b = np.int64(places[group, slot, i])
        if b == block_pool.NULL_BLOCK:
            continue
        if pool.blocks.block_hash[b] != _NO_HASH:
            block_pool.free_block(pool, b, True)
        elif pool.blocks.ref_cnt[b] > 1:
            pool.blocks.ref_cnt[b] -= 1
        else:
            kept -= 1
            places[group, slot, kept] = b
    make_spare(pool, places, group, slot, kept, end)


@inner
def get_new_blocks(pool: Pool, out: np.ndarray, group: int, slot: int, first: int, count: int) -> None:
    """Take blocks from the front, spare ones first, and give each one reference (``get_new_blocks``).

    Writes their ids to ``out[group, slot, first : first + count]``. The caller has made sure that so many are
    free.
    """
    spare = min(count, pool.queue.spare)
    if spare > 0:
        position = np.int64(pool.queue.first)
        for i in range(first, first + spare):
            out[group, slot, i] = pool.ring[queue_place(pool, position)]
            position += 1
        pending = min(spare, pool.queue.pending)
        runs = 0
        for i in range(first + pending, first + spare):
            runs += leave(pool, np.int64(out[group, slot, i]))
        pool.runs.number += runs
        if pool.params.follow_blocks:
            for i in range(first, first + spare):
                pool.meta.allocations += 1
                follow_allocation(pool, np.int64(out[group, slot, i]))
        else:
            pool.meta.allocations += spare
        pool.queue.first = position
        pool.queue.spare -= spare
        pool.queue.pending -= pending
        pool.meta.num_free -= spare
    if spare < count:
        block_pool.get_new_blocks(pool, out, group, slot, first + spare, count - spare)


@inner
def rank(pool: Pool) -> None:
    """The free set gets the blocks that came free since this was done last."""
    for position in range(pool.queue.first, pool.queue.first + pool.queue.pending):
        probe_free(pool, np.int64(pool.ring[queue_place(pool, position)]))
    pool.queue.pending = 0


@inner
def _lacks_a_run(pool: Pool, n: int) -> bool:
    """Whether n blocks in a row are not free, as far as full words of the bitmap tell.

    A run has some words of its own; where the pending blocks fill no word, these were full before they came.
    """
    in_words = blocks_in_full_words(n)
    if max(pool.runs.length, pool.runs.bound) >= in_words:
        return False
    filled = False
    for position in range(pool.queue.first, pool.queue.first + pool.queue.pending):
        filled |= show_free(pool, np.int64(pool.ring[queue_place(pool, position)]))
    for position in range(pool.queue.first, pool.queue.first + pool.queue.pending):
        hide_free(pool, np.int64(pool.ring[queue_place(pool, position)]))
    return not filled


@leaf
def fits_in_a_run(pool: Pool, n: int) -> bool:
    """Whether n blocks in a row are free, of which one is."""
    if n <= max(pool.runs.length, 1):
        return True
    if pool.queue.pending > 0:
        if 0 < pool.queue.lacks <= n:
            return False
        if _lacks_a_run(pool, n):
            pool.queue.lacks = n
            return False
        rank(pool)
    return probes.fits_in_a_run(pool, n)


@inner
def settle(pool: Pool) -> None:
    """The blocks that nobody has taken again are told that they stand at the front of the free queue."""
    rank(pool)
    for position in range(pool.queue.first, pool.queue.first + pool.queue.spare):
        prefetch(pool.blocks, pool.ring[queue_place(pool, position + _PREFETCH_BLOCKS)])
        place = queue_place(pool, position)
        b = pool.ring[place]
        pool.blocks.ref_cnt[b] = 0
        pool.blocks.place[b] = place
    pool.queue.spare = 0
