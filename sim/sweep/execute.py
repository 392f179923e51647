"""Where tasks run: in this process or in worker processes of this machine; `clusters` has Dask and Ray.

All of them give the same results, in any order. A worker that dies loses nothing: what it had is done again,
one task at a time, and only a task whose worker dies when it runs alone is given up.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sim.sweep.point import Failure, deaf, end_with_parent

T = TypeVar("T")
R = TypeVar("R")

#: Starting worker processes pays off only beyond so many seconds of work in this one.
START_WORKERS_S = 2.5
_TRIES = 3


class ClusterLost(Exception):
    """The connection to the cluster is gone."""


class Broken(Exception):
    """The workers could not go on.

    Args:
        why: in words.
        suspects: tasks that were under way.
        rest: tasks that had not begun.
    """

    def __init__(self, why: str, suspects: list[Any], rest: list[Any]) -> None:
        super().__init__(why)
        self.why, self.suspects, self.rest = why, suspects, rest


def default_jobs() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


class Workers:
    """Runs tasks; close it at the end."""

    #: Workers of other processes that may go away together.
    remote = True

    @property
    def where(self) -> str:
        """What progress says of it."""
        raise NotImplementedError

    def run(self, work: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[T, R | Failure]]:
        """Each task with its result, as they come."""
        left = list(tasks)
        in_vain = 0
        while left:
            try:
                yield from self._some(work, left)
                return
            except Broken as e:
                broken = e
            lost = 0
            for task in broken.suspects:
                result = self._alone(work, task)
                lost += isinstance(result, Failure)
                yield task, result
            in_vain = in_vain + 1 if lost == len(broken.suspects) else 0
            if self.remote and in_vain > _TRIES:
                raise ClusterLost(broken.why)
            left = broken.rest

    def _alone(self, work: Callable[[T], R], task: T) -> R | Failure:
        try:
            return next(result for _, result in self._some(work, [task]))
        except Broken as e:
            return Failure(e.why)

    def _some(self, work: Callable[[T], R], tasks: list[T]) -> Iterator[tuple[T, R | Failure]]:
        raise NotImplementedError

    def close(self) -> None:
        """End what was started; at once, also where work is under way."""


@dataclass
class Local(Workers):
    """This machine.

    Attributes:
        jobs: worker processes; 1: this process.
        given: the user has asked for this number; else little work is done in this process.
    """

    jobs: int
    given: bool
    remote = False
    _started: bool = field(default=False, init=False)

    @property
    def where(self) -> str:
        """How many processes."""
        return "1 process" if self.jobs == 1 else f"{self.jobs} worker processes at most"

    def _some(self, work: Callable[[T], R], tasks: list[T]) -> Iterator[tuple[T, R | Failure]]:
        left = list(tasks)
        spent: list[float] = []
        while left and not self._use_workers(spent, len(left)):
            task = left.pop(0)
            before = time.process_time()
            result = work(task)
            spent.append(time.process_time() - before)
            yield task, result
        if left:
            self._started = True
            yield from parallel_run(work, left, stream("loky", self.jobs), children=True)

    def _use_workers(self, spent: list[float], left: int) -> bool:
        """Whether the rest is worth the start of workers, by the processor time of the tasks so far."""
        if self.jobs == 1 or self._started:
            return self.jobs > 1
        if self.given:
            return left > 1
        if left < 2 or not spent:
            return False
        # the first one has loaded the engine
        known = spent[1:] or [s for s in spent if s > START_WORKERS_S]
        return bool(known) and sum(known) / len(known) * left > START_WORKERS_S

    def close(self) -> None:
        if self._started:
            from joblib.externals.loky import get_reusable_executor

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                get_reusable_executor().shutdown(wait=True, kill_workers=True)


def short(e: BaseException) -> str:
    text = str(e).strip().splitlines()
    return f"{type(e).__name__}: {text[0][:200]}" if text else type(e).__name__


def _numbered(number: int, work: Callable[[T], R], task: T, child: bool) -> tuple[int, R]:
    if child:
        end_with_parent()
    return number, deaf(work, task)


def stream(backend: str, jobs: int, **arguments: Any) -> Any:
    """A `Parallel` that gives each result as soon as it is there."""
    from joblib import Parallel, parallel_config

    with parallel_config(backend=backend, n_jobs=jobs, **arguments):
        return Parallel(return_as="generator_unordered")


def parallel_run(
    work: Callable[[T], R], tasks: Sequence[T], parallel: Any, children: bool = False
) -> Iterator[tuple[T, R | Failure]]:
    """Tasks through joblib's `Parallel`; `children`: its workers are child processes of this one.

    Raises:
        Broken: workers died, or their cluster failed.
    """
    from joblib import delayed

    begun: set[int] = set()
    done: set[int] = set()

    def feed() -> Iterator[Any]:
        for number, task in enumerate(tasks):
            begun.add(number)
            yield delayed(_numbered)(number, work, task, children)

    try:
        with warnings.catch_warnings():
            # joblib tells of workers that stopped; so do we, if it matters
            warnings.simplefilter("ignore")
            for number, result in parallel(feed()):
                done.add(number)
                yield tasks[number], result
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except Exception as e:
        suspects = [tasks[i] for i in sorted(begun - done)]
        rest = [t for i, t in enumerate(tasks) if i not in begun]
        raise Broken(_death(e), suspects, rest) from e


def _death(e: Exception) -> str:
    """Why workers could not go on."""
    codes = re.search(r"exit codes of the workers are \{([^}]*)\}", str(e))
    if codes:
        signals = sorted(set(re.findall(r"SIG\w+|EXIT\(-?\d+\)", codes[1])))
        hint = ", perhaps for want of memory" if "SIGKILL" in signals else ""
        return f"the worker process died ({', '.join(signals) or 'unknown reason'}{hint})"
    return f"the worker died ({short(e)})"


__all__ = ["Broken", "ClusterLost", "Local", "Workers", "default_jobs", "parallel_run", "short", "stream"]
