"""The rules of KV-cache groups where all attention is full and all blocks have one size: nothing is skipped,
every full block is cached, and a hit is what all groups have from the left.

What ``kv_groups``, ``kv_cache_coordinator`` and ``mamba_split`` say for every type comes down to this; a test
compares the two.
"""

from __future__ import annotations

import numpy as np

from sim.core import codes as c
from sim.core.block_hash import ensure_hashes
from sim.core.block_pool import cache_full_block, free_blocks, touch
from sim.core.cache_hit import find_in_full, set_hits
from sim.core.jit import apart, inner, leaf
from sim.core.kv_tables import NO_PARENT, PREFETCH_KEYS, append_blocks, cdiv, empty_table, grow_table
from sim.core.prefix_map import map_prefetch
from sim.core.residency import follow_chain
from sim.core.state import KVCache, State


@apart
def find_longest_cache_hit(kv: KVCache, r: int, slot: int, max_length: int) -> int:
    """Tokens of the longest cached prefix."""
    n = find_in_full(kv, r, slot, 0, max_length)
    set_hits(kv, slot, 0, n, 0)
    kv.specs.hit_tokens[0] = n * kv.specs.block_size[0]
    return kv.specs.hit_tokens[0]


@leaf
def skipped_blocks(kv: KVCache, g: int, num_computed: int) -> int:
    """Full attention reads all blocks again."""
    return 0


@leaf
def remove_left_behind(kv: KVCache, r: int, slot: int) -> None:
    """Full attention leaves nothing behind."""


@leaf
def num_new_blocks(
    kv: KVCache, r: int, slot: int, g: int, num_tokens: int, computed: int, whole: bool, fresh: bool
) -> int:
    """Blocks that slots for ``num_tokens`` tokens need beyond the hits and the table."""
    have = kv.tables.hits[g, slot] if fresh else kv.tables.length[g, slot]
    return max(cdiv(num_tokens, kv.groups.block_size[g]) - have, 0)


@leaf
def outgrows_tables(kv: KVCache, slot: int, num_tokens: int) -> bool:
    """Whether slots for ``num_tokens`` take a block."""
    return num_tokens > kv.tables.length[0, slot] * kv.groups.block_size[0]


@inner
def adopt_hits(kv: KVCache, slot: int, g: int, skipped: int) -> None:
    """Touch the hit blocks in ascending position and make them the beginning of the table."""
    hits = kv.tables.hits[g, slot]
    for i in range(hits):
        touch(kv.pool, kv.table_blocks[g, slot, i])
    append_blocks(kv, slot, g, 0, hits)
    kv.tables.num_cached[g, slot] = hits


@inner
def free_table(kv: KVCache, slot: int, g: int) -> None:
    """Free the slot's blocks of the group, the tail of the table first, and empty the table."""
    last = kv.params.free_order != c.FREE_SPLIT
    free_blocks(kv.pool, kv.table_blocks, g, slot, 0, kv.tables.length[g, slot], last)
    empty_table(kv, slot, g)


@leaf
def allocate_new_blocks(
    kv: KVCache, r: int, slot: int, g: int, num_tokens: int, computed: int, fresh: bool
) -> None:
    """Append blocks until the table has slots for ``num_tokens``."""
    grow_table(kv, slot, g, cdiv(num_tokens, kv.groups.block_size[g]))


@apart
def cache_blocks(kv: KVCache, r: int, slot: int, num_tokens: int) -> None:
    """Offer the blocks that ``num_tokens`` known tokens fill to the prefix map, group by group."""
    for g in range(kv.params.num_groups):
        full = num_tokens // kv.groups.block_size[g]
        done = kv.tables.num_cached[g, slot]
        if done >= full:
            continue
        ensure_hashes(kv, r, slot, full)
        for i in range(done, full):
            if i + PREFETCH_KEYS < full:
                map_prefetch(kv.pool, kv.hashes[slot, i + PREFETCH_KEYS])
            h = kv.hashes[slot, i]
            b = kv.table_blocks[g, slot, i]
            cache_full_block(kv.pool, r, b, h, g)
            follow_chain(kv.pool, b, h, kv.hashes[slot, i - 1] if i > 0 else NO_PARENT)
        kv.tables.num_cached[g, slot] = full


@inner
def quiet_tokens(kv: KVCache, r: int, slot: int) -> int:
    """Up to how many computed tokens a running request will need no block and fill none.

    Until then nothing of ``allocate_slots`` and ``cache_blocks`` has an effect, and both are left out.
    """
    quiet = np.int64(kv.params.max_model_len)
    for g in range(kv.params.num_groups):
        size = kv.groups.block_size[g]
        quiet = min(quiet, kv.tables.length[g, slot] * size)
        if kv.params.enable_caching:
            quiet = min(quiet, kv.tables.num_cached[g, slot] * size + size - 1)
    return quiet


@leaf
def waits_for_state(kv: KVCache, slot: int) -> bool:
    """There are no states."""
    return False


@leaf
def fit_chunk(st: State, r: int, start: int, num_new_tokens: int) -> int:
    """A chunk may end anywhere."""
    return num_new_tokens
