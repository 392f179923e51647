"""The simulator on a recorded replay's workload, in three ways.

rules            in logical time: each request arrives before the engine step before which the real one got
                 it; the exact step logs must be equal, whatever the time was
recorded steps   in time: each batch takes as long as the real one did; what still differs is not timing
fitted           in time: the step-time model decides, arrivals as the clients send them
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.step_time import StepTime, constant
from validation.diff import Comparison, compare
from validation.replay.plan import Plan, logical_request
from validation.replay.recording import Recording, Table
from workloads.builder import WorkloadBuilder
from workloads.requests import Workload

#: Columns of a timeline that both sides have.
SHARED = (
    "num_running", "num_waiting", "num_free_blocks", "used_blocks", "num_cached_hashes", "num_cached_blocks",
    "num_scheduled_tokens", "num_scheduled_reqs", "allocated_slots", "held_tokens", "wasted_slots",
    "free_runs", "largest_free_run", "table_blocks", "table_runs", "prefix_queries", "prefix_hits",
    "preempted_queries", "preempted_hits", "preemptions", "finished",
)  # fmt: skip

_NEVER = 1 << 61


@dataclass(frozen=True)
class Simulated:
    """One simulation: its curves, its requests, and how it ended."""

    timeline: Table
    requests: Table
    exit_reason: str


@dataclass(frozen=True)
class RecordedSteps:
    """A simulation with the durations of the recorded steps.

    Attributes:
        run: the simulation.
        rows: rows of the timeline that were compared.
        equal: of these, rows whose time and shared columns are all equal.
        first: what differs in the first that is not, or None.
    """

    run: Simulated
    rows: int
    equal: int
    first: str | None


def check_rules(plan: Plan, recording: Recording) -> Comparison:
    """The recorded step log against the simulator's, in logical time; rows after the end of the recorded
    log are left out (a replay that was cut short)."""
    from validation.record import record

    assert recording.steps is not None
    added = dict(
        zip(recording.requests["index"].tolist(), recording.requests["added_step"].tolist(), strict=True)
    )
    requests = [logical_request(plan.workload, i, added[i]) for i in recording.order]
    rows = len(recording.steps["step"])
    log = record("sim", plan.settings, requests).log if requests else {k: [] for k in recording.steps}
    return compare(recording.steps, {name: values[:rows] for name, values in log.items()})


def as_recorded(plan: Plan, recording: Recording) -> Workload:
    """The requests in the order and at the times at which the real engine got them."""
    w = plan.workload
    times = dict(
        zip(recording.requests["index"].tolist(), recording.requests["added_ns"].tolist(), strict=True)
    )
    builder = WorkloadBuilder(vocab_size=w.vocab_size)
    for i in recording.order:
        builder.add(
            [builder.add_tokens(w.prompt_tokens(i).tolist())],
            [int(w.prompt_len[i])],
            output_len=int(w.output_len[i]),
            out_seg=builder.add_tokens(w.output_tokens(i).tolist()),
            arrival=times[i],
            max_tokens=int(w.max_tokens[i]),
            priority=int(w.priority[i]),
            salt=int(w.salt[i]),
            request_id=w.request_id(i),
        )
    return builder.build({"kind": "replay"})


def with_recorded_steps(plan: Plan, recording: Recording) -> RecordedSteps:
    """Simulate with each batch done when the real one was, and compare every row.

    Raises:
        RuntimeError: nothing was recorded.
    """
    from sim.core import codes as c
    from sim.core.engine import advance, sample_now
    from sim.simulate import LogOptions, Simulation

    if recording.batches is None or not recording.order:
        raise RuntimeError("a recording without steps can't be replayed step by step")
    from sim.capacity import allocate

    log = LogOptions(sample_period_ns=0)
    workload = as_recorded(plan, recording)
    step_time = constant(1.0)
    state = allocate(plan.settings, workload, step_time, log)
    # Requests that were handed over at one moment are told apart as the real engine does, by their order.
    state.requests.order_time[: len(workload)] = np.arange(len(workload))
    done = recording.batches["done_ns"].tolist()
    rows: list[Any] = []
    batch = 0
    while len(rows) < len(recording.timeline["time_ns"]):
        reason = advance(state, _NEVER)
        if reason not in (c.X_SCHEDULED, c.X_UPDATED):
            break
        if reason == c.X_SCHEDULED:
            if batch >= len(done):
                break
            # A batch that was in flight when the replay ended is never done.
            end = done[batch] if done[batch] >= 0 else _NEVER
            ring = int(state.ctl.last_batch)
            state.queues.batches.done[ring] = end
            state.queues.batches.duration[ring] = end - int(state.ctl.now)
            state.ctl.last_done = end
            batch += 1
        sample_now(state)
        rows.append(state.logs.steps[0].copy())
        state.ctl.log_len = 0
    table = np.array(rows, np.int64).reshape(len(rows), len(c.LOG_COLUMNS))
    timeline = {name: np.ascontiguousarray(table[:, k]) for k, name in enumerate(c.LOG_COLUMNS)}
    result = Simulation(plan.settings, workload, step_time, log, state=state).result()
    equal, first = _equal_rows(recording.timeline, timeline)
    run = Simulated(timeline, result.requests, "recorded steps")
    return RecordedSteps(run, len(recording.timeline["time_ns"]), equal, first)


def _equal_rows(real: Table, sim: Table) -> tuple[int, str | None]:
    """Rows that agree in time and in every shared column, and the first disagreement in words."""
    n = min(len(real["time_ns"]), len(sim["time_ns"]))
    names = ("time_ns", *SHARED)
    same = np.ones(n, bool)
    for name in names:
        same &= real[name][:n] == sim[name][:n]
    if same.all():
        short = len(real["time_ns"]) - n
        return n, f"the simulation has {short} rows fewer" if short else None
    row = int(np.argmin(same))
    name = next(name for name in names if real[name][row] != sim[name][row])
    return int(same.sum()), f"row {row}, {name}: real {real[name][row]}, simulated {sim[name][row]}"


def simulate(plan: Plan, step_time: StepTime, period_ns: int) -> Simulated:
    """Simulate the plan's workload, with a row every `period_ns` of simulated time."""
    from sim.simulate import LogOptions, Simulation

    run = Simulation(plan.settings, plan.workload, step_time, LogOptions(sample_period_ns=period_ns))
    reason = run.run(plan.resolved.until_ns)
    result = run.result()
    return Simulated(result.steps, result.requests, reason)
