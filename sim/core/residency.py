"""Residency of blocks (vLLM 0.32.0, v1/core/kv_cache_metrics.py, KVCacheMetricsCollector), and their chains.

Off unless ``params.follow_blocks``: then ``pool.followed`` has a row a block. A record is opened by a sampled
allocation, hears of hits, and is closed when the block is allocated again; with caching off vLLM never closes
one. Its clock is the engine's. Where vLLM draws from Python's global random numbers, the sampling here is a
hash of the number of allocations so far: the same in every run.
"""

from __future__ import annotations

import numpy as np

from sim.core.block_hash import mix64
from sim.core.jit import inner, leaf
from sim.core.log_bins import log_bin
from sim.core.state import Pool

LIFETIME = 0
IDLE = 1
REUSE_GAP = 2
HISTORY = 4  # hits that are remembered

_SECOND = 1_000_000_000
_ONE = np.uint64(1)


@inner
def _add_duration(pool: Pool, kind: int, ns: int) -> None:
    pool.residency.count[kind] += 1
    pool.residency.seconds[kind] += ns // _SECOND
    pool.residency.nanos[kind] += ns % _SECOND
    pool.residency.longest[kind] = max(pool.residency.longest[kind], ns)
    pool.residency_fine[kind, log_bin(ns)] += 1
    i = 0
    while i < pool.residency_bounds.size and ns > pool.residency_bounds[i]:
        i += 1
    pool.residency_buckets[kind, i] += 1


@inner
def _close(pool: Pool, b: int) -> None:
    """The content of a followed block is dropped (``on_block_evicted``)."""
    now = pool.ctl.now
    pool.followed.open[b] = 0
    _add_duration(pool, LIFETIME, now - pool.followed.birth[b])
    _add_duration(pool, IDLE, now - pool.followed.last_access[b])
    n = pool.followed.accesses[b]
    for i in range(max(n - HISTORY, 0) + 1, n):
        before = pool.access_times[b, (i - 1) % HISTORY]
        _add_duration(pool, REUSE_GAP, pool.access_times[b, i % HISTORY] - before)


@inner
def _open(pool: Pool, b: int) -> None:
    if pool.params.enable_caching and pool.followed.open[b]:
        _close(pool, b)
    now = pool.ctl.now
    pool.followed.birth[b] = now
    pool.followed.last_access[b] = now
    pool.followed.accesses[b] = 0
    draw = np.int64(mix64(np.uint64(pool.meta.allocations)) >> _ONE)
    pool.followed.open[b] = 1 if draw <= pool.params.follow_threshold else 0


@inner
def _access(pool: Pool, b: int) -> None:
    n = pool.followed.accesses[b]
    pool.access_times[b, n % HISTORY] = pool.ctl.now
    pool.followed.last_access[b] = pool.ctl.now
    pool.followed.accesses[b] = n + 1


@leaf
def follow_allocation(pool: Pool, b: int) -> None:
    """Block b was taken from the free queue (``on_block_evicted``, then ``on_block_allocated``)."""
    if pool.params.follow_blocks:
        _open(pool, b)


@leaf
def follow_access(pool: Pool, b: int) -> None:
    """Block b was hit (``on_block_accessed``)."""
    if pool.params.follow_blocks:
        _access(pool, b)


@leaf
def follow_eviction(pool: Pool, b: int) -> None:
    """Block b is to lose its content without being allocated (``evict_blocks``)."""
    if pool.params.follow_blocks and pool.followed.open[b]:
        _close(pool, b)


@leaf
def follow_chain(pool: Pool, b: int, block_hash: np.uint64, parent: np.uint64) -> None:
    """Block b was cached under a hash; ``parent`` is the hash before it in the prefix, 0 for none."""
    if pool.params.follow_blocks:
        pool.followed.hash[b] = block_hash
        pool.followed.parent[b] = parent


@inner
def follow_nothing(pool: Pool) -> None:
    """Drop all open records (``reset``)."""
    for b in range(pool.followed.size):
        pool.followed.open[b] = 0
    # histograms stay: they hold what vLLM has already handed to Prometheus
