"""The fleet's loop against its twin in plain Python, one replica against no fleet, and cuts into calls."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sim import capacity
from sim.fleet.config import (
    FleetSettings,
    LeastLoaded,
    PrefixAffinity,
    Random,
    RoundRobin,
    Router,
    SessionAffinity,
)
from sim.fleet.simulate import FleetResult, FleetSimulation
from sim.simulate import Simulation
from tests.core.cases import Case, draw_case, snapshot
from tests.core.test_core_cuts import assert_equal_results
from tests.fleet.twin import TwinFleet

SEEDS = st.integers(0, 2**32 - 1)


def draw_router(rng: random.Random) -> Router:
    """Any router, looking at the replicas always, often or hardly ever."""
    interval = rng.choice([0, 1, 300, 5_000, 100_000])
    kind: Any = rng.choice([RoundRobin, Random, LeastLoaded, LeastLoaded, SessionAffinity, PrefixAffinity])
    if kind is LeastLoaded:
        return LeastLoaded(score=rng.choice(["in_flight", "waiting_x4"]), stats_interval=interval)
    if kind is SessionAffinity:
        return SessionAffinity(first=rng.choice(["hash", "least_loaded"]), stats_interval=interval)
    if kind is PrefixAffinity:
        return PrefixAffinity(
            unit_tokens=rng.choice([1, 3, 16]),
            index_capacity=rng.choice(["auto", 1, 20]),
            max_prefix_tokens=rng.choice([8, 131072]),
            queue_weight=rng.choice([0.0, 2.0]),
            usage_weight=rng.choice([0.0, 2.0]),
            stats_interval=interval,
        )
    router: Router = kind()
    return router


def draw_fleet(seed: int, **log: Any) -> tuple[Case, FleetSettings]:
    rng = random.Random(seed)
    case = draw_case(seed, "time", **log)
    if rng.random() < 0.5:
        # think times that leave room for windows
        case.workload.think_ns[case.workload.arrival < 0] += rng.choice([40, 3_000])
    return case, FleetSettings(rng.choice([1, 2, 3, 5, 70]), draw_router(rng))


def run_fleet_whole(case: Case, fleet: FleetSettings, seed: int) -> FleetSimulation:
    simulation = FleetSimulation(*case, fleet, seed)
    assert simulation.run() == "finished"
    return simulation


@given(seed=SEEDS)
@settings(max_examples=40)
def test_loop_and_rules_are_those_of_the_twin(seed: int) -> None:
    case, fleet = draw_fleet(seed)
    twin = TwinFleet(case, fleet, seed)
    twin.run()
    simulation = run_fleet_whole(case, fleet, seed)
    result = simulation.result()
    routed = dict(zip(result.requests["index"].tolist(), result.requests["replica"].tolist(), strict=True))
    assert routed == {r: k for r, k in twin.replica_of.items() if r in routed}
    assert len(routed) == len(twin.replica_of)
    for ours, theirs in zip(simulation.state.states, twin.states, strict=True):
        a, b = snapshot(ours), snapshot(theirs)
        assert a == b
    np.testing.assert_array_equal(simulation.state.fleet.requests, twin.requests)


@given(seed=SEEDS)
@settings(max_examples=15)
def test_one_replica_is_a_run_without_a_fleet(seed: int) -> None:
    case, fleet = draw_fleet(seed, events=True)
    if case.workload.closed_loop and (case.workload.prompt_len >= case.engine.max_model_len).any():
        return  # the router refuses such a prompt when it arrives, an engine when it takes its arrivals in
    single = Simulation(*case)
    single.run()
    result = run_fleet_whole(case, FleetSettings(1, fleet.router), seed).result()
    assert set(result.requests.pop("replica").tolist()) <= {0}
    assert result.events is not None
    result.events.pop("replica", None)
    expected = single.result()
    if not result.events:
        result.events = {name: column for name, column in (expected.events or {}).items() if not len(column)}
    assert_equal_results(result, expected)


def assert_equal_fleets(a: FleetResult, b: FleetResult) -> None:
    assert_equal_results(a, b)
    assert a.routed == b.routed
    for left, right in zip(a.replicas, b.replicas, strict=True):
        assert_equal_results(left, right)


@given(seed=SEEDS)
@example(seed=138)
@settings(max_examples=20)
def test_a_fleet_that_is_stopped_and_read_goes_on_unchanged(seed: int) -> None:
    case, fleet = draw_fleet(seed, events=True, every_step=seed % 2 == 0)
    whole = run_fleet_whole(case, fleet, seed)
    rng = random.Random(seed)
    end = whole.progress().now_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capacity, "_LOG_ROWS", 3)
        patch.setattr(capacity, "_EVENT_ROWS", 1)
        patch.setattr("sim.drive.FIRST_CALL_STEPS", rng.choice([1, 7, 300]))
        patch.setattr("sim.drive.CALL_SECONDS", 0.0)
        stopped = FleetSimulation(*case, fleet, seed)
        for until in sorted(rng.randint(0, end + 10) for _ in range(4)):
            if stopped.run(until_ns=until) == "until":
                assert stopped.result().totals["now_ns"] == until
        assert stopped.run() == "finished"
    assert_equal_fleets(stopped.result(), whole.result())


def test_totals_are_sums_over_the_replicas() -> None:
    case, _ = draw_fleet(3, sample_period_ns=50)
    result = run_fleet_whole(case, FleetSettings(3, LeastLoaded()), 0).result()
    n = len(case.workload)
    assert sum(result.routed) == n == len(result.requests["index"])
    assert result.totals["finished"] == int((result.requests["status"] == 3).sum())
    for name in ("used_blocks", "prefix_hits", "preemptions", "num_free_blocks"):
        assert result.steps[name][-1] == sum(part.steps[name][-1] for part in result.replicas)
    assert set(np.diff(result.steps["time_ns"]) > 0) == {True}
    stacked = result.replica_steps
    assert np.bincount(stacked["replica"]).tolist() == [len(p.steps["step"]) for p in result.replicas]
