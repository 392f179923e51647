"""Reads a recording of a live vLLM: a file of the live recorder, or a table of states.

`sim.analysis.recording_file` knows the files' formats; here their lines become columns.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analysis import recording_file as files
from sim.analysis.recorded import Columns, Recorded
from sim.errors import InputError

I64 = NDArray[np.int64]

_COUNTS = (
    "num_running",
    "num_waiting",
    "num_free_blocks",
    "num_cached_hashes",
    "num_scheduled_tokens",
    "num_scheduled_reqs",
)
_PREFIX = ("prefix_queries", "prefix_hits", "preempted_queries", "preempted_hits")
#: Where these stand among the recorder's six counters.
_PREFIX_AT = (1, 2, 4, 5)
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_OWN_ENDS = {"FINISHED_STOPPED": "stop", "FINISHED_LENGTH_CAPPED": "length"}


def load(path: str | Path) -> Recorded:
    """Read a file of the live recorder, or a table of states.

    Raises:
        InputError: it is neither, or damaged.
    """
    source = Path(path)
    try:
        data = source.read_bytes()
    except OSError as e:
        raise InputError(f"can't be read: {e.strerror or e}", str(path)) from e
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        if data.startswith(_GZIP):
            return _from_live(source, sha256, files.read(path))
        if data.startswith(_PARQUET):
            return _from_states(source, sha256, files.read_states(path))
    except files.DAMAGED as e:
        raise InputError(f"the recording is damaged ({type(e).__name__}: {e})", str(path)) from e
    raise InputError(
        "neither a run folder nor a recording of a live vLLM",
        str(path),
        hint="give a folder of `python -m sim run`, or a file that KVPOOL_LIVE_RECORD wrote (docs/live.md)",
    )


def _sizes(null_block: int, sizes: list[int], specs: list[str], path: Path) -> tuple[int, ...]:
    if null_block != 0:
        raise InputError(f"the null block has id {null_block}, not 0: no pool of vLLM", str(path))
    holds = [spec != "MambaSpec" for spec in specs] or [True] * len(sizes)
    return tuple(size if token else 0 for size, token in zip(sizes, holds, strict=True))


def _from_live(path: Path, sha256: str, recording: files.Recording) -> Recorded:
    header, raw_rows = recording.header, recording.rows
    added = [line["time_ns"] for line in recording.requests if line["kind"] == "added"]
    first = [row["time_ns"] - row["duration_ns"] for row in raw_rows[:1]]
    zero = min([*added, *first], default=0)
    rows = _int_columns(raw_rows, (*_COUNTS, "time_ns", "step", "call", "duration_ns"))
    rows["time_ns"] -= zero
    rows["updated"] = np.array([row["phase"] == "updated" for row in raw_rows], dtype=np.int64)
    for name, ids in (("preemptions", "preempted"), ("finished", "finished")):
        rows[name] = np.cumsum([len(row[ids]) for row in raw_rows], dtype=np.int64)
    if raw_rows and all(row["prefix"] is not None for row in raw_rows):
        for name, at in zip(_PREFIX, _PREFIX_AT, strict=True):
            rows[name] = np.array([row["prefix"][at] for row in raw_rows], dtype=np.int64)
    groups = header["groups"]
    found = Recorded(
        path=path,
        sha256=sha256,
        kind="live",
        vllm=header.get("vllm"),
        options=header["options"],
        settings=header["settings"],
        num_blocks=int(header["settings"]["num_gpu_blocks"]),
        block_sizes=_sizes(
            header["null_block"], [g["block_size"] for g in groups], [g["spec"] for g in groups], path
        ),
        started_unix_ns=header["started_unix_ns"] + zero,
        raw=recording,
        rows=rows,
        requests=_requests(recording, zero),
        _state_at=[i for i, row in enumerate(raw_rows) if "state" in row],
        _zero_ns=zero,
    )
    found.problems += _problems(recording)
    found.missing += _missing(found)
    return found


def _int_columns(rows: list[dict[str, Any]], names: tuple[str, ...]) -> Columns:
    return {name: np.array([row[name] for row in rows], dtype=np.int64) for name in names}


def _requests(recording: files.Recording, zero: int) -> Columns:
    lines: dict[str, dict[str, Any]] = {}
    for line in recording.requests:
        one = lines.setdefault(line["request_id"], {"preemptions": 0})
        if line["kind"] == "added":
            one |= {"arrival": line["time_ns"] - zero, "prompt": line["prompt_tokens"]}
        else:
            one |= {"finish": line["time_ns"] - zero, "output": line["output_tokens"]}
            one |= {"status": line["status"], "preempted": line["preemptions"]}
    for row in recording.rows:
        for name in row["preempted"]:
            lines.setdefault(name, {"preemptions": 0})["preemptions"] += 1

    def column(key: str) -> I64:
        return np.array([one.get(key, -1) for one in lines.values()], dtype=np.int64)

    ended = [one.get("preempted", one["preemptions"]) for one in lines.values()]
    status = [_OWN_ENDS.get(s, s) for s in (str(one.get("status", "not ended")) for one in lines.values())]
    return {
        "request_id": np.array(list(lines), dtype=np.str_),
        "arrival_ns": column("arrival"),
        "finish_ns": column("finish"),
        "prompt_tokens": column("prompt"),
        "output_tokens": column("output"),
        "preemptions": np.array(ended, dtype=np.int64),
        "status": np.array([s.removeprefix("FINISHED_").lower() for s in status], dtype=np.str_),
    }


def _problems(recording: files.Recording) -> list[str]:
    said = [f"{n:,} lines about {kind} were lost" for kind, n in sorted(recording.lost.items())]
    said += [f"the recorder switched itself off: {e.strip().splitlines()[-1]}" for e in recording.errors]
    if recording.end is None and not recording.errors:
        said.append("it was not closed: the process runs still, was killed, or the disk was full")
    if recording.torn_bytes:
        said.append(f"{recording.torn_bytes:,} bytes at its end are no whole piece")
    return said


def _missing(r: Recorded) -> list[str]:
    """In the order of a report."""
    out = []
    if not r.num_states:
        out.append(
            "free runs, waste, contiguity, owners of blocks and the map of the pool: no state was recorded"
            " (state_every=0)"
        )
    if "prefix_queries" not in r.rows:
        why = "the engine keeps no statistics (log_stats off)" if r.kind == "live" else "a table of states"
        out.append(f"hits of the prefix cache: {why}")
    if not r.has_ops:
        how = "record with ops=on" if r.kind == "live" else "a table of states has no operations"
        out.append(f"evictions, lifetimes of blocks and their ages: {how}")
    if r.requests is None:
        out.append("preemptions and requests' arrivals, lengths and ends: a table of states has none")
    out += [
        "duplicate and unreachable cached blocks: hashes are not recorded",
        "refused allocations and their causes; tokens computed again",
        "time to the first token and time in the queue",
        "bytes of a block: waste is given in token slots",
    ]
    if r.started_unix_ns is None:
        out.append("the date: an old table of states")
    return out


def _from_states(path: Path, sha256: str, table: files.StateTable) -> Recorded:
    lines = [state.row for state in table.states]
    rows = _int_columns(lines, ("time_ns", "step"))
    zero = int(rows["time_ns"][0]) if lines else 0
    rows["time_ns"] -= zero
    rows["updated"] = np.array([row["phase"] == "updated" for row in lines], dtype=np.int64)
    rows["call"] = 2 * rows["step"] + rows["updated"]
    for name in ("num_running", "num_waiting", "num_free_blocks"):
        attribute = {"num_running": "running", "num_waiting": "waiting"}.get(name, "free_queue")
        rows[name] = np.array([len(getattr(s, attribute)) for s in table.states], dtype=np.int64)
    found = Recorded(
        path=path,
        sha256=sha256,
        kind="states",
        vllm=None,
        options={},
        settings={"num_gpu_blocks": table.num_gpu_blocks, "block_size": max(table.block_sizes, default=0)},
        num_blocks=table.num_gpu_blocks,
        block_sizes=_sizes(table.null_block, list(table.block_sizes), list(table.specs), path),
        started_unix_ns=None if table.started_unix_ns is None else table.started_unix_ns + zero,
        raw=table,
        rows=rows,
        requests=None,
        _state_at=list(range(len(lines))),
        _zero_ns=zero,
    )
    found.missing += _missing(found)
    return found
