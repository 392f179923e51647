"""FreeKVCacheBlockQueue (vLLM 0.32.0, v1/core/kv_cache_utils.py) as a ring of ids.

The front is the next block to be allocated. A block knows its place in the ring; where one is taken out of
the middle it leaves a gap, which is passed over when it comes to the front. Linked blocks would do as well,
but a ring says at once which blocks come next, so that their records can be fetched.

Taking more than there is, or removing a block that is not in the queue, is the caller's error: the block pool
tests before it acts.
"""

from __future__ import annotations

import numpy as np

from sim.core.jit import inner, leaf
from sim.core.state import Pool

#: Stands in the ring where a block was taken out; the null block is never free.
GAP = 0


def ring_places(num_blocks: int) -> int:
    """Places of the ring: a power of two that leaves room for gaps, so that they are seldom squeezed out."""
    places = 16
    while places < num_blocks + num_blocks // 4:
        places *= 2
    return places


@leaf
def queue_place(pool: Pool, position: int) -> int:
    """Place in the ring of a position between ``queue.first`` and ``queue.end``, or of one behind them."""
    return position & (pool.ring.size - 1)


@leaf
def queue_reset(pool: Pool, num_blocks: int) -> None:
    """Fill the queue with all blocks but the null block in ascending order of id."""
    pool.blocks.place[0] = -1
    for b in range(1, num_blocks):
        pool.ring[b - 1] = b
        pool.blocks.place[b] = b - 1
    pool.queue.first = 0
    pool.queue.end = num_blocks - 1
    pool.queue.spare = 0
    pool.meta.num_free = num_blocks - 1


@inner
def _squeeze(pool: Pool) -> None:
    """Close the gaps."""
    end = np.int64(pool.queue.first)
    known = end + pool.queue.spare
    for position in range(pool.queue.first, pool.queue.end):
        b = pool.ring[queue_place(pool, position)]
        if b != GAP:
            pool.ring[queue_place(pool, end)] = b
            # spare blocks are not told where they stand, see ``spare_blocks``
            if end >= known:
                pool.blocks.place[b] = queue_place(pool, end)
            end += 1
    pool.queue.end = end


@leaf
def queue_make_room(pool: Pool, count: int) -> None:
    """Make sure that so many more blocks can be added, which are about to be."""
    pool.queue.lacks = 0
    if pool.queue.end - pool.queue.first + count > pool.ring.size:
        _squeeze(pool)


@leaf
def queue_append(pool: Pool, b: int) -> None:
    """Make b the last block; the caller has made room for it."""
    place = queue_place(pool, pool.queue.end)
    pool.ring[place] = b
    pool.blocks.place[b] = place
    pool.queue.end += 1
    pool.meta.num_free += 1


@leaf
def queue_prepend(pool: Pool, b: int) -> None:
    """Make b the first block; ``prepend_n`` does so with each block of a list, the last one first.

    The caller has made room for it.
    """
    pool.queue.first -= 1
    place = queue_place(pool, pool.queue.first)
    pool.ring[place] = b
    pool.blocks.place[b] = place
    pool.meta.num_free += 1


@leaf
def queue_first(pool: Pool, position: int) -> int:
    """Position of the first block from ``position`` on, where there is one."""
    while pool.ring[queue_place(pool, position)] == GAP:
        position += 1
    return position


@leaf
def queue_remove(pool: Pool, b: int) -> None:
    """Take a block out of the middle; the order of the others stays."""
    pool.ring[pool.blocks.place[b]] = GAP
    pool.blocks.place[b] = -1
    pool.meta.num_free -= 1
