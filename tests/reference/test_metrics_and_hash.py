"""Residency metrics with an injected clock, and the identity of block chains."""

from __future__ import annotations

import pytest

from sim.reference.block_hash import BlockHasher, resolve_block_hashes
from sim.reference.block_pool import BlockPool
from sim.reference.metrics import KVCacheEvictionEvent, KVCacheMetricsCollector


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


def test_lifetime_idle_and_reuse_gaps() -> None:
    clock = Clock()
    metrics = KVCacheMetricsCollector(clock, 1.0)
    pool = BlockPool(2, True, 4, metrics_collector=metrics)
    (block,) = pool.get_new_blocks(1)
    for second in (1, 2, 4, 8, 16):
        clock.ns = second * 10**9
        pool.touch([block])
    pool.free_blocks([block] * 6)
    clock.ns = 20 * 10**9
    assert metrics.drain_events() == []
    pool.get_new_blocks(1)
    # Only the last four accesses are remembered.
    assert metrics.drain_events() == [KVCacheEvictionEvent(20.0, 4.0, (2.0, 4.0, 8.0))]
    assert metrics.drain_events() == []


def test_a_block_never_hit_idles_all_its_life() -> None:
    clock = Clock()
    metrics = KVCacheMetricsCollector(clock, 1.0)
    pool = BlockPool(2, True, 4, metrics_collector=metrics)
    clock.ns = 5
    blocks = pool.get_new_blocks(1)
    clock.ns = 2_500_000_005
    pool.evict_blocks([1])
    pool.free_blocks(blocks)
    assert metrics.drain_events() == [KVCacheEvictionEvent(2.5, 2.5, ())]


def test_without_caching_no_event_is_emitted() -> None:
    metrics = KVCacheMetricsCollector(Clock(), 1.0)
    pool = BlockPool(2, False, 4, metrics_collector=metrics)
    for _ in range(3):
        pool.free_blocks(pool.get_new_blocks(1))
    assert metrics.drain_events() == []


def test_a_reset_drops_open_records_and_undrained_events() -> None:
    metrics = KVCacheMetricsCollector(Clock(), 1.0)
    pool = BlockPool(3, True, 4, metrics_collector=metrics)
    for _ in range(2):
        pool.free_blocks(pool.get_new_blocks(2))
    assert pool.reset_prefix_cache()
    assert metrics.block_metrics == {}
    assert metrics.drain_events() == []


def test_sampling_takes_draws_below_the_rate() -> None:
    draws = iter([0.3, 0.24, 0.25, 0.0])
    metrics = KVCacheMetricsCollector(Clock(), 0.25, lambda: next(draws))
    pool = BlockPool(5, True, 4, metrics_collector=metrics)
    pool.get_new_blocks(4)
    assert sorted(metrics.block_metrics) == [2, 4]


@pytest.mark.parametrize("rate", [0.0, 1.5, -1.0])
def test_a_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(AssertionError, match="sample_rate"):
        KVCacheMetricsCollector(Clock(), rate, lambda: 0.0)


def test_a_rate_below_one_needs_a_sampler() -> None:
    with pytest.raises(ValueError, match="random"):
        KVCacheMetricsCollector(Clock())


def test_hashes_chain_over_everything_before() -> None:
    hasher = BlockHasher(2)
    a = hasher.new_block_hashes((), [1, 2, 3, 4, 5], None)
    assert len(a) == 2
    assert hasher.new_block_hashes((), [1, 2, 3, 4], None) == a
    other = hasher.new_block_hashes((), [9, 2, 3, 4], None)
    assert set(other).isdisjoint(a)
    assert hasher.new_block_hashes(a[:1], [1, 2, 3, 4], None) == a[1:]


def test_a_salt_separates_chains_and_an_empty_one_is_none() -> None:
    hasher = BlockHasher(2)
    plain = hasher.new_block_hashes((), [1, 2, 1, 2], None)
    assert hasher.new_block_hashes((), [1, 2, 1, 2], "") == plain
    salted = hasher.new_block_hashes((), [1, 2, 1, 2], "s")
    assert len({*plain, *salted, *hasher.new_block_hashes((), [1, 2, 1, 2], "t")}) == 6


def test_a_coarser_block_takes_the_last_of_its_hashes() -> None:
    assert list(resolve_block_hashes([10, 11, 12, 13, 14], 4, 8)) == [11, 13]
    assert list(resolve_block_hashes([10, 11], 4, 4)) == [10, 11]
    with pytest.raises(ValueError, match="multiple"):
        resolve_block_hashes([10], 4, 6)
