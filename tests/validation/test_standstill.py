"""Runs that would never end: the kernel and its twin notice it in the same step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sim.capacity import LogOptions, allocate
from sim.core import codes as c
from sim.core.engine import run_until
from sim.core.verify import verify
from sim.engine_settings import EngineSettings, KVCacheGroup
from sim.reference import standstill
from sim.step_time import constant
from tests.core.cases import FOREVER, Case, draw_case
from validation.diff import compare
from validation.fuzz_groups import random_group_case
from validation.logical import LogicalRequest
from validation.record import record, to_workload


def assert_both_stop(settings: EngineSettings, requests: tuple[LogicalRequest, ...], why: str) -> None:
    twin, kernel = record("reference", settings, requests), record("sim", settings, requests)
    assert twin.stuck is not None
    assert why in twin.stuck
    assert kernel.stuck is not None
    comparison = compare(twin.log, kernel.log)
    assert comparison.equal, comparison.summary()


def test_requests_that_preempt_each_other_for_ever_stop_both() -> None:
    """Ties in priority and arrival: of two the first in the list is the victim; it comes back behind."""
    case = random_group_case(454, "partial")
    assert case.settings.arrival_time == "step"
    assert_both_stop(case.settings, case.requests, "preempt each other")


@pytest.mark.parametrize(("family", "seed"), [("mamba", 374), ("uneven", 535)])
def test_more_requests_that_preempt_each_other_for_ever(family: str, seed: int) -> None:
    case = random_group_case(seed, family)
    state = allocate(case.settings, to_workload(case.requests), constant(0), LogOptions(sample_period_ns=0))
    assert run_until(state, FOREVER, 20_000) == c.X_STUCK


def test_patience_is_the_same_in_both() -> None:
    assert (standstill.PATIENCE, standstill.ALONE_ROUNDS) == (c.PATIENCE, c.ALONE_ROUNDS)


@pytest.mark.parametrize("clock", ["time", "logical"])
def test_a_prefill_with_drafts_that_does_not_fit_is_given_up(clock: str) -> None:
    """136 tokens with room for 140: the step of the last one wants slots for five drafts, too."""
    case = draw_case(138, clock, events=True)
    state = case.state()
    reason = run_until(state, FOREVER, 2_000)
    while reason == c.X_EVENTS_FULL:
        state.ctl.num_events = 0
        reason = run_until(state, FOREVER, 2_000)
    assert reason == (c.X_DONE if clock == "time" else c.X_STUCK)
    statuses = state.requests.status[: len(case.workload)].tolist()
    assert statuses.count(c.S_UNSERVABLE) == (3 if clock == "time" else 0)


#: A draft model takes two of a step's eight inputs, so that no step fills a block from its beginning, which
#: a chunk for a Mamba state must. Behind a hit that ends inside a block a request runs, up to the next block.
STALLED = EngineSettings(
    block_size=8,
    prefix_match_unit=2,
    num_gpu_blocks=60,
    max_num_seqs=3,
    max_num_batched_tokens=8,
    max_model_len=100,
    kv_cache_groups=(KVCacheGroup("mamba"), KVCacheGroup("full")),
    num_speculative_tokens=2,
    speculative_method="draft_model",
)
SHORT = LogicalRequest("r0", 0, (1, 2, 3, 4, 5), (1,))
LONG = LogicalRequest("r1", 4, (1, 2, 3, 4, *range(10, 50)), (1, 2))


def test_a_request_that_is_never_continued_stops_both() -> None:
    assert_both_stop(STALLED, (SHORT, LONG), "can never be continued")


def test_on_the_real_clock_it_is_given_up_and_others_are_served() -> None:
    later = replace(SHORT, request_id="r2", arrival_step=900)
    workload = replace(to_workload((SHORT, LONG, later)), clock="time")
    settings = replace(STALLED, draft_acceptance=0.5)
    state = Case(settings, workload, constant(10), LogOptions(sample_period_ns=0)).state()
    assert run_until(state, FOREVER, 1_000) == c.X_DONE
    assert state.requests.status[:3].tolist() == [c.S_FINISHED, c.S_UNSERVABLE, c.S_FINISHED]
    assert verify(state, workload) == []


def test_requests_of_one_rank_on_the_real_clock_are_all_served() -> None:
    """A server stamps arrivals one by one: what goes on for ever in logical time ends."""
    case = random_group_case(454, "partial")
    workload = replace(to_workload(case.requests), clock="time")
    state = allocate(case.settings, workload, constant(10), LogOptions(sample_period_ns=0))
    assert run_until(state, FOREVER, 20_000) == c.X_DONE
    assert set(state.requests.status[: len(workload)].tolist()) == {c.S_FINISHED}
