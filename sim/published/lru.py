"""A prefix cache without an engine, on the core's free queue and prefix map: one request after the other.

Each request looks up the blocks that its hash ids name, takes new ones for the misses, and frees them all.
Freed head first, the free queue is in order of last use, and taking its front is plain LRU, block by block,
provided the pool holds any one request. Freed tail first, as vLLM does, the end of a chain is evicted before
its beginning.
"""

from __future__ import annotations

import numpy as np

from sim.core.block_hash import mix64
from sim.core.block_pool import cache_full_block, free_block, get_cached_block, get_new_blocks, touch
from sim.core.jit import entry, leaf
from sim.core.state import KVCache

HIT_BLOCKS = 0
HIT_TOKENS = 1
LEADING_BLOCKS = 2  # hits with no miss in front of them
COUNTS = 3


@leaf
def _key(hash_id: int) -> np.uint64:
    """Key of a hash id: never 0, which means no key (mix64 is a bijection with 0 at 0)."""
    return mix64(np.uint64(hash_id) + np.uint64(1))


@entry
def replay(kv: KVCache, num_requests: int, tail_first: bool, counts: np.ndarray) -> None:
    """Send the first ``num_requests`` requests through the cache, one block a piece of the prompt.

    A piece's segment id is its hash id. ``counts`` (int64[COUNTS]) gets the hits. ``kv`` is a fresh
    KVCache whose slot 0 is free and whose pool has a usable block for each piece of any request; it is
    modified in place.
    """
    pool = kv.pool
    for r in range(num_requests):
        first = kv.seg_ptr[r]
        n = kv.seg_ptr[r + 1] - first
        leading = True
        for i in range(n):
            key = _key(kv.pieces.seg[first + i])
            b = get_cached_block(pool, key, 0)
            if b >= 0:
                touch(pool, b)
                counts[HIT_BLOCKS] += 1
                counts[HIT_TOKENS] += kv.pieces.length[first + i]
                if leading:
                    counts[LEADING_BLOCKS] += 1
            else:
                leading = False
                get_new_blocks(pool, kv.table_blocks, 0, 0, i, 1)
                b = int(kv.table_blocks[0, 0, i])
                cache_full_block(pool, r, b, key, 0)
            kv.table_blocks[0, 0, i] = b
        for i in range(n):
            at = n - 1 - i if tail_first else i
            free_block(pool, kv.table_blocks[0, 0, at], False)
