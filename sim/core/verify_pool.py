"""The numbered invariants of the block pool, recomputed naively from its arrays; see ``verify``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from sim.core.free_queue import GAP
from sim.core.prefix_map import BUCKET
from sim.core.probes import FIRST_BIT
from sim.core.state import Pool

PoolCheck = Callable[[Pool], Iterator[str]]


def inv_1(pool: Pool) -> Iterator[str]:
    """INV-1: a block without references, and no other, is in the free queue, once; the null block is not.

    Each knows its place in the queue's ring, and there are as many as ``num_free`` says.
    """
    n = int(pool.params.num_blocks)
    first, end = int(pool.queue.first), int(pool.queue.end)
    if not 0 <= end - first <= pool.ring.size:
        yield f"the free queue stands at {first} to {end} in a ring of {pool.ring.size} places"
        return
    if pool.queue.spare:
        yield f"{pool.queue.spare} blocks at the front of the free queue do not know that they are free"
    places = np.arange(first, end) & (pool.ring.size - 1)
    members = pool.ring[places]
    places, members = places[members != GAP], members[members != GAP]
    if members.size and not 0 < members.min() <= members.max() < n:
        yield f"the free queue goes from block {members.min()} to block {members.max()}"
        return
    if members.size != pool.meta.num_free:
        yield f"{members.size} blocks in the free queue, num_free is {pool.meta.num_free}"
    counts = np.bincount(members, minlength=n)
    wanted = pool.blocks["ref_cnt"] == 0
    wanted[0] = False
    for b in np.flatnonzero(counts != wanted):
        yield f"block {b} is {counts[b]} times in the free queue with {pool.blocks.ref_cnt[b]} references"
    known = np.full(n, -1)
    known[members] = places
    for b in np.flatnonzero(pool.blocks["place"] != known):
        yield f"block {b} stands at place {known[b]} of the free queue, and says {pool.blocks.place[b]}"


def inv_2(pool: Pool) -> Iterator[str]:
    """INV-2: free blocks, referenced blocks and the null block are all blocks; no count is negative."""
    n = int(pool.params.num_blocks)
    counts = pool.blocks["ref_cnt"][1:n]
    held = int((counts > 0).sum())
    if pool.meta.num_free + held + 1 != n:
        yield f"{pool.meta.num_free} free + {held} held + 1 null != {n}"
    for b in np.flatnonzero(counts < 0) + 1:
        yield f"block {b} has {pool.blocks.ref_cnt[b]} references"


def inv_3(pool: Pool) -> Iterator[str]:
    """INV-3: block 0 alone is the null block, and it never carries a key."""
    null = pool.blocks[0]
    if null.block_hash != 0 or null.dup_prev != -1 or null.dup_next != -1 or null.mark != 0:
        yield f"the null block carries key {null.block_hash:#x}, ring {null.dup_prev}, mark {null.mark}"


def map_places(pool: Pool) -> list[tuple[int, int, int]]:
    """(bucket, upper half of a key, first block) of the places of the prefix map that are in use."""
    buckets = pool.table.reshape(-1, BUCKET)[:, :-1]
    return [(i, w >> 32, w & 2**32 - 1) for i, row in enumerate(buckets.tolist()) for w in row if w]


def inv_4(pool: Pool) -> Iterator[str]:
    """INV-4: the prefix map and the keys of the blocks say the same; no key of the map is without a block.

    Each key stands once, where a look-up finds it; its blocks are a ring linked both ways.
    """
    n = int(pool.params.num_blocks)
    counters = pool.table[BUCKET - 1 :: BUCKET]
    ring_next, ring_prev = pool.blocks["dup_next"].tolist(), pool.blocks["dup_prev"].tolist()
    block_key = pool.blocks["block_hash"].tolist()
    mapped: dict[int, int] = {}
    seen: set[int] = set()
    turned_away = np.zeros(counters.size, dtype=np.uint64)
    places = map_places(pool)
    for bucket, fingerprint, first in places:
        if not 0 < first < n:
            yield f"bucket {bucket} of the map has block {first}"
            continue
        key = block_key[first]
        if key in seen:
            yield f"key {key:#x} stands in the map twice"
            continue
        seen.add(key)
        if fingerprint != key >> 32:
            yield f"block {first} stands in the map under {fingerprint:#x}, its key is {key:#x}"
        home = key & (counters.size - 1)
        passed = np.arange(home, home + ((bucket - home) & (counters.size - 1))) & (counters.size - 1)
        turned_away[passed] += np.uint64(1)
        b = first
        while b not in mapped:
            mapped[b] = key
            if not 0 <= ring_next[b] < n or ring_prev[ring_next[b]] != b:
                yield f"block {b} of key {key:#x} is followed by {ring_next[b]}, which does not point back"
                break
            b = ring_next[b]
        else:
            if b != first:
                yield f"the ring of key {key:#x} ends in block {b}, not in its first block {first}"
    for i in np.flatnonzero(turned_away != counters):
        yield f"bucket {i} of the map turned away {turned_away[i]} keys, counted are {counters[i]}"
    width = int(pool.params.partial_width)
    for b in range(n):
        if (
            b not in mapped
            and block_key[b]
            and block_key[b] in pool.partial_keys[b * width : (b + 1) * width]
        ):
            continue  # not full yet: see INV-29
        if block_key[b] != mapped.get(b, 0):
            yield f"block {b} carries key {block_key[b]:#x}, the map says {mapped.get(b, 0):#x}"
        if b not in mapped and (ring_next[b] != -1 or ring_prev[b] != -1):
            yield f"block {b} is in a ring, but not in the map"
    if len(places) != pool.meta.num_keys:
        yield f"{len(places)} keys in the map, num_keys is {pool.meta.num_keys}"


def inv_29(pool: Pool) -> Iterator[str]:
    """INV-29: keys inside blocks are those of cached blocks; each leads to a ring of all its places."""
    width = int(pool.params.partial_width)
    entries = zip(pool.partial_table[0::2].tolist(), pool.partial_table[1::2].tolist(), strict=True)
    first = {key: place for key, place in entries if key}
    before, behind = pool.partial_links[0::2].tolist(), pool.partial_links[1::2].tolist()
    places: dict[int, list[int]] = {}
    for b in range(int(pool.params.num_blocks)):
        own = [p for p in range(b * width, (b + 1) * width) if pool.partial_keys[p]]
        for p in own:
            places.setdefault(int(pool.partial_keys[p]), []).append(p)
        if own and not pool.blocks.block_hash[b]:
            yield f"block {b} has keys inside it, and no key"
    if first.keys() != places.keys() or len(first) != pool.meta.num_partial_keys:
        yield f"keys inside blocks {places}, the table says {first}, counted are {pool.meta.num_partial_keys}"
        return
    for key, place in first.items():
        ring = [place]
        while behind[ring[-1]] not in ring and len(ring) <= len(places[key]):
            ring.append(behind[ring[-1]])
        if sorted(ring) != places[key] or behind[ring[-1]] != place:
            yield f"key {key:#x} stands in the places {places[key]}, its ring is {ring}"
        if any(before[behind[p]] != p for p in ring):
            yield f"the ring {ring} of key {key:#x} does not lead back"


def inv_5(pool: Pool) -> Iterator[str]:
    """INV-5: without prefix caching nothing is cached."""
    cached = int((pool.blocks["block_hash"] != 0).sum())
    if not pool.params.enable_caching and (cached or pool.meta.num_keys):
        yield f"{cached} blocks and {pool.meta.num_keys} keys are cached"


def _free_run_lengths(pool: Pool) -> list[tuple[int, int]]:
    """(first block, length) of the maximal runs of consecutive ids among the free blocks."""
    n = int(pool.params.num_blocks)
    free = np.zeros(n + 2, dtype=np.int8)
    free[1 : n + 1] = pool.blocks["ref_cnt"][:n] == 0
    free[1] = 0
    steps = np.diff(free)
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    return [(int(a), int(b - a)) for a, b in zip(starts, ends, strict=True)]


def inv_18(pool: Pool) -> Iterator[str]:
    """INV-18: the bits are the free set; its runs are counted, and all but the top are within the bound."""
    runs = _free_run_lengths(pool)
    bits = np.unpackbits(pool.free_bits.view(np.uint8), bitorder="little")
    expected = np.zeros(bits.size, dtype=np.uint8)
    for start, length in runs:
        expected[FIRST_BIT + start : FIRST_BIT + start + length] = 1
    for i in np.flatnonzero(bits != expected):
        yield f"free bit of block {i - FIRST_BIT} is {bits[i]}"
    if pool.runs.number != len(runs):
        yield f"{len(runs)} free runs, counted {pool.runs.number}"
    top, bound = (int(pool.runs.top), int(pool.runs.length)), int(pool.runs.bound)
    first = FIRST_BIT + top[0]
    if top[1] and not expected[first : first + top[1]].all():
        yield f"not all of the {top[1]} blocks from {top[0]} are free, as the top of the free runs should be"
    for start, length in runs:
        if length > bound and (start, length) != top:
            yield f"the free run of {length} blocks from {start} is neither the top {top} nor within {bound}"


def inv_19(pool: Pool) -> Iterator[str]:
    """INV-19: the pool's gauges count the cached blocks and, among them, the free ones."""
    n = int(pool.params.num_blocks)
    cached = pool.blocks["block_hash"][:n] != 0
    free = cached & (pool.blocks["ref_cnt"][:n] == 0)
    found = (int(cached.sum()), int(free.sum()))
    if found != (pool.meta.num_cached, pool.meta.num_cached_free):
        yield (
            f"{found[0]} blocks cached, {found[1]} of them free; "
            f"gauges say {pool.meta.num_cached} and {pool.meta.num_cached_free}"
        )
    if not 0 <= pool.meta.evicted_unused <= pool.meta.evictions:
        yield f"{pool.meta.evicted_unused} of {pool.meta.evictions} evicted blocks were never reused"


POOL_INVARIANTS: dict[str, PoolCheck] = {
    "INV-1": inv_1,
    "INV-2": inv_2,
    "INV-3": inv_3,
    "INV-4": inv_4,
    "INV-5": inv_5,
    "INV-18": inv_18,
    "INV-19": inv_19,
    "INV-29": inv_29,
}
