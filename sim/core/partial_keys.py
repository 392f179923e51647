"""Keys of prefixes that end inside a block, beside those of whole blocks (see ``partial_tail``).

Where a block holds several hash units it may have a key for each boundary inside it: for the end of a prompt
in a full-attention block, for a state that is not at the end of a block. A block loses all its keys at once.
A look-up asks for them only where hits may end inside a block; they are counted always.

The place of a key is block * width + boundary - 1. The table is open addressing with linear probing and
backward-shift deletion, from a key to the first place that has it; the places of one key are a ring in order
of insertion, as the blocks of one key are in the prefix map.
"""

from __future__ import annotations

import numpy as np

from sim.core import codes as c
from sim.core.block_hash import group_key
from sim.core.events import emit
from sim.core.jit import inner, leaf
from sim.core.state import Pool
from sim.core.switch import Switch

_ZERO = np.uint64(0)


@inner
def _slot_of(pool: Pool, key: np.uint64) -> int:
    """Entry of the key in the table, or the empty one where it belongs."""
    mask = pool.partial_table.size // 2 - 1
    i = np.int64(key & np.uint64(mask))
    while pool.partial_table[2 * i] != _ZERO and pool.partial_table[2 * i] != key:
        i = (i + 1) & mask
    return i


@inner
def find_partial_key(pool: Pool, key: np.uint64) -> int:
    """First block of the key, -1 when there is none."""
    i = _slot_of(pool, key)
    if pool.partial_table[2 * i] == _ZERO:
        return -1
    return np.int64(pool.partial_table[2 * i + 1]) // pool.params.partial_width


@inner
def _link(pool: Pool, p: int, key: np.uint64) -> None:
    """Write the key at place p, which is empty, as the last place of its key."""
    pool.partial_keys[p] = key
    i = _slot_of(pool, key)
    if pool.partial_table[2 * i] == _ZERO:
        pool.partial_table[2 * i] = key
        pool.partial_table[2 * i + 1] = np.uint64(p)
        pool.partial_links[2 * p] = p
        pool.partial_links[2 * p + 1] = p
        pool.meta.num_partial_keys += 1
        return
    first = np.int64(pool.partial_table[2 * i + 1])
    last = pool.partial_links[2 * first]
    pool.partial_links[2 * p] = last
    pool.partial_links[2 * p + 1] = first
    pool.partial_links[2 * last + 1] = p
    pool.partial_links[2 * first] = p


@inner
def _delete(pool: Pool, i: int) -> None:
    """Empty an entry of the table and shift back those behind it that would otherwise be cut off."""
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
def _unlink(pool: Pool, p: int) -> None:
    """Empty place p, which has a key."""
    i = _slot_of(pool, pool.partial_keys[p])
    pool.partial_keys[p] = _ZERO
    before = pool.partial_links[2 * p]
    behind = pool.partial_links[2 * p + 1]
    if behind == p:
        _delete(pool, i)
        return
    pool.partial_links[2 * before + 1] = behind
    pool.partial_links[2 * behind] = before
    if np.int64(pool.partial_table[2 * i + 1]) == p:
        pool.partial_table[2 * i + 1] = np.uint64(behind)


@leaf
def _never(pool: Pool, b: int, key: np.uint64) -> bool:
    """Where no prefix ends inside a block, none has further keys."""
    return False


@inner
def _has_partial_key(pool: Pool, b: int, key: np.uint64) -> bool:
    """Whether the key is one of the block's further ones; so is the only key of a block that is not full."""
    width = pool.params.partial_width
    for p in range(b * width, (b + 1) * width):
        if pool.partial_keys[p] == key:
            return True
    return False


@leaf
def _drop_nothing(pool: Pool, b: int) -> None:
    """Nor is one to be taken away."""


@inner
def _drop_partial_keys(pool: Pool, b: int) -> None:
    """Block b is evicted: take its further keys away."""
    width = pool.params.partial_width
    for p in range(b * width, (b + 1) * width):
        key = pool.partial_keys[p]
        if key != _ZERO:
            _unlink(pool, p)
            emit(pool, c.EV_BLOCK_REMOVED, -1, b, np.int64(key), 0)


has_partial_key = Switch(_never, _has_partial_key, "windows_only")
drop_partial_keys = Switch(_drop_nothing, _drop_partial_keys, "windows_only")


@inner
def move_partial_keys(pool: Pool, source: int, target: int) -> None:
    """Block target, which has none, takes the further keys of block source, as the last one of each."""
    width = pool.params.partial_width
    for j in range(width):
        key = pool.partial_keys[source * width + j]
        if key != _ZERO:
            _unlink(pool, source * width + j)
            _link(pool, target * width + j, key)


@inner
def clear_partial_keys(pool: Pool) -> None:
    """Forget all further keys."""
    for p in range(pool.partial_keys.size):
        pool.partial_keys[p] = _ZERO
    for i in range(pool.partial_table.size):
        pool.partial_table[i] = _ZERO
    pool.meta.num_partial_keys = 0


@inner
def add_partial_key(
    pool: Pool, request: int, b: int, units: int, ratio: int, h: np.uint64, group: int
) -> None:
    """Give a block of ``ratio`` hash units one more key, for the first ``units`` units of a prompt."""
    p = b * pool.params.partial_width + units % ratio - 1
    if pool.partial_keys[p] != _ZERO:
        return
    key = group_key(h, group)
    _link(pool, p, key)
    emit(pool, c.EV_BLOCK_STORED, request, b, np.int64(key), group)
