"""Progress of a sweep on stderr: points done and failed, time left, the best point so far."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, TextIO

from sim.report.units import plural, seconds
from sim.sweep.axes import Axis
from sim.sweep.metrics import Named
from sim.sweep.plan import Point
from sim.sweep.point import Failure, Result

FIRST_LINE_S, LINE_EVERY_S = 1.0, 5.0


class Running:
    """What is known while a sweep runs: counts, and the mean of one metric at each point."""

    def __init__(self, metric: Named, axes: tuple[Axis, ...], total: int) -> None:
        self.total, self.done, self.failed = total, 0, 0
        self._metric, self._axes = metric, axes
        self._sums: dict[int, tuple[Point, float, int]] = {}
        self._results, self._first = 0, 0.0

    def add(self, point: Point, outcome: Result | Failure, simulated: bool = True) -> None:
        """A run has ended; `simulated`: now, and not in an earlier start or not at all."""
        if simulated:
            self._results += 1
            if self._results == 1:
                self._first = time.monotonic()
        if isinstance(outcome, Failure):
            self.failed += 1
            return
        self.done += 1
        value = self._metric.of(outcome.summary)
        if value is not None:
            _, total, n = self._sums.get(point.index, (point, 0.0, 0))
            self._sums[point.index] = (point, total + value, n + 1)

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest will take at the speed since the first result (which loads the engine)."""
        now = self._results - 1
        if now <= 0:
            return None
        return (time.monotonic() - self._first) / now * (self.total - self.done - self.failed)

    def best(self) -> str:
        """`best so far: block_size 16, waste at finish 0.32 %`; empty if there is none."""
        better = self._metric.better
        if not better or not self._sums:
            return ""
        point, total, n = max(self._sums.values(), key=lambda s: (better * s[1] / s[2], -s[0].index))
        return f"best so far: {point.label(self._axes)}, {self._metric.label} {self._metric.show(total / n)}"

    def text(self) -> str:
        """`12 of 30 runs done, 1 failed`."""
        failed = f", {self.failed:,} failed" if self.failed else ""
        return f"{self.done:,} of {plural(self.total, 'run')} done{failed}"


class Reporter:
    """Shows a `Running`: a bar on a terminal, a line every few seconds elsewhere; nothing if quiet."""

    def __init__(self, running: Running, stream: TextIO, quiet: bool) -> None:
        self.running, self._stream, self._quiet = running, stream, quiet
        self._bar: Any = None
        self._task: Any = None
        self._next = time.monotonic() + FIRST_LINE_S

    def __enter__(self) -> Reporter:
        if not self._quiet and self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                BarColumn(bar_width=20),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
                transient=True,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task("starting", total=self.running.total)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        elif not self._quiet:
            print(text, file=self._stream, flush=True)

    def update(self) -> None:
        """Show the state, if it is time to."""
        r = self.running
        best = r.best()
        if self._bar is not None:
            text = r.text() + (f"; {best}" if best else "")
            self._bar.update(self._task, completed=r.done + r.failed, description=text)
            return
        now = time.monotonic()
        if self._quiet or now < self._next or r.done + r.failed == r.total:
            return
        self._next = now + LINE_EVERY_S
        left = r.left_s
        eta = f", about {seconds(left)} left" if left is not None else ""
        self.say(f"{r.text()}{eta}" + (f"; {best}" if best else ""))
