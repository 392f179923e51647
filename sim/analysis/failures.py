"""Episodes in which the pool could not give a request its blocks, from the events about requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sim.core import codes as c
from sim.core.kv_cache_manager import FAIL_POOL, FAIL_RESERVE, FAIL_RUNNING, FAIL_STATE, FAIL_WATERMARK

CAUSES = {
    FAIL_RESERVE: "full-sequence reserve",
    FAIL_WATERMARK: "watermark",
    FAIL_POOL: "pool",
    FAIL_RUNNING: "running request",
    FAIL_STATE: "state",
}


@dataclass(frozen=True)
class AllocationFailure:
    """One episode: a request wanted blocks, was refused at least once, and something came of it.

    Attributes:
        time_ns: first refusal.
        request: position in the workload.
        request_id: its name.
        cause: "full-sequence reserve", "watermark" or "pool" (an admission), "running request" (a running one
            found no block for its next tokens), or "state" (an admission whose hit is a Mamba state that
            another request computes in this very step: no want of blocks).
        wanted_blocks: blocks it would have taken out of the free queue at the first refusal (hits that are
            free included).
        free_blocks: blocks that were free then.
        attempts: refusals in the episode.
        outcome: "admitted" after waiting; "preempted others"; "preempted itself"; "dropped"; "open" at the
            end of the run.
        waited_ns: from the first refusal to the outcome (0 for preemptions, which happen at once).
        preempted: requests that were preempted for it, in order.
        recomputed_tokens: tokens that these had to compute again when they were resumed.
    """

    time_ns: int
    request: int
    request_id: str
    cause: str
    wanted_blocks: int
    free_blocks: int
    attempts: int
    outcome: str
    waited_ns: int
    preempted: tuple[int, ...]
    recomputed_tokens: int


@dataclass
class _Episode:
    """An AllocationFailure that is still growing."""

    time: int
    request: int
    cause: int
    wanted: int
    free: int
    attempts: int = 1
    outcome: str = "open"
    waited: int = 0
    preempted: list[int] = field(default_factory=list)
    recomputed: int = 0


class _Reader:
    """Follows the events in order."""

    def __init__(self) -> None:
        self.episodes: list[_Episode] = []
        self._waiting: dict[int, _Episode] = {}
        self._running: _Episode | None = None
        # preempted request -> the episode that it was preempted for, and its computed tokens
        self._lost: dict[int, tuple[_Episode, int]] = {}

    def failed(self, time: int, request: int, free: int, cause: int, wanted: int) -> None:
        if cause == FAIL_RUNNING:
            now = self._running
            if now is not None and (now.request, now.time) == (request, time):
                now.attempts += 1
                return
            self._running = _Episode(time, request, cause, wanted, free)
            self.episodes.append(self._running)
        elif request in self._waiting:
            self._waiting[request].attempts += 1
        else:
            self._waiting[request] = _Episode(time, request, cause, wanted, free)
            self.episodes.append(self._waiting[request])

    def preempted(self, request: int, computed: int) -> None:
        episode = self._running
        # vLLM preempts only for a running request that found no block
        assert episode is not None
        episode.preempted.append(request)
        episode.outcome = "preempted itself" if request == episode.request else "preempted others"
        self._lost[request] = episode, computed

    def admitted(self, time: int, request: int, hits: int) -> None:
        self._end(time, request, "admitted")
        if request in self._lost:
            episode, computed = self._lost.pop(request)
            episode.recomputed += max(computed - hits, 0)

    def finished(self, time: int, request: int) -> None:
        self._end(time, request, "dropped")

    def _end(self, time: int, request: int, outcome: str) -> None:
        episode = self._waiting.pop(request, None)
        if episode is not None:
            episode.outcome = outcome
            episode.waited = time - episode.time

    def end(self, time: int) -> None:
        for episode in self._waiting.values():
            episode.waited = time - episode.time


def allocation_failures(
    events: Mapping[str, NDArray[np.int64]], names: Sequence[str], end_ns: int
) -> tuple[AllocationFailure, ...]:
    """Collapse the refusals of an event log into episodes, in order of their first refusal.

    Args:
        events: columns of the event log, with at least the events about requests.
        names: request ids by position in the workload.
        end_ns: end of the log, to which open episodes last.
    """
    kinds = events["type"]
    keep = np.flatnonzero(kinds >= c.EV_ADMITTED)
    columns = [events[n][keep].tolist() for n in ("time_ns", "type", "request", "block", "a", "b")]
    reader = _Reader()
    for time, kind, request, free, a, b in zip(*columns, strict=True):
        if kind == c.EV_ALLOCATION_FAILED:
            reader.failed(time, request, free, a, b)
        elif kind == c.EV_PREEMPTED:
            reader.preempted(request, a)
        elif kind == c.EV_ADMITTED:
            reader.admitted(time, request, a)
        elif kind == c.EV_FINISHED:
            reader.finished(time, request)
    reader.end(end_ns)
    return tuple(
        AllocationFailure(
            time_ns=e.time,
            request=e.request,
            request_id=names[e.request],
            cause=CAUSES[e.cause],
            wanted_blocks=e.wanted,
            free_blocks=e.free,
            attempts=e.attempts,
            outcome=e.outcome,
            waited_ns=e.waited,
            preempted=tuple(e.preempted),
            recomputed_tokens=e.recomputed,
        )
        for e in reader.episodes
    )
