"""A streamed run of a config: workload, requests' records and logs pass through files beside the target.

Everything lies in one hidden folder next to the run folder until the run is over. Whatever ends the run, the
final name appears only with the whole result; what a killed process has left is removed by the next streamed
run there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.columns import EVENTS, REQUESTS, STEPS
from sim.results import ParquetFile, output_error, remove_orphans
from sim.step_totals import StepTotals

if TYPE_CHECKING:
    from sim.report.step_curves import RowsInFile
    from sim.resolve import Resolved
    from sim.simulate import Columns, LogOptions, RunResult
    from workloads.spool import Spool

#: Requests from which on a run is streamed by itself.
STREAM_FROM = 200_000
#: Requests of which the latency plot of a streamed run is drawn, at most about.
_PLOTTED = 100_000


class Scratch:
    """A hidden folder beside the run folder, made when it is first asked for, and removed with `remove`.

    Args:
        target: the run folder that was asked for, or any name in the folder that will hold it.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._folder: Path | None = None
        self._finalizer: Any = None

    def folder(self) -> Path:
        """The folder.

        Raises:
            OutputError: it can't be made.
        """
        if self._folder is None:
            parent = self._target.parent
            folder = parent / f".{self._target.name}.stream-{os.getpid()}"
            try:
                parent.mkdir(parents=True, exist_ok=True)
                remove_orphans(self._target, "stream")
                folder.mkdir()
            except OSError as e:
                raise output_error(self._target, e) from e
            self._folder = folder
            self._finalizer = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return self._folder

    def remove(self) -> None:
        """Remove the folder and all that is in it."""
        if self._finalizer is not None:
            self._finalizer()
        self._folder = None

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Within: what the operating system refuses is told as an `OutputError`."""
        try:
            yield
        except OSError as e:
            raise output_error(self._target, e) from e


class StreamedRun:
    """A simulation whose requests, steps and events go to files; stands in for `Simulation` in `run`.

    Attributes:
        step_totals: what the summary says of the step log.
    """

    def __init__(
        self, resolved: Resolved, spool: Spool, log: LogOptions, scratch: Scratch, metadata: dict[str, str]
    ) -> None:
        from sim.stream.simulate import StreamedSimulation
        from sim.stream.summary import RequestTotals

        self._scratch = scratch
        self._resolved = resolved
        self._size = len(spool)
        known = {"requests.parquet": REQUESTS, "steps.parquet": STEPS}
        if log.events:
            known["events.parquet"] = EVENTS
        self._parquet = {
            name: ParquetFile(scratch.folder() / name, columns, metadata) for name, columns in known.items()
        }
        self._request_totals = RequestTotals(resolved.warmup_ns)
        self.step_totals = StepTotals(resolved.warmup_ns, len(resolved.engine.kv_cache_groups))
        self._simulation = StreamedSimulation(
            resolved.engine,
            spool,
            resolved.step_time,
            log,
            self._write,
            write_steps=self._write_steps,
            write_events=self._parquet["events.parquet"].add if log.events else None,
        )

    @property
    def files(self) -> dict[str, Path]:
        """Name in the run folder -> where it lies now."""
        return {name: self._scratch.folder() / name for name in self._parquet}

    def step_rows(self) -> RowsInFile:
        """The step log, for plots."""
        from sim.report.step_curves import RowsInFile

        return RowsInFile(self.files["steps.parquet"])

    def run(self, until_ns: int | None, progress: Any) -> str:
        """As `Simulation.run`.

        Raises:
            OutputError: the disk is full, say.
        """
        with self._scratch.writing():
            return self._simulation.run(until_ns, progress)

    def result(self) -> RunResult:
        """The result without requests, steps and events, which are all in the files now.

        Raises:
            OutputError: the disk is full, say.
        """
        with self._scratch.writing():
            result = self._simulation.result()
            for file in self._parquet.values():
                file.close()
        return result

    def complete(self, summary: dict[str, Any]) -> None:
        """Fill in what the summary says of requests."""
        from sim.stream.summary import LATENCY_COLUMNS, latency_summary

        self._request_totals.fill(summary, self._size)
        summary["latency"] = latency_summary(lambda: self._chunks(LATENCY_COLUMNS), self._resolved.warmup_ns)

    def sample(self) -> dict[str, NDArray[np.int64]]:
        """Every k-th request, for plots."""
        from sim.stream.summary import LATENCY_COLUMNS

        step = max(1, -(-self._size // _PLOTTED))
        parts: list[dict[str, NDArray[np.int64]]] = []
        first = 0
        for rows in self._chunks(LATENCY_COLUMNS):
            n = len(rows["status"])
            parts.append({name: array[-first % step :: step] for name, array in rows.items()})
            first += n
        return {name: np.concatenate([part[name] for part in parts]) for name in LATENCY_COLUMNS}

    def _write(self, columns: Columns) -> None:
        self._request_totals(columns)
        self._parquet["requests.parquet"].add(columns)

    def _write_steps(self, columns: Columns) -> None:
        self.step_totals(columns)
        self._parquet["steps.parquet"].add(columns)

    def _chunks(self, names: tuple[str, ...]) -> Iterator[dict[str, NDArray[np.int64]]]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.files["requests.parquet"]) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=list(names))
                yield {name: table.column(name).to_numpy() for name in names}
