"""A run in calls of a tenth of a second: what an engine, a fleet and a streamed engine have in common."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from sim.core import codes as c

FOREVER = 1 << 62
CALL_SECONDS = 0.1
FIRST_CALL_STEPS = 2000


@dataclass(frozen=True)
class Progress:
    """How far a run is: simulated ns, requests ended and in all, engine steps, wall seconds."""

    now_ns: int
    finished: int
    total: int
    steps: int
    wall_s: float


class Driven(ABC):
    """Something that runs up to a time; ``run`` may be called again to go on."""

    _exit_reason = "interrupted"
    _wall = 0.0

    @abstractmethod
    def advance(self, end: int, steps: int) -> int:
        """Go on for about so many steps, at most to ``end`` (ns); the reason why it came back (X_...)."""

    @abstractmethod
    def after_call(self, reason: int, end: int) -> bool:
        """Take what the call has left in the logs, make ready for the next; False: the run is over."""

    @abstractmethod
    def settle_to(self, until_ns: int) -> None:
        """Let the time after the last step count, up to ``until_ns`` or to where the run is."""

    @abstractmethod
    def progress(self) -> Progress:
        """How far the run is."""

    def run(
        self,
        until_ns: int | None = None,
        progress: Callable[[Progress], None] | None = None,
        progress_interval_s: float = 0.2,
    ) -> str:
        """Run to the end of the workload, or up to ``until_ns`` of simulated time; returns the exit reason.

        ``progress`` is called about every ``progress_interval_s`` wall seconds. Raising from it, or Ctrl-C,
        leaves a state between two phases: the result then describes what is done, and ``run`` goes on from
        there.
        """
        end = FOREVER if until_ns is None else until_ns
        self._exit_reason = "interrupted"
        started = time.perf_counter() - self._wall
        reported = started + self._wall
        steps = FIRST_CALL_STEPS
        while True:
            before = time.perf_counter()
            reason = self.advance(end, steps)
            after = time.perf_counter()
            self._wall = after - started
            if not self.after_call(reason, end):
                break
            if reason == c.X_MAX_STEPS:
                # at most doubled, so that one slow call does not make the next ones coarse
                scale = CALL_SECONDS / max(after - before, 1e-6)
                steps = max(100, int(steps * min(2.0, scale)))
            if progress and after - reported >= progress_interval_s:
                progress(self.progress())
                reported = after
        self._exit_reason = "finished" if reason == c.X_DONE else "until"
        if until_ns is not None and reason == c.X_TIME:
            self.settle_to(until_ns)
        if progress:
            progress(self.progress())
        return self._exit_reason
