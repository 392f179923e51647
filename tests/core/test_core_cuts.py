"""How a run is cut into calls never changes its result."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import capacity
from sim.core import codes as c
from sim.core.engine import run_until, weigh_now
from sim.core.state import State
from sim.simulate import RunResult, Simulation
from tests.core.cases import FOREVER, Case, draw_case, snapshot

FULL = (c.X_LOG_FULL, c.X_EVENTS_FULL)


class Collected:
    """The logs of a run as they are drained."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.rows: list[list[int]] = []
        self.events: list[list[int]] = []

    def drain(self) -> None:
        st = self.state
        self.rows += st.logs.steps[: st.ctl.log_len].tolist()
        self.events += st.kv.pool.events[: st.ctl.num_events].tolist()
        st.ctl.log_len = st.ctl.num_events = 0


def run_in_one(case: Case) -> Collected:
    """One call, or as few as the logs allow."""
    collected = Collected(case.state())
    while run_until(collected.state, FOREVER, FOREVER) in FULL:
        collected.drain()
    collected.drain()
    return collected


def run_in_pieces(case: Case, rng: random.Random, end: int) -> Collected:
    """Random bounds of time and of phases; the logs are drained when full, and at random."""
    collected = Collected(case.state())
    t_end, drained = 0, 0
    while True:
        reason = run_until(collected.state, t_end, rng.choice([1, 2, 10, 1000]))
        if reason in FULL or rng.random() < 0.3:
            collected.drain()
            drained += reason in FULL
        if reason in (c.X_DONE, c.X_STUCK):
            collected.drain()
            return collected
        if reason == c.X_TIME:
            # any later bound, sometimes the very instant of the next phase, or an earlier one
            t_end = max(0, t_end + rng.choice([1, 1, max(1, end // 7), max(1, end // 50), -3]))


@pytest.mark.parametrize("clock", ["time", "logical"])
@given(seed=st.integers(0, 2**32 - 1), every_step=st.booleans())
@settings(max_examples=12)
def test_pieces_give_what_one_call_gives(clock: str, seed: int, every_step: bool) -> None:
    case = draw_case(seed, clock, events=True, every_step=every_step)
    whole = run_in_one(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capacity, "_LOG_ROWS", 3)
        patch.setattr(capacity, "_EVENT_ROWS", 1)
        pieces = run_in_pieces(case, random.Random(seed), int(whole.state.ctl.now))
    assert pieces.rows == whole.rows
    assert pieces.events == whole.events
    assert snapshot(pieces.state) == snapshot(whole.state)


def test_full_logs_stop_the_run_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both logs really fill up in such runs: a run in one call ends early and goes on after draining."""
    monkeypatch.setattr(capacity, "_LOG_ROWS", 3)
    monkeypatch.setattr(capacity, "_EVENT_ROWS", 1)
    reasons = set()
    for seed in range(12):
        state = draw_case(seed, "time", events=True, every_step=seed % 2 == 0, sample_period_ns=0).state()
        while (reason := run_until(state, FOREVER, FOREVER)) in FULL:
            reasons.add(reason)
            used, room = int(state.ctl.log_len), state.logs.steps.shape[0]
            assert (used == room) == (reason == c.X_LOG_FULL)
            state.ctl.log_len = state.ctl.num_events = 0
        assert reason == c.X_DONE
        assert state.ctl.events_lost == 0
    assert reasons == set(FULL)


def assert_equal_results(a: RunResult, b: RunResult) -> None:
    assert a.totals == b.totals
    assert a.exit_reason == b.exit_reason
    for left, right in ((a.steps, b.steps), (a.requests, b.requests), (a.events, b.events)):
        assert left is not None
        assert right is not None
        assert list(left) == list(right)
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)
    assert a.time_weighted == b.time_weighted


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=12)
def test_a_simulation_that_is_stopped_and_read_goes_on_unchanged(seed: int) -> None:
    case = draw_case(seed, "time", events=True)
    whole = Simulation(*case)
    assert whole.run() == "finished"
    rng = random.Random(seed)
    end = whole.progress().now_ns
    stopped = Simulation(*case)
    for until in sorted(rng.randint(0, end + 10) for _ in range(4)):
        reason = stopped.run(until_ns=until)
        if reason == "until":
            assert stopped.progress().now_ns == until
            result = stopped.result()
            assert result.totals["now_ns"] == until
    assert stopped.run() == "finished"
    assert_equal_results(stopped.result(), whole.result())


def test_until_splits_time_exactly() -> None:
    """Weights and samples of a run up to an instant are those of the whole run up to there."""
    case = draw_case(11, "time", sample_period_ns=50, warmup_ns=0)
    whole = Simulation(*case)
    whole.run()
    until = whole.progress().now_ns // 2
    part = Simulation(*case)
    assert part.run(until_ns=until) == "until"
    means = {name: values["mean"] for name, values in part.result().time_weighted.items()}
    weigh_now(part.state)
    assert (part.state.logs.histogram.sum(axis=1) == until).all()
    assert means == {name: values["mean"] for name, values in part.result().time_weighted.items()}
    times = whole.result().steps["time_ns"]
    kept = part.result().steps["time_ns"]
    # the last row says how the run ended
    np.testing.assert_array_equal(kept[kept % 50 == 0], times[(times <= until) & (times % 50 == 0)])
    assert kept[-1] == until


@pytest.mark.parametrize("clock", ["time", "logical"])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=8)
def test_watching_changes_nothing(clock: str, seed: int) -> None:
    """Samples, the step log, the events and the following of blocks have no effect on what is watched."""
    nothing = {"every_step": False, "events": False, "follow_blocks": False, "sample_period_ns": 0}
    plain = snapshot(run_in_one(draw_case(seed, clock, **nothing)).state)
    everything = {"every_step": True, "events": True, "follow_blocks": True}
    for options in (everything, {"request_events": True}, {"sample_period_ns": 50 if clock == "time" else 0}):
        watched = snapshot(run_in_one(draw_case(seed, clock, **{**nothing, **options})).state)
        for name in plain:
            if name not in ("control", "residency"):
                assert watched[name] == plain[name], name
