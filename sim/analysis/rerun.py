"""A finished run, simulated again to look at any instant of it.

A run folder's config.yaml gives the same bytes again, and the engine is fast, so the state at any time is
had by simulating up to it. The rows of the step log made on the way are compared with those of the folder, so
that a changed trace or a changed engine is noticed instead of shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.analysis.snapshot import FragmentationSnapshot
from sim.errors import InputError
from sim.fleet.single import refuse_fleet

if TYPE_CHECKING:
    from sim.core.state import State
    from sim.resolve import Resolved
    from sim.simulate import Simulation
    from workloads.requests import Workload

_AGAIN = "make the run again: python -m sim run"


class Rerun:
    """A run folder as something that can be wound forward and back.

    Attributes:
        folder: the run folder.
        resolved: its config.
        workload: its requests.
        end_ns: simulated time at which the run ended.
        until_ns: simulated time at which to stop it, None: it ran to the end of its workload.

    Args:
        folder: written by `python -m sim run`.
        residency_sample: share of the allocations whose residency is measured, in (0, 1].

    Raises:
        InputError: not a run folder, or its workload is not the one that it was made with.
    """

    def __init__(self, folder: str | Path, *, residency_sample: float = 1.0) -> None:
        from sim import runner
        from sim.report.folder import read_run

        run = read_run(folder)
        self.folder = run.path
        self._provenance, summary = run.provenance, run.summary
        config = self.folder / "config.yaml"
        self.resolved: Resolved
        self.workload: Workload
        self.resolved, self.workload = runner.check(str(config))
        refuse_fleet(self.resolved, str(folder))
        if self.workload.content_hash() != self._provenance.get("workload", {}).get("sha256"):
            raise InputError(
                "the requests that its config describes now are not those of the run: a trace file or the"
                " workload generator has changed",
                str(config),
                hint=f"{_AGAIN} {config}",
            )
        self._residency_sample = residency_sample
        self._expected: dict[str, NDArray[np.int64]] = read_columns(self.folder / "steps.parquet")
        times = self._expected["time_ns"]
        self.end_ns = max(round(summary["simulated_s"] * 1e9), int(times[-1]) if len(times) else 0)
        self._interrupted = summary["exit_reason"] == "interrupted"
        self.until_ns = self.end_ns if self._interrupted else self.resolved.until_ns
        self._simulation: Simulation | None = None
        self._now = 0
        self._chunks = self._rows = 0

    @property
    def steps(self) -> dict[str, NDArray[np.int64]]:
        """Columns of the folder's steps.parquet."""
        return self._expected

    def fresh(self) -> Simulation:
        """A simulation of the run at its beginning, which follows blocks and logs requests' events."""
        from sim.simulate import LogOptions, Simulation

        r = self.resolved
        assert r.sample_period_ns is not None, "the config of a run folder names its sample period"
        log = LogOptions(
            sample_period_ns=r.sample_period_ns,
            every_step=r.every_step,
            warmup_ns=r.warmup_ns,
            request_events=True,
            follow_blocks=True,
            residency_sample=self._residency_sample,
        )
        return Simulation(r.engine, self.workload, r.step_time, log)

    def state_at(self, time_ns: int) -> State:
        """The engine as it stands when the clock reaches ``time_ns``: all that happens before it is done.

        The state is valid until the next call. Times may go back; that starts the run over.

        Raises:
            InputError: a time outside the run, or the simulation does not give the folder's rows any more.
        """
        if not 0 <= time_ns <= self.end_ns:
            raise InputError(
                f"{time_ns / 1e9:g} s is outside the run, which ends at {self.end_ns / 1e9:g} s",
                str(self.folder),
            )
        if self._simulation is None or time_ns < self._now:
            self._simulation = self.fresh()
            self._chunks = self._rows = 0
        self._simulation.run(time_ns)
        self._now = time_ns
        for chunk in self._simulation.row_chunks[self._chunks :]:
            self._compare(chunk, self._rows)
            self._rows += len(chunk)
        self._chunks = len(self._simulation.row_chunks)
        return self._simulation.state

    def snapshot(self, time_ns: int, *, layout_only: bool = False) -> FragmentationSnapshot:
        """Snapshot of that state; ``layout_only`` as in ``FragmentationSnapshot.from_state``."""
        state = self.state_at(time_ns)
        return FragmentationSnapshot.from_state(state, self.workload, time_ns, layout_only=layout_only)

    def snapshots(
        self, times_ns: Iterable[int], *, layout_only: bool = False
    ) -> Iterator[FragmentationSnapshot]:
        """Snapshots at times that should ascend."""
        for time in times_ns:
            yield self.snapshot(int(time), layout_only=layout_only)

    def times(self, count: int) -> NDArray[np.int64]:
        """That many instants spread evenly over the run, the last of them its end."""
        return np.linspace(0, self.end_ns, count + 1)[1:].round().astype(np.int64)

    def check_rows(self, steps: Mapping[str, NDArray[np.int64]]) -> None:
        """Compare the whole step log of a new simulation with the folder's.

        Raises:
            InputError: they differ.
        """
        from sim.core.codes import LOG_COLUMNS

        self._compare(np.stack([steps[name] for name in LOG_COLUMNS], axis=1), 0)

    def _compare(self, rows: NDArray[np.int64], begin: int) -> None:
        from sim.core.codes import LOG_COLUMNS

        count = min(len(rows), len(self._expected["time_ns"]) - begin - self._interrupted)
        for column, name in enumerate(LOG_COLUMNS):
            expected = self._expected.get(name)
            if expected is None:
                continue
            wrong = np.flatnonzero(rows[:count, column] != expected[begin : begin + count])
            if len(wrong) or (count < len(rows) and not self._interrupted):
                self._differs(name, int(rows[wrong[0], 0]) if len(wrong) else self.end_ns)

    def _differs(self, column: str, time_ns: int) -> None:
        from sim.core.jit import core_digest

        made_by = self._provenance.get("core_digest")
        why = "" if made_by == core_digest() else f" (made by engine {made_by}, this is {core_digest()})"
        raise InputError(
            f"simulated again, the run gives other results than steps.parquet holds: {column} differs at"
            f" {time_ns / 1e9:g} s{why}",
            str(self.folder),
            hint=f"{_AGAIN} {self.folder / 'config.yaml'}",
        )


def read_columns(path: Path) -> dict[str, NDArray[np.int64]]:
    """Columns of a Parquet file of a run folder.

    Raises:
        InputError: no such file, or not Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as e:
        raise InputError(
            f"can't be read: {e}", str(path), hint="give a folder that `sim run` has made"
        ) from e
    return {name: table[name].to_numpy() for name in table.column_names}
