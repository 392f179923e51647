"""Small workloads whose fragmentation can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sim.analysis.layout import (
    BlockLayoutAnalyzer,
    causes_of,
    interleaving,
    splitters_of,
    stripes_of,
    worst_rows,
)
from sim.analysis.tracker import FragmentationTracker
from tests.analysis.pools import STEP, builder, engine, simulation, snapshot


@pytest.mark.parametrize("k", [1, 2, 7, 40])
def test_interleaved_lifetimes_leave_exactly_k_free_runs(k: int) -> None:
    # 2k requests of one block each fill the pool in order; those in even places end at once
    b = builder()
    for i in range(2 * k):
        b.add([i], [8], output_len=1 if i % 2 == 0 else 6, arrival=0)
    sim = simulation(engine(num_gpu_blocks=2 * k + 1, max_num_seqs=2 * k), b.build())
    full = snapshot(sim, STEP)
    assert full.num_free == 0
    assert interleaving(full) == 1.0
    striped = snapshot(sim, STEP + 1)
    assert striped.num_free == striped.num_free_runs == k
    assert striped.largest_free_run == 1
    assert striped.free_run_histogram[0].tolist() == [1]
    assert striped.free_run_histogram[1].tolist() == [k]
    assert striped.external_fragmentation == 1 - 1 / k
    assert striped.contiguous_fit_fails(2) == (k >= 2)
    assert not striped.contiguous_fit_fails(1)
    assert not striped.contiguous_fit_fails(k + 1)
    # the request in each gap splits the space alone
    splitters = splitters_of(striped)
    assert sorted(s.request for s in splitters) == list(range(1, 2 * k - 1, 2))
    assert all(s.boundaries == s.sole == s.blocks == 1 for s in splitters)
    assert all(s.free_blocks_split == 2 and s.age_ns == STEP + 1 for s in splitters)
    assert sum(s.share for s in splitters) == pytest.approx(1.0 if k > 1 else 0.0)
    analyzer = BlockLayoutAnalyzer(coalesce=1, busy=0.5)
    analyzer.add(full)
    analyzer.add(striped)
    report = analyzer.report()
    assert report.interleaving == (1.0, 0.0)
    assert [(r.first, r.last, r.longest_run) for r in report.regions] == ([(1, 2 * k, 1)])
    assert len(report.stripes) == (1 if 2 * k >= 8 else 0)
    if report.stripes:
        assert (report.stripes[0].first, report.stripes[0].last) == (1, 2 * k)
        assert report.stripes[0].interleaving == 1.0


def test_a_run_of_blocks_is_no_stripe() -> None:
    b = builder()
    for i in range(3):
        b.add([i], [16 * 8 - 4], output_len=4, arrival=0)
    s = snapshot(simulation(engine(num_gpu_blocks=40), b.build()), STEP)
    assert interleaving(s) == 2 / 23
    assert stripes_of(s) == ()
    assert s.table_contiguity == 1.0
    assert s.by_request.runs.tolist() == [1, 1, 1]


def test_seventeen_tokens_in_blocks_of_sixteen() -> None:
    b = builder()
    for i in range(21):
        b.add([i], [17], output_len=4, arrival=0)
    s = snapshot(simulation(engine(num_gpu_blocks=64), b.build()), STEP)
    assert s.by_request.wasted_slots.tolist() == [15] * 21
    assert s.wasted_slots == s.wasted_slots_once == 21 * 15
    assert s.wasted_by_group.tolist() == [21 * 15]
    assert s.internal_fragmentation == 15 / 32
    assert s.usage == 42 / 63
    assert s.token_usage == 21 * 17 / (63 * 16)
    causes = causes_of(s, "wasted_slots", 3)
    assert [(cause.request, cause.amount) for cause in causes] == [(0, 15), (1, 15), (2, 15)]
    assert causes[0].share == 1 / 21
    held = causes_of(s, "num_free_blocks", 1)[0]
    assert (held.request_id, held.amount, held.share) == ("r0", 2, 2 / 42)


def test_shared_blocks_are_counted_once_or_for_each_owner() -> None:
    # four requests share two full blocks and have one of their own with a single token in it
    b = builder()
    b.add([1], [33], output_len=9, arrival=0)
    for _ in range(3):
        b.add([1], [33], output_len=9, arrival=1)
    s = snapshot(simulation(engine(num_gpu_blocks=64), b.build()), STEP + 1)
    assert s.ref_cnt[1:3].tolist() == [4, 4]
    assert s.num_owners[1:3].tolist() == [4, 4]
    assert s.owner[1:3].tolist() == [0, 0]
    assert s.by_request.shared_blocks.tolist() == [2, 2, 2, 2]
    # the first has its second output token in its last block already
    assert s.wasted_slots == 14 + 3 * 15 == s.wasted_slots_once
    assert s.allocated_slots == 12 * 16
    assert s.allocated_slots_once == 6 * 16
    assert s.internal_fragmentation_once == 2 * s.internal_fragmentation


def test_equal_prompts_of_whole_blocks_leave_duplicates() -> None:
    # the last block of a prompt is computed again even if it is cached, so each request caches a copy
    b = builder()
    for i in range(5):
        b.add([1], [32], output_len=3, arrival=i * 10 * STEP)
    sim = simulation(engine(num_gpu_blocks=64), b.build())
    s = snapshot(sim, 100 * STEP)
    assert s.num_cached == 1 + 5
    assert s.num_duplicates == 4
    assert s.num_unreachable == 0
    assert FragmentationTracker(simulation(engine(num_gpu_blocks=64), b.build())).run().cache.hits == 4 * 16


def test_one_shot_prompts_pollute() -> None:
    # 30 prompts of two blocks pass through a pool of ten blocks and nobody ever asks for them again
    b = builder()
    for i in range(30):
        b.add([i], [33], output_len=1, arrival=i * 10 * STEP)
    tracked = FragmentationTracker(simulation(engine(num_gpu_blocks=11), b.build())).run()
    cache = tracked.cache
    assert cache.queries == 30 * 33
    assert cache.hits == 0
    assert cache.evicted == cache.evicted_unused == 60 - cache.cached_at_end
    assert cache.pollution == 1.0
    assert cache.hit_rate == 0.0
    # the partial block is taken again at once, the cached ones only when their turn has come
    assert tracked.residency.idle.count == tracked.totals["allocations"] - tracked.residency.open_records
    assert tracked.residency.reuse_gap.count == 0


def test_a_hot_prompt_among_one_shot_prompts_does_not_pollute() -> None:
    b = builder()
    for i in range(30):
        b.add([1000 if i % 2 else i], [33], output_len=1, arrival=i * 10 * STEP)
    cache = FragmentationTracker(simulation(engine(num_gpu_blocks=11), b.build())).run().cache
    assert cache.hits == 14 * 32
    assert cache.evicted == cache.evicted_unused == 32 - cache.cached_at_end


def test_what_was_hit_before_it_was_evicted_did_not_pollute() -> None:
    # the first prompt is asked for twice, then twenty others drive its two full blocks out
    b = builder()
    for i in range(22):
        b.add([max(i, 1)], [33], output_len=1, arrival=i * 10 * STEP)
    cache = FragmentationTracker(simulation(engine(num_gpu_blocks=11), b.build())).run().cache
    assert cache.hits == 32
    assert cache.evicted == 42 - cache.cached_at_end
    assert cache.evicted_unused == cache.evicted - 2
    assert cache.pollution == cache.evicted_unused / cache.evicted


def test_a_gap_of_two_requests_is_nobodys_alone() -> None:
    # blocks of four requests in order; the outer two end at once
    b = builder()
    for i in range(4):
        b.add([i], [8], output_len=1 if i in (0, 3) else 6, arrival=0)
    s = snapshot(simulation(engine(num_gpu_blocks=5), b.build()), STEP + 1)
    assert [(x.request, x.boundaries, x.sole, x.share) for x in splitters_of(s)] == [
        (1, 1, 0, 1.0),
        (2, 1, 0, 1.0),
    ]
    assert [x.free_blocks_split for x in splitters_of(s)] == [0, 0]
    (first, second) = causes_of(s, "external_fragmentation")
    assert (first.request_id, first.share, first.sole, first.of_what) == (
        "r1",
        1.0,
        0,
        "gaps between free runs",
    )
    assert second.request_id == "r2"


def test_a_contiguous_allocator_would_refuse_two_blocks_in_a_comb() -> None:
    b = builder()
    for i in range(8):
        b.add([i], [8], output_len=1 if i % 2 == 0 else 20, arrival=0)
    b.add([100], [20], output_len=1, arrival=2 * STEP)
    tracked = FragmentationTracker(
        simulation(engine(num_gpu_blocks=9, enable_prefix_caching=False), b.build())
    ).run()
    assert tracked.contiguous_fit_failures == 1
    # 9 prompts, and a second block for each of the four that grow past 16 tokens
    assert tracked.allocations == 9 + 4


def test_worst_rows_are_apart() -> None:
    steps = {
        "time_ns": np.array([0, 10, 20, 30, 40]),
        "wasted_slots": np.array([1, 9, 8, 2, 7]),
        "num_free_blocks": np.array([5, 0, 4, 4, 4]),
        "largest_free_run": np.array([5, 0, 1, 2, 4]),
    }
    assert worst_rows(steps, "wasted_slots", 2, 15) == [(10, 9.0), (40, 7.0)]
    assert worst_rows(steps, "num_free_blocks", 1, 1) == [(10, 0.0)]
    assert worst_rows(steps, "external_fragmentation", 2, 1) == [(20, 0.75), (30, 0.5)]
