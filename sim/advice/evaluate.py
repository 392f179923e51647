"""Simulations of candidates under seeds, in worker processes that share the compiled engine on disk."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sim.advice.metrics import values_of
from sim.advice.settings import Candidate, Space, overrides_of
from sim.errors import InputError

if TYPE_CHECKING:
    from workloads.requests import Workload

#: Values of the metrics, or why the candidate can't be run.
Outcome = dict[str, float] | str
Job = tuple[Candidate, int]

#: Workloads that a worker has built; all candidates of a seed share one.
_WORKLOADS: dict[tuple[str, tuple[str, ...], int], Workload] = {}
_KEPT_WORKLOADS = 16


def simulate(config: str, overrides: tuple[str, ...], changes: tuple[str, ...], seed: int) -> Outcome:
    """One run of a config with a candidate's changes; all metrics of its summary.

    Returns the problem as text where the changes give a config that vLLM would refuse.
    """
    from sim.config import load_config
    from sim.config_workload import to_workload
    from sim.resolve import resolve

    try:
        resolved = resolve(load_config(config, [*overrides, *changes], seed))
    except InputError as e:
        return "; ".join(p.message for p in e.problems)
    key = (config, overrides, seed)
    workload = _WORKLOADS.get(key)
    if workload is None:
        workload = to_workload(resolved.spec, seed, resolved.folder)
        while len(_WORKLOADS) >= _KEPT_WORKLOADS:
            _WORKLOADS.pop(next(iter(_WORKLOADS)))
        _WORKLOADS[key] = workload

    from sim.runner import auto_period, simulation_of
    from sim.simulate import LogOptions
    from sim.summary import summarize

    period = resolved.sample_period_ns or auto_period(workload)
    log = LogOptions(sample_period_ns=period, warmup_ns=resolved.warmup_ns)
    simulation = simulation_of(resolved, workload, log)
    simulation.run(resolved.until_ns)
    return values_of(summarize(resolved, simulation.result(), len(workload), "", ""))


def _simulate_in_worker(
    config: str, overrides: tuple[str, ...], changes: tuple[str, ...], seed: int
) -> Outcome:
    """``simulate``, deaf to Ctrl-C: the process that collects the results hears it and ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return simulate(config, overrides, changes, seed)


@dataclass
class Runner:
    """Runs batches of jobs and remembers every result.

    Attributes:
        config: file of the config.
        overrides: of the command line.
        space: the settings.
        jobs: worker processes; 1 runs in this process.
        say: called with the number of runs done after each of them.
        done: results by (candidate, seed).
        compiled: whether the workers find the engine compiled.
    """

    config: str
    overrides: tuple[str, ...]
    space: Space
    jobs: int
    say: Callable[[int], None]
    done: dict[Job, Outcome]
    compiled: bool

    def __call__(self, jobs: Sequence[Job]) -> None:
        """Run those of ``jobs`` that have no result yet. Ctrl-C keeps the results that are in."""
        todo = [job for job in dict.fromkeys(jobs) if job not in self.done]
        for job, outcome in zip(todo, self._results(todo), strict=True):
            self.done[job] = outcome
            self.say(len(self.done))

    def _results(self, todo: Sequence[Job]) -> Iterator[Outcome]:
        calls = [(self.config, self.overrides, self._changes(c), seed) for c, seed in todo]
        if self.jobs == 1 or len(calls) < 2:
            for call in calls:
                yield simulate(*call)
            return
        from joblib import Parallel, delayed

        if not self.compiled:
            # here first, so that the workers find the engine compiled
            yield simulate(*calls[0])
            self.compiled = True
            calls = calls[1:]
        # in submission order, so that what is known at an interruption does not depend on the workers
        yield from Parallel(n_jobs=min(self.jobs, len(calls)), backend="loky", return_as="generator")(
            delayed(_simulate_in_worker)(*call) for call in calls
        )

    def _changes(self, candidate: Candidate) -> tuple[str, ...]:
        return tuple(overrides_of(candidate, self.space))


def default_jobs() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def seeds_matter(config: str, overrides: Sequence[str], seed: int) -> bool:
    """Whether two seeds of this config give two workloads (a trace as it stands gives one)."""
    from sim.runner import check

    hashes: set[Any] = {check(config, overrides, s)[1].content_hash() for s in (seed, seed + 1)}
    return len(hashes) > 1


__all__ = ["Job", "Outcome", "Runner", "default_jobs", "seeds_matter", "simulate"]
