"""A streamed run of a config: the workload and the requests' records pass through files beside the target.

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

from sim.columns import REQUESTS
from sim.results import ParquetFile, output_error, remove_orphans

if TYPE_CHECKING:
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
    """A simulation whose requests go to a file; stands in for `Simulation` in the body of `run`."""

    def __init__(
        self, resolved: Resolved, spool: Spool, log: LogOptions, scratch: Scratch, metadata: dict[str, str]
    ) -> None:
        from sim.stream.simulate import StreamedSimulation
        from sim.stream.summary import RequestTotals

        self._scratch = scratch
        self._resolved = resolved
        self._size = len(spool)
        self.file = scratch.folder() / "requests.parquet"
        self._parquet = ParquetFile(self.file, REQUESTS, metadata)
        self._totals = RequestTotals(resolved.warmup_ns)
        self._simulation = StreamedSimulation(resolved.engine, spool, resolved.step_time, log, self._write)

    def run(self, until_ns: int | None, progress: Any) -> str:
        """As `Simulation.run`.

        Raises:
            OutputError: the disk is full, say.
        """
        with self._scratch.writing():
            return self._simulation.run(until_ns, progress)

    def result(self) -> RunResult:
        """The result without requests, which are all in the file now.

        Raises:
            OutputError: the disk is full, say.
        """
        with self._scratch.writing():
            result = self._simulation.result()
            self._parquet.close()
        return result

    def complete(self, summary: dict[str, Any]) -> None:
        """Fill in what the summary says of requests."""
        from sim.stream.summary import LATENCY_COLUMNS, latency_summary

        self._totals.fill(summary, self._size)
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
        self._totals(columns)
        self._parquet.add(columns)

    def _chunks(self, names: tuple[str, ...]) -> Iterator[dict[str, NDArray[np.int64]]]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.file) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=list(names))
                yield {name: table.column(name).to_numpy() for name in names}
