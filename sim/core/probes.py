"""Runs of consecutive block ids in the free set, without a scan of the pool.

A block that moves touches the run on each side of it; only a block taken from the middle of a run needs a
search for the run's start, 64 blocks a word.
"""

from __future__ import annotations

import numpy as np

from sim.core.jit import inner, leaf
from sim.core.state import Pool

_ONE = np.uint64(1)
_ZERO = np.uint64(0)
_FULL = np.uint64(0xFFFFFFFFFFFFFFFF)


@leaf
def highest_bit(x: np.uint64) -> int:
    """Index of the highest set bit of a non-zero word."""
    n = 0
    if x >= np.uint64(1 << 32):
        n += 32
        x >>= np.uint64(32)
    if x >= np.uint64(1 << 16):
        n += 16
        x >>= np.uint64(16)
    if x >= np.uint64(1 << 8):
        n += 8
        x >>= np.uint64(8)
    if x >= np.uint64(1 << 4):
        n += 4
        x >>= np.uint64(4)
    if x >= np.uint64(1 << 2):
        n += 2
        x >>= np.uint64(2)
    if x >= np.uint64(1 << 1):
        n += 1
    return n


@leaf
def _is_free(pool: Pool, b: int) -> bool:
    i = b + 1
    return (pool.free_bits[i >> 6] >> np.uint64(i & 63)) & _ONE != _ZERO


@inner
def run_start(free_bits: np.ndarray, b: int) -> int:
    """First block of the free run that holds the free block b."""
    i = b + 1
    w = i >> 6
    # zeros at or below bit i, in the words from w down; the guard bit 0 is never set
    zeros = ~free_bits[w] & (_FULL >> np.uint64(63 - (i & 63)))
    while zeros == _ZERO:
        w -= 1
        zeros = ~free_bits[w]
    return (w << 6) + highest_bit(zeros)


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
    pool.len_count[n] += 1
    if pool.len_count[n] == 1:
        _length_appears(pool.len_tree, pool.len_level, n)
        pool.meta.largest_free_run = max(pool.meta.largest_free_run, n)


@leaf
def _drop_length(pool: Pool, n: int) -> None:
    pool.len_count[n] -= 1
    if pool.len_count[n] == 0:
        _length_vanishes(pool.len_tree, pool.len_level, n)
        if pool.meta.largest_free_run == n:
            pool.meta.largest_free_run = _largest_length(pool.len_tree, pool.len_level)


@inner
def probe_free(pool: Pool, b: int) -> None:
    """Block b enters the free set; runs beside it merge."""
    i = b + 1
    pool.free_bits[i >> 6] |= _ONE << np.uint64(i & 63)
    start = b
    end = b
    if _is_free(pool, b - 1):
        n = pool.blocks.run_len[b - 1]
        start = b - n
        _drop_length(pool, n)
        pool.meta.free_runs -= 1
    if _is_free(pool, b + 1):
        n = pool.blocks.run_len[b + 1]
        end = b + n
        _drop_length(pool, n)
        pool.meta.free_runs -= 1
    n = end - start + 1
    pool.blocks.run_len[start] = n
    pool.blocks.run_len[end] = n
    _add_length(pool, n)
    pool.meta.free_runs += 1


@inner
def probe_take(pool: Pool, b: int) -> None:
    """Block b leaves the free set; its run shrinks or splits."""
    left = _is_free(pool, b - 1)
    right = _is_free(pool, b + 1)
    start = b
    if left:
        if not right:
            start = b - pool.blocks.run_len[b] + 1
        else:
            start = run_start(pool.free_bits, b)
    n = pool.blocks.run_len[start]
    end = start + n - 1
    i = b + 1
    pool.free_bits[i >> 6] &= ~(_ONE << np.uint64(i & 63))
    if left:
        pool.blocks.run_len[start] = b - start
        pool.blocks.run_len[b - 1] = b - start
        _add_length(pool, b - start)
        pool.meta.free_runs += 1
    if right:
        pool.blocks.run_len[b + 1] = end - b
        pool.blocks.run_len[end] = end - b
        _add_length(pool, end - b)
        pool.meta.free_runs += 1
    _drop_length(pool, n)
    pool.meta.free_runs -= 1


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
        i = b + 1
        pool.free_bits[i >> 6] |= _ONE << np.uint64(i & 63)
    n = num_blocks - 1
    pool.blocks.run_len[1] = n
    pool.blocks.run_len[n] = n
    _add_length(pool, n)
    pool.meta.free_runs = 1


@leaf
def highest_bit_of_int(v: int) -> int:
    """Index of the highest set bit of a positive integer."""
    return highest_bit(np.uint64(v))
