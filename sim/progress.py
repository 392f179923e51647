"""Progress on stderr: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from sim.report.units import count, plural, seconds

if TYPE_CHECKING:
    from sim.simulate import Progress

FIRST_LINE_S, LINE_EVERY_S = 1.0, 5.0


class Reporter(Protocol):
    """Takes the simulation's progress; used as a context manager around the run."""

    def __call__(self, p: Progress) -> None: ...
    def __enter__(self) -> Reporter: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def status(p: Progress, until_ns: int | None) -> tuple[float, str]:
    """Fraction done, and the text beside the bar."""
    part = p.finished / p.total if p.total else 0.0
    if until_ns:
        part = max(part, p.now_ns / until_ns)
    wall = max(p.wall_s, 1e-9)
    text = f"{seconds(p.now_ns / 1e9)} simulated, {count(round(p.now_ns / 1e9 / wall))}x real time"
    return min(part, 1.0), f"{text}, {count(round(p.steps / wall))} steps/s"


class Silent:
    """Says nothing."""

    def __call__(self, p: Progress) -> None:
        return

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        return


class Lines:
    """A line after a second, then one every few seconds."""

    def __init__(self, stream: TextIO, until_ns: int | None) -> None:
        self._stream, self._until = stream, until_ns
        self._next = time.monotonic() + FIRST_LINE_S

    def __call__(self, p: Progress) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + LINE_EVERY_S
        part, text = status(p, self._until)
        left = p.wall_s * (1 - part) / part if part > 0 else None
        eta = f", about {seconds(left)} left" if left is not None else ""
        print(
            f"{100 * part:3.0f} %  {p.finished:,} of {plural(p.total, 'request')}, {text}{eta}",
            file=self._stream,
            flush=True,
        )

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return


class Bar:
    """A rich bar with simulated time, speed and the time left."""

    def __init__(self, stream: TextIO, until_ns: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._until = until_ns
        self._bar = RichProgress(
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=Console(file=stream),
            transient=True,
            refresh_per_second=5,
        )
        self._task: Any = self._bar.add_task("starting", total=1.0)

    def __call__(self, p: Progress) -> None:
        part, text = status(p, self._until)
        self._bar.update(self._task, completed=part, description=text)

    def __enter__(self) -> Bar:
        self._bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.__exit__(kind, value, trace)


def reporter(stream: TextIO, until_ns: int | None, quiet: bool) -> Reporter:
    """The reporter that fits the stream."""
    if quiet:
        return Silent()
    return Bar(stream, until_ns) if stream.isatty() else Lines(stream, until_ns)
