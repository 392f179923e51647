"""A replica's own run, had again from what it was sent: it follows from requests and arrivals alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.engine_settings import EngineSettings
from sim.errors import InputError
from sim.simulate import LogOptions, Progress, Simulation
from sim.step_time import StepTime
from workloads.requests import ARRAY_FIELDS, Workload

if TYPE_CHECKING:
    from sim.resolve import Resolved


def replica_config(resolved: Resolved, replica: int) -> Resolved:
    """The config of one replica's own run."""
    config = {k: v for k, v in resolved.config.items() if k not in ("replicas", "router")}
    return replace(resolved, name=f"{resolved.name}, replica {replica}", fleet=None, config=config)


def replica_workload(workload: Workload, index: NDArray[np.int64], arrival_ns: NDArray[np.int64]) -> Workload:
    """The requests that a replica was sent, with their names in the fleet.

    Whoever follows on the end of a request of the same replica still does, so that its place among the events
    of that instant is the same; all others come when they came.

    Args:
        workload: of the fleet, in time.
        index: int64[m], positions of the replica's requests in it, rising.
        arrival_ns: int64[m], when they arrived.

    Raises:
        InputError: `index` is empty.
    """
    if not len(index):
        raise InputError("this replica was sent no request, so there is nothing to look at", "--replica")
    begin, end = workload.seg_ptr[index], workload.seg_ptr[index + 1]
    counts = end - begin
    ptr = np.concatenate([[0], np.cumsum(counts)])
    pieces = np.arange(ptr[-1]) + np.repeat(begin - ptr[:-1], counts)
    columns: dict[str, Any] = {}
    for name, (_, length) in ARRAY_FIELDS.items():
        if length == "n":
            columns[name] = getattr(workload, name)[index]
        elif length == "m":
            columns[name] = getattr(workload, name)[pieces]
    at = np.minimum(np.searchsorted(index, columns["parent"]), len(index) - 1)
    follows = (columns["parent"] >= 0) & (index[at] == columns["parent"])
    columns |= {
        "arrival": np.where(follows, -1, arrival_ns),
        "parent": np.where(follows, at, -1).astype(np.int32),
        "think_ns": np.where(follows, columns["think_ns"], 0),
    }
    drafts, encoder = workload.accepted_drafts, workload.encoder_tokens
    return replace(
        workload,
        **columns,
        seg_ptr=ptr.astype(np.int64),
        closed_loop=False,
        request_ids=tuple(workload.request_id(i) for i in index.tolist()),
        encoder_tokens=None if encoder is None else encoder[index],
        accepted_drafts=None if drafts is None else tuple(drafts[i] for i in index.tolist()),
    )


class ReplicaSimulation(Simulation):
    """A replica's own run, which lasts as long as the fleet's.

    Args:
        end_ns: end of the fleet's run.
    """

    def __init__(
        self, engine: EngineSettings, workload: Workload, step_time: StepTime, log: LogOptions, end_ns: int
    ) -> None:
        super().__init__(engine, workload, step_time, log)
        self._end_ns = end_ns

    def run(
        self,
        until_ns: int | None = None,
        progress: Callable[[Progress], None] | None = None,
        progress_interval_s: float = 0.2,
    ) -> str:
        """As `Simulation.run`; behind its last request the replica stands still up to the fleet's end."""
        reason = super().run(until_ns, progress, progress_interval_s)
        if reason == "finished":
            self.settle_to(self._end_ns if until_ns is None else min(until_ns, self._end_ns))
        return reason
