"""Every numbered invariant holds between any two phases of random runs."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.core import codes as c
from sim.core.engine import abort_request
from sim.core.verify import verify
from tests.core.cases import draw_case, drive


@pytest.mark.parametrize("clock", ["time", "logical"])
@given(seed=st.integers(0, 2**32 - 1), events=st.booleans(), every_step=st.booleans(), aborts=st.booleans())
@settings(max_examples=15)
def test_invariants_hold_after_every_phase(
    clock: str, seed: int, events: bool, every_step: bool, aborts: bool
) -> None:
    case = draw_case(seed, clock, events=events, every_step=every_step)
    state = case.state()
    rng = random.Random(seed)

    def check() -> None:
        if aborts and rng.random() < 0.1:
            abort_request(state, rng.randrange(len(case.workload)))
        assert verify(state, case.workload) == []

    reason = drive(state, rng, check)
    assert verify(state, case.workload) == []
    if clock == "time":
        assert reason == c.X_DONE
        # an abort takes away the completion that would have released another request
        if not aborts:
            assert state.ctl.num_ended == len(case.workload)
