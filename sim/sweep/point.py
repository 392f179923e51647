"""What a worker does: build a workload, or simulate one point with one seed.

Nothing here raises: what goes wrong comes back as a message, so that one point never stops a sweep.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError
from sim.resolve import Resolved
from sim.sweep import traces

if TYPE_CHECKING:
    from sim.simulate import RunResult

#: Times of a curve: both ends and equally spaced ones between.
CURVE_POINTS = 201
#: Files of the shell that make a point's numbers from what the core gives.
_SHELL = (
    "capacity.py",
    "fleet/capacity.py",
    "fleet/simulate.py",
    "fleet/summary.py",
    "report/compare_curves.py",
    "report/moments.py",
    "runner.py",
    "simulate.py",
    "summary.py",
    "sweep/point.py",
)

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Task:
    """One point with one seed.

    Attributes:
        id: names it and its file.
        content_id: the one that `sim run` gives to the same config and seed.
        resolved: what to run, sample period included.
        trace, info: the workload.
        code: digest of the code where the sweep was started.
    """

    id: str
    content_id: str
    resolved: Resolved
    trace: traces.Trace
    info: traces.TraceInfo
    code: str


@dataclass(frozen=True)
class Failure:
    """Why a task gave no result; `disk`: the disk was full, or refused otherwise."""

    message: str
    disk: bool = False


@dataclass(frozen=True)
class Result:
    """Of a point with one seed.

    Attributes:
        summary: as in a run's summary.json, without the texts of the definitions.
        curves: float64[CURVE_POINTS] by name, not-a-number where there is no value; `time_s` first.
        wall_s: seconds that the simulation took.
        worker: process and machine.
    """

    summary: dict[str, Any]
    curves: dict[str, NDArray[np.float64]]
    wall_s: float
    worker: str


@functools.cache
def code_digest() -> str:
    """Sixteen hex digits that change when the code that makes a point's numbers does."""
    import sim
    from sim.core.jit import core_digest

    digest = hashlib.sha256(f"{sim.__version__} {core_digest()}".encode())
    root = Path(sim.__file__).parent
    for name in _SHELL:
        digest.update((root / name).read_bytes())
    return digest.hexdigest()[:16]


def build_trace(trace: traces.Trace) -> traces.TraceInfo | Failure:
    """Build a workload into the cache."""
    return _guarded(traces.build, trace)


def run_point(task: Task) -> Result | Failure:
    """Simulate."""
    return _guarded(_run, task)


def deaf(work: Callable[[T], R], task: T) -> R:
    """Run `work` in a worker; Ctrl-C is for the process that collects the results and ends the workers."""
    if threading.current_thread() is threading.main_thread():
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    return work(task)


@functools.cache
def end_with_parent() -> None:
    """Have this worker process end when the one that started it is gone: loky's would wait for minutes."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def _guarded(work: Callable[[T], R], task: T) -> R | Failure:
    try:
        return work(task)
    except InputError as e:
        return Failure(
            "; ".join(str(p).replace("\n  hint: ", " (") + (")" if p.hint else "") for p in e.problems)
        )
    except MemoryError as e:
        return Failure(f"out of memory: {e}" if str(e) else "out of memory")
    except OSError as e:
        disk = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return Failure(f"{e.strerror or e}" + (f": {Path(e.filename).name}" if e.filename else ""), disk)
    except Exception as e:
        frame = traceback.extract_tb(e.__traceback__)[-1]
        return Failure(f"{type(e).__name__}: {e} ({Path(frame.filename).name}:{frame.lineno})")


def _run(task: Task) -> Result | Failure:
    if task.code != code_digest():
        raise InputError(
            f"the worker {_worker()} has another version of kvpool's code than the command",
            hint="install the same version everywhere",
        )
    from sim import __version__
    from sim.runner import simulation_of
    from sim.simulate import LogOptions
    from sim.summary import summarize

    resolved = task.resolved
    workload = traces.load(task.trace, task.info)
    if resolved.fleet is not None and workload.clock != "time":
        raise InputError("the workload counts engine steps, and a fleet has no common step")
    began = time.perf_counter()
    log = LogOptions(
        sample_period_ns=resolved.sample_period_ns or task.info.period_ns,
        every_step=resolved.every_step,
        warmup_ns=resolved.warmup_ns,
    )
    simulation = simulation_of(resolved, workload, log)
    simulation.run(resolved.until_ns)
    result = simulation.result()
    summary = summarize(resolved, result, len(workload), task.content_id, __version__)
    del summary["definitions"], summary["name"]
    served = summary["requests"]
    if served["finished"] == 0:
        return Failure(_nothing_finished(served))
    return Result(summary, curves_of(resolved, summary, result), time.perf_counter() - began, _worker())


def _nothing_finished(served: dict[str, int]) -> str:
    why = [
        text
        for count, text in (
            (served["unservable"], f"{served['unservable']:,} can never fit the pool"),
            (
                served["rejected"],
                f"{served['rejected']:,} have a prompt that is not shorter than max_model_len",
            ),
            (served["unfinished"], f"{served['unfinished']:,} were not done when the run ended"),
        )
        if count
    ]
    return f"no request finished, so there is nothing to measure: {', '.join(why) or 'none arrived'}"


def _worker() -> str:
    return f"{os.uname().nodename}:{os.getpid()}"


def curves_of(
    resolved: Resolved, summary: dict[str, Any], result: RunResult
) -> dict[str, NDArray[np.float64]]:
    """The curves that `sim compare` overlays, at equally spaced times from 0 to the end of the run.

    The value at a time is that of the last row of the step log at or before it (of the first row, before
    that).
    """
    from sim.report.compare_curves import CURVES
    from sim.report.folder import RunFolder

    run = RunFolder(Path(), summary, {}, {}, result.requests, result.steps)
    times = result.steps["time_ns"]
    end = run.end_ns
    grid = np.linspace(0.0, float(end), CURVE_POINTS)
    out = {"time_s": grid / 1e9}
    at = np.maximum(np.searchsorted(times, grid, side="right") - 1, 0)
    for key, _, values, _ in CURVES:
        column = np.asarray(values(run), np.float64)
        out[key] = column[at] if len(column) else np.full(CURVE_POINTS, np.nan)
    return out
