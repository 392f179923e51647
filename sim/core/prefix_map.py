"""BlockHashToBlockMap (vLLM 0.32.0, v1/core/block_pool.py): several blocks may carry one key.

A look-up returns the block that was inserted first among those still present; a key that loses its first
block hands over to the next; identical full blocks are not merged. The table is open addressing with linear
probing and backward-shift deletion.
"""

from __future__ import annotations

import numpy as np

from sim.core.jit import inner, leaf
from sim.core.prefetch import prefetch
from sim.core.state import Pool

_ZERO = np.uint64(0)


@leaf
def _home(pool: Pool, key: np.uint64) -> int:
    """Preferred slot of a key; keys are already well mixed."""
    return np.int64(key & np.uint64(pool.table.size // 2 - 1))


@leaf
def map_prefetch(pool: Pool, key: np.uint64) -> None:
    """Fetch the slot where a look-up of the key will begin."""
    prefetch(pool.table, 2 * _home(pool, key))


@leaf
def map_find(pool: Pool, key: np.uint64) -> int:
    """Slot of the key in the table, -1 when it has no block."""
    mask = pool.table.size // 2 - 1
    i = _home(pool, key)
    while True:
        k = pool.table[2 * i]
        if k == key:
            return i
        if k == _ZERO:
            return -1
        i = (i + 1) & mask


@leaf
def map_get_one_block(pool: Pool, key: np.uint64) -> int:
    """First block of the key (``get_one_block``), -1 when there is none."""
    i = map_find(pool, key)
    if i < 0:
        return -1
    return np.int64(pool.table[2 * i + 1])


@inner
def map_insert(pool: Pool, key: np.uint64, block: int) -> None:
    """Add the block as the last one of its key; the block must not be in the map."""
    mask = pool.table.size // 2 - 1
    i = _home(pool, key)
    while True:
        k = pool.table[2 * i]
        if k == _ZERO:
            pool.table[2 * i] = key
            pool.table[2 * i + 1] = np.uint64(block)
            pool.blocks.dup_prev[block] = block
            pool.blocks.dup_next[block] = block
            pool.meta.num_keys += 1
            return
        if k == key:
            first = np.int64(pool.table[2 * i + 1])
            last = pool.blocks.dup_prev[first]
            pool.blocks.dup_prev[block] = last
            pool.blocks.dup_next[block] = first
            pool.blocks.dup_next[last] = block
            pool.blocks.dup_prev[first] = block
            return
        i = (i + 1) & mask


@inner
def _delete_slot(pool: Pool, i: int) -> None:
    """Empty a slot and shift back the entries behind it that would otherwise be cut off."""
    mask = pool.table.size // 2 - 1
    j = i
    while True:
        j = (j + 1) & mask
        k = pool.table[2 * j]
        if k == _ZERO:
            break
        # j may move to i unless its home lies cyclically in (i, j]
        if ((j - _home(pool, k)) & mask) >= ((j - i) & mask):
            pool.table[2 * i] = k
            pool.table[2 * i + 1] = pool.table[2 * j + 1]
            i = j
    pool.table[2 * i] = _ZERO
    pool.meta.num_keys -= 1


@inner
def map_pop(pool: Pool, key: np.uint64, block: int) -> None:
    """Remove the block from its key; the block must be in the map under it."""
    nxt = pool.blocks.dup_next[block]
    if nxt == block:
        _delete_slot(pool, map_find(pool, key))
    else:
        prev = pool.blocks.dup_prev[block]
        pool.blocks.dup_next[prev] = nxt
        pool.blocks.dup_prev[nxt] = prev
        i = map_find(pool, key)
        if np.int64(pool.table[2 * i + 1]) == block:
            pool.table[2 * i + 1] = np.uint64(nxt)
    pool.blocks.dup_prev[block] = -1
    pool.blocks.dup_next[block] = -1


@leaf
def map_clear(pool: Pool) -> None:
    """Forget all keys."""
    for i in range(pool.table.size):
        pool.table[i] = _ZERO
    for b in range(pool.blocks.size):
        pool.blocks.dup_prev[b] = -1
        pool.blocks.dup_next[b] = -1
    pool.meta.num_keys = 0
