"""The body of `python -m sim sweep`."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.compilation import NOTE, is_compiled
from sim.errors import InputError, raise_all
from sim.report.units import plural
from sim.resolve import content_id
from sim.results import to_json
from sim.sweep.answer import Grid, Row
from sim.sweep.clusters import connect
from sim.sweep.execute import ClusterLost, Local, Workers, default_jobs
from sim.sweep.plan import Point, Sweep, load_sweep, with_seed
from sim.sweep.point import Failure, Result, Task, build_trace, code_digest, run_point
from sim.sweep.progress import Reporter, Running
from sim.sweep.store import Store
from sim.sweep.traces import Trace, TraceInfo, trace_of
from workloads.units import format_duration

if TYPE_CHECKING:
    from sim.report.document import Document

FINALS = frozenset(
    ("points.parquet", "curves.parquet", "timings.parquet", "index.html", "results.json", "provenance.json")
)


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        overrides: `key=value` texts of `--set`, for the base config.
        seeds: of `--seeds`, or None.
        jobs: worker processes; None: one a processor, or none where there is little to do.
        cluster: of `--cluster`, or None.
        out: folder, or None: runs/sweep-NAME.
        plots: draw.
        quiet: nothing on stderr but errors.
        command: the command line, for provenance.
    """

    overrides: Sequence[str] = ()
    seeds: int | None = None
    jobs: int | None = None
    cluster: str | None = None
    out: str | None = None
    plots: bool = True
    quiet: bool = False
    command: Sequence[str] = ()


@dataclass(frozen=True)
class Finished:
    """A sweep that came to its end.

    Attributes:
        sweep: what was asked.
        grid: every point and seed.
        document: the results as a document.
        folder: where the files are.
        earlier: runs that were done before this command.
    """

    sweep: Sweep
    grid: Grid
    document: Document
    folder: Path
    earlier: int

    @property
    def failed(self) -> int:
        """Runs that gave no result."""
        return len(self.grid.failed())


class Interrupted(Exception):
    """Ctrl-C, or a cluster that is gone; the text says what is kept and how to go on.

    Args:
        text: for the user.
        by_user: Ctrl-C.
    """

    def __init__(self, text: str, by_user: bool) -> None:
        super().__init__(text)
        self.by_user = by_user


@dataclass(frozen=True)
class _Job:
    """A point with one seed, and its workload."""

    point: Point
    seed: int
    trace: Trace


def run_sweep(file: str, options: Options) -> Finished:
    """Run a sweep file, or what is left of it.

    Raises:
        InputError: anything wrong with the file, the configs, the cluster or the folder, before the start.
        OutputError: a full disk (or another refusal); finished points are kept.
        Interrupted: Ctrl-C, or the cluster is gone; finished points are kept.
    """
    sweep = load_sweep(file, options.overrides, options.seeds)
    folder = Path(options.out) if options.out is not None else Path("runs") / f"sweep-{sweep.name}"
    workers: Workers
    if options.cluster is not None:
        workers = connect(options.cluster)
    else:
        workers = Local(options.jobs or default_jobs(), options.jobs is not None)
    began = time.time()
    try:
        with Store(folder, sweep.name, FINALS) as store:
            return _Execution(sweep, options, workers, store, began).run()
    finally:
        workers.close()


class _Execution:
    def __init__(self, sweep: Sweep, options: Options, workers: Workers, store: Store, began: float) -> None:
        self.sweep, self.options, self.workers, self.store = sweep, options, workers, store
        self.began = began
        self.local = options.cluster is None
        self.infos: dict[str, TraceInfo] = {}
        self.trace_failures: dict[str, Failure] = {}
        self.rows: dict[tuple[int, int], Row] = {}
        self.earlier = 0

    def say(self, text: str) -> None:
        if not self.options.quiet:
            print(text, file=sys.stderr, flush=True)

    def run(self) -> Finished:
        sweep = self.sweep
        jobs = [
            _Job(p, seed, trace_of(with_seed(p.resolved, seed), self.store.cache))
            for seed in sweep.seeds
            for p in sweep.points
            if p.resolved is not None
        ]
        what = f"{plural(len(sweep.points), 'point')}, {plural(len(sweep.seeds), 'seed')} each"
        self.say(f"{sweep.name}: {what}; {self.workers.where}")
        try:
            self._learn_traces(jobs)
            jobs = self._without_equal_seeds(jobs)
            self._simulate(jobs)
            return self._finish()
        except KeyboardInterrupt:
            raise Interrupted(self._stopped("interrupted"), by_user=True) from None
        except ClusterLost as e:
            raise Interrupted(self._stopped(str(e)), by_user=False) from e

    def _stopped(self, why: str) -> str:
        done = sum(isinstance(r.outcome, Result) for r in self.rows.values())
        return (
            f"{why}: {plural(done, 'finished run')} kept in {self.store.folder};"
            " the same command does the rest"
        )

    # ---- workloads ----

    def _learn_traces(self, jobs: Sequence[_Job]) -> None:
        """The trace hash of every workload; those that were never seen are built."""
        traces = {job.trace.key: job.trace for job in jobs}
        for key in traces:
            info = self.store.trace(key)
            if info is not None:
                self.infos[key] = info
        self._build([t for k, t in traces.items() if k not in self.infos])
        if traces and not self.infos:
            # nothing can be run: as a run would say it
            failures = dict.fromkeys(f.message for f in self.trace_failures.values())
            raise_all([InputError(text) for text in failures])

    def _build(self, traces: Sequence[Trace]) -> None:
        found: dict[str, TraceInfo] = {}
        try:
            for trace, info in self.workers.run(build_trace, traces):
                if isinstance(info, Failure):
                    self._raise_disk(info)
                    self.trace_failures[trace.key] = info
                else:
                    found[trace.key] = info
        finally:
            self.infos |= found
            self.store.add_traces(found)

    def _raise_disk(self, failure: Failure) -> None:
        """A worker that met a full disk stops the sweep as a full disk here would."""
        if failure.disk and self.local:
            raise self.store.refused(failure.message)

    def _without_equal_seeds(self, jobs: list[_Job]) -> list[_Job]:
        """Of a point whose workload is the same for every seed, only the first seed."""
        hashes: dict[int, set[str]] = {}
        for job in jobs:
            info = self.infos.get(job.trace.key)
            hashes.setdefault(job.point.index, set()).add(info.trace_hash if info else job.trace.key)
        once = {i for i, found in hashes.items() if len(found) == 1}
        first = self.sweep.seeds[0]
        kept = [job for job in jobs if job.point.index not in once or job.seed == first]
        if len(kept) < len(jobs):
            self.say(f"the workload is the same for every seed: only seed {first} is run")
        return kept

    # ---- points ----

    def _simulate(self, jobs: Sequence[_Job]) -> None:
        tasks: list[Task] = []
        running = Running(self.sweep.metrics[0], self.sweep.axes, len(jobs) + self._refused())
        by_id: dict[str, _Job] = {}
        for point in self.sweep.points:
            if point.resolved is None:
                self._add(
                    running, Row(point, self.sweep.seeds[0], "", Failure(point.problem)), simulated=False
                )
        for job in jobs:
            failure = self.trace_failures.get(job.trace.key)
            if failure is not None:
                self._add(running, Row(job.point, job.seed, "", failure), simulated=False)
                continue
            task = self._task(job)
            known = self.store.load(task.id)
            if known is not None:
                self._add(running, Row(job.point, job.seed, task.content_id, known), simulated=False)
                self.earlier += 1
            else:
                tasks.append(task)
                by_id[task.id] = job
        if self.earlier:
            self.say(f"{self.earlier:,} of {plural(running.total, 'run')} were done before")
        if not tasks:
            return
        if self.local:
            # an earlier start has dropped the arrays
            there = {t.trace.key: t for t in tasks if not (self.store.cache / t.info.trace_hash).exists()}
            self._build([t.trace for t in there.values()])
        with Reporter(running, sys.stderr, self.options.quiet) as reporter:
            for task, outcome in self._outcomes(tasks, reporter):
                job = by_id[task.id]
                if isinstance(outcome, Failure):
                    self._raise_disk(outcome)
                    seed = f", seed {job.seed}" if len(self.sweep.seeds) > 1 else ""
                    reporter.say(f"failed: {job.point.label(self.sweep.axes)}{seed}: {outcome.message}")
                else:
                    self.store.save(task.id, outcome)
                self._add(running, Row(job.point, job.seed, task.content_id, outcome))
                reporter.update()

    def _outcomes(self, tasks: list[Task], reporter: Reporter) -> Iterator[tuple[Task, Result | Failure]]:
        """All tasks; the first one here, where the engine has to be compiled for workers to share."""
        if self.local and not is_compiled(tasks[0].resolved.engine):
            reporter.say(NOTE)
            yield tasks[0], run_point(tasks[0])
            tasks = tasks[1:]
        yield from self.workers.run(run_point, tasks)

    def _refused(self) -> int:
        return sum(p.resolved is None for p in self.sweep.points)

    def _add(self, running: Running, row: Row, simulated: bool = True) -> None:
        self.rows[row.point.index, row.seed] = row
        running.add(row.point, row.outcome, simulated)

    def _task(self, job: _Job) -> Task:
        assert job.point.resolved is not None
        info = self.infos[job.trace.key]
        resolved = with_seed(job.point.resolved, job.seed)
        period = resolved.sample_period_ns or info.period_ns
        output = {**resolved.config["output"], "sample_period": format_duration(period)}
        resolved = replace(resolved, config={**resolved.config, "output": output})
        content = content_id(resolved.config, info.trace_hash)
        code = code_digest()
        point_id = hashlib.sha256(f"{content} {code}".encode()).hexdigest()[:32]
        return Task(point_id, content, resolved, job.trace, info, code)

    # ---- results ----

    def _finish(self) -> Finished:
        from sim.sweep.page import build_document
        from sim.sweep.tables import curves_table, points_table, timings_table

        sweep = self.sweep
        seeds = {s: i for i, s in enumerate(sweep.seeds)}
        rows = [self.rows[k] for k in sorted(self.rows, key=lambda k: (k[0], seeds[k[1]]))]
        grid = Grid(rows)
        meta = self._meta()
        files: dict[str, bytes | Callable[[], bytes]] = {
            "points.parquet": lambda: points_table(rows, sweep.axes, sweep.metrics, meta),
            "curves.parquet": lambda: curves_table(rows, meta),
            "timings.parquet": lambda: timings_table(rows, meta),
        }
        document = build_document(sweep, grid, meta, self.options.plots)
        if self.options.plots:
            from sim.report.render import html_text
            from sim.sweep.charts import pictures

            files |= pictures(sweep, grid)
            files["index.html"] = html_text(document).encode()
        from sim.report.render import json_text

        files["results.json"] = json_text(document).encode()
        record = self._provenance(len(rows))
        files["provenance.json"] = to_json(record)
        self.store.write(files)
        self.store.drop_arrays()
        return Finished(sweep, grid, document, self.store.folder, self.earlier)

    def _meta(self) -> dict[str, str]:
        from sim import __version__
        from sim.core.jit import core_digest

        return {
            "format": "1",
            "version": __version__,
            "sweep": self.sweep.name,
            "core_digest": core_digest(),
            "code_digest": code_digest(),
        }

    def _provenance(self, runs: int) -> dict[str, Any]:
        import platform

        sweep = self.sweep
        first = next(p.resolved for p in sweep.points if p.resolved is not None)
        return {
            "tool": "kvpool",
            "kind": "sweep",
            **self._meta(),
            "file": sweep.file,
            "base": sweep.base,
            "overrides": list(self.options.overrides),
            "axes": {
                a.label: {"keys": list(a.keys), "values": [list(v) for v in a.values]} for a in sweep.axes
            },
            "seeds": list(sweep.seeds),
            "first_point": first.config,
            "runs": runs,
            "done_before": self.earlier,
            "where": self.workers.where,
            "command": list(self.options.command),
            "platform": platform.platform(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.began)),
            "wall_s": round(time.time() - self.began, 3),
        }


def dry_run(file: str, options: Options) -> str:
    """What a sweep would run, a line a point."""
    sweep = load_sweep(file, options.overrides, options.seeds)
    lines = []
    width = len(str(len(sweep.points) - 1))
    for p in sweep.points:
        text = f"{p.index:>{width}}  {p.label(sweep.axes)}"
        lines.append(text if p.resolved is not None else f"{text}   can't be run: {p.problem}")
    runnable = [p for p in sweep.points if p.resolved is not None]
    seeds = plural(len(sweep.seeds), "seed")
    total = plural(len(runnable) * len(sweep.seeds), "run")
    lines.append(f"{sweep.name}: {plural(len(sweep.points), 'point')}, {seeds} each, {total}")
    refused = len(sweep.points) - len(runnable)
    if refused:
        lines.append(f"{plural(refused, 'point')} can't be run and would be recorded as failed")
    return "\n".join(lines) + "\n"
