"""Where the pictures of `python -m sim layout` come from: a run that is simulated again, or a recording."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sim.report.folder import RunFolder, read_run
from sim.report.replica import refuse_replica
from sim.report.scene import Marks, Scene, marks_of, pool_scene, scene_of
from sim.report.units import clock_time, seconds

if TYPE_CHECKING:
    from sim.analysis.recorded import Recorded
    from sim.analysis.rerun import Rerun


class Source(Protocol):
    """A pool over time.

    Attributes:
        name: of the run.
        end_ns: its last instant.
    """

    name: str
    end_ns: int

    def tightest_ns(self) -> int:
        """The instant with the fewest free blocks."""

    def scene(self, time_ns: int) -> Scene:
        """The pool at an instant."""

    def marks(self, time_ns: int) -> Marks:
        """What a comparison of two instants needs."""

    def remark(self, first_ns: int, second_ns: int) -> str:
        """What has to be said below a comparison of two instants."""


def open_source(path: str, replica: int | None = None) -> Source:
    """Of a run folder or of a recording's file; `replica` of a fleet.

    Raises:
        InputError: it is neither, or damaged.
    """
    from sim.analysis.recording_file import is_recording

    if is_recording(path):
        refuse_replica(replica)
        from sim.analysis.recording import load

        return RecordedSource(load(path))
    return RunSource(read_run(path), replica)


class RunSource:
    """A run folder; nothing is simulated before the first picture."""

    def __init__(self, run: RunFolder, replica: int | None = None) -> None:
        self.name = str(run.summary["name"])
        self.end_ns = run.end_ns
        self._run = run
        self._replica = replica
        self._rerun: Rerun | None = None
        if replica is not None:
            self.name = self._at().resolved.name

    def tightest_ns(self) -> int:
        """By the summary of the run, or by a replica's rows."""
        from sim.step_totals import StepTotals

        moment = self._run.summary["worst_moment"]
        if self._replica is not None:
            rows = StepTotals(0)
            rows(self._at().steps)
            moment = rows.worst_moment()
        return min(self.end_ns, round(moment["time_s"] * 1e9)) if moment else self.end_ns

    def _at(self) -> Rerun:
        from sim.analysis.rerun import Rerun

        if self._rerun is None:
            self._rerun = Rerun(self._run.path, replica=self._replica)
        return self._rerun

    def scene(self, time_ns: int) -> Scene:
        """See `Source`."""
        return pool_scene(self._at().state_at(time_ns), time_ns)

    def marks(self, time_ns: int) -> Marks:
        """See `Source`."""
        return marks_of(self._at().state_at(time_ns), time_ns)

    def remark(self, first_ns: int, second_ns: int) -> str:
        """A run's comparison is exact."""
        return ""


class RecordedSource:
    """A recording: the picture of an instant is that of the last state recorded up to it."""

    def __init__(self, recorded: Recorded) -> None:
        self.name = Path(recorded.path).name
        self.end_ns = recorded.end_ns
        self._recorded = recorded

    def tightest_ns(self) -> int:
        """By the recorded states; of equal ones that with the most waiting requests."""
        import numpy as np

        r = self._recorded
        r.state_before(0)
        free, waiting = (r.rows[name][r.state_rows] for name in ("num_free_blocks", "num_waiting"))
        return int(r.state_times[np.lexsort((-waiting, free))[0]])

    def scene(self, time_ns: int) -> Scene:
        """See `Source`."""
        r = self._recorded
        i = r.state_before(time_ns)
        row, time = int(r.state_rows[i]), int(r.state_times[i])
        said = f"state {i + 1} of {r.num_states}"
        if time != time_ns:
            said += f", the {'last' if time < time_ns else 'first'} one recorded"
            said += f" up to {seconds(time_ns / 1e9)}" if time < time_ns else ""
        if r.started_unix_ns is not None:
            said += f"; {clock_time(r.started_unix_ns + time)}"
        running, waiting = (int(r.rows[name][row]) for name in ("num_running", "num_waiting"))
        return scene_of(r.codes(i), running, waiting, time, said)

    def marks(self, time_ns: int) -> Marks:
        """Where the operations were recorded, with what each block holds; else with what the states show."""
        import numpy as np

        r = self._recorded
        i = r.state_before(time_ns)
        codes = r.codes(i)
        hashed = (codes & 1).astype(np.uint64)
        births = np.zeros(len(codes), dtype=np.int64)
        history = r.history()
        if history is not None:
            history.advance(int(r.rows["call"][r.state_rows[i]]))
            births = history.born_ns[1:].copy()
            hashed = np.where(hashed > 0, np.maximum(history.content[1:], 1), 0).astype(np.uint64)
        return Marks(int(r.state_times[i]), codes, hashed, births)

    def remark(self, first_ns: int, second_ns: int) -> str:
        """Which states they are, and what a recording without operations can't tell."""
        r = self._recorded
        first, second = (seconds(t / 1e9) for t in (first_ns, second_ns))
        said = (
            f"states {r.state_before(first_ns) + 1} and {r.state_before(second_ns) + 1} of {r.num_states},"
            f" the last ones recorded up to {first} and {second}"
        )
        if r.has_ops:
            return said
        return (
            f"{said}; block operations were not recorded (ops=on), so a block that was freed and allocated"
            " again, or that caches other content, between them counts as unchanged"
        )
