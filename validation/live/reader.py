"""Reads a live recording: header, rows, states, operations, requests, and what was lost.

A recording that was not closed (`.part`, or a process that was killed) is read up to its last whole line;
`complete` says whether it came to its end.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError
from validation.live_state import free_runs
from validation.steplog import COLUMNS, Columns

FORMAT = "kvpool-live"
FORMAT_VERSION = 1

_ROW_COLUMNS = (
    "step",
    "phase",
    "batch_step",
    "num_running",
    "num_waiting",
    "num_free_blocks",
    "num_cached_hashes",
    "num_scheduled_tokens",
    "num_scheduled_reqs",
    "preempted",
    "finished",
)
_PREFIX_COLUMNS = (
    "prefix_requests",
    "prefix_queries",
    "prefix_hits",
    "preempted_requests",
    "preempted_queries",
    "preempted_hits",
)


@dataclass
class Recording:
    """A live recording in memory.

    Attributes:
        header: engine settings, groups, recorder options, versions.
        rows: one object a recorded call, in order; "state" where the whole state was taken.
        ops: (call, operation) in order; an operation is a list whose first element is its name.
        requests: "added" and "ended" lines in order.
        lost: kind -> lines that did not fit the queue.
        errors: why the recorder switched itself off.
        end: the last line of a recording that was closed, None otherwise.
        torn_bytes: bytes at the end of the file that are no whole member.
    """

    header: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    ops: list[tuple[int, list[Any]]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    end: dict[str, Any] | None = None
    torn_bytes: int = 0

    @property
    def complete(self) -> bool:
        """Closed properly, nothing lost, no error."""
        return self.end is not None and not self.lost and not self.errors and not self.torn_bytes

    @property
    def usable_blocks(self) -> int:
        """Blocks of the pool without the null block."""
        return int(self.header["settings"]["num_gpu_blocks"]) - 1


@dataclass(frozen=True)
class Snapshot:
    """The whole state after one call.

    Attributes:
        row: the counters of the same call.
        free_queue: int32, ids in queue order.
        ref_cnt: int32[num_gpu_blocks]; the null block's is not maintained by vLLM.
        hashed: uint8[num_gpu_blocks], 1 where a block carries a prefix-cache key.
        running, waiting: request ids in order.
        computed: num_computed_tokens of the running requests.
        tables: for each running request one int32 array of block ids a group.
    """

    row: dict[str, Any]
    free_queue: NDArray[np.int32]
    ref_cnt: NDArray[np.int32]
    hashed: NDArray[np.uint8]
    running: list[str]
    waiting: list[str]
    computed: list[int]
    tables: list[list[NDArray[np.int32]]]


def read(path: str | os.PathLike[str]) -> Recording:
    """Read a recording. Raises InputError for a file that is none, or of a later version."""
    source = Path(path)
    recording: Recording | None = None
    torn = 0
    try:
        data = source.read_bytes()
    except OSError as exc:
        raise InputError(f"can't read the recording: {exc.strerror or exc}", str(source)) from exc
    number = 0
    for member, left in _members(data):
        torn = left
        for text in member.splitlines():
            number += 1
            try:
                line = json.loads(text)
                kind = line.pop("kind")
            except (ValueError, KeyError, AttributeError, TypeError) as exc:
                raise InputError("not a line of a live recording", str(source), number) from exc
            if recording is None:
                recording = Recording(_check_header(kind, line, source))
            else:
                _take(recording, kind, line)
    if recording is None:
        raise InputError("no live recording: it holds no whole line", str(source))
    recording.torn_bytes = torn
    return recording


def _members(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Each whole gzip member, decompressed, with the bytes that are left if it is the last one."""
    while data:
        unpacker = zlib.decompressobj(wbits=31)
        try:
            member = unpacker.decompress(data)
        except zlib.error:
            return
        if not unpacker.eof:
            return
        data = unpacker.unused_data
        yield member, len(data)


def _check_header(kind: str, line: dict[str, Any], source: Path) -> dict[str, Any]:
    if kind != "header" or line.get("format") != FORMAT:
        raise InputError("not a live recording of kvpool", str(source), 1)
    if line["version"] > FORMAT_VERSION:
        raise InputError(
            f"a recording of format version {line['version']}; this reader knows {FORMAT_VERSION}",
            str(source),
            1,
        )
    return line


def _take(recording: Recording, kind: str, line: dict[str, Any]) -> None:
    if kind == "row":
        recording.rows.append(line)
    elif kind == "ops":
        recording.ops += [(line["call"], op) for op in line["ops"]]
    elif kind in ("added", "ended"):
        recording.requests.append({"kind": kind} | line)
    elif kind == "lost":
        for name, count in line["lost"].items():
            recording.lost[name] = recording.lost.get(name, 0) + count
    elif kind == "error":
        recording.errors.append(line["text"])
    elif kind == "end":
        recording.end = line


def _unpack(text: str, kind: str) -> NDArray[Any]:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=kind)


def snapshot_of(row: dict[str, Any]) -> Snapshot | None:
    """The state that was taken with a row, None where there was none."""
    state = row.get("state")
    if state is None:
        return None
    flat = _unpack(state["tables"], "<i4")
    tables: list[list[NDArray[np.int32]]] = []
    at = 0
    for lengths in state["table_lengths"]:
        ends = [at + sum(lengths[: g + 1]) for g in range(len(lengths))]
        tables.append([flat[end - n : end] for end, n in zip(ends, lengths, strict=True)])
        at = ends[-1] if ends else at
    return Snapshot(
        row=row,
        free_queue=_unpack(state["free_queue"], "<i4"),
        ref_cnt=_unpack(state["ref_cnt"], "<i4"),
        hashed=_unpack(state["hashed"], "u1"),
        running=state["running"],
        waiting=state["waiting"],
        computed=state["computed"],
        tables=tables,
    )


def snapshots(recording: Recording) -> Iterator[Snapshot]:
    """All states of a recording, in order."""
    for row in recording.rows:
        found = snapshot_of(row)
        if found is not None:
            yield found


def step_row(recording: Recording, row: dict[str, Any]) -> dict[str, Any]:
    """The step-log columns of a row that are known: all of them where a state was taken."""
    known = {name: row[name] for name in _ROW_COLUMNS}
    known["used_blocks"] = recording.usable_blocks - row["num_free_blocks"]
    if row["prefix"] is not None:
        known |= dict(zip(_PREFIX_COLUMNS, row["prefix"], strict=True))
    snapshot = snapshot_of(row)
    if snapshot is not None:
        known |= _state_columns(recording, snapshot)
        batch = ",".join(f"{request}:{tokens}" for request, tokens in row["scheduled"])
        known["sched_crc"] = zlib.crc32(batch.encode())
    return {name: known[name] for name in COLUMNS if name in known}


def _crc(values: Any, kind: str = "<i4") -> int:
    return zlib.crc32(np.ascontiguousarray(values, dtype=kind).tobytes())


def _state_columns(recording: Recording, s: Snapshot) -> dict[str, Any]:
    header = recording.header
    null = header["null_block"]
    groups = header["groups"]
    allocated = [0] * len(groups)
    held = [0] * len(groups)
    for tokens, tables in zip(s.computed, s.tables, strict=True):
        for g, (group, table) in enumerate(zip(groups, tables, strict=True)):
            if group["spec"] == "MambaSpec":
                continue  # its blocks hold states: no token slots
            size = group["block_size"]
            places = np.flatnonzero(table != null)
            allocated[g] += size * len(places)
            held[g] += int(np.clip(tokens - places * size, 0, size).sum())
    wasted = [a - h for a, h in zip(allocated, held, strict=True)]
    runs, largest = free_runs(s.free_queue)
    ref_cnt = s.ref_cnt.copy()
    ref_cnt[null] = 0
    nothing = np.zeros(0, dtype="<i4")
    return {
        "num_cached_blocks": int(s.hashed.sum()),
        "allocated_slots": sum(allocated),
        "held_tokens": sum(held),
        "wasted_slots": sum(wasted),
        "wasted_by_group": wasted,
        "free_runs": runs,
        "largest_free_run": largest,
        "free_queue_crc": _crc(s.free_queue),
        "tables_crc": _crc(np.concatenate([nothing, *(t for tables in s.tables for t in tables)])),
        "tables_crc_by_group": [
            _crc(np.concatenate([nothing, *(tables[g] for tables in s.tables)])) for g in range(len(groups))
        ],
        "refcnt_crc": _crc(s.ref_cnt),
        "refcnt_crc_nonull": _crc(ref_cnt),
        "cached_crc": _crc(s.hashed, "u1"),
        "computed_crc": _crc(s.computed),
        "running_ids_crc": zlib.crc32("\n".join(s.running).encode()),
        "waiting_ids_crc": zlib.crc32("\n".join(s.waiting).encode()),
    }


def curves(recording: Recording) -> dict[str, list[Any]]:
    """What a sampled recording shows over time: the known step-log columns of each row, None where unknown.

    Also `time_ns` (since the start), `duration_ns` of the call, and `usage` (used blocks over usable ones).
    """
    names = ["time_ns", "duration_ns", "usage", *COLUMNS]
    table: dict[str, list[Any]] = {name: [] for name in names}
    for row in recording.rows:
        known = step_row(recording, row)
        known |= {"time_ns": row["time_ns"], "duration_ns": row["duration_ns"]}
        known["usage"] = known["used_blocks"] / recording.usable_blocks if recording.usable_blocks else 0.0
        for name in names:
            table[name].append(known.get(name))
    return table


def _end_of_work(rows: list[dict[str, Any]]) -> int:
    """Rows up to the end of the last request and of the batches that were in flight then.

    A running engine may or may not come to one more empty step, which only tells the workers who has ended;
    `validation record` never does.
    """
    kept = in_flight = in_flight_before = 0
    for i, row in enumerate(rows, 1):
        in_flight += 1 if row["phase"] == "scheduled" else -1
        had_work = i - 1 == kept and in_flight_before > 0
        if (
            had_work
            or row["num_running"]
            or row["num_waiting"]
            or row["finished"]
            or row["num_scheduled_reqs"]
        ):
            kept = i
        in_flight_before = in_flight
    return kept


def step_log(recording: Recording, name: str = "the recording") -> Columns:
    """The step log of a recording at full rate.

    Raises InputError, saying what is missing, unless every call is there with its state.
    """
    options = recording.header["options"]
    reason = None
    if recording.lost:
        reason = "lines were lost: " + ", ".join(
            f"{n} x {kind}" for kind, n in sorted(recording.lost.items())
        )
    elif recording.errors:
        reason = "the recorder stopped early: " + recording.errors[0].strip().splitlines()[-1]
    elif options["row_every"] != 1 or options["state_every"] != 1 or options["budget"]:
        reason = "only samples were recorded"
    elif any(row["call"] != i for i, row in enumerate(recording.rows, 1)) or any(
        "state" not in row for row in recording.rows
    ):
        reason = "calls are missing"
    elif any(row["prefix"] is None for row in recording.rows):
        reason = "the engine keeps no statistics (log_stats is off), so the prefix-cache counters are unknown"
    if reason is not None:
        raise InputError(
            f"no step log can be made: {reason}", name, hint="record with KVPOOL_LIVE_OPTIONS=full"
        )
    rows = [step_row(recording, row) for row in recording.rows[: _end_of_work(recording.rows)]]
    return {column: [row[column] for row in rows] for column in COLUMNS}
