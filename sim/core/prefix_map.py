"""BlockHashToBlockMap (vLLM 0.32.0, v1/core/block_pool.py): several blocks may carry one key.

A look-up returns the block that was inserted first among those still present; a key that loses its first
block hands over to the next; identical full blocks are not merged.

The table consists of buckets of one cache line, eight words: seven places and a counter. A place that is in
use has the upper half of a key and, below it, the key's first block, whose ``block_hash`` is the whole key. A
key stands in its home bucket or, where that was full, in the next one that was not; the counter of a bucket
says how many keys of the table were turned away there, so that a look-up knows when to go on. All places of a
bucket are compared at once: nothing is moved when a key goes, and hardly a branch depends on chance.
"""

from __future__ import annotations

import numpy as np

from sim.core.bits import LANES, equal_high_halves, equal_words, trailing_zeros
from sim.core.jit import leaf
from sim.core.prefetch import prefetch
from sim.core.state import Pool

#: Words of a bucket, the last of which counts.
BUCKET = LANES
_COUNTER = BUCKET - 1
_PLACES = (1 << _COUNTER) - 1

_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_BLOCK = np.uint64(0xFFFFFFFF)
_FINGERPRINT = np.uint64(0xFFFFFFFF00000000)


def table_words(num_blocks: int) -> int:
    """Words of a table for that many keys: a power of two, at least two words a key."""
    words = 2 * BUCKET
    while words < 2 * num_blocks:
        words *= 2
    return words


@leaf
def _home(pool: Pool, key: np.uint64) -> int:
    """First word of the key's home bucket; keys are already well mixed."""
    return np.int64(key & np.uint64(pool.table.size // BUCKET - 1)) * BUCKET


@leaf
def _entry(key: np.uint64, block: int) -> np.uint64:
    """Word of a place in use; never 0, since the null block has no key."""
    return (key & _FINGERPRINT) | np.uint64(block)


@leaf
def map_prefetch(pool: Pool, key: np.uint64) -> None:
    """Fetch the bucket where a look-up of the key will begin."""
    prefetch(pool.table, _home(pool, key))


@leaf
def map_candidate(pool: Pool, key: np.uint64) -> int:
    """The block that a look-up of the key will meet first in its home bucket, 0 when it meets none there.

    Whether its key is the one wanted the block's record says, which is not read here.
    """
    i = _home(pool, key)
    found = equal_high_halves(pool.table, i, key) & _PLACES
    if found == 0:
        return 0
    return np.int64(pool.table[i + trailing_zeros(np.uint64(found))] & _BLOCK)


@leaf
def map_find(pool: Pool, key: np.uint64) -> int:
    """Word of the table that is the key's place, -1 when it has no block."""
    i = _home(pool, key)
    for _ in range(pool.table.size // BUCKET):
        found = equal_high_halves(pool.table, i, key) & _PLACES
        while found != 0:
            place = i + trailing_zeros(np.uint64(found))
            if pool.blocks.block_hash[np.int64(pool.table[place] & _BLOCK)] == key:
                return place
            found &= found - 1
        if pool.table[i + _COUNTER] == _ZERO:
            return -1
        i = (i + BUCKET) & (pool.table.size - 1)
    return -1


@leaf
def map_get_one_block(pool: Pool, key: np.uint64) -> int:
    """First block of the key (``get_one_block``), -1 when there is none."""
    i = map_find(pool, key)
    if i < 0:
        return -1
    return np.int64(pool.table[i] & _BLOCK)


@leaf
def _add_key(pool: Pool, key: np.uint64, block: int) -> None:
    """Put the block into the first place that is not in use from the home bucket on."""
    i = _home(pool, key)
    places = equal_words(pool.table, i, _ZERO) & _PLACES
    while places == 0:
        pool.table[i + _COUNTER] += _ONE
        i = (i + BUCKET) & (pool.table.size - 1)
        places = equal_words(pool.table, i, _ZERO) & _PLACES
    pool.table[i + trailing_zeros(np.uint64(places))] = _entry(key, block)
    pool.meta.num_keys += 1


@leaf
def map_insert(pool: Pool, key: np.uint64, block: int) -> None:
    """Add the block, whose ``block_hash`` is the key, as the last one of its key; it is not in the map."""
    i = map_find(pool, key)
    if i < 0:
        _add_key(pool, key, block)
        pool.blocks.dup_prev[block] = block
        pool.blocks.dup_next[block] = block
    else:
        first = np.int64(pool.table[i] & _BLOCK)
        last = pool.blocks.dup_prev[first]
        pool.blocks.dup_prev[block] = last
        pool.blocks.dup_next[block] = first
        pool.blocks.dup_next[last] = block
        pool.blocks.dup_prev[first] = block


@leaf
def _drop_key(pool: Pool, key: np.uint64, block: int) -> None:
    """Empty the place of a key and of its only block."""
    entry = _entry(key, block)
    i = _home(pool, key)
    found = equal_words(pool.table, i, entry) & _PLACES
    while found == 0:
        pool.table[i + _COUNTER] -= _ONE
        i = (i + BUCKET) & (pool.table.size - 1)
        found = equal_words(pool.table, i, entry) & _PLACES
    pool.table[i + trailing_zeros(np.uint64(found))] = _ZERO
    pool.meta.num_keys -= 1


@leaf
def map_pop(pool: Pool, key: np.uint64, block: int) -> None:
    """Remove the block from its key; it must be in the map under it and carry it still."""
    nxt = pool.blocks.dup_next[block]
    if nxt == block:
        _drop_key(pool, key, block)
    else:
        prev = pool.blocks.dup_prev[block]
        pool.blocks.dup_next[prev] = nxt
        pool.blocks.dup_prev[nxt] = prev
        i = map_find(pool, key)
        if np.int64(pool.table[i] & _BLOCK) == block:
            pool.table[i] = _entry(key, nxt)
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
