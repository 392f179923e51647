"""A run of a spooled workload: as `Simulation`, with the records of requests handed out as they end."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from sim.capacity import LogOptions
from sim.core import codes as c
from sim.core.engine import run_until, settle
from sim.engine_settings import EngineSettings
from sim.simulate import Columns, Progress, RunResult, Simulation
from sim.step_time import StepTime
from sim.stream.window import Window, check_streamable
from workloads.spool import Spool

_FOREVER = 1 << 62
_CALL_SECONDS = 0.1
_FIRST_CALL_STEPS = 2000


class StreamedSimulation:
    """One engine and a workload on disk.

    Args:
        write: takes columns of requests (as of `RunResult.requests`) in order of index, as they end.

    Raises:
        InputError: the workload needs all its requests at once, see `check_streamable`.
    """

    def __init__(
        self,
        engine: EngineSettings,
        spool: Spool,
        step_time: StepTime,
        log: LogOptions | None,
        write: Callable[[Columns], None],
    ) -> None:
        check_streamable(engine, spool)
        self.log = log or LogOptions()
        self._spool = spool
        self._write = write
        self.window = Window(engine, spool, step_time, self.log)
        self.state = self.window.state
        # of a Simulation only the logs are used: it knows no workload
        self._logs = Simulation(engine, spool, step_time, self.log, state=self.state)  # type: ignore[arg-type]
        self._exit_reason = "interrupted"
        self._wall = 0.0
        self._flushed = False

    def run(
        self,
        until_ns: int | None = None,
        progress: Callable[[Progress], None] | None = None,
        progress_interval_s: float = 0.2,
    ) -> str:
        """As `Simulation.run`; may be called again until `result` has been asked for."""
        until = _FOREVER if until_ns is None else until_ns
        self._exit_reason = "interrupted"
        started = time.perf_counter() - self._wall
        reported = started + self._wall
        steps = _FIRST_CALL_STEPS
        window, ctl = self.window, self.state.ctl
        while True:
            allowed = self._allowed(steps)
            bound = window.bound
            before = time.perf_counter()
            reason = run_until(self.state, min(until, bound), allowed)
            after = time.perf_counter()
            self._wall = after - started
            self._logs.drain(reason)
            if reason == c.X_ENDED:
                ended = self.state.queues.ended_watched[: ctl.num_ended_watched].copy()
                ctl.num_ended_watched = 0
                window.load_children(ended, self._write)
            elif reason == c.X_DONE or (reason == c.X_TIME and bound < until):
                if window.complete:
                    break
                self._advance()
            elif reason == c.X_TIME:
                break
            elif reason == c.X_MAX_STEPS:
                scale = _CALL_SECONDS / max(after - before, 1e-6)
                steps = max(100, int(steps * min(2.0, scale)))
            if progress and after - reported >= progress_interval_s:
                progress(self.progress())
                reported = after
        self._exit_reason = "finished" if reason == c.X_DONE else "until"
        if until_ns is not None and reason == c.X_TIME:
            while settle(self.state, max(until_ns, int(ctl.now))) == c.X_LOG_FULL:
                self._logs.drain(c.X_LOG_FULL)
        if progress:
            progress(self.progress())
        return self._exit_reason

    def progress(self) -> Progress:
        """How far the run is."""
        ctl = self.state.ctl
        return Progress(int(ctl.now), int(ctl.num_ended), len(self._spool), int(ctl.step), self._wall)

    def result(self) -> RunResult:
        """What the run has given, without requests: those that are left are handed to `write` now."""
        if not self._flushed:
            self.window.flush(self._write)
            self._flushed = True
        result = self._logs.result()
        result.requests = {name: np.zeros(0, dtype=np.int64) for name in result.requests}
        result.exit_reason = self._exit_reason
        return result

    def _advance(self) -> None:
        self.window.retire(self._write)
        self.window.load()

    def _allowed(self, steps: int) -> int:
        """Phases that may be made before the closed-loop pool that is loaded could run out."""
        ctl = self.state.ctl
        if not self.state.params.closed_loop or self.window.complete:
            return steps
        # in one phase everybody who runs may end, and everybody who arrives may be refused
        most = int(self.state.queues.lists.size + ctl.heap_len + 1)
        while (left := self.window.pool_left()) < 2 * most and not self.window.complete:
            self._advance()
        return steps if self.window.complete else min(steps, left // most)
