"""Who arrives when: the requests of a workload as their clients send them, and the loop that sends them.

The clock is read once an engine step. That reading is the end of the step, the completion of the requests
that ended in it, and the moment for which arrivals are looked up before the next one: the simulator's
own order (an arrival at or before a schedule call is seen by it).
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from workloads.requests import Workload

_SPIN_NS = 1_000_000

WAITING, RUNNING, FINISHED, REJECTED, NEVER_ARRIVED = 0, 1, 3, 4, -1


class Clock(Protocol):
    """Nanoseconds since the start of the replay."""

    def now(self) -> int:
        """The time."""

    def wait_until(self, ns: int) -> None:
        """Return at or just after `ns`."""


class WallClock:
    """The monotonic clock, from 0."""

    def __init__(self) -> None:
        self.origin = time.perf_counter_ns()

    def now(self) -> int:
        """Nanoseconds since this object was made."""
        return time.perf_counter_ns() - self.origin

    def wait_until(self, ns: int) -> None:
        """Sleep, and spin for the last millisecond."""
        while (left := ns - self.now()) > 0:
            if left > _SPIN_NS:
                time.sleep((left - _SPIN_NS) / 1e9)


class CpuClock:
    """The CPU time of this process, from 0; waiting costs none and moves the clock at once.

    For a machine shared with others: what an engine on one thread computes takes the same CPU time however
    often it is interrupted.
    """

    def __init__(self) -> None:
        self.origin = time.process_time_ns()

    def now(self) -> int:
        """Nanoseconds of CPU time since this object was made, and of waiting."""
        return time.process_time_ns() - self.origin

    def wait_until(self, ns: int) -> None:
        """Move the clock to `ns`, if that is later."""
        self.origin -= max(0, ns - self.now())


CLOCKS: dict[str, Callable[[], Clock]] = {"wall": WallClock, "cpu": CpuClock}


@dataclass(frozen=True)
class Token:
    """What one step yielded for one request: new output tokens, and whether it ended."""

    index: int
    new: int
    ended: bool


class Port(Protocol):
    """An engine that is driven step by step."""

    def add(self, index: int, arrival_ns: int) -> None:
        """Hand over request `index` of the workload."""

    def busy(self) -> bool:
        """Whether a step has anything to do."""

    def step(self) -> Sequence[Token]:
        """One step of the engine's loop."""


class Arrivals:
    """Requests by arrival; the end of one releases its successors and the next of a closed-loop pool."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        known = np.flatnonzero(workload.arrival >= 0)
        self._heap = [(int(workload.arrival[i]), int(i)) for i in known]
        heapq.heapify(self._heap)
        self._children: dict[int, list[int]] = {}
        for i in np.flatnonzero(workload.parent >= 0):
            self._children.setdefault(int(workload.parent[i]), []).append(int(i))
        in_pool = (workload.arrival == -1) & (workload.parent == -1)
        self._pool = iter(np.flatnonzero(in_pool).tolist() if workload.closed_loop else [])
        self.open = len(workload)

    def next_ns(self) -> int | None:
        """When the next request that is known by now arrives; None: none is."""
        return self._heap[0][0] if self._heap else None

    def due(self, now: int) -> tuple[int, int] | None:
        """Take the next (arrival_ns, index) that has arrived by now."""
        return heapq.heappop(self._heap) if self._heap and self._heap[0][0] <= now else None

    def ended(self, index: int, now: int) -> None:
        """Request `index` has ended: finished or refused."""
        self.open -= 1
        for child in self._children.get(index, ()):
            self._release(child, now)
        following = next(self._pool, None)
        if following is not None:
            self._release(following, now)

    def _release(self, index: int, now: int) -> None:
        heapq.heappush(self._heap, (now + int(self.workload.think_ns[index]), index))


@dataclass
class Sent:
    """What became of the requests and when the steps were.

    Attributes:
        arrival_ns, added_ns, first_token_ns, finish_ns: int64[n], -1: never.
        added_step: int64[n], the loop step before which the request was handed over, -1: never.
        produced: int64[n], output tokens.
        status: int64[n], as in requests.parquet.
        order: indices in the order in which they were handed over.
        start_ns, end_ns: of each loop step.
        idle_ns: time in which no step ran because nothing was there to do.
    """

    arrival_ns: NDArray[np.int64]
    added_ns: NDArray[np.int64]
    first_token_ns: NDArray[np.int64]
    finish_ns: NDArray[np.int64]
    added_step: NDArray[np.int64]
    produced: NDArray[np.int64]
    status: NDArray[np.int64]
    order: list[int] = field(default_factory=list)
    start_ns: list[int] = field(default_factory=list)
    end_ns: list[int] = field(default_factory=list)
    idle_ns: int = 0


def nothing_sent(n: int) -> Sent:
    """The state before the first request."""

    def never() -> NDArray[np.int64]:
        return np.full(n, -1, np.int64)

    zero, status = np.zeros(n, np.int64), np.full(n, NEVER_ARRIVED, np.int64)
    return Sent(never(), never(), never(), never(), never(), zero, status)


def drive(
    workload: Workload, rejected: NDArray[np.bool_], port: Port, clock: Clock, until_ns: int | None = None
) -> Sent:
    """Send a workload to an engine by the clock and step the engine until all requests have ended.

    Args:
        workload: on the clock "time".
        rejected: bool[n], requests that the engine's front end refuses; they end as they arrive.
        port: the engine.
        clock: the time.
        until_ns: stop at the first step that ends at or after this; None: at the end.
    """
    arrivals = Arrivals(workload)
    sent = nothing_sent(len(workload))
    now = clock.now()
    while arrivals.open and (until_ns is None or now < until_ns):
        while (due := arrivals.due(now)) is not None:
            at, i = due
            sent.arrival_ns[i] = at
            if rejected[i]:
                sent.status[i], sent.finish_ns[i] = REJECTED, at
                arrivals.ended(i, at)
                continue
            port.add(i, at)
            sent.order.append(i)
            sent.status[i], sent.added_ns[i], sent.added_step[i] = WAITING, now, len(sent.start_ns)
        if port.busy():
            tokens = port.step()
            end = clock.now()
            sent.start_ns.append(now)
            sent.end_ns.append(end)
            for token in tokens:
                _note(sent, token, end)
                if token.ended:
                    arrivals.ended(token.index, end)
            now = end
            continue
        following = arrivals.next_ns()
        if following is None:
            break
        clock.wait_until(following if until_ns is None else min(following, until_ns))
        sent.idle_ns -= now
        now = clock.now()
        sent.idle_ns += now
    return sent


def _note(sent: Sent, token: Token, end: int) -> None:
    i = token.index
    sent.produced[i] += token.new
    if token.new:
        sent.status[i] = RUNNING
        if sent.first_token_ns[i] < 0:
            sent.first_token_ns[i] = end
    if token.ended:
        sent.finish_ns[i], sent.status[i] = end, FINISHED
