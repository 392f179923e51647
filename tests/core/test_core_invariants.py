"""Every numbered invariant holds between any two phases of random runs."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.core import codes as c
from sim.core.engine import abort_request
from sim.core.state import State
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


def test_the_random_runs_contain_everything() -> None:
    """What the runs above are for really happens in such runs; counted over a fixed set of them."""
    seen: Counter[str] = Counter()
    for seed in range(45):
        case = draw_case(seed, "time")
        state = case.state()

        def look(state: State = state) -> None:
            ctl = state.ctl
            seen["two batches in flight"] += ctl.num_in_flight == 2
            seen["remembered look-up"] += ctl.memo_req >= 0 and ctl.memo_hits > 0
            seen["marked block that is free"] += ctl.memo_free > 0
            seen["stale tokens"] += bool((state.requests.stale > 0).any())
            seen["successor to come"] += ctl.heap_len > 0
            seen["several free runs"] += state.kv.pool.runs.number > 2
            seen["largest run to be found"] += state.kv.pool.runs.length < state.kv.pool.runs.bound

        drive(state, random.Random(seed), look)
        for name in (
            "preempted_hits",
            "prefix_hits",
            "fail_reserve",
            "fail_watermark",
            "fail_pool",
            "fail_encoder",
        ):
            seen[name] += state.count[name] > 0
        for status in (c.Status.FINISHED, c.Status.REJECTED, c.Status.UNSERVABLE):
            seen[status.name] += int((state.requests.status == status).sum())
        seen["evicted unused"] += state.kv.pool.meta.evicted_unused > 0
        seen[case.engine.policy] += 1
        seen["no caching"] += not case.engine.enable_prefix_caching
        seen["closed loop"] += case.workload.closed_loop
        seen["synthetic segments"] += bool((case.workload.seg_id >= 0).any())
    assert [name for name, times in seen.items() if not times] == []
    assert {"fcfs", "priority"} <= set(seen)
