"""A live recording as step-log columns: `sim.analysis.recording_file` reads the file itself."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from sim.analysis.recording_file import RecordedState, Recording, read, state_of, states
from sim.errors import InputError
from validation.live_state import free_runs
from validation.steplog import COLUMNS, PREFIX_COLUMNS, Columns

__all__ = ["Recording", "curves", "read", "states", "step_log", "step_row"]

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


def step_row(recording: Recording, row: dict[str, Any]) -> dict[str, Any]:
    """The step-log columns of a row that are known: all of them where a state was taken."""
    known = {name: row[name] for name in _ROW_COLUMNS}
    known["used_blocks"] = recording.usable_blocks - row["num_free_blocks"]
    if row["prefix"] is not None:
        known |= dict(zip(PREFIX_COLUMNS, row["prefix"], strict=True))
    state = state_of(row)
    if state is not None:
        known |= _state_columns(recording, state)
        batch = ",".join(f"{request}:{tokens}" for request, tokens in row["scheduled"])
        known["sched_crc"] = zlib.crc32(batch.encode())
    return {name: known[name] for name in COLUMNS if name in known}


def _crc(values: Any, kind: str = "<i4") -> int:
    return zlib.crc32(np.ascontiguousarray(values, dtype=kind).tobytes())


def _state_columns(recording: Recording, s: RecordedState) -> dict[str, Any]:
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
