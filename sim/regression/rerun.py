"""Run a config for its curves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sim.config import Loaded, load_config
from sim.config_baseline import BaselineSection
from sim.errors import InputError
from sim.regression.baseline_file import Baseline, Provenance
from sim.regression.curves import rows_of
from workloads.spec import AnyClient, Mix, Trace

_SAMPLES = 10
#: Samples that a run may take beyond those wanted for its rows, before it is started again with fewer.
_MOST_SAMPLES = 200_000


class TraceAbsent(InputError):
    """The trace file of a config is not there."""


@dataclass(frozen=True)
class Job:
    """A config to run for its curves.

    Attributes:
        config: path.
        overrides: of `--set`.
        period_ns, sample_ns: of a baseline; None: chosen from the run.
    """

    config: Path
    overrides: tuple[str, ...] = ()
    period_ns: int | None = None
    sample_ns: int | None = None


def load(job: Job) -> tuple[Loaded, BaselineSection]:
    """The config and its `baseline` section (the defaults where it has none).

    Raises:
        InputError: the config is missing or wrong.
    """
    loaded = load_config(str(job.config), _with_data(job))
    return loaded, loaded.config.baseline or BaselineSection()


def _traces(spec: AnyClient) -> list[str]:
    """Paths of the trace files of a workload section."""
    parts = [part.client for part in spec.clients] if isinstance(spec, Mix) else [spec]
    return [part.path for part in parts if isinstance(part, Trace)]


def _with_data(job: Job) -> list[str]:
    """The overrides, and the trace in the folder KVPOOL_DATA where the config's own path leads nowhere."""
    overrides = list(job.overrides)
    folder = os.environ.get("KVPOOL_DATA")
    if not folder or any(text.startswith("workload.path=") for text in overrides):
        return overrides
    loaded = load_config(str(job.config), overrides)
    spec = loaded.config.workload
    if isinstance(spec, Trace):
        other = Path(folder) / Path(spec.path).name
        if not _exists(spec.path, loaded.folder) and other.is_file():
            overrides.append(f"workload.path={other.resolve()}")
    return overrides


def _exists(path: str, folder: Path) -> bool:
    return (folder / path).is_file() or Path(path).is_file()


def require_traces(loaded: Loaded) -> None:
    """Raise TraceAbsent for the first trace file that is not there."""
    for path in _traces(loaded.config.workload):
        if not _exists(path, loaded.folder):
            raise TraceAbsent(
                f"the trace file '{path}' is not there",
                loaded.document.file,
                hint="put it there, or name its folder in KVPOOL_DATA; README.md says where to get it",
            )


def run(job: Job, name: str, folder: Path, command: Sequence[str]) -> Baseline:
    """Simulate a config and take its curves.

    Args:
        name: of the baseline.
        folder: where its file lies or shall lie; the config's path is kept relative to it.
        command: that makes the baseline, for its header.

    Raises:
        TraceAbsent: its trace is not there.
        InputError: anything else that is wrong with the config.
    """
    from sim import __version__
    from sim.core.jit import core_digest
    from sim.runner import auto_period, check, simulation_of
    from sim.simulate import LogOptions

    loaded, section = load(job)
    require_traces(loaded)
    resolved, workload = check(str(job.config), _with_data(job))
    if workload.clock != "time":
        raise InputError(
            "a workload in logical time has no curves over simulated time",
            loaded.document.file,
            hint="give it arrivals in time, or compare its steps: python -m validation diff",
        )
    sample = job.sample_ns
    if sample is None:
        if section.period is not None:
            sample = section.period if section.period % _SAMPLES else section.period // _SAMPLES
        else:
            sample = resolved.sample_period_ns or auto_period(workload)
    while True:
        log = LogOptions(sample_period_ns=sample, warmup_ns=resolved.warmup_ns)
        simulation = simulation_of(resolved, workload, log)
        simulation.run(resolved.until_ns)
        result = simulation.result()
        if job.sample_ns is not None or len(result.steps["time_ns"]) <= _MOST_SAMPLES:
            break
        sample *= 10
    end = max(1, int(result.totals["now_ns"]))
    period = job.period_ns
    if period is None:
        period = section.period or sample * _nice(-(-end // (sample * section.rows)))
    provenance = Provenance(
        config=os.path.relpath(job.config, folder),
        overrides=tuple(job.overrides),
        seed=resolved.seed,
        period_ns=period,
        sample_ns=sample,
        trace=workload.content_hash(),
        requests=len(workload),
        vllm=resolved.engine.vllm,
        core=core_digest(),
        kvpool=__version__,
        command=" ".join(command),
    )
    groups = len(resolved.engine.kv_cache_groups)
    return Baseline(name, provenance, rows_of(result.steps, period, end, groups))


def _nice(n: int) -> int:
    """The next number from n on of 1, 2, 3, 4, 5, 6, 8, 10, 20, 30, ..."""
    power = 1
    while True:
        for m in (1, 2, 3, 4, 5, 6, 8):
            if m * power >= n:
                return m * power
        power *= 10
