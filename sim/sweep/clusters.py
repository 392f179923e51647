"""Existing Dask and Ray clusters, through joblib's backends."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from sim.errors import InputError
from sim.report.units import plural
from sim.sweep.execute import Broken, ClusterLost, Workers, parallel_run, short, stream
from sim.sweep.point import Failure

T = TypeVar("T")
R = TypeVar("R")


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
            text = f"no Dask scheduler answers at {address} ({short(e)})"
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
                    f"kvpool can't be used on the worker {worker}: {short(code)}",
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
            yield from parallel_run(work, tasks, stream("kvpool-dask", -1, client=self._client))
        except Broken as e:
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
                raise InputError(f"no Ray cluster answers at {address} ({short(first)})", option) from first
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
                yield from parallel_run(work, wave, self._open())
            except Broken as e:
                self._shut()
                raise Broken(e.why, e.suspects, [*e.rest, *left]) from e
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
