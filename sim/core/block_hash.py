"""Tokens as a pure function of (segment, offset), and the chain of block hashes over them.

vLLM (0.32.0, kv_cache_utils.hash_block_tokens) chains a cryptographic hash over (parent, tokens, extra keys).
Only equality of the keys has an effect on the pool, so the core chains 64-bit mixed sums instead: two
different prefixes collide with probability 2**-64 a pair, i.e. some n*n/2**65 for n distinct blocks (3e-6 at
ten million).
"""

from __future__ import annotations

import numpy as np

from sim.core.bits import SUM_LANES, make_token_sum
from sim.core.jit import inner, leaf
from sim.core.records import Record
from sim.core.state import KVCache

_SEGMENT = np.uint64(0x9E3779B97F4A7C15)
_OFFSET = np.uint64(0xD1342543DE82EF95)
_TOKEN_MIX = np.uint64(0xD6E8FEB86659FD93)
_MIX1 = np.uint64(0xFF51AFD7ED558CCD)
_MIX2 = np.uint64(0xC4CEB9FE1A85EC53)
_PARENT = np.uint64(0x9FB21C651E98DF25)
_GROUP = np.uint64(0xA0761D6478BD642F)
_token_sum = make_token_sum(int(_OFFSET), int(_TOKEN_MIX))
_NONE_HASH = np.uint64(0x2545F4914F6CDD1D)
_ONE = np.uint64(1)
_ENDLESS = 1 << 62
_ZERO = np.uint64(0)
_LOW_HALF = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_33 = np.uint64(33)


def hash_multipliers(unit: int) -> np.ndarray:
    """Odd multipliers of the content sum, one for each position in a hash unit: uint64[unit]."""
    x = np.arange(1, unit + 1, dtype=np.uint64) * _SEGMENT
    x ^= x >> _33
    x *= _MIX1
    x ^= x >> _33
    x *= _MIX2
    x ^= x >> _33
    return x | _ONE


@leaf
def mix64(x: np.uint64) -> np.uint64:
    """Bijective finaliser of MurmurHash3 (64 bits)."""
    x ^= x >> _33
    x *= _MIX1
    x ^= x >> _33
    x *= _MIX2
    x ^= x >> _33
    return x


@leaf
def _token_of(x: np.uint64, vocab: np.uint64) -> np.uint64:
    """Token at offset k of a synthetic segment, for x = segment * _SEGMENT + (k + 1) * _OFFSET."""
    x ^= x >> _32
    x *= _TOKEN_MIX
    # only the upper half of x ^ (x >> 32) counts, and that is x's own
    return ((x >> _32) * vocab) >> _32


@leaf
def content_sum(
    pool: np.ndarray, mult: np.ndarray, seg: int, start: int, n: int, position: int, vocab: np.uint64
) -> np.uint64:
    """Multilinear sum over n tokens of a segment that stand at ``position`` of a hash unit."""
    total = _ZERO
    if seg >= 0:
        x = np.uint64(seg) * _SEGMENT + np.uint64(start) * _OFFSET
        for j in range(n):
            x += _OFFSET
            total += _token_of(x, vocab) * mult[position + j]
    else:
        first = -(seg + 1) + start
        for j in range(n):
            total += np.uint64(pool[first + j]) * mult[position + j]
    return total


@leaf
def chain_hash(parent: np.uint64, content: np.uint64) -> np.uint64:
    """Key of a hash unit from its parent's key and its content; never 0, which says that there is none.

    The content is mixed and the chain is not, so that the units of a prompt are mixed side by side.
    """
    h = parent * _PARENT + mix64(content + _ONE)
    if h == _ZERO:
        h = _ONE
    return h


@leaf
def root_hash(salt: int) -> np.uint64:
    """Parent of the first unit; a cache salt makes another tree (VLLM.md 2.3)."""
    if salt == 0:
        return _NONE_HASH
    return mix64(_NONE_HASH + np.uint64(salt) * _PARENT)


@leaf
def group_key(h: np.uint64, group: int) -> np.uint64:
    """Key of a hash in a KV-cache group (vLLM appends the group id to the hash)."""
    if group == 0:
        return h
    k = h ^ (np.uint64(group) * _GROUP)
    return k if k != _ZERO else _ONE


@leaf
def _whole_units(
    hashes: np.ndarray,
    mult: np.ndarray,
    slot: int,
    have: int,
    count: int,
    unit: int,
    parent: np.uint64,
    base: np.uint64,
    vocab: np.uint64,
) -> np.uint64:
    """Append the hashes of ``count`` units that lie in one synthetic segment; returns the last one.

    ``base`` belongs to the token before the first, see ``_token_of``.
    """
    h = parent
    for i in range(have, have + count):
        content = _ZERO
        for j in range(0, unit - SUM_LANES + 1, SUM_LANES):
            content += _token_sum(mult, j, base, vocab)
            base += np.uint64(SUM_LANES) * _OFFSET
        for j in range(unit - unit % SUM_LANES, unit):
            base += _OFFSET
            content += _token_of(base, vocab) * mult[j]
        h = chain_hash(h, content)
        hashes[slot, i] = h
    return h


@inner
def _extend(
    hashes: np.ndarray,
    tokens: np.ndarray,
    mult: np.ndarray,
    pieces: Record,
    out_seg: int,
    last_piece: int,
    cursor: tuple[int, int, int],
    wanted: int,
    parent: np.uint64,
    slot: int,
    vocab: np.uint64,
) -> tuple[int, int]:
    """Append hashes up to ``wanted``; ``cursor`` is (hashes known, piece, offset in it)."""
    unit = mult.size
    have, piece, offset = cursor
    h = parent
    while have < wanted:
        seg, start, length = int(out_seg), 0, _ENDLESS
        if piece < last_piece:
            seg = int(pieces.seg[piece])
            start = int(pieces.start[piece])
            length = int(pieces.length[piece])
        count = min((length - offset) // unit, wanted - have)
        if seg >= 0 and count > 0:
            base = np.uint64(seg) * _SEGMENT + np.uint64(start + offset) * _OFFSET
            h = _whole_units(hashes, mult, slot, have, count, unit, h, base, vocab)
            have += count
            offset += count * unit
            if offset == length:
                piece += 1
                offset = 0
            continue
        content = _ZERO
        position = 0
        while position < unit:
            if piece < last_piece:
                length = int(pieces.length[piece])
                n = min(length - offset, unit - position)
                seg = pieces.seg[piece]
                content += content_sum(tokens, mult, seg, pieces.start[piece] + offset, n, position, vocab)
                offset += n
                if offset == length:
                    piece += 1
                    offset = 0
            else:
                n = unit - position
                content += content_sum(tokens, mult, out_seg, offset, n, position, vocab)
                offset += n
            position += n
        h = chain_hash(h, content)
        hashes[slot, have] = h
        have += 1
    return piece, offset


@inner
def ensure_hashes(kv: KVCache, r: int, slot: int, wanted: int) -> None:
    """Make the first ``wanted`` hashes of request r known.

    ``wanted`` units must not exceed the request's known tokens (prompt and generated), less the lookahead.
    """
    have = np.int64(kv.slots.num_hashed[slot])
    if have >= wanted:
        return
    parent = root_hash(kv.requests.salt[r]) if have == 0 else kv.hashes[slot, have - 1]
    vocab = np.uint64(kv.params.vocab_size) & _LOW_HALF
    piece, offset = np.int64(kv.slots.hash_piece[slot]), np.int64(kv.slots.hash_offset[slot])
    if have == 0 and kv.params.hash_lookahead:
        # a hash covers the token behind its unit too (0.33): all units begin one token further right
        seg, start = kv.pieces.seg[piece], kv.pieces.start[piece]
        parent = chain_hash(parent, content_sum(kv.tokens, kv.hash_mult, seg, start, 1, 0, vocab))
        offset = np.int64(1)
        if kv.pieces.length[piece] == 1:
            piece, offset = piece + 1, np.int64(0)
    piece, offset = _extend(
        kv.hashes,
        kv.tokens,
        kv.hash_mult,
        kv.pieces,
        kv.requests.out_seg[r],
        kv.seg_ptr[r + 1],
        (have, piece, offset),
        wanted,
        parent,
        slot,
        vocab,
    )
    kv.slots.num_hashed[slot] = wanted
    kv.slots.hash_piece[slot] = piece
    kv.slots.hash_offset[slot] = offset
