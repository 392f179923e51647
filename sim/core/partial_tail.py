"""Prompts that end inside a block (vLLM 0.32.0, ``FullAttentionManager._cache_partial_tail_block``)."""

from __future__ import annotations

import numpy as np

from sim.core import codes as c
from sim.core.block_hash import ensure_hashes, group_key
from sim.core.jit import inner
from sim.core.kv_tables import NO_PARENT
from sim.core.partial_keys import add_partial_key, drop_partial_keys
from sim.core.residency import follow_chain
from sim.core.state import KVCache, Pool

_NO_HASH = np.uint64(0)


@inner
def cache_partial_tail(kv: KVCache, r: int, slot: int, g: int, num_tokens: int) -> None:
    """Register the last boundary inside the prompt of r, once ``num_tokens`` tokens reach it.

    As a further key of the block; as its only one where hits lose their last block: that one is
    cached before it is full.
    """
    pool = kv.pool
    ratio = kv.groups.hash_ratio[g]
    unit = kv.groups.block_size[g] // ratio
    # where a hit loses its last block, it may match the whole prompt before
    whole = kv.groups.drops[g] or kv.params.partial_tail_keys == c.TAIL_WHOLE
    usable = kv.requests.prompt_len[r] if whole else kv.requests.prompt_len[r] - 1
    units = usable // unit
    if units == 0 or units * unit > num_tokens or units % ratio == 0:
        return
    i = units // ratio
    if i >= kv.tables.length[g, slot]:
        return
    ensure_hashes(kv, r, slot, units)
    b = kv.table_blocks[g, slot, i]
    h = kv.hashes[slot, units - 1]
    add_partial_key(pool, r, b, units, ratio, h, g)
    if pool.blocks.block_hash[b] == _NO_HASH:
        pool.blocks.block_hash[b] = group_key(h, g)
        pool.reused[b] = 0
        pool.meta.num_cached += 1
        follow_chain(pool, b, h, kv.hashes[slot, i * ratio - 1] if i > 0 else NO_PARENT)


@inner
def drop_partial_block(pool: Pool, b: int) -> None:
    """Take the only key of a held block away, since a longer one is to replace it."""
    drop_partial_keys(pool, b)
    pool.blocks.block_hash[b] = _NO_HASH
    pool.meta.num_cached -= 1
