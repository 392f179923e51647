"""Where tasks run: in this process, in worker processes of this machine, or on a Dask or Ray cluster.

All of them give the same results, in any order. A worker that dies loses nothing: what it had is done again,
one task at a time, and only a task whose worker dies when it runs alone is given up.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sim.errors import InputError
from sim.report.units import plural
from sim.sweep.point import Failure, deaf, end_with_parent

T = TypeVar("T")
R = TypeVar("R")

#: Starting worker processes pays off only beyond so many seconds of work in this one.
START_WORKERS_S = 2.5
_TRIES = 3


class ClusterLost(Exception):
    """The connection to the cluster is gone."""


class _Broken(Exception):
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
            except _Broken as e:
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
        except _Broken as e:
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
            yield from _parallel(work, left, _stream("loky", self.jobs), children=True)

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


class Dask(Workers):
    """An existing Dask cluster, by the address of its scheduler.

    Raises:
        InputError: the package is missing, nobody answers, there is no worker, or a worker has other code.
    """

    def __init__(self, address: str, option: str) -> None:
        try:
            from distributed import Client
        except ImportError:
            raise InputError(
                "a Dask cluster needs the package 'distributed'", option, hint="pip install 'kvpool[dask]'"
            ) from None
        import logging

        # what matters is told in one message; a logger below these may have a level of its own
        quiet = ("distributed", "tornado", "asyncio")
        for name in (*quiet, *logging.root.manager.loggerDict):
            if name.split(".")[0] in quiet:
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        hint = "start one with: dask scheduler --port 8786"
        if not _answers(address):
            raise InputError(f"no Dask scheduler answers at {address}", option, hint=hint)
        try:
            self._client = Client(f"tcp://{address}", timeout=10, set_as_default=False)
        except Exception as e:
            text = f"no Dask scheduler answers at {address} ({_short(e)})"
            raise InputError(text, option, hint=hint) from e
        try:
            self._check(option)
        except BaseException:
            self._client.close()
            raise
        _register_dask()

    def _check(self, option: str) -> None:
        from sim.sweep.point import code_digest

        if not self._client.ncores():
            raise InputError("the Dask cluster has no worker", option, hint="dask worker ADDRESS")
        found = self._client.run(_code_here, on_error="return")
        for worker, code in found.items():
            if isinstance(code, BaseException):
                raise InputError(
                    f"kvpool can't be used on the worker {worker}: {_short(code)}",
                    option,
                    hint="install it there",
                )
            if code != code_digest():
                raise InputError(
                    f"the worker {worker} has other code of kvpool ({code} instead of {code_digest()})",
                    option,
                    hint="install the same version everywhere",
                )

    @property
    def where(self) -> str:
        """How many workers."""
        return f"Dask, {plural(len(self._client.ncores()), 'worker')}"

    def _some(self, work: Callable[[T], R], tasks: list[T]) -> Iterator[tuple[T, R | Failure]]:
        if self._client.status != "running":
            raise ClusterLost("the Dask scheduler is gone")
        try:
            yield from _parallel(work, tasks, _stream("kvpool-dask", -1, client=self._client))
        except _Broken as e:
            if self._client.status != "running":
                raise ClusterLost("the Dask scheduler is gone") from e
            raise

    def close(self) -> None:
        self._client.close()


class Ray(Workers):
    """An existing Ray cluster.

    Ray's joblib backend gives all results of a call at once, so tasks go in waves of a few seconds.

    Raises:
        InputError: the package is missing, or nobody answers.
    """

    _WAVE_S = 5.0

    def __init__(self, address: str, option: str) -> None:
        try:
            import ray
            from ray.util.joblib import register_ray
        except ImportError:
            raise InputError(
                "a Ray cluster needs the package 'ray'", option, hint="pip install 'kvpool[ray]'"
            ) from None
        import logging

        if not _answers(address):
            raise InputError(
                f"no Ray cluster answers at {address}",
                option,
                hint="ray start --head (port 6379, or 10001 for ray://)",
            )
        self._ray = ray
        self._pool: Any = None
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except Exception as first:
            try:
                ray.init(address=f"ray://{address}", logging_level=logging.ERROR, log_to_driver=False)
            except Exception:
                raise InputError(f"no Ray cluster answers at {address} ({_short(first)})", option) from first
        register_ray()
        self._cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))

    @property
    def where(self) -> str:
        """How many processors."""
        return f"Ray, {plural(self._cpus, 'processor')}"

    def _some(self, work: Callable[[T], R], tasks: list[T]) -> Iterator[tuple[T, R | Failure]]:
        left, size = list(tasks), self._cpus
        while left:
            wave, left = left[:size], left[size:]
            began = time.perf_counter()
            try:
                yield from _parallel(work, wave, self._open())
            except _Broken as e:
                self._shut()
                raise _Broken(e.why, e.suspects, [*e.rest, *left]) from e
            spent = max(time.perf_counter() - began, 1e-3)
            size = max(self._cpus, min(4 * size, int(size * self._WAVE_S / spent)))

    def _open(self) -> Any:
        """One pool of Ray's actors for all waves."""
        if self._pool is None:
            from joblib import Parallel, parallel_config

            with parallel_config(backend="ray", n_jobs=self._cpus):
                self._pool = Parallel()
            self._pool.__enter__()
        return self._pool

    def _shut(self) -> None:
        if self._pool is not None:
            with contextlib.suppress(Exception):
                self._pool.__exit__(None, None, None)
            self._pool = None

    def close(self) -> None:
        self._shut()
        self._ray.shutdown()


def connect(cluster: str) -> Workers:
    """The workers of `--cluster`: `dask://HOST:PORT` or `ray://HOST:PORT`.

    Raises:
        InputError: another form, or the cluster can't be used.
    """
    option = f"--cluster {cluster}"
    found = re.fullmatch(r"(dask|ray)://([^/\s:]+|\[[0-9a-fA-F:]+\]):(\d{1,5})/?", cluster)
    if not found:
        raise InputError(
            "expected dask://HOST:PORT or ray://HOST:PORT",
            option,
            hint="as in --cluster dask://127.0.0.1:8786",
        )
    address = f"{found[2]}:{found[3]}"
    return Dask(address, option) if found[1] == "dask" else Ray(address, option)


def _answers(address: str) -> bool:
    """Whether somebody listens there; Ray itself tries for minutes."""
    import socket

    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            return True
    except OSError:
        return False


def _code_here() -> str:
    from sim.sweep.point import code_digest

    return code_digest()


def _short(e: BaseException) -> str:
    text = str(e).strip().splitlines()
    return f"{type(e).__name__}: {text[0][:200]}" if text else type(e).__name__


def _numbered(number: int, work: Callable[[T], R], task: T, child: bool) -> tuple[int, R]:
    if child:
        end_with_parent()
    return number, deaf(work, task)


def _stream(backend: str, jobs: int, **arguments: Any) -> Any:
    """A `Parallel` that gives each result as soon as it is there."""
    from joblib import Parallel, parallel_config

    with parallel_config(backend=backend, n_jobs=jobs, **arguments):
        return Parallel(return_as="generator_unordered")


def _parallel(
    work: Callable[[T], R], tasks: Sequence[T], parallel: Any, children: bool = False
) -> Iterator[tuple[T, R | Failure]]:
    """Tasks through joblib's `Parallel`; `children`: its workers are child processes of this one.

    Raises:
        _Broken: workers died, or their cluster failed.
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
        raise _Broken(_death(e), suspects, rest) from e


def _death(e: Exception) -> str:
    """Why workers could not go on."""
    codes = re.search(r"exit codes of the workers are \{([^}]*)\}", str(e))
    if codes:
        signals = sorted(set(re.findall(r"SIG\w+|EXIT\(-?\d+\)", codes[1])))
        hint = ", perhaps for want of memory" if "SIGKILL" in signals else ""
        return f"the worker process died ({', '.join(signals) or 'unknown reason'}{hint})"
    return f"the worker died ({_short(e)})"


def _register_dask() -> None:
    """joblib's Dask backend, which never tells of a task that the scheduler gave up; this one does."""
    from joblib import register_parallel_backend
    from joblib._dask import DaskDistributedBackend

    class Backend(DaskDistributedBackend):
        async def _collect(self) -> None:
            import asyncio

            while self._continue:
                async for future, result in self.waiting_futures:
                    waiting = self._results.pop(future)
                    callback = self._callbacks.pop(future)
                    if future.status == "error":
                        callback(result[1])
                        waiting.set_exception(result[1])
                    else:
                        waiting.set_result(result)
                        callback(result)
                await asyncio.sleep(0.01)

    register_parallel_backend("kvpool-dask", Backend)


__all__ = ["ClusterLost", "Dask", "Local", "Ray", "Workers", "connect", "default_jobs"]
