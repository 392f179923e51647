"""A run: the engine driven to its end in calls of a tenth of a second, its logs drained, its results as
arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.capacity import LogOptions, allocate
from sim.core import codes as c
from sim.core.engine import run_until, sample_now, settle, weigh_now
from sim.core.records import COUNTERS, POOL_META, Record
from sim.core.state import State
from sim.drive import Driven, Progress
from sim.engine_settings import EngineSettings
from sim.step_time import StepTime
from workloads.requests import Workload

__all__ = ["LogOptions", "Progress", "RunResult", "Simulation", "time_weighted"]

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
_NO_EVENTS = np.zeros((0, c.EVENT_COLUMNS), dtype=np.int64)
_EVENT_COLUMNS = ("time_ns", "type", "request", "block", "a", "b")

Columns = dict[str, NDArray[np.int64]]


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


class Simulation(Driven):
    """One engine and its workload; ``run`` may be called again to go on.

    Args:
        state: of the engine, where it has been allocated already.
        take_rows, take_events: get the rows of the step log (int64[n, len(LOG_COLUMNS)]) and of the event
            log (int64[n, EVENT_COLUMNS]) piece by piece; None: they are kept for ``result``.
    """

    def __init__(
        self,
        engine: EngineSettings,
        workload: Workload,
        step_time: StepTime,
        log: LogOptions | None = None,
        *,
        state: State | None = None,
        take_rows: Callable[[np.ndarray], None] | None = None,
        take_events: Callable[[np.ndarray], None] | None = None,
    ) -> None:
        self.workload = workload
        self.log = log or LogOptions()
        self.state = state or allocate(engine, workload, step_time, self.log)
        self._rows: list[np.ndarray] = []
        self._events: list[np.ndarray] = []
        self._take_rows = take_rows or self._rows.append
        self._take_events = take_events or self._events.append
        self._last_row = -1

    def advance(self, end: int, steps: int) -> int:
        return int(run_until(self.state, end, steps))

    def after_call(self, reason: int, end: int) -> bool:
        self.drain(reason)
        return reason not in (c.X_DONE, c.X_TIME)

    def settle_to(self, until_ns: int) -> None:
        while settle(self.state, max(until_ns, int(self.state.ctl.now))) == c.X_LOG_FULL:
            self.drain(c.X_LOG_FULL)

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
            rows = self.state.logs.steps[: ctl.log_len].copy()
            self._last_row = int(rows[-1, 0])
            self._take_rows(rows)
            ctl.log_len = 0
        if ctl.num_events and reason != c.X_MAX_STEPS:
            self._take_events(self.state.kv.pool.events[: ctl.num_events].copy())
            ctl.num_events = 0

    @property
    def row_chunks(self) -> list[np.ndarray]:
        """Rows of the step log drained so far, int64 arrays of len(LOG_COLUMNS) columns, one a call of the
        engine that ended for another reason than its number of steps.
        """
        return self._rows

    def last_rows(self) -> np.ndarray:
        """What belongs behind the drained rows: a sample where the run stands, unless there is one.

        The curve ends where the run ends, not at the last multiple of the period; should the run go on, the
        row is none of it.
        """
        self.drain(c.X_DONE)
        if self.log.every_step or not self.log.sample_period_ns or self._last_row >= self.state.ctl.now:
            return np.zeros((0, len(c.LOG_COLUMNS)), dtype=np.int64)
        sample_now(self.state)
        self.state.ctl.log_len = 0
        return self.state.logs.steps[:1].copy()

    def result(self) -> RunResult:
        """What the run has given so far."""
        st = self.state
        last = self.last_rows()
        steps = step_columns(np.concatenate([*self._rows, last]))
        events = None
        if self.log.level:
            events = event_columns(np.concatenate([_NO_EVENTS, *self._events]))
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


def step_columns(rows: np.ndarray) -> Columns:
    """Rows of the step log (int64[n, len(LOG_COLUMNS)]) by column."""
    return {name: np.ascontiguousarray(rows[:, i]) for i, name in enumerate(c.LOG_COLUMNS)}


def event_columns(rows: np.ndarray) -> Columns:
    """Rows of the event log (int64[n, EVENT_COLUMNS]) by column."""
    return {name: np.ascontiguousarray(rows[:, i]) for i, name in enumerate(_EVENT_COLUMNS)}


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
    """Middle of a histogram bin, the inverse of ``log_bins.log_bin``."""
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
    return _time_weighted(*_weighed(state))


def _weighed(state: State) -> tuple[Record, np.ndarray]:
    """Copies of the sums and histograms, complete up to now; the state's own stay as they are."""
    logs, since, num_notes = state.logs, int(state.ctl.last_time), int(state.ctl.num_notes)
    weighted, histogram, notes = logs.weighted.copy(), logs.histogram.copy(), logs.notes.copy()
    weigh_now(state)
    out = logs.weighted.copy(), logs.histogram.copy()
    logs.weighted[:], logs.histogram[:], logs.notes[:] = weighted, histogram, notes
    state.ctl.last_time, state.ctl.num_notes = since, num_notes
    return out


def merged_time_weighted(states: Sequence[State]) -> dict[str, dict[str, float]]:
    """As `time_weighted`, over several engines: each one's time counts once, the maximum is of all."""
    if len(states) == 1:
        return time_weighted(states[0])
    copies = [_weighed(state) for state in states]
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
