"""A finished run, simulated again to look at any instant of it.

A run folder's config.yaml gives the same bytes again, and the engine is fast, so the state at any time is
had by simulating up to it. The rows of the step log made on the way are compared with those of the folder, so
that a changed trace or a changed engine is noticed instead of shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.analysis.snapshot import FragmentationSnapshot
from sim.errors import InputError
from sim.fleet.replica import ReplicaSimulation, replica_config, replica_workload
from sim.fleet.single import check_replica, refuse_fleet

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
        name: of the run.
        resolved: its config.
        workload: its requests.
        end_ns: simulated time at which the run ended.
        until_ns: simulated time at which to stop it, None: it ran to the end of its workload.
        replica: of a fleet, None: the run is that of one engine. With it, config, workload and rows are its
            own, and requests are numbered among those that it was sent.

    Args:
        folder: written by `python -m sim run`.
        residency_sample: share of the allocations whose residency is measured, in (0, 1].
        replica: which one of a fleet; None for a run of one engine.

    Raises:
        InputError: not a run folder, or its workload is not the one that it was made with; a fleet without
            `replica`, or one engine with it.
    """

    def __init__(
        self, folder: str | Path, *, residency_sample: float = 1.0, replica: int | None = None
    ) -> None:
        from sim import runner
        from sim.report.folder import read_run

        run = read_run(folder)
        self.folder = run.path
        self._provenance, summary = run.provenance, run.summary
        config = self.folder / "config.yaml"
        self.resolved: Resolved
        self.workload: Workload
        self.resolved, self.workload = runner.check(str(config))
        if replica is None:
            refuse_fleet(self.resolved, str(folder), "name one with --replica N, from 0")
        else:
            check_replica(self.resolved, replica, str(folder))
        if self.workload.content_hash() != self._provenance.get("workload", {}).get("sha256"):
            raise InputError(
                "the requests that its config describes now are not those of the run: a trace file or the"
                " workload generator has changed",
                str(config),
                hint=f"{_AGAIN} {config}",
            )
        self.name = self.resolved.name
        self._residency_sample = residency_sample
        self.replica = replica
        name = "steps.parquet" if replica is None else "replica_steps.parquet"
        self._expected: dict[str, NDArray[np.int64]] = read_columns(self.folder / name)
        self._interrupted = summary["exit_reason"] == "interrupted"
        if replica is not None:
            self._take_replica(replica)
        times = self._expected["time_ns"]
        self.end_ns = max(round(summary["simulated_s"] * 1e9), int(times[-1]) if len(times) else 0)
        self.until_ns = self.end_ns if self._interrupted else self.resolved.until_ns
        self._simulation: Simulation | None = None
        self._now = 0
        self._chunks = self._rows = 0

    def _take_replica(self, replica: int) -> None:
        """Make config, workload and rows those of one replica."""
        if self._interrupted:
            raise InputError(
                "the run was interrupted, when its replicas stood at different times",
                str(self.folder),
                hint=f"{_AGAIN} {self.folder / 'config.yaml'}",
            )
        rows = self._expected.pop("replica")
        self._expected = {name: column[rows == replica] for name, column in self._expected.items()}
        self.resolved = replica_config(self.resolved, replica)
        self.workload = replica_workload(self.workload, self.original, self._sent["arrival_ns"])

    @cached_property
    def _sent(self) -> dict[str, NDArray[np.int64]]:
        requests = read_columns(self.folder / "requests.parquet")
        if self.replica is None:
            return requests
        ours = requests.pop("replica") == self.replica
        return {name: column[ours] for name, column in requests.items()}

    @property
    def original(self) -> NDArray[np.int64]:
        """int64[requests], positions in the workload of the run."""
        return self._sent["index"]

    @property
    def requests(self) -> dict[str, NDArray[np.int64]]:
        """Columns of the folder's requests.parquet; of a replica those that it was sent, numbered anew."""
        if self.replica is None:
            return self._sent
        return self._sent | {"index": np.arange(len(self.original))}

    @property
    def steps(self) -> dict[str, NDArray[np.int64]]:
        """Rows of the folder's step log."""
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
        if self.replica is not None:
            return ReplicaSimulation(r.engine, self.workload, r.step_time, log, self.end_ns)
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
        if self.replica is not None and made_by == core_digest():
            raise InputError(
                f"simulated alone, replica {self.replica} gives other results than replica_steps.parquet"
                f" holds: {column} differs at {time_ns / 1e9:g} s; it was sent a request at the very instant"
                " of an end in another replica, and the run folder does not hold which came first",
                str(self.folder),
                hint="give the clients a think time above 0, or look at another replica",
            )
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
