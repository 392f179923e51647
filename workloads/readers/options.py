"""What a reader may be told, and what it does with arrival times."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from workloads.errors import WorkloadError
from workloads.readers.rows import MAX_TIME_NS
from workloads.requests import Int64Array

DEFAULT_VOCAB_SIZE = 128_000


@dataclass(frozen=True)
class ReadOptions:
    """Options of all readers; each uses those that apply to its format."""

    hash_block_size: int = 512
    """Tokens that one hash id stands for (mooncake)."""
    time_scale: float = 1.0
    """Arrival times are multiplied by this."""
    max_requests: int | None = None
    """Only the first so many requests."""
    duration_ns: int | None = None
    """Only requests that arrive, before scaling, earlier than this after the first."""
    output_len: int | None = None
    """Output of the requests for which the file gives none (vllm)."""
    model: str | None = None
    """Only rows of this model (burstgpt)."""
    log_type: str | None = None
    """Only rows of this log type (burstgpt)."""
    vocab_size: int = DEFAULT_VOCAB_SIZE
    """Synthetic token ids are below this."""


#: format -> the options that it understands; any other that is given is an error.
APPLICABLE: dict[str, frozenset[str]] = {
    "mooncake": frozenset({"hash_block_size", "time_scale", "max_requests", "duration_ns", "vocab_size"}),
    "azure": frozenset({"time_scale", "max_requests", "duration_ns", "vocab_size"}),
    "burstgpt": frozenset({"time_scale", "max_requests", "duration_ns", "vocab_size", "model", "log_type"}),
    "vllm": frozenset({"time_scale", "max_requests", "duration_ns", "vocab_size", "output_len"}),
    "logical": frozenset({"max_requests"}),
    "native": frozenset(),
}


def check_applicable(name: str, options: ReadOptions) -> None:
    """Refuse an option that would be ignored.

    Raises:
        WorkloadError: an option is set that format `name` does not understand.
    """
    for item in fields(options):
        if item.name not in APPLICABLE[name] and getattr(options, item.name) != item.default:
            key = item.name.removesuffix("_ns")
            raise WorkloadError(f"the option {key} does not apply to a trace of format {name}; leave it out")


@dataclass
class Arrivals:
    """Which rows are used, in which order, and when they arrive."""

    order: Int64Array
    """int64[n]: indices of the file's rows, by arrival; rows of equal time in file order."""
    arrival: Int64Array
    """int64[n], ns."""
    notes: list[str] = field(default_factory=list)
    """What was done to the trace that a user should know."""

    @property
    def request_ids(self) -> tuple[str, ...] | None:
        """Names by the file's rows where the order is not the file's; None where it is."""
        if np.array_equal(self.order, np.arange(len(self.order))):
            return None
        return tuple(f"r{i}" for i in self.order.tolist())


def arrange(times_ns: Int64Array, options: ReadOptions) -> Arrivals:
    """Order rows by time, cut, make times relative to the first, scale.

    A trace that is out of order is sorted stably (rows of equal time stay in file order), with a note.

    Args:
        times_ns: int64[rows], time of each row as the file gives it.
    """
    notes = []
    backward = int(np.count_nonzero(np.diff(times_ns) < 0))
    order = np.arange(len(times_ns), dtype=np.int64)
    if backward:
        order = np.argsort(times_ns, kind="stable").astype(np.int64)
        notes.append(
            f"{backward} of {len(times_ns)} requests are earlier than the one before; sorted by time"
        )
    arrival = times_ns[order]
    start = int(arrival[0])
    if options.duration_ns is not None:
        keep = arrival - start < options.duration_ns
        order, arrival = order[keep], arrival[keep]
    if options.max_requests is not None:
        order, arrival = order[: options.max_requests], arrival[: options.max_requests]
    if len(order) < len(times_ns):
        notes.append(cut_note(len(order), len(times_ns)))
    return Arrivals(order, scaled(arrival - start, options), notes)


def scaled(arrival: Int64Array, options: ReadOptions) -> Int64Array:
    """Arrivals in order, ns after the first, as `time_scale` wants them.

    Raises:
        WorkloadError: they become too late.
    """
    if options.time_scale == 1.0:
        return arrival
    if float(arrival[-1]) * options.time_scale > MAX_TIME_NS:
        raise WorkloadError(f"time_scale {options.time_scale} makes arrivals later than 2**62 ns; lower it")
    return np.rint(arrival * options.time_scale).astype(np.int64)


def cut_note(used: int, of: int) -> str:
    """The note on a trace of which not all is used."""
    return f"the first {used} of {of} requests are used, as asked"


def provenance(
    path: Path, sha256: str, name: str, options: dict[str, Any], notes: list[str]
) -> dict[str, Any]:
    """`Workload.source` of a trace."""
    return {
        "kind": "trace",
        "format": name,
        "file": path.name,
        "sha256": sha256,
        "options": options,
        "notes": notes,
    }
