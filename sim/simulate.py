"""A run: the engine driven to its end in calls of a tenth of a second, its logs drained, its results as
arrays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.capacity import LogOptions, allocate
from sim.core import codes as c
from sim.core.engine import run_until, sample_now, settle, weigh_now
from sim.core.jit import note_general
from sim.core.state import COUNTERS, POOL_META, Record, State
from sim.engine_settings import EngineSettings
from sim.step_time import StepTime
from workloads.requests import Workload

__all__ = ["LogOptions", "Progress", "RunResult", "Simulation", "time_weighted"]

_FOREVER = 1 << 62
_CALL_SECONDS = 0.1
_FIRST_CALL_STEPS = 2000

_REQUEST_COLUMNS = {
    "arrival_ns": "arrival",
    "first_scheduled_ns": "first_scheduled",
    "first_token_ns": "first_token",
    "finish_ns": "finish",
    "prompt_tokens": "prompt_len",
    "hit_tokens": "hit_tokens",
    "resumed_hit_tokens": "resumed_hits",
    "preemptions": "preemptions",
    "recomputed_tokens": "recomputed",
    "peak_blocks": "peak_blocks",
    "wasted_slots": "wasted_slots",
    "allocated_slots": "allocated_slots",
    "status": "status",
}
_EVENT_COLUMNS = ("time_ns", "type", "request", "block", "a", "b")

Columns = dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Progress:
    """How far a run is: simulated ns, requests ended and in all, engine steps, wall seconds."""

    now_ns: int
    finished: int
    total: int
    steps: int
    wall_s: float


@dataclass
class RunResult:
    """What a run gave.

    Attributes:
        steps: rows of the step log, int64 arrays of one length by column.
        requests: one entry a request that arrived.
        events: the event stream, None when it was off.
        totals: cumulative counters.
        time_weighted: metric -> mean, p50, p90, p99, max, max_at_ns over simulated time after the warm-up.
        exit_reason: "finished", "until" or "interrupted".
    """

    steps: Columns
    requests: Columns
    events: Columns | None
    totals: dict[str, int]
    time_weighted: dict[str, dict[str, float]]
    exit_reason: str


class Simulation:
    """One engine and its workload; ``run`` may be called again to go on."""

    def __init__(
        self,
        engine: EngineSettings,
        workload: Workload,
        step_time: StepTime,
        log: LogOptions | None = None,
        *,
        state: State | None = None,
    ) -> None:
        self.workload = workload
        self.log = log or LogOptions()
        self.state = state or allocate(engine, workload, step_time, self.log)
        self._rows: list[np.ndarray] = []
        self._events: list[np.ndarray] = []
        self._exit_reason = "interrupted"
        self._wall = 0.0

    def run(
        self,
        until_ns: int | None = None,
        progress: Callable[[Progress], None] | None = None,
        progress_interval_s: float = 0.2,
    ) -> str:
        """Run to the end of the workload, or up to ``until_ns`` of simulated time; returns the exit reason.

        ``progress`` is called about every ``progress_interval_s`` wall seconds. Raising from it, or Ctrl-C,
        leaves a state between two phases: ``result`` then describes what is done, and ``run`` goes on from
        there.
        """
        end = _FOREVER if until_ns is None else until_ns
        self._exit_reason = "interrupted"
        started = time.perf_counter() - self._wall
        reported = started + self._wall
        steps = _FIRST_CALL_STEPS
        while True:
            before = time.perf_counter()
            reason = run_until(self.state, end, steps)
            after = time.perf_counter()
            if steps == _FIRST_CALL_STEPS and not self.state.kv.plain:
                note_general()
            self._wall = after - started
            self.drain(reason)
            if reason in (c.X_DONE, c.X_TIME):
                break
            if reason == c.X_MAX_STEPS:
                # at most doubled, so that one slow call does not make the next ones coarse
                scale = _CALL_SECONDS / max(after - before, 1e-6)
                steps = max(100, int(steps * min(2.0, scale)))
            if progress and after - reported >= progress_interval_s:
                progress(self.progress())
                reported = after
        self._exit_reason = "finished" if reason == c.X_DONE else "until"
        if until_ns is not None and reason == c.X_TIME:
            while settle(self.state, max(until_ns, int(self.state.ctl.now))) == c.X_LOG_FULL:
                self.drain(c.X_LOG_FULL)
        if progress:
            progress(self.progress())
        return self._exit_reason

    def progress(self) -> Progress:
        """How far the run is."""
        ctl = self.state.ctl
        return Progress(int(ctl.now), int(ctl.num_ended), len(self.workload), int(ctl.step), self._wall)

    def drain(self, reason: int) -> None:
        """Copy the logs out of the core, which has returned for `reason`, so that it can go on."""
        ctl = self.state.ctl
        if ctl.events_lost:
            raise AssertionError(f"{ctl.events_lost} events did not fit the event log")
        if ctl.log_len and (reason != c.X_MAX_STEPS or ctl.log_len > self.state.logs.steps.shape[0] // 2):
            self._rows.append(self.state.logs.steps[: ctl.log_len].copy())
            ctl.log_len = 0
        if ctl.num_events and reason != c.X_MAX_STEPS:
            self._events.append(self.state.kv.pool.events[: ctl.num_events].copy())
            ctl.num_events = 0

    @property
    def row_chunks(self) -> list[np.ndarray]:
        """Rows of the step log drained so far, int64 arrays of len(LOG_COLUMNS) columns, one a call of the
        engine that ended for another reason than its number of steps.
        """
        return self._rows

    def _all_rows(self) -> np.ndarray:
        self.drain(c.X_DONE)
        last = self._rows[-1][-1, 0] if self._rows else -1
        rows = [np.zeros((0, len(c.LOG_COLUMNS)), dtype=np.int64), *self._rows]
        if not self.log.every_step and self.log.sample_period_ns and last < self.state.ctl.now:
            # the curve ends where the run ends, not at the last multiple of the period; should the run go on,
            # the row is none of it
            sample_now(self.state)
            rows.append(self.state.logs.steps[:1].copy())
            self.state.ctl.log_len = 0
        return np.concatenate(rows)

    def result(self) -> RunResult:
        """What the run has given so far."""
        st = self.state
        rows = self._all_rows()
        steps = {name: np.ascontiguousarray(rows[:, i]) for i, name in enumerate(c.LOG_COLUMNS)}
        events = None
        if self.log.level:
            table = np.concatenate([np.zeros((0, c.EVENT_COLUMNS), dtype=np.int64), *self._events])
            events = {name: np.ascontiguousarray(table[:, i]) for i, name in enumerate(_EVENT_COLUMNS)}
        totals = {name: int(st.count[name]) for name in COUNTERS.names or ()}
        totals |= {name: int(st.kv.pool.meta[name]) for name in POOL_META.names or ()}
        totals |= {"now_ns": int(st.ctl.now), "engine_steps": int(st.ctl.step)}
        return RunResult(
            steps=steps,
            requests=self._requests(),
            events=events,
            totals=totals,
            time_weighted=time_weighted(st),
            exit_reason=self._exit_reason,
        )

    def _requests(self) -> Columns:
        return request_columns(self.state.requests[: self.state.ctl.num_requests])


def request_columns(requests: Record) -> Columns:
    """One entry a request that has arrived, int64 arrays of one length; ``requests`` is REQUEST[n]."""
    arrived = np.flatnonzero(requests.status != c.S_NOT_ARRIVED)
    columns: Columns = {"index": arrived.astype(np.int64)}
    which: slice | np.ndarray = slice(None) if arrived.size == requests.size else arrived
    for name, field in _REQUEST_COLUMNS.items():
        columns[name] = requests[field][which].astype(np.int64)
    generated = requests.num_tokens[which].astype(np.int64) - requests.prompt_len[which]
    columns["output_tokens"] = np.maximum(generated, 0)
    return columns


def _bin_value(metric: int, index: int) -> float:
    """Middle of a histogram bin, the inverse of ``log.log_bin``."""
    unit = c.TW_FRACTION_UNIT if metric < c.TW_FRACTIONS else 1
    if index < 256:
        return index / unit
    octave, step = divmod(index - 256, 128)
    low = (128 + step) << (octave + 1)
    return (low + ((1 << (octave + 1)) - 1) / 2) / unit


def time_weighted(state: State) -> dict[str, dict[str, float]]:
    """Means, percentiles (to the width of a bin) and maxima over simulated time after the warm-up.

    The state is left as it is, also where a run was stopped between two phases.
    """
    logs, since = state.logs, int(state.ctl.last_time)
    if since == state.ctl.now:
        return _time_weighted(logs.weighted, logs.histogram)
    weighted, histogram = logs.weighted.copy(), logs.histogram.copy()
    weigh_now(state)
    out = _time_weighted(logs.weighted, logs.histogram)
    logs.weighted[:], logs.histogram[:] = weighted, histogram
    state.ctl.last_time = since
    return out


def merged_time_weighted(states: Sequence[State]) -> dict[str, dict[str, float]]:
    """As `time_weighted`, over several engines: each one's time counts once, the maximum is of all."""
    if len(states) == 1:
        return time_weighted(states[0])
    copies = []
    for state in states:
        weighted, histogram = state.logs.weighted.copy(), state.logs.histogram.copy()
        since = int(state.ctl.last_time)
        weigh_now(state)
        copies.append((state.logs.weighted.copy(), state.logs.histogram.copy()))
        state.logs.weighted[:], state.logs.histogram[:] = weighted, histogram
        state.ctl.last_time = since
    weighted = copies[0][0].copy()
    histogram = np.sum([h for _, h in copies], axis=0)
    for m in range(len(c.TW_METRICS)):
        weighted[m].total = sum(float(w[m].total) for w, _ in copies)
        # the first replica that reached it, should several have
        peak, at, _ = min((-float(w[m].peak), int(w[m].peak_at), i) for i, (w, _) in enumerate(copies))
        weighted[m].peak, weighted[m].peak_at = -peak, at
    return _time_weighted(weighted, histogram)


def _time_weighted(all_weighted: Record, histograms: np.ndarray) -> dict[str, dict[str, float]]:
    out: dict[str, dict[str, float]] = {}
    for m, name in enumerate(c.TW_METRICS):
        bins = np.flatnonzero(histograms[m])
        cumulative = np.cumsum(histograms[m][bins])
        total = int(cumulative[-1]) if bins.size else 0
        weighted = all_weighted[m]
        if total == 0:
            out[name] = {"mean": 0.0, "p50": 0.0, "p90": 0.0, "p99": 0.0, "max": 0.0, "max_at_ns": -1}
            continue
        entry = {"mean": float(weighted.total) / total}
        for percent in (50, 90, 99):
            index = int(bins[np.searchsorted(cumulative, total * percent / 100)])
            entry[f"p{percent}"] = min(_bin_value(m, index), float(weighted.peak))
        entry["max"] = float(weighted.peak)
        entry["max_at_ns"] = int(weighted.peak_at)
        out[name] = entry
    return out
