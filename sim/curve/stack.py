"""LRU stack distances of the blocks of a workload, in one jitted pass (Mattson et al. 1970).

A block's stack distance is the number of different blocks used since its last use, itself included: an LRU
cache of C blocks holds it if and only if the distance is at most C. So one histogram of distances is the hit
rate at every size.

How it is counted: every access gets the next place in time, and one bit a place says whether a block was
last used then. The distance is one more than the number of bits behind the block's last place: a Fenwick tree
over groups of 512 places and the population counts of at most eight words, O(log n) an access.

All jitted code of the curve stands in this file: Numba does not notice edits of helpers in others (sim.core,
whose digest names the folder of the compiled code, excepted).
"""

from __future__ import annotations

import numpy as np

from sim.core.block_hash import mix64
from sim.core.jit import entry, leaf
from sim.core.prefetch import prefetch

#: Fields of ``at``, int64[FIELDS]: where the pass stands.
NEXT, TIME, DISTINCT, LOOKUPS, TOKENS, SAMPLED, SAMPLED_TOKENS, FIELDS = range(8)
#: Fields of ``rule``, int64[RULE_FIELDS].
BLOCK_SIZE, VLLM, THRESHOLD, SALT, RULE_FIELDS = range(5)
#: Groups of blocks, by hash, whose spread gives the error of a sample.
GROUPS = 64
#: Places in time that one leaf of the tree stands for.
PLACES = 512
#: A THRESHOLD that keeps every block.
EVERYTHING = 1 << 32

_WORDS = PLACES // 64
_AHEAD = 12
_A = np.uint64(0x9E3779B97F4A7C15)
_B = np.uint64(0xD1342543DE82EF95)
_C = np.uint64(0x9FB21C651E98DF25)
_ONE = np.uint64(1)
_ZERO = np.uint64(0)
_EXPLICIT = np.uint64(0xA0761D6478BD642F)
_1 = np.uint64(1)
_2 = np.uint64(2)
_4 = np.uint64(4)
_32 = np.uint64(32)
_56 = np.uint64(56)
_63 = np.uint64(63)
_58 = np.uint64(58)
_M1 = np.uint64(0x5555555555555555)
_M2 = np.uint64(0x3333333333333333)
_M4 = np.uint64(0x0F0F0F0F0F0F0F0F)
_H = np.uint64(0x0101010101010101)


@leaf
def _bits(x: np.uint64) -> int:
    """Bits that are set."""
    x -= (x >> _1) & _M1
    x = (x & _M2) + ((x >> _2) & _M2)
    x = (x + (x >> _4)) & _M4
    return np.int64((x * _H) >> _56)


@leaf
def _mixed(h: np.uint64, a: int, b: int, n: int) -> np.uint64:
    """The next link of a chain: n tokens of segment a from offset b."""
    place = (np.uint64(b) << _32) + np.uint64(n)
    return mix64(h * _C + np.uint64(a) * _A + place * _B + _ONE)


@leaf
def _keys(
    pieces: np.ndarray,
    first: int,
    last: int,
    out_seg: int,
    out_len: int,
    tokens: np.ndarray,
    size: int,
    partial: bool,
    root: np.uint64,
    keys: np.ndarray,
) -> int:
    """Keys of the blocks of one request, each chained to the one before it; returns how many.

    A block is what its runs are: (segment, offset, length), neighbours that go on in one segment joined; of
    explicit tokens, the tokens. ``pieces`` int64[m, 3] holds segment, start and length; ``out_len`` tokens
    of the output follow the prompt.
    """
    h = root
    n = 0
    room = size
    run_seg = run_start = run_len = 0
    for p in range(first, last + 1):
        if p < last:
            seg, start, left = pieces[p, 0], pieces[p, 1], pieces[p, 2]
        else:
            seg, start, left = out_seg, 0, out_len
        while left > 0:
            taken = min(left, room)
            if seg >= 0 and run_len > 0 and seg == run_seg and start == run_start + run_len:
                run_len += taken
            else:
                if run_len > 0:
                    h = _mixed(h, run_seg, run_start, run_len)
                    run_len = 0
                if seg >= 0:
                    run_seg, run_start, run_len = seg, start, taken
                else:
                    begin = -(seg + 1) + start
                    for j in range(taken):
                        h = mix64(h * _C + np.uint64(tokens[begin + j]) * _B + _EXPLICIT)
            start += taken
            left -= taken
            room -= taken
            if room == 0:
                if run_len > 0:
                    h = _mixed(h, run_seg, run_start, run_len)
                    run_len = 0
                h = mix64(h + _A)
                if h == _ZERO:
                    h = _ONE
                keys[n] = h
                n += 1
                room = size
    if partial and room < size:
        if run_len > 0:
            h = _mixed(h, run_seg, run_start, run_len)
        h = mix64(h + _A)
        if h == _ZERO:
            h = _ONE
        keys[n] = h
        n += 1
    return n


@leaf
def _later(bits: np.ndarray, tree: np.ndarray, live: int, place: int) -> int:
    """Bits behind ``place``."""
    word = place >> 6
    # of the word itself: up to and with the place
    upto = _bits(bits[word] << np.uint64(63 - (place & 63)))
    for w in range(word - word % _WORDS, word):
        upto += _bits(bits[w])
    i = word // _WORDS
    while i > 0:
        upto += tree[i]
        i &= i - 1
    return live - upto


@leaf
def _flip(bits: np.ndarray, tree: np.ndarray, place: int, change: int) -> None:
    """Set (+1) or clear (-1) the bit of a place."""
    bits[place >> 6] ^= _ONE << (np.uint64(place) & _63)
    i = place // PLACES + 1
    while i < tree.size:
        tree[i] += change
        i += i & -i


@leaf
def _slot(table: np.ndarray, key: np.uint64) -> int:
    """Index of the key in the table, or of the empty slot where it belongs."""
    mask = table.size // 2 - 1
    i = np.int64(mix64(key ^ _B)) & mask
    while table[2 * i] != key and table[2 * i] != _ZERO:
        i = (i + 1) & mask
    return i


@entry
def rehash(old: np.ndarray, new: np.ndarray) -> None:
    """Move all keys of a table to a larger one, which is empty (zeros)."""
    for i in range(old.size // 2):
        if old[2 * i] != _ZERO:
            j = _slot(new, old[2 * i])
            new[2 * j] = old[2 * i]
            new[2 * j + 1] = old[2 * i + 1]


@entry
def follow(
    seg_ptr: np.ndarray,
    pieces: np.ndarray,
    requests: np.ndarray,
    tokens: np.ndarray,
    rule: np.ndarray,
    table: np.ndarray,
    bits: np.ndarray,
    tree: np.ndarray,
    histogram: np.ndarray,
    edges: np.ndarray,
    group_hits: np.ndarray,
    group_lookups: np.ndarray,
    keys: np.ndarray,
    weights: np.ndarray,
    max_accesses: int,
    at: np.ndarray,
) -> None:
    """Send requests through the stack until they are done, the table is too full, or after some accesses.

    Args:
        seg_ptr: int64[n + 1], pieces of a request.
        pieces: int64[m, 3]: segment (< 0: explicit tokens), start, length.
        requests: int64[n, 4]: salt, tokens of the prompt, output segment, computed tokens of the output.
        tokens: int32[k], pool of explicit tokens.
        rule: int64[RULE_FIELDS].
        table: uint64[2 * capacity], capacity a power of two: key and last place, alternating.
        bits: uint64[w], one bit a place, modified in place.
        tree: int64[t], Fenwick tree over groups of PLACES bits, from index 1.
        histogram: int64[d, 2], by distance: lookups that hit, their tokens.
        edges: int64[s], ascending: the first index e with distance <= edges[e] is counted in group_hits.
        group_hits: int64[GROUPS, s + 1].
        group_lookups: int64[GROUPS].
        keys: uint64[b], scratch for the blocks of one request.
        weights: int64[b], scratch.
        max_accesses: return after about so many.
        at: int64[FIELDS], where the pass stands; modified in place.
    """
    size = rule[BLOCK_SIZE]
    vllm = rule[VLLM] != 0
    threshold = np.uint64(rule[THRESHOLD])
    hash_salt = np.uint64(rule[SALT]) * _A
    mask = table.size // 2 - 1
    room = (table.size // 2) * 5 // 8
    end = at[TIME] + max_accesses
    last_request = seg_ptr.size - 1
    while at[NEXT] < last_request and at[TIME] < end:
        r = at[NEXT]
        prompt = requests[r, 1]
        computed = requests[r, 3] if vllm else 0
        if at[DISTINCT] + (prompt + computed) // size + 1 > room:
            return
        root = mix64(np.uint64(requests[r, 0]) * _A + _C)
        total = _keys(
            pieces, seg_ptr[r], seg_ptr[r + 1], requests[r, 2], computed, tokens, size, not vllm, root, keys
        )
        # vLLM looks up full blocks and always computes the last token of a prompt
        looked_up = (prompt - 1) // size if vllm else total
        at[LOOKUPS] += looked_up
        at[TOKENS] += prompt
        kept = 0
        for i in range(total):
            key = keys[i]
            if (mix64(key ^ hash_salt) >> _32) < threshold:
                keys[kept] = key
                weights[kept] = min(size, prompt - i * size) if i < looked_up else 0
                kept += 1
        for i in range(kept):
            if i == 0:
                for j in range(min(_AHEAD, kept)):
                    prefetch(table, 2 * (np.int64(mix64(keys[j] ^ _B)) & mask))
            elif i + _AHEAD - 1 < kept:
                prefetch(table, 2 * (np.int64(mix64(keys[i + _AHEAD - 1] ^ _B)) & mask))
            key = keys[i]
            slot = _slot(table, key)
            place = at[TIME] + (kept - 1 - i if vllm else i)
            group = np.int64(mix64(key ^ _C) >> _58)
            if weights[i] > 0:
                at[SAMPLED] += 1
                at[SAMPLED_TOKENS] += weights[i]
                group_lookups[group] += 1
            if table[2 * slot] == key:
                before = np.int64(table[2 * slot + 1])
                if weights[i] > 0:
                    distance = 1 + _later(bits, tree, at[DISTINCT], before)
                    histogram[distance, 0] += 1
                    histogram[distance, 1] += weights[i]
                    low, high = 0, edges.size
                    while low < high:
                        middle = (low + high) // 2
                        if edges[middle] >= distance:
                            high = middle
                        else:
                            low = middle + 1
                    group_hits[group, low] += 1
                _flip(bits, tree, before, -1)
            else:
                table[2 * slot] = key
                at[DISTINCT] += 1
            _flip(bits, tree, place, 1)
            table[2 * slot + 1] = np.uint64(place)
        at[TIME] += kept
        at[NEXT] += 1
