"""The life of a block, over and over: hashed, looked up, allocated, inserted, evicted, freed.

The pool's own functions in one jitted loop, with no scheduler around them. Requests of ``REQUEST_BLOCKS``
blocks live in half of the pool; each new one takes its blocks from the front of the queue, which evicts what
they cache, and one chosen at random ends and frees its blocks tail first. So ids, queue neighbours and
prefix-map slots are as scattered as in a long run, and every block goes once through everything.
"""

from __future__ import annotations

import numpy as np

from sim.capacity import LogOptions, allocate
from sim.config_engine import EngineSettings
from sim.core.block_hash import chain_hash, content_sum, root_hash
from sim.core.block_pool import cache_full_block, free_block, get_cached_block, get_new_block
from sim.core.jit import entry
from sim.core.state import KVCache
from sim.step_time import constant
from workloads.builder import assemble

REQUEST_BLOCKS = 64
_BLOCK_SIZE = 16
_VOCAB = 128_000


@entry
def live_and_die(kv: KVCache, live: np.ndarray, first: int, requests: int, seed: int) -> int:
    """Let ``requests`` requests follow one another, numbered from ``first``; returns the number of hits (0).

    ``live``: int32[slots, REQUEST_BLOCKS], the blocks of the live requests, -1 in column 0: none; modified in
    place, as is ``kv``, of which only the pool is used.
    """
    pool = kv.pool
    vocab = np.uint64(kv.params.vocab_size)
    x = np.uint64(seed)
    hits = 0
    for r in range(first, first + requests):
        x ^= x << np.uint64(13)
        x ^= x >> np.uint64(7)
        x ^= x << np.uint64(17)
        slot = np.int64((x >> np.uint64(11)) % np.uint64(live.shape[0]))
        if live[slot, 0] >= 0:
            front = kv.params.num_blocks
            for i in range(REQUEST_BLOCKS - 1, -1, -1):
                front = free_block(pool, live[slot, i], front)
        h = root_hash(0)
        for i in range(REQUEST_BLOCKS):
            h = chain_hash(h, content_sum(kv.tokens, kv.hash_mult, r, i * _BLOCK_SIZE, _BLOCK_SIZE, 0, vocab))
            if get_cached_block(pool, h, 0) >= 0:
                hits += 1
            b = get_new_block(pool)
            cache_full_block(pool, r, b, h, 0)
            live[slot, i] = b
    return hits


class LifeCycle:
    """A pool of ``num_blocks`` usable blocks in its steady state: every block cached, half of them in use."""

    def __init__(self, num_blocks: int) -> None:
        one = np.ones(1, dtype=np.int64)
        workload = assemble(
            vocab_size=_VOCAB, arrival=one - 1, seg_id=one, seg_len=one, output_len=one, source={}
        )
        engine = EngineSettings(block_size=_BLOCK_SIZE, num_gpu_blocks=num_blocks + 1)
        self.state = allocate(engine, workload, constant(1), LogOptions())
        self.live = np.full((num_blocks // (2 * REQUEST_BLOCKS), REQUEST_BLOCKS), -1, dtype=np.int32)
        self.served = 0
        self.run(4 * num_blocks)

    def run(self, blocks: int) -> int:
        """Let some ``blocks`` blocks live and die; returns their exact number."""
        requests = max(1, blocks // REQUEST_BLOCKS)
        hits = live_and_die(self.state.kv, self.live, self.served, requests, 88172645463325252 + self.served)
        if hits:
            raise AssertionError(f"{hits} requests with tokens of their own hit each other's blocks")
        self.served += requests
        return requests * REQUEST_BLOCKS
