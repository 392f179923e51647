"""Runs of consecutive block ids in the free set, without a scan of the pool.

The free set is a bitmap. A block that moves looks at the 64 bits on each side of it, which say how long the
runs beside it are; for a run that goes on behind them, its length is written at both its ends. Only a block
taken from the middle of a run that is longer than 64 blocks on both sides needs a search for the run's start.
"""

from __future__ import annotations

import numpy as np

from sim.core.bits import leading_zeros, trailing_zeros
from sim.core.jit import inner, leaf
from sim.core.state import Pool

#: Bit of block 0 in ``free_bits``; the word below it and the one above the last block's stay empty.
FIRST_BIT = 64
#: Length from which on a run's length is written at its ends.
LONG_RUN = 64

_ONE = np.uint64(1)
_ZERO = np.uint64(0)
_FULL = np.uint64(0xFFFFFFFFFFFFFFFF)
_63 = np.uint64(63)


def bitmap_words(num_blocks: int) -> int:
    """Words of ``free_bits``."""
    return num_blocks // 64 + 4


@leaf
def highest_bit(x: np.uint64) -> int:
    """Index of the highest set bit of a non-zero word."""
    return 63 - leading_zeros(x)


@leaf
def _free_before(pool: Pool, b: int) -> int:
    """Free blocks in a row in front of block b, at most 64."""
    i = b + FIRST_BIT
    w = i >> 6
    s = np.uint64(i & 63)
    bits = ((pool.free_bits[w] << (_63 - s)) << _ONE) | (pool.free_bits[w - 1] >> s)
    return leading_zeros(~bits)


@leaf
def _free_behind(pool: Pool, b: int) -> int:
    """Free blocks in a row behind block b, at most 64."""
    i = b + FIRST_BIT + 1
    w = i >> 6
    s = np.uint64(i & 63)
    bits = (pool.free_bits[w] >> s) | ((pool.free_bits[w + 1] << (_63 - s)) << _ONE)
    return trailing_zeros(~bits)


@inner
def run_start(free_bits: np.ndarray, b: int) -> int:
    """First block of the free run that holds the free block b."""
    i = b + FIRST_BIT
    w = i >> 6
    # zeros at or below bit i, in the words from w down; the word below block 0 has nothing else
    zeros = ~free_bits[w] & (_FULL >> np.uint64(63 - (i & 63)))
    while zeros == _ZERO:
        w -= 1
        zeros = ~free_bits[w]
    return (w << 6) + highest_bit(zeros) + 1 - FIRST_BIT


@inner
def _length_appears(tree: np.ndarray, level: np.ndarray, n: int) -> None:
    for k in range(3):
        tree[level[k] + (n >> 6)] |= _ONE << np.uint64(n & 63)
        n >>= 6


@inner
def _length_vanishes(tree: np.ndarray, level: np.ndarray, n: int) -> None:
    for k in range(3):
        i = level[k] + (n >> 6)
        tree[i] &= ~(_ONE << np.uint64(n & 63))
        if tree[i] != _ZERO:
            return
        n >>= 6


@inner
def _largest_length(tree: np.ndarray, level: np.ndarray) -> int:
    """Largest length that occurs, 0 when no block is free."""
    i = tree.size - 1
    while i >= level[2] and tree[i] == _ZERO:
        i -= 1
    if i < level[2]:
        return 0
    n = ((i - level[2]) << 6) + highest_bit(tree[i])
    n = (n << 6) + highest_bit(tree[level[1] + n])
    return (n << 6) + highest_bit(tree[level[0] + n])


@leaf
def _add_length(pool: Pool, n: int) -> None:
    """One more run of n blocks, where n is not 0."""
    count = pool.len_count[n] + (n > 0)
    pool.len_count[n] = count
    if count == 1:
        _length_appears(pool.len_tree, pool.len_level, n)
        pool.meta.largest_free_run = max(pool.meta.largest_free_run, n)


@leaf
def _drop_length(pool: Pool, n: int) -> None:
    """One run of n blocks less, where n is not 0."""
    count = pool.len_count[n] - (n > 0)
    pool.len_count[n] = count
    if (count == 0) & (n > 0):
        _length_vanishes(pool.len_tree, pool.len_level, n)
        if pool.meta.largest_free_run == n:
            pool.meta.largest_free_run = _largest_length(pool.len_tree, pool.len_level)


@leaf
def _write_length(pool: Pool, start: int, n: int) -> None:
    """Note the length at both ends of a run, where it will be asked for."""
    if n >= LONG_RUN:
        pool.run_len[start] = n
        pool.run_len[start + n - 1] = n


@leaf
def probe_free(pool: Pool, b: int) -> None:
    """Block b enters the free set; runs beside it merge."""
    before = _free_before(pool, b)
    behind = _free_behind(pool, b)
    if before == LONG_RUN:
        before = np.int64(pool.run_len[b - 1])
    if behind == LONG_RUN:
        behind = np.int64(pool.run_len[b + 1])
    i = b + FIRST_BIT
    pool.free_bits[i >> 6] |= _ONE << np.uint64(i & 63)
    n = before + behind + 1
    _write_length(pool, b - before, n)
    # the longer run first: the longest one is never looked for in vain
    _add_length(pool, n)
    _drop_length(pool, before)
    _drop_length(pool, behind)
    pool.meta.free_runs += 1 - (before > 0) - (behind > 0)


@inner
def _measure_long_run(pool: Pool, b: int, before: int, behind: int) -> tuple[int, int]:
    """Free blocks before and behind block b in its run, of which one number at least is cut off."""
    if before < LONG_RUN:
        return before, pool.run_len[b - before] - before - 1
    if behind < LONG_RUN:
        return pool.run_len[b + behind] - behind - 1, behind
    start = run_start(pool.free_bits, b)
    return b - start, start + pool.run_len[start] - b - 1


@leaf
def probe_take(pool: Pool, b: int) -> None:
    """Block b leaves the free set; its run shrinks or splits."""
    before = _free_before(pool, b)
    behind = _free_behind(pool, b)
    if max(before, behind) == LONG_RUN:
        before, behind = _measure_long_run(pool, b, before, behind)
    i = b + FIRST_BIT
    pool.free_bits[i >> 6] &= ~(_ONE << np.uint64(i & 63))
    _write_length(pool, b - before, before)
    _write_length(pool, b + 1, behind)
    _add_length(pool, before)
    _add_length(pool, behind)
    _drop_length(pool, before + behind + 1)
    pool.meta.free_runs += int(before > 0) + int(behind > 0) - 1


@leaf
def probe_reset(pool: Pool, num_blocks: int) -> None:
    """All blocks but the null block 0 are free."""
    for i in range(pool.free_bits.size):
        pool.free_bits[i] = _ZERO
    for i in range(pool.len_tree.size):
        pool.len_tree[i] = _ZERO
    for i in range(pool.len_count.size):
        pool.len_count[i] = 0
    pool.meta.free_runs = 0
    pool.meta.largest_free_run = 0
    if num_blocks == 1:
        return
    for b in range(1, num_blocks):
        i = b + FIRST_BIT
        pool.free_bits[i >> 6] |= _ONE << np.uint64(i & 63)
    n = num_blocks - 1
    _write_length(pool, 1, n)
    _add_length(pool, n)
    pool.meta.free_runs = 1


@leaf
def highest_bit_of_int(v: int) -> int:
    """Index of the highest set bit of a positive integer."""
    return highest_bit(np.uint64(v))
