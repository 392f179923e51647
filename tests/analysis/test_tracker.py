"""The tracker: failures with cause and outcome, residency as vLLM's collector measures it, samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.analysis.residency import ResidencyHistogram, residency_of
from sim.analysis.tracker import FragmentationTracker, Tracked, curves_of
from sim.capacity import LogOptions, allocate
from sim.core import codes as c
from sim.core.engine import run_until
from sim.engine_settings import EngineSettings, KVCacheGroup
from sim.reference.engine import Engine
from sim.reference.metrics import KVCacheMetricsCollector
from sim.reference.settings import Settings
from tests.analysis.pools import STEP, builder, engine, simulation
from tests.core.cases import FOREVER
from tests.reference.kernel import NO_TIME, to_workload
from tests.reference.random_cases import random_case


def bin_of(ns: int) -> int:
    """``log_bin`` without its jitted code."""
    if ns < 256:
        return ns
    e = ns.bit_length() - 1
    return 256 + (e - 8) * 128 + ((ns >> (e - 7)) & 127)


def compare(histogram: ResidencyHistogram, fine: np.ndarray, seconds: list[float]) -> None:
    """The histogram holds exactly these durations."""
    ns = [round(s * 1e9) for s in seconds]
    assert histogram.count == len(ns)
    assert round(histogram.total_s * 1e9) == sum(ns)
    assert round(histogram.max_s * 1e9) == max(ns, default=0)
    buckets = np.searchsorted(np.round(histogram.bounds_s * 1e9), ns, side="left")
    assert histogram.counts.tolist() == np.bincount(buckets, minlength=len(histogram.counts)).tolist()
    expected = np.bincount([bin_of(v) for v in ns], minlength=len(fine))
    assert fine.tolist() == expected.tolist()


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_residency_equals_the_collector_of_the_twin(seed: int) -> None:
    case = random_case(seed)
    place: list[Engine] = []
    collector = KVCacheMetricsCollector(lambda: place[0].step_index, 1.0)
    twin = Engine(Settings.from_dict(case.settings), case.workload, metrics_collector=collector)
    place.append(twin)
    twin.run()
    log = LogOptions(sample_period_ns=0, follow_blocks=True)
    state = allocate(EngineSettings(**case.settings), to_workload(case.workload), NO_TIME, log)
    assert run_until(state, FOREVER, 10**6) == c.X_DONE
    events = collector.drain_events()
    found = residency_of(state.kv.pool, 1.0)
    fine = state.kv.pool.residency_fine
    compare(found.lifetime, fine[0], [e.lifetime_seconds for e in events])
    compare(found.idle, fine[1], [e.idle_seconds for e in events])
    compare(found.reuse_gap, fine[2], [gap for e in events for gap in e.reuse_gaps_seconds])
    assert found.open_records == len(collector.block_metrics)


def crowd(**log: Any) -> Tracked:
    """Many requests through a small pool."""
    b = builder()
    for i in range(200):
        b.add([i % 7, 100 + i], [40, 20], output_len=30, arrival=i * 3 * STEP)
    sim = simulation(engine(num_gpu_blocks=60), b.build(), **log)
    return FragmentationTracker(sim, residency_sample=log.get("residency_sample", 1.0)).run()


def test_a_sample_of_the_allocations_has_about_its_share() -> None:
    everything, some = crowd(), crowd(residency_sample=0.25)
    assert everything.residency.lifetime.count > 500
    share = some.residency.lifetime.count / everything.residency.lifetime.count
    assert 0.18 < share < 0.32
    assert some.residency.lifetime.mean_s == pytest.approx(everything.residency.lifetime.mean_s, rel=0.25)
    again = crowd(residency_sample=0.25)
    assert again.residency.lifetime.counts.tolist() == some.residency.lifetime.counts.tolist()
    assert again.requests["finish_ns"].tolist() == everything.requests["finish_ns"].tolist()


def test_a_refused_admission_waits() -> None:
    # the second needs four blocks and finds three; the first ends after four steps
    b = builder()
    b.add([1], [40], output_len=4, arrival=0)
    b.add([2], [60], output_len=2, arrival=10)
    tracked = FragmentationTracker(simulation(engine(num_gpu_blocks=7), b.build())).run()
    (failure,) = tracked.failures
    assert failure.request_id == "r1"
    assert failure.cause == "full-sequence reserve"
    assert (failure.wanted_blocks, failure.free_blocks, failure.attempts) == (4, 3, 3)
    assert failure.outcome == "admitted"
    assert (failure.time_ns, failure.waited_ns) == (STEP, 3 * STEP)


def test_a_watermark_is_named_as_the_cause() -> None:
    b = builder()
    b.add([1], [40], output_len=4, arrival=0)
    b.add([2], [40], output_len=2, arrival=10)
    tracked = FragmentationTracker(simulation(engine(num_gpu_blocks=7, watermark=0.2), b.build())).run()
    assert [(f.cause, f.wanted_blocks, f.free_blocks) for f in tracked.failures] == [("watermark", 3, 3)]


def test_a_running_request_preempts_the_last_one() -> None:
    # two prompts of two blocks in five; both grow, and the first takes what the second has
    b = builder()
    b.add([1], [30], output_len=20, arrival=0)
    b.add([2], [30], output_len=20, arrival=0)
    tracked = FragmentationTracker(
        simulation(engine(num_gpu_blocks=6, enable_prefix_caching=False), b.build())
    ).run()
    running, waiting = tracked.failures
    assert (running.cause, running.outcome, running.request) == ("running request", "preempted itself", 1)
    assert (running.wanted_blocks, running.free_blocks, running.preempted) == (1, 0, (1,))
    # all that it had computed is computed again
    assert running.recomputed_tokens == 32 == tracked.requests["recomputed_tokens"][1]
    assert running.waited_ns == 0
    assert (waiting.request, waiting.outcome) == (1, "admitted")
    assert waiting.waited_ns > 0


def test_a_request_that_never_fits_is_dropped() -> None:
    b = builder()
    b.add([1], [20], output_len=2, arrival=0)
    b.add([2], [200], output_len=2, arrival=10)
    tracked = FragmentationTracker(simulation(engine(num_gpu_blocks=6), b.build())).run()
    assert [(f.request, f.outcome) for f in tracked.failures] == [(1, "dropped")]


def test_an_episode_is_open_at_the_end_of_a_run() -> None:
    b = builder()
    b.add([1], [40], output_len=30, arrival=0)
    b.add([2], [60], output_len=2, arrival=10)
    sim = simulation(engine(num_gpu_blocks=7), b.build())
    tracked = FragmentationTracker(sim, until_ns=5 * STEP).run()
    assert [(f.outcome, f.waited_ns) for f in tracked.failures] == [("open", 4 * STEP)]


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_episodes_account_for_every_refusal_and_preemption(seed: int) -> None:
    rng = np.random.default_rng(seed)
    b = builder()
    for i in range(30):
        b.add([i], [int(rng.integers(1, 60))], output_len=int(rng.integers(1, 40)), arrival=i * STEP)
    sim = simulation(
        engine(num_gpu_blocks=int(rng.integers(8, 20)), scheduler_reserve_full_isl=bool(seed % 2)), b.build()
    )
    tracked = FragmentationTracker(sim, pattern_period_ns=STEP).run()
    t = tracked.totals
    refused = [f for f in tracked.failures if f.cause != "running request"]
    assert sum(f.attempts for f in refused) == t["fail_reserve"] + t["fail_watermark"] + t["fail_pool"]
    preempted = [r for f in tracked.failures for r in f.preempted]
    assert len(preempted) == t["preemptions"]
    assert sum(f.recomputed_tokens for f in tracked.failures) == t["recomputed_tokens"]
    assert all(f.wanted_blocks > f.free_blocks for f in tracked.failures)
    assert [f.time_ns for f in tracked.failures] == sorted(f.time_ns for f in tracked.failures)
    assert tracked.steps["time_ns"].tolist() == sorted(tracked.steps["time_ns"].tolist())


def test_samples_of_running_requests() -> None:
    b = builder()
    b.add([1], [17], output_len=40, arrival=0)
    b.add([2], [17], output_len=4, arrival=0)
    sim = simulation(engine(num_gpu_blocks=30), b.build())
    patterns = FragmentationTracker(sim, pattern_period_ns=STEP).run().patterns
    mine = patterns.of(0)
    # the state in which the clock reaches the end of the k-th step: 17 + k - 1 tokens are computed
    assert mine["time_ns"].tolist() == [STEP * k for k in range(1, 41)]
    tokens = np.arange(17, 57)
    assert mine["allocated_slots"].tolist() == (-(-tokens // 16) * 16).tolist()
    assert mine["wasted_slots"].tolist() == (-tokens % 16).tolist()
    # its third block comes after those of the other request: blocks 1, 2, then 5
    assert mine["runs"].tolist() == [1 if n <= 32 else 2 for n in tokens]
    assert patterns.waste_by_request()[1] == np.mean([15, 14, 13, 12])


def test_curves_of_a_step_log() -> None:
    steps = {
        "num_free_blocks": np.array([0, 6]),
        "used_blocks": np.array([10, 4]),
        "largest_free_run": np.array([0, 3]),
        "wasted_slots": np.array([5, 0]),
        "allocated_slots": np.array([20, 0]),
        "held_tokens": np.array([15, 0]),
        "table_blocks": np.array([10, 0]),
        "table_runs": np.array([4, 0]),
        "num_running": np.array([2, 0]),
        "prefix_queries": np.array([8, 8]),
        "prefix_hits": np.array([2, 2]),
    }
    curves = curves_of(steps, (10,))
    assert curves["usage"].tolist() == [1.0, 0.4]
    assert curves["external_fragmentation"].tolist() == [0.0, 0.5]
    assert curves["internal_fragmentation"].tolist() == [0.25, 0.0]
    assert curves["token_usage"].tolist() == [0.95, 0.4]
    assert curves["table_contiguity"][0] == 0.75
    assert np.isnan(curves["table_contiguity"][1])
    assert curves["hit_rate"][0] == 0.25
    assert np.isnan(curves["hit_rate"][1])


def test_a_tracker_refuses_a_simulation_that_does_not_log_enough() -> None:
    b = builder()
    b.add([1], [8], output_len=1, arrival=0)
    sim = simulation(engine(), b.build(), follow_blocks=False)
    with pytest.raises(ValueError, match="follow blocks"):
        FragmentationTracker(sim).run()


def test_groups_have_a_table_each_and_states_no_slots() -> None:
    steps = {
        "num_free_blocks": np.array([4]),
        "used_blocks": np.array([10]),
        "largest_free_run": np.array([3]),
        "wasted_slots": np.array([5]),
        "allocated_slots": np.array([20]),
        # two requests with three tables each: 10 blocks make 4 pairs, of which 1 is broken
        "table_blocks": np.array([10]),
        "table_runs": np.array([7]),
        "num_running": np.array([2]),
        "prefix_queries": np.array([8]),
        "prefix_hits": np.array([2]),
    }
    curves = curves_of(steps, (4, 4, 4))
    assert curves["table_contiguity"][0] == 0.75
    assert curves["token_usage"][0] == 10 / 14 - 5 / 56
    assert np.isnan(curves_of(steps, (4, 0, 4))["token_usage"][0])
    assert np.isnan(curves_of(steps, (0, 0, 0))["token_usage"][0])


def test_a_wait_for_a_state_is_no_want_of_blocks() -> None:
    # vLLM's Mamba states are hit in the step after the one that computes them: the second request waits
    groups = (KVCacheGroup(type="full"), KVCacheGroup(type="mamba"))
    b = builder()
    for _ in range(2):
        b.add([1], [40], output_len=4, arrival=0)
    log = {"num_gpu_blocks": 64, "kv_cache_groups": groups, "prefix_cache_retention_interval": 16}
    tracked = FragmentationTracker(simulation(engine(**log), b.build())).run()
    (failure,) = tracked.failures
    assert (failure.cause, failure.outcome, failure.request) == ("state", "admitted", 1)
    assert failure.wanted_blocks < failure.free_blocks
    assert tracked.cache.unreachable_at_end is None
    assert tracked.patterns.request.tolist() == []
