"""Runs of consecutive block ids in the free set, without a scan of the pool for a block that moves.

The free set is a bitmap. A block that moves looks at the bits beside it to keep the number of runs. Of their
lengths only two numbers are kept: one stretch of free blocks, the top, and a bound on every other run. While
the top is at least as long as the bound it is the largest run, whatever else moves; when a block is taken out
of it, its longer part stays the top. Only when somebody asks for the largest run and the top has fallen below
the bound is the bitmap read, 64 blocks at a time, for a run as long as the bound, or the two longest.
"""

from __future__ import annotations

import numpy as np

from sim.core.bits import leading_zeros, trailing_zeros
from sim.core.jit import inner, leaf
from sim.core.state import Pool

#: Bit of block 0 in ``free_bits``; the word below it and the one above the last block's stay empty.
FIRST_BIT = 64

_ONE = np.uint64(1)
_ZERO = np.uint64(0)
_FULL = np.uint64(0xFFFFFFFFFFFFFFFF)
_63 = np.uint64(63)
_WORD = 64


def bitmap_words(num_blocks: int) -> int:
    """Words of ``free_bits``."""
    return num_blocks // _WORD + 4


@leaf
def _is_free(pool: Pool, i: int) -> int:
    """1 when bit i of the bitmap is set."""
    return np.int64((pool.free_bits[i >> 6] >> np.uint64(i & 63)) & _ONE)


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


@leaf
def _is_in_top(pool: Pool, b: int) -> bool:
    place = b - pool.runs.top
    return (place >= 0) & (place < pool.runs.length)


@leaf
def _rank_run(pool: Pool, first: int, n: int) -> None:
    """Take a run of n free blocks into account: as the top, or in the bound."""
    if n <= pool.runs.length:
        pool.runs.bound = max(pool.runs.bound, n)
        return
    pool.runs.bound = max(pool.runs.bound, pool.runs.length)
    pool.runs.top = first
    pool.runs.length = n


@inner
def _measure_run(pool: Pool, b: int) -> None:
    """Rank the free run around block b, which has just come free."""
    first = last = b
    n = _WORD
    while n == _WORD:
        if _is_in_top(pool, first - 1):
            first = np.int64(pool.runs.top)
        n = _free_before(pool, first)
        first -= n
    n = _WORD
    while n == _WORD:
        if _is_in_top(pool, last + 1):
            last = np.int64(pool.runs.top + pool.runs.length - 1)
        n = _free_behind(pool, last)
        last += n
    if first <= pool.runs.top <= last:
        pool.runs.length = 0  # a part of this run now
    _rank_run(pool, first, last - first + 1)


@inner
def _cut_top(pool: Pool, left: int) -> None:
    """The top loses the block behind its first ``left`` ones."""
    right = pool.runs.length - left - 1
    pool.runs.bound = max(pool.runs.bound, min(left, right))
    if right > left:
        pool.runs.top += left + 1
    pool.runs.length = max(left, right)


@leaf
def probe_free(pool: Pool, b: int) -> None:
    """Block b enters the free set; runs beside it merge."""
    before = _free_before(pool, b)
    behind = _free_behind(pool, b)
    i = b + FIRST_BIT
    pool.free_bits[i >> 6] |= _ONE << np.uint64(i & 63)
    pool.runs.number += 1 - (before > 0) - (behind > 0)
    if (before + behind >= pool.runs.bound) | (max(before, behind) == _WORD):
        _measure_run(pool, b)


@leaf
def blocks_in_full_words(n: int) -> int:
    """Blocks in words of the bitmap that n free blocks in a row fill, wherever they begin."""
    return max((n - _WORD + 1) >> 6, 0) << 6


@leaf
def show_free(pool: Pool, b: int) -> bool:
    """Set the bit of block b, without regard to runs; True when its word of the bitmap is full by now."""
    i = b + FIRST_BIT
    word = pool.free_bits[i >> 6] | _ONE << np.uint64(i & 63)
    pool.free_bits[i >> 6] = word
    return word == _FULL


@leaf
def hide_free(pool: Pool, b: int) -> None:
    """Clear the bit of block b, without regard to runs."""
    i = b + FIRST_BIT
    pool.free_bits[i >> 6] &= ~(_ONE << np.uint64(i & 63))


@leaf
def leave(pool: Pool, b: int) -> int:
    """Block b leaves the free set; returns by how many the number of runs grows, which the caller adds."""
    i = b + FIRST_BIT
    pool.free_bits[i >> 6] &= ~(_ONE << np.uint64(i & 63))
    if _is_in_top(pool, b):
        _cut_top(pool, b - pool.runs.top)
    return _is_free(pool, i - 1) + _is_free(pool, i + 1) - 1


@leaf
def probe_take(pool: Pool, b: int) -> None:
    """Block b leaves the free set; its run shrinks or splits."""
    pool.runs.number += leave(pool, b)


@leaf
def _has_run_beyond(word: np.uint64, n: int) -> bool:
    """Whether more than n bits in a row are set in a word whose highest and lowest bits are not."""
    if n >= _WORD - 2:
        return False
    # a bit that is left stands for ``length`` bits in a row
    length = 1
    while length <= n:
        step = min(length, n + 1 - length)
        word &= word >> np.uint64(step)
        length += step
    return word != _ZERO


@inner
def _rank_runs(pool: Pool, word: np.uint64, first: int) -> None:
    """Rank the runs in one word of the bitmap, which begins with block ``first``."""
    while word != _ZERO:
        place = trailing_zeros(word)
        ones = trailing_zeros(~(word >> np.uint64(place)))
        _rank_run(pool, first + place, ones)
        word &= ~(((_ONE << np.uint64(ones)) - _ONE) << np.uint64(place))


@inner
def _rank_words(pool: Pool, begin: int, end: int, enough: int) -> bool:
    """Rank the runs that end in the words from ``begin`` on; True as soon as one of ``enough`` is found.

    No run goes on from the word before ``begin``; the last word holds no block.
    """
    length = 0  # of the run that goes on into the word
    for w in range(begin, end):
        word = pool.free_bits[w]
        if (word == _ZERO) & (length == 0):
            continue
        if word == _FULL:
            length += _WORD
            continue
        ones = trailing_zeros(~word)
        length += ones
        if length > pool.runs.bound:
            _rank_run(pool, (w << 6) + ones - length - FIRST_BIT, length)
        length = leading_zeros(~word)
        inside = word & (_FULL << np.uint64(ones)) & (_FULL >> np.uint64(length))
        if _has_run_beyond(inside, pool.runs.bound):
            _rank_runs(pool, inside, (w << 6) - FIRST_BIT)
        if pool.runs.length >= enough:
            return True
    return False


@inner
def _find_longest_run(pool: Pool) -> None:
    """Make the longest free run the top.

    The bitmap is read from the old top on, until a run as long as the bound is found; without one to its end,
    and the bound is then the next run's length, or half the old top's.
    """
    enough = np.int64(pool.runs.bound)
    begin = (pool.runs.top + FIRST_BIT) >> 6
    while pool.free_bits[begin - 1] >> _63 != _ZERO:
        begin -= 1
    pool.runs.bound = pool.runs.length >> 1
    pool.runs.length = 0
    found = _rank_words(pool, begin, pool.free_bits.size, enough) or _rank_words(pool, 1, begin, enough)
    if found:
        pool.runs.bound = enough


@leaf
def largest_free_run(pool: Pool) -> int:
    """Blocks of the longest run of free ones."""
    if pool.runs.length < pool.runs.bound:
        # every other run has a block at least
        pool.runs.bound = min(pool.runs.bound, pool.meta.num_free - pool.runs.number + 1)
        if pool.runs.length < pool.runs.bound:
            _find_longest_run(pool)
    return np.int64(pool.runs.length)


@leaf
def fits_in_a_run(pool: Pool, n: int) -> bool:
    """Whether n blocks in a row are free."""
    if n <= pool.runs.length:
        return True
    return n <= pool.runs.bound and n <= largest_free_run(pool)


@leaf
def probe_reset(pool: Pool, num_blocks: int) -> None:
    """All blocks but the null block 0 are free."""
    for i in range(pool.free_bits.size):
        pool.free_bits[i] = _ZERO
    for b in range(1, num_blocks):
        i = b + FIRST_BIT
        pool.free_bits[i >> 6] |= _ONE << np.uint64(i & 63)
    pool.runs.number = int(num_blocks > 1)
    pool.runs.top = 1
    pool.runs.length = num_blocks - 1
    pool.runs.bound = 0
