"""A run of a fleet: the loop driven to its end, the replicas' logs drained, the results as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.core import codes as c
from sim.core.engine import settle
from sim.core.fleet import run_fleet
from sim.drive import Driven, Progress
from sim.engine_settings import EngineSettings
from sim.fleet.capacity import FleetState, allocate_fleet
from sim.fleet.config import FleetSettings
from sim.simulate import (
    Columns,
    LogOptions,
    RunResult,
    Simulation,
    merged_time_weighted,
    request_columns,
)
from sim.step_time import StepTime
from workloads.requests import Workload

#: Columns of the step log that are not a sum over the replicas.
_NOT_SUMMED = ("time_ns", "step_duration_ns")


@dataclass
class FleetResult(RunResult):
    """What a run of a fleet gave: the fleet as a whole, and each replica.

    The inherited attributes describe the fleet: `steps` has a row for every time at which a replica has one,
    with sums over the replicas (`step_duration_ns`: the longest); `requests` and `events` say in a column
    `replica` where each one happened; `totals` are sums, `now_ns` apart; `time_weighted` is weighted over
    replicas and time.

    Attributes:
        replicas: each replica's own result; its `requests` are those that were sent to it.
        routed: requests sent to each replica.
        conversations: those of two requests or more; of these, those that one replica served alone; the sum
            of the numbers of replicas that served one.
        cached: distinct hashes that the replicas' prefix caches hold at the end, and all of them with their
            copies.
    """

    replicas: tuple[RunResult, ...] = ()
    routed: tuple[int, ...] = ()
    conversations: tuple[int, int, int] = (0, 0, 0)
    cached: tuple[int, int] = (0, 0)

    @property
    def replica_steps(self) -> Columns:
        """The step logs of all replicas below each other, with a column `replica` in front."""
        return _stacked([r.steps for r in self.replicas])


class FleetSimulation(Driven):
    """Replicas of one engine, the router in front of them, and their workload; `run` may be called again."""

    def __init__(
        self,
        engine: EngineSettings,
        workload: Workload,
        step_time: StepTime,
        log: LogOptions | None,
        settings: FleetSettings,
        seed: int = 0,
    ) -> None:
        self.workload = workload
        self.log = log or LogOptions()
        self.settings = settings
        self.state: FleetState = allocate_fleet(engine, workload, step_time, self.log, settings, seed)
        self._replicas = [
            Simulation(engine, workload, step_time, self.log, state=state) for state in self.state.states
        ]

    def advance(self, end: int, steps: int) -> int:
        return int(run_fleet(self.state.fleet, end, steps))

    def after_call(self, reason: int, end: int) -> bool:
        if reason in (c.X_LOG_FULL, c.X_EVENTS_FULL):
            self._replicas[int(self.state.fleet.ctl.full_replica)].drain(reason)
        else:
            for replica in self._replicas:
                replica.drain(reason)
        return reason not in (c.X_DONE, c.X_TIME)

    def progress(self) -> Progress:
        """How far the run is."""
        ended = sum(int(st.ctl.num_ended) for st in self.state.states)
        steps = sum(int(st.ctl.step) for st in self.state.states)
        return Progress(self._now(), ended, len(self.workload), steps, self._wall)

    def result(self) -> FleetResult:
        """What the run has given so far; every replica's state lasts to the fleet's last event."""
        self.settle_to(0)
        fleet = self.state.fleet
        n = len(self.workload)
        everyone = request_columns(fleet.requests[:n])
        replica = fleet.replica_of[everyone["index"]].astype(np.int64)
        everyone["replica"] = replica
        parts = []
        for k, simulation in enumerate(self._replicas):
            part = simulation.result()
            part.requests = {name: column[replica == k] for name, column in everyone.items()}
            part.exit_reason = self._exit_reason
            parts.append(part)
        totals = {name: sum(part.totals[name] for part in parts) for name in parts[0].totals}
        totals["now_ns"] = self._now()
        return FleetResult(
            steps=summed_steps([part.steps for part in parts], self._usable()),
            requests=everyone,
            events=_stacked([part.events for part in parts if part.events is not None]) or None,
            totals=totals,
            time_weighted=merged_time_weighted(self.state.states),
            exit_reason=self._exit_reason,
            replicas=tuple(parts),
            routed=tuple(fleet.replicas.routed.tolist()),
            conversations=self._conversations(everyone),
            cached=self._cached(),
        )

    def _conversations(self, requests: Columns) -> tuple[int, int, int]:
        if not len(requests["index"]):
            return 0, 0, 0
        session = self.state.fleet.session[requests["index"]].astype(np.int64)
        several = np.bincount(session)[session] > 1
        pairs = np.unique(session[several] * len(self._replicas) + requests["replica"][several])
        served_by = np.unique(pairs // len(self._replicas), return_counts=True)[1]
        return len(served_by), int((served_by == 1).sum()), int(served_by.sum())

    def _cached(self) -> tuple[int, int]:
        tables = [state.kv.pool.table[0::2] for state in self.state.states]
        keys = np.concatenate([table[table != 0] for table in tables])
        return len(np.unique(keys)), len(keys)

    def _usable(self) -> int:
        return int(self.state.states[0].params.num_blocks) - 1

    def _now(self) -> int:
        return max(int(self.state.fleet.ctl.now), *(int(st.ctl.now) for st in self.state.states))

    def settle_to(self, until_ns: int) -> None:
        at = max(until_ns, self._now())
        for replica, state in zip(self._replicas, self.state.states, strict=True):
            if state.ctl.now < at:
                while settle(state, at) == c.X_LOG_FULL:
                    replica.drain(c.X_LOG_FULL)


def _stacked(parts: Sequence[Mapping[str, NDArray[np.int64]]]) -> Columns:
    """Columns of all replicas below each other, in order of replica; {} for none."""
    if not parts:
        return {}
    first = next(iter(parts[0]))
    lengths = [len(part[first]) for part in parts]
    out: Columns = {"replica": np.repeat(np.arange(len(parts), dtype=np.int64), lengths)}
    for name in parts[0]:
        out[name] = np.concatenate([part[name] for part in parts])
    return out


def summed_steps(parts: Sequence[Columns], usable: int) -> Columns:
    """The fleet's step log: at each time at which a replica has a row, the sums over their last rows.

    Args:
        parts: of each replica.
        usable: blocks of one pool, all free before its first row.
    """
    if len(parts) == 1:
        return dict(parts[0])
    times = np.unique(np.concatenate([part["time_ns"] for part in parts]))
    # a row that follows another at the same instant (every step) replaces it
    last = [np.searchsorted(part["time_ns"], times, side="right") - 1 for part in parts]
    out: Columns = {"time_ns": times}
    for name in parts[0]:
        if name == "time_ns":
            continue
        empty = usable if name in ("num_free_blocks", "largest_free_run") else int(name == "free_runs")
        # before a replica's first row the index is -1, which is the pool as it begins
        values = [np.append(part[name], empty)[at] for part, at in zip(parts, last, strict=True)]
        out[name] = np.max(values, axis=0) if name in _NOT_SUMMED else np.sum(values, axis=0)
    return out
