"""Blocks that stand for a prefix which ends inside them (vLLM 0.32.0, ``BlockPool.cache_partial_block``,
``FullAttentionManager._cache_partial_tail_block``).
"""

from __future__ import annotations

import numpy as np

from sim.core import codes as c
from sim.core.block_hash import ensure_hashes, group_key
from sim.core.block_pool import cache_full_block
from sim.core.events import emit
from sim.core.jit import inner
from sim.core.kv_tables import NO_PARENT
from sim.core.partial_keys import add_partial_key, drop_partial_keys, has_partial_key, move_partial_keys
from sim.core.prefix_map import map_insert, map_pop
from sim.core.residency import follow_chain
from sim.core.state import KVCache, Pool

_NO_HASH = np.uint64(0)


@inner
def cache_partial_tail(kv: KVCache, r: int, slot: int, g: int, num_tokens: int) -> None:
    """Register the last boundary inside the prompt of r, once ``num_tokens`` tokens reach it.

    As a further key of the block; as its only one where the block is not full yet.
    """
    ratio = kv.groups.hash_ratio[g]
    unit = kv.groups.block_size[g] // ratio
    # where a hit loses its last block, it may match the whole prompt before
    whole = kv.groups.drops[g] or kv.params.partial_tail_keys == c.TAIL_WHOLE
    usable = kv.requests.prompt_len[r] if whole else kv.requests.prompt_len[r] - 1
    units = usable // unit
    if units == 0 or units * unit > num_tokens or units % ratio == 0:
        return
    i = units // ratio
    if i < kv.tables.length[g, slot]:
        cache_prefix(kv, r, slot, g, kv.table_blocks[g, slot, i], units)


@inner
def cache_prefix(kv: KVCache, r: int, slot: int, g: int, b: int, units: int) -> np.uint64:
    """Let block b stand for the first ``units`` hash units of the request too; returns the key."""
    pool = kv.pool
    ratio = kv.groups.hash_ratio[g]
    ensure_hashes(kv, r, slot, units)
    h = kv.hashes[slot, units - 1]
    key = group_key(h, g)
    if pool.blocks.block_hash[b] == key:
        return key
    if units % ratio == 0:
        cache_full_block(pool, r, b, h, g)
    else:
        add_partial_key(pool, r, b, units, ratio, h, g)
        if pool.blocks.block_hash[b] != _NO_HASH:
            return key
        pool.blocks.block_hash[b] = key
        pool.blocks.reused[b] = 0
        pool.meta.num_cached += 1
    before = (units - 1) // ratio * ratio
    follow_chain(pool, b, h, kv.hashes[slot, before - 1] if before > 0 else NO_PARENT)
    return key


@inner
def drop_keys(pool: Pool, b: int) -> None:
    """A held block is to stand for something else than before: take its keys away."""
    key = pool.blocks.block_hash[b]
    if key == _NO_HASH:
        return
    if pool.params.partial_width == 0 or not has_partial_key(pool, b, key):
        map_pop(pool, key, b)
        emit(pool, c.EV_BLOCK_REMOVED, -1, b, np.int64(key), 0)
    drop_partial_keys(pool, b)
    pool.blocks.block_hash[b] = _NO_HASH
    pool.meta.num_cached -= 1


@inner
def move_keys(pool: Pool, source: int, target: int) -> None:
    """Let a block without keys stand for what another one stood for (``move_block_hashes``).

    Both are held.
    """
    key = pool.blocks.block_hash[source]
    if key == _NO_HASH:
        return
    whole = pool.params.partial_width == 0 or not has_partial_key(pool, source, key)
    if whole:
        map_pop(pool, key, source)
    pool.blocks.block_hash[source] = _NO_HASH
    pool.blocks.block_hash[target] = key
    if whole:
        map_insert(pool, key, target)
    move_partial_keys(pool, source, target)
    pool.blocks.reused[target] = pool.blocks.reused[source]
    if pool.params.follow_blocks:
        follow_chain(pool, target, pool.followed.hash[source], pool.followed.parent[source])
