"""A finished run, simulated again to look at any instant of it.

A run folder's config.yaml gives the same bytes again, and the engine is fast, so the state at any time is
had by simulating up to it. The rows of the step log made on the way are compared with those of the folder, so that a
changed trace or a changed engine is noticed instead of shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sim.analysis.snapshot import FragmentationSnapshot

if TYPE_CHECKING:
    from sim.core.state import State
    from sim.resolve import Resolved
    from workloads.requests import Workload


class Rerun:
    """A run folder as something that can be wound forward and back.

    Attributes:
        folder: the run folder.
        resolved: its config.
        workload: its requests.
        end_ns: simulated time at which the run ended.

    Args:
        folder: written by `python -m sim run`.

    Raises:
        InputError: not a run folder, or its workload is not the one that it was made with.
    """

    folder: Path
    resolved: Resolved
    workload: Workload
    end_ns: int

    def __init__(self, folder: str | Path) -> None:
        raise NotImplementedError

    def state_at(self, time_ns: int) -> State:
        """The engine as it stands when the clock reaches ``time_ns``: all that happens before it is done.

        The state is valid until the next call. Times may go back; that starts the run over.

        Raises:
            InputError: the simulation does not give the folder's rows any more.
        """
        raise NotImplementedError

    def snapshot(self, time_ns: int) -> FragmentationSnapshot:
        """Snapshot of that state."""
        raise NotImplementedError

    def snapshots(self, times_ns: Iterable[int]) -> Iterator[FragmentationSnapshot]:
        """Snapshots at ascending times."""
        raise NotImplementedError
