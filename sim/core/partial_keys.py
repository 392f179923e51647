"""Keys of prompts that end inside a block (see ``partial_tail``), beside the block's own.

Where a full-attention block holds several hash units, a request registers the last boundary that a hit on its
prompt could use, if that lies inside a block, as a further key of the block. A block loses all its keys at
once. No look-up asks for these keys while hits end at common multiples of the block sizes; they are counted.

Open addressing with linear probing and backward-shift deletion, like the prefix map; a place holds a key and
the number of blocks that have it.
"""

from __future__ import annotations

import numpy as np

from sim.core import codes as c
from sim.core.block_hash import group_key
from sim.core.events import emit
from sim.core.jit import inner
from sim.core.state import Pool

_ZERO = np.uint64(0)
_ONE = np.uint64(1)


@inner
def _place(pool: Pool, key: np.uint64) -> int:
    """Place of the key in the table, or the empty one where it belongs."""
    mask = pool.partial_table.size // 2 - 1
    i = np.int64(key & np.uint64(mask))
    while pool.partial_table[2 * i] != _ZERO and pool.partial_table[2 * i] != key:
        i = (i + 1) & mask
    return i


@inner
def _forget(pool: Pool, key: np.uint64) -> None:
    """One block less has the key."""
    i = _place(pool, key)
    pool.partial_table[2 * i + 1] -= _ONE
    if pool.partial_table[2 * i + 1] != _ZERO:
        return
    mask = pool.partial_table.size // 2 - 1
    j = i
    while True:
        j = (j + 1) & mask
        k = pool.partial_table[2 * j]
        if k == _ZERO:
            break
        if ((j - np.int64(k & np.uint64(mask))) & mask) >= ((j - i) & mask):
            pool.partial_table[2 * i] = k
            pool.partial_table[2 * i + 1] = pool.partial_table[2 * j + 1]
            i = j
    pool.partial_table[2 * i] = _ZERO
    pool.partial_table[2 * i + 1] = _ZERO
    pool.meta.num_partial_keys -= 1


@inner
def has_partial_key(pool: Pool, b: int, key: np.uint64) -> bool:
    """Whether the key is one of the block's further ones; so is the only key of a block that is not full."""
    width = pool.params.partial_width
    for j in range(b * width, (b + 1) * width):
        if pool.partial_keys[j] == key:
            return True
    return False


@inner
def drop_partial_keys(pool: Pool, b: int) -> None:
    """Block b is evicted: take its further keys away."""
    width = pool.params.partial_width
    for j in range(b * width, (b + 1) * width):
        key = pool.partial_keys[j]
        if key != _ZERO:
            pool.partial_keys[j] = _ZERO
            _forget(pool, key)
            emit(pool, c.EV_BLOCK_REMOVED, -1, b, np.int64(key), 0)


@inner
def clear_partial_keys(pool: Pool) -> None:
    """Forget all further keys."""
    for i in range(pool.partial_keys.size):
        pool.partial_keys[i] = _ZERO
    for i in range(pool.partial_table.size):
        pool.partial_table[i] = _ZERO
    pool.meta.num_partial_keys = 0


@inner
def add_partial_key(
    pool: Pool, request: int, b: int, units: int, ratio: int, h: np.uint64, group: int
) -> None:
    """Give a block of ``ratio`` hash units one more key, for the first ``units`` units of a prompt."""
    j = b * pool.params.partial_width + units % ratio - 1
    if pool.partial_keys[j] != _ZERO:
        return
    key = group_key(h, group)
    pool.partial_keys[j] = key
    place = _place(pool, key)
    if pool.partial_table[2 * place] == _ZERO:
        pool.partial_table[2 * place] = key
        pool.meta.num_partial_keys += 1
    pool.partial_table[2 * place + 1] += _ONE
    emit(pool, c.EV_BLOCK_STORED, request, b, np.int64(key), group)
