"""Token ids of synthetic and explicit segments.

A prompt is a list of pieces (segment, start, length). A token of a synthetic segment is a pure function of
(segment, offset, vocab_size), so a prompt of any length costs three integers a piece and every reader of the
workload (the jitted core, a real vLLM) materialises the very same ids. An explicit segment is a place in the
workload's pool of token ids.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SEGMENT_MULTIPLIER = 0x9E3779B97F4A7C15
OFFSET_MULTIPLIER = 0xD1342543DE82EF95
MIX_MULTIPLIER = 0xD6E8FEB86659FD93
MAX_VOCAB_SIZE = 2**31 - 1

_U64 = np.uint64
_MASK = 2**64 - 1


def explicit_segment(pool_start: int) -> int:
    """The (negative) segment id of explicit tokens that begin at `pool_start` of the pool."""
    return -pool_start - 1


def pool_start(segment: int) -> int:
    """Where the explicit segment (a negative id) begins in the pool."""
    return -segment - 1


def synthetic_tokens(segment: int, start: int, n: int, vocab_size: int) -> NDArray[np.int32]:
    """Tokens `start .. start + n` of one synthetic segment.

    Args:
        segment: segment id, >= 0.
        start: absolute offset of the first token in the segment, >= 0.
        n: number of tokens, >= 0.
        vocab_size: ids lie in [0, vocab_size); 1 <= vocab_size <= MAX_VOCAB_SIZE.

    Returns:
        int32[n].
    """
    if not 1 <= vocab_size <= MAX_VOCAB_SIZE:
        raise ValueError(f"vocab_size must be in [1, {MAX_VOCAB_SIZE}], got {vocab_size}")
    base = _U64((segment * SEGMENT_MULTIPLIER) & _MASK)
    x = np.arange(start + 1, start + n + 1, dtype=np.uint64)
    x *= _U64(OFFSET_MULTIPLIER)
    x += base
    x ^= x >> _U64(32)
    x *= _U64(MIX_MULTIPLIER)
    x ^= x >> _U64(32)
    return (((x >> _U64(32)) * _U64(vocab_size)) >> _U64(32)).astype(np.int32)


def tokens_of(
    segment: int, start: int, n: int, vocab_size: int, pool: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Tokens `start .. start + n` of a segment of either kind.

    Args:
        segment: >= 0 synthetic; < 0 explicit, beginning at ``pool[-segment - 1]``.
        start: offset of the first token inside the segment.
        n: number of tokens.
        vocab_size: range of the synthetic ids.
        pool: int32[k], explicit token ids.

    Returns:
        int32[n], a copy.
    """
    if segment >= 0:
        return synthetic_tokens(segment, start, n, vocab_size)
    begin = pool_start(segment) + start
    if begin + n > len(pool):
        raise IndexError(f"explicit tokens {begin}:{begin + n} lie outside the pool of {len(pool)}")
    return np.array(pool[begin : begin + n], dtype=np.int32)
