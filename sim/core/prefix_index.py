"""The router's guess of who caches which prefix (llm-d router, plug-in approx-prefix-cache-producer).

For each replica a list, by last use, of the hashes of the prompts that it was sent; the list is as long as
the replica's pool has blocks, and the hash that was used longest ago falls out. It is a guess: the replica
evicts by its own rules, and outputs are not in the index.
"""

from __future__ import annotations

import numpy as np

from sim.core.block_hash import chain_hash, content_sum, mix64, root_hash
from sim.core.fleet_state import Fleet
from sim.core.jit import inner, leaf

_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_LOW6 = np.uint64(63)
_REPLICA = np.uint64(0x9E3779B97F4A7C15)
_PARTIAL = np.uint64(0xA24BAED4963EE407)


@inner
def hash_prompt(f: Fleet, r: int) -> int:
    """Hashes of the prompt's units, the last one perhaps partial, into ``index.units``; returns their number.

    Chained like block hashes: a unit's hash stands for the whole prefix up to it.
    """
    unit = f.index.mult.size
    vocab = np.uint64(f.params.vocab_size)
    h = root_hash(f.requests.salt[r])
    content = _ZERO
    position = 0
    n = 0
    for piece in range(f.seg_ptr[r], f.seg_ptr[r + 1]):
        seg = f.pieces.seg[piece]
        length = np.int64(f.pieces.length[piece])
        offset = 0
        while offset < length:
            if n >= f.params.max_units:
                return n
            take: int = min(length - offset, unit - position)
            content += content_sum(
                f.tokens, f.index.mult, seg, f.pieces.start[piece] + offset, take, position, vocab
            )
            offset += take
            position += take
            if position == unit:
                h = chain_hash(h, content)
                f.index.units[n] = h
                n += 1
                content = _ZERO
                position = 0
    if position > 0 and n < f.params.max_units:
        f.index.units[n] = chain_hash(h, content + np.uint64(position) * _PARTIAL)
        n += 1
    return n


@leaf
def _find_holders(f: Fleet, key: np.uint64) -> int:
    """Slot of the hash in the table of holders, or the empty slot where it belongs."""
    mask = f.index.holders.shape[0] - 1
    i = np.int64(key & np.uint64(mask))
    while f.index.holders[i, 0] != key and f.index.holders[i, 0] != _ZERO:
        i = (i + 1) & mask
    return i


@leaf
def _place_key(key: np.uint64, k: int) -> np.uint64:
    mixed = mix64(key + np.uint64(k + 1) * _REPLICA)
    return mixed if mixed != _ZERO else _ONE


@leaf
def _find_place(f: Fleet, mixed: np.uint64) -> int:
    mask = f.index.places.shape[0] - 1
    i = np.int64(mixed & np.uint64(mask))
    while f.index.places[i, 0] != mixed and f.index.places[i, 0] != _ZERO:
        i = (i + 1) & mask
    return i


@inner
def _delete_row(table: np.ndarray, i: int) -> None:
    """Empty a slot and shift back the rows behind it that would otherwise be cut off."""
    mask = table.shape[0] - 1
    j = i
    while True:
        j = (j + 1) & mask
        key = table[j, 0]
        if key == _ZERO:
            break
        home = np.int64(key & np.uint64(mask))
        if ((j - home) & mask) >= ((j - i) & mask):
            for word in range(table.shape[1]):
                table[i, word] = table[j, word]
            i = j
    for word in range(table.shape[1]):
        table[i, word] = _ZERO


@inner
def match_prefix(f: Fleet, n: int) -> None:
    """Count for each replica the units among the first n that it holds, until one is held by nobody."""
    for k in range(f.params.num_replicas):
        f.replicas.matched[k] = 0
    for i in range(n):
        key = f.index.units[i]
        row = _find_holders(f, key)
        if f.index.holders[row, 0] == _ZERO:
            return
        for word in range(f.index.words):
            bits = f.index.holders[row, 1 + word]
            k = 64 * word
            while bits != _ZERO:
                if bits & _ONE:
                    f.replicas.matched[k] += 1
                bits >>= _ONE
                k += 1


@leaf
def _unlink(f: Fleet, k: int, entry: int) -> None:
    older = f.index.entries.older[entry]
    newer = f.index.entries.newer[entry]
    if older >= 0:
        f.index.entries.newer[older] = newer
    else:
        f.replicas.oldest[k] = newer
    if newer >= 0:
        f.index.entries.older[newer] = older
    else:
        f.replicas.newest[k] = older


@leaf
def _append(f: Fleet, k: int, entry: int) -> None:
    last = f.replicas.newest[k]
    f.index.entries.older[entry] = last
    f.index.entries.newer[entry] = -1
    if last >= 0:
        f.index.entries.newer[last] = entry
    else:
        f.replicas.oldest[k] = entry
    f.replicas.newest[k] = entry


@inner
def _forget(f: Fleet, k: int, entry: int) -> None:
    """Take the entry, which is its replica's oldest, out of both tables."""
    key = f.index.entries.key[entry]
    _delete_row(f.index.places, _find_place(f, _place_key(key, k)))
    row = _find_holders(f, key)
    f.index.holders[row, 1 + (k >> 6)] &= ~(_ONE << (np.uint64(k) & _LOW6))
    left = _ZERO
    for word in range(f.index.words):
        left |= f.index.holders[row, 1 + word]
    if left == _ZERO:
        _delete_row(f.index.holders, row)


@inner
def note_prompt(f: Fleet, k: int, n: int) -> None:
    """Replica k is sent a prompt whose n hashes stand in ``index.units``: they are its newest, in order."""
    f.ctl.touches += n
    for i in range(n):
        key = f.index.units[i]
        mixed = _place_key(key, k)
        place = _find_place(f, mixed)
        if f.index.places[place, 0] != _ZERO:
            entry = np.int64(f.index.places[place, 1])
            _unlink(f, k, entry)
            _append(f, k, entry)
            continue
        if f.replicas.entries[k] < f.index.capacity:
            entry = k * f.index.capacity + f.replicas.entries[k]
            f.replicas.entries[k] += 1
        else:
            entry = f.replicas.oldest[k]
            _unlink(f, k, entry)
            _forget(f, k, entry)
            # the row that was emptied may have been on the way to this hash's
            place = _find_place(f, mixed)
        f.index.entries.key[entry] = key
        f.index.entries.replica[entry] = k
        _append(f, k, entry)
        f.index.places[place, 0] = mixed
        f.index.places[place, 1] = np.uint64(entry)
        row = _find_holders(f, key)
        f.index.holders[row, 0] = key
        f.index.holders[row, 1 + (k >> 6)] |= _ONE << (np.uint64(k) & _LOW6)
