"""The life of a block, over and over: hashed, allocated (evicting what it caches), inserted, freed.

The KV-cache manager's own functions in one jitted loop, with no scheduler around them. Requests of
``REQUEST_BLOCKS`` full blocks live in half of the pool. One of them, chosen at random, ends and frees its
blocks, tail first; another one takes its place: its first block is looked up in vain, its blocks are hashed,
taken from the front of the free queue and put into the prefix map. So ids, queue neighbours and prefix-map
slots are as scattered as in a long run.
"""

from __future__ import annotations

import numpy as np

from sim.capacity import LogOptions, allocate
from sim.core import kv_cache_manager as kvm
from sim.core.jit import entry
from sim.core.kv_rules import allocate_new_blocks, find_longest_cache_hit
from sim.core.state import KVCache
from sim.engine_settings import EngineSettings
from sim.step_time import constant
from workloads.builder import assemble

REQUEST_BLOCKS = 64
_BLOCK_SIZE = 16
_TOKENS = REQUEST_BLOCKS * _BLOCK_SIZE


@entry
def live_and_die(kv: KVCache, first: int, requests: int, seed: int) -> int:
    """Let ``requests`` requests, with segments from ``first`` on, follow one another; returns their hits (0).

    The rows of ``kv.requests`` (all but its two sentinels) are the live requests; modified in place.
    """
    x = np.uint64(seed)
    rows = np.uint64(kv.requests.size - 2)
    hits = 0
    for segment in range(first, first + requests):
        x ^= x << np.uint64(13)
        x ^= x >> np.uint64(7)
        x ^= x << np.uint64(17)
        r = np.int64((x >> np.uint64(11)) % rows)
        kvm.free(kv, r)
        kv.pieces.seg[r] = segment
        slot = kvm.acquire_slot(kv, r)
        hits += find_longest_cache_hit(kv, r, slot, _TOKENS - 1)
        allocate_new_blocks(kv, r, slot, 0, _TOKENS, 0, True)
        kvm.cache_blocks(kv, r, slot, _TOKENS)
    return hits


class LifeCycle:
    """A pool of ``num_blocks`` usable blocks in its steady state: every block cached, half of them in use."""

    def __init__(self, num_blocks: int) -> None:
        live = num_blocks // (2 * REQUEST_BLOCKS)
        workload = assemble(
            vocab_size=128_000,
            arrival=np.zeros(live, dtype=np.int64),
            seg_id=np.arange(live, dtype=np.int64),
            seg_len=np.full(live, _TOKENS, dtype=np.int64),
            output_len=np.ones(live, dtype=np.int64),
            source={},
        )
        engine = EngineSettings(block_size=_BLOCK_SIZE, num_gpu_blocks=num_blocks + 1, max_num_seqs=live)
        self.state = allocate(engine, workload, constant(1), LogOptions())
        self.served = 0
        self.run(4 * num_blocks)

    def run(self, blocks: int) -> int:
        """Let some ``blocks`` blocks live and die; returns their exact number."""
        requests = max(1, blocks // REQUEST_BLOCKS)
        hits = live_and_die(self.state.kv, self.served, requests, 88172645463325252 + self.served)
        if hits:
            raise AssertionError(f"{hits} hits between requests that have no token in common")
        self.served += requests
        return requests * REQUEST_BLOCKS
