"""Look-up of prefixes that end inside a block (vLLM 0.32.0, ``find_longest_cache_hit`` with an alignment
below the block size), and where that leaves a block to be copied.
"""

from __future__ import annotations

from sim.core import codes as c
from sim.core.block_hash import ensure_hashes, group_key
from sim.core.block_pool import get_cached_block
from sim.core.cache_hit import find_in_full, find_in_spec, set_hits
from sim.core.jit import inner
from sim.core.kv_tables import cdiv
from sim.core.partial_keys import find_partial_key
from sim.core.state import KVCache


@inner
def _is_hit_at(kv: KVCache, slot: int, s: int, units: int, place: int) -> bool:
    """Whether the first ``units`` hash units are cached in every group of the spec; notes the blocks."""
    h = kv.hashes[slot, units - 1]
    whole = units % kv.specs.hash_ratio[s] == 0
    for g in range(kv.specs.first_group[s], kv.specs.end_group[s]):
        if kv.groups.spec[g] != s:
            continue
        b = get_cached_block(kv.pool, h, g) if whole else find_partial_key(kv.pool, group_key(h, g))
        if b < 0:
            return False
        kv.table_blocks[g, slot, place] = b
    return True


@inner
def _find_in_full(kv: KVCache, r: int, slot: int, s: int, max_length: int, drop: bool) -> int:
    """Full blocks from the left to the first miss, then the longest cached part of the next one."""
    ratio = kv.specs.hash_ratio[s]
    unit = kv.hash_mult.size
    n = find_in_full(kv, r, slot, s, max_length)
    units = n * ratio
    last = min(units + ratio - 1, max_length // unit)
    ensure_hashes(kv, r, slot, last)
    for i in range(last, units, -1):
        if _is_hit_at(kv, slot, s, i, n):
            units = i
            break
    if drop and units > 0:
        units -= 1
    set_hits(kv, slot, s, cdiv(units, ratio), 0)
    return units * unit


@inner
def _find_state(kv: KVCache, r: int, slot: int, s: int, max_length: int) -> int:
    """The last cached state, wherever in a block it is."""
    ratio = kv.specs.hash_ratio[s]
    unit = kv.hash_mult.size
    units = max_length // unit
    ensure_hashes(kv, r, slot, units)
    while units > 0 and not _is_hit_at(kv, slot, s, units, cdiv(units, ratio) - 1):
        units -= 1
    n = cdiv(units, ratio)
    set_hits(kv, slot, s, n, max(n - 1, 0))
    return units * unit


@inner
def find_inside(kv: KVCache, r: int, slot: int, s: int, max_length: int, drop: bool) -> int:
    """Longest hit of one spec, in tokens, where hits may end at any hash unit; see ``find_in_spec``."""
    kind = kv.specs.attention[s]
    if kind == c.GROUP_FULL:
        return _find_in_full(kv, r, slot, s, max_length, drop)
    if kind == c.GROUP_MAMBA and kv.specs.hash_ratio[s] > 1:
        return _find_state(kv, r, slot, s, max_length)
    return find_in_spec(kv, r, slot, s, max_length, kv.params.hit_alignment, drop)


@inner
def note_shared_blocks(kv: KVCache, slot: int, length: int) -> None:
    """A hit of ``length`` tokens leaves the last block of some groups to be copied when it is adopted."""
    for g in range(kv.params.num_groups):
        size = kv.groups.block_size[g]
        inside = kv.tables.hits[g, slot] > 0 and length % size != 0
        kv.states.shared[g, slot] = length // size if inside else -1
