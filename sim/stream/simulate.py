"""A run of a spooled workload: as `Simulation`, with the records of requests handed out as they end."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sim.capacity import LogOptions
from sim.core import codes as c
from sim.drive import Driven, Progress
from sim.engine_settings import EngineSettings
from sim.simulate import Columns, RunResult, Simulation, event_columns, step_columns
from sim.step_time import StepTime
from sim.stream.window import Window, check_streamable
from workloads.spool import Spool

Writer = Callable[[Columns], None]


class StreamedSimulation(Driven):
    """One engine and a workload on disk; ``run`` may be called again until ``result`` has been asked for.

    Args:
        write: takes columns of requests (as of `RunResult.requests`) in order of index, as they end.
        write_steps, write_events: take columns of the step log and of the event log (as of `RunResult`) as
            they come; None: they are kept for `result`.

    Raises:
        InputError: the workload needs all its requests at once, see `check_streamable`.
    """

    def __init__(
        self,
        engine: EngineSettings,
        spool: Spool,
        step_time: StepTime,
        log: LogOptions | None,
        write: Writer,
        *,
        write_steps: Writer | None = None,
        write_events: Writer | None = None,
    ) -> None:
        check_streamable(engine, spool)
        self.log = log or LogOptions()
        self._spool = spool
        self._write = write
        self._write_steps, self._write_events = write_steps, write_events
        self.window = Window(engine, spool, step_time, self.log)
        self.state = self.window.state
        # of a Simulation only the logs are used: it knows no workload
        self._logs = Simulation(
            engine,
            spool,  # type: ignore[arg-type]
            step_time,
            self.log,
            state=self.state,
            take_rows=None if write_steps is None else lambda rows: write_steps(step_columns(rows)),
            take_events=self._take_events,
        )
        self._events: list[Columns] = []
        self._flushed = False
        self._bound = 0

    def _take_events(self, rows: np.ndarray) -> None:
        columns = event_columns(rows)
        # in the window requests count from its first one
        columns["request"][columns["request"] >= 0] += self.window.base
        (self._write_events or self._events.append)(columns)

    def advance(self, end: int, steps: int) -> int:
        allowed = self._allowed(steps)
        self._bound = self.window.bound
        return self._logs.advance(min(end, self._bound), allowed)

    def after_call(self, reason: int, end: int) -> bool:
        self._logs.drain(reason)
        window, ctl = self.window, self.state.ctl
        if reason == c.X_ENDED:
            ended = self.state.queues.ended_watched[: ctl.num_ended_watched].copy()
            ctl.num_ended_watched = 0
            window.load_children(ended, self._write)
        elif reason == c.X_DONE or (reason == c.X_TIME and self._bound < end):
            if window.complete:
                return False
            self._advance()
        return reason != c.X_TIME or self._bound < end

    def settle_to(self, until_ns: int) -> None:
        self._logs.settle_to(until_ns)

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
        if self._write_steps is not None:
            self._write_steps(result.steps)
            result.steps = {name: column[:0] for name, column in result.steps.items()}
        if result.events is not None and self._write_events is not None:
            self._write_events(result.events)
        elif result.events is not None:
            parts = [result.events, *self._events]
            result.events = {name: np.concatenate([part[name] for part in parts]) for name in result.events}
        return result

    def _advance(self) -> None:
        # events name requests by their place in the window, which is about to move
        self._logs.drain(c.X_DONE)
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
