"""What a live recording is turned into: a step log, a workload with its engine configuration, a table of
states."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from sim.analysis.recording_file import SNAPSHOTS, SNAPSHOTS_VERSION
from sim.engine_settings import EngineSettings, KVCacheGroup
from sim.errors import InputError
from validation.fuzz_cases import settings_to_json
from validation.live.reader import Recording, curves, states
from validation.live.state import CACHE_KEYS, SCHEDULER_KEYS
from validation.logical import LogicalRequest, dump_requests
from validation.steplog import COLUMNS

_GROUP_TYPES = {
    "FullAttentionSpec": "full",
    "MLAAttentionSpec": "full",
    "SlidingWindowSpec": "sliding_window",
    "ChunkedLocalAttentionSpec": "chunked_local",
    "MambaSpec": "mamba",
}
#: Ways in which a request ends by itself.
_OWN_ENDS = frozenset({"FINISHED_STOPPED", "FINISHED_LENGTH_CAPPED"})


def write_whole(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write a file under a temporary name and rename it. Raises InputError if that is not possible."""
    try:
        fd, tmp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as exc:
        raise InputError(f"can't write there: {exc.strerror or exc}", str(path)) from exc
    try:
        with os.fdopen(fd, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(tmp, 0o644)
        os.replace(tmp, path)
    except BaseException as exc:
        Path(tmp).unlink(missing_ok=True)
        if isinstance(exc, OSError):
            raise InputError(f"can't write: {exc.strerror or exc}", str(path)) from exc
        raise


def engine_settings(recording: Recording, arrival_time: str = "seq") -> EngineSettings:
    """The engine configuration that was recorded. Raises InputError for a group that has no counterpart."""
    recorded = recording.header["settings"]
    values = {k: recorded[k] for k in (*SCHEDULER_KEYS, *CACHE_KEYS) if recorded.get(k) is not None}
    if recorded.get("prefix_cache_retention_interval", 0) is None:
        values["prefix_cache_retention_interval"] = None
    groups = []
    for group in recording.header["groups"]:
        kind = _GROUP_TYPES.get(group["spec"])
        if kind is None:
            raise InputError(
                f"KV-cache group {group['spec']}: the simulator has no such group", "the recording"
            )
        own_size = group["block_size"] if group["block_size"] != recorded.get("block_size") else None
        extra = {k: group[k] for k in ("sliding_window", "attention_chunk_size") if k in group}
        if kind == "mamba":
            extra["mamba_cache_mode"] = group.get("mamba_cache_mode")
        groups.append(KVCacheGroup(type=kind, block_size=own_size, **extra))
    return EngineSettings(
        num_gpu_blocks=recorded["num_gpu_blocks"],
        max_model_len=recorded["max_model_len"],
        kv_cache_groups=tuple(groups),
        arrival_time=arrival_time,
        **values,
    )


def workload(recording: Recording) -> tuple[list[LogicalRequest], str]:
    """The requests in logical time, arrivals counted in the recording's steps, and the `arrival_time` that
    fits.

    Raises InputError when the recording does not determine the run: tokens were not recorded, lines were
    lost, a request was aborted or has not ended, or the recording began while requests were there.
    """

    def wrong(message: str, hint: str | None = None) -> InputError:
        return InputError(f"no workload can be made: {message}", "the recording", hint=hint)

    if not recording.header["options"]["tokens"]:
        raise wrong("token ids were not recorded", "record with KVPOOL_LIVE_OPTIONS=full,tokens=on")
    if recording.lost:
        raise wrong("lines were lost")
    ends = {line["request_id"]: line for line in recording.requests if line["kind"] == "ended"}
    requests = []
    times = []
    for added in (line for line in recording.requests if line["kind"] == "added"):
        name = added["request_id"]
        end = ends.pop(name, None)
        if end is None:
            raise wrong(f"request {name!r} has not ended")
        if end["status"] not in _OWN_ENDS or not end["output_token_ids"]:
            raise wrong(f"request {name!r} ended from outside ({end['status']})")
        requests.append(
            LogicalRequest(
                request_id=name,
                arrival_step=added["step"],
                prompt_token_ids=tuple(added["prompt_token_ids"]),
                output_token_ids=tuple(end["output_token_ids"]),
                priority=added["priority"],
                cache_salt=added["cache_salt"],
                max_tokens=_limit(added, end),
            )
        )
        times.append((added["step"], added["arrival_time"]))
    if ends:
        raise wrong(f"request {next(iter(ends))!r} was there before the recording began")
    if not requests:
        raise wrong("it has no requests")
    return requests, _arrival_time(times)


def _limit(added: dict[str, Any], end: dict[str, Any]) -> int | None:
    """max_tokens where it is larger than the output: the request ended by a token, or at the model's
    length."""
    generated = len(end["output_token_ids"])
    return (
        added["max_tokens"] if added["max_tokens"] is not None and added["max_tokens"] > generated else None
    )


def _arrival_time(times: list[tuple[int, float]]) -> str:
    """Which rule for ties in priority the arrival times follow: file order, or equal within a step."""
    pairs = list(itertools.pairwise(times))
    if all(a[1] < b[1] for a, b in pairs):
        return "seq"
    if all((a[1] == b[1]) == (a[0] == b[0]) and a[1] <= b[1] for a, b in pairs):
        return "step"
    raise InputError(
        "no workload can be made: arrival times are not in the order in which requests were added",
        "the recording",
    )


def write_workload(recording: Recording, engine: Path, requests_file: Path) -> int:
    """Write config.json and workload.jsonl.gz of a recording; returns the number of requests."""
    requests, arrival_time = workload(recording)
    settings = engine_settings(recording, arrival_time)
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as file:
        file.write(dump_requests(requests))
    write_whole(engine, lambda file: _write(file, settings_to_json(settings).encode()))
    content = packed.getvalue() if requests_file.suffix == ".gz" else dump_requests(requests)
    write_whole(requests_file, lambda file: _write(file, content))
    return len(requests)


def _write(file: IO[bytes], content: bytes) -> None:
    file.write(content)


def write_snapshots(recording: Recording, path: Path) -> int:
    """Write all states as a Parquet table, one row a state (columns: docs/live.md); returns their number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = pa.list_(pa.int32())
    schema = pa.schema(
        [
            ("time_ns", pa.int64()),
            ("step", pa.int64()),
            ("phase", pa.string()),
            ("free_queue", ids),
            ("ref_cnt", ids),
            ("hashed", pa.list_(pa.uint8())),
            ("running", pa.list_(pa.string())),
            ("waiting", pa.list_(pa.string())),
            ("num_computed_tokens", pa.list_(pa.int64())),
            ("block_tables", pa.list_(pa.list_(ids))),
        ],
        metadata={
            "format": SNAPSHOTS,
            "version": str(SNAPSHOTS_VERSION),
            "num_gpu_blocks": str(recording.header["settings"]["num_gpu_blocks"]),
            "block_sizes": ",".join(str(group["block_size"]) for group in recording.header["groups"]),
            "specs": ",".join(group["spec"] for group in recording.header["groups"]),
            "null_block": str(recording.header["null_block"]),
            "started_unix_ns": str(recording.header["started_unix_ns"]),
        },
    )
    rows = [
        {
            "time_ns": s.row["time_ns"],
            "step": s.row["step"],
            "phase": s.row["phase"],
            "free_queue": s.free_queue,
            "ref_cnt": s.ref_cnt,
            "hashed": s.hashed,
            "running": s.running,
            "waiting": s.waiting,
            "num_computed_tokens": s.computed,
            "block_tables": s.tables,
        }
        for s in states(recording)
    ]
    table = pa.Table.from_pylist(rows, schema=schema)
    write_whole(path, lambda file: pq.write_table(table, file, compression="zstd"))
    return len(rows)


def write_curves(recording: Recording, path: Path) -> int:
    """Write the known columns of each recorded row as a Parquet table with nulls; returns the rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from validation.steplog import schema

    types = {f.name: f.type for f in schema()}
    table = curves(recording)
    fields = [
        pa.field(name, types.get(name, pa.float64() if name == "usage" else pa.int64()))
        for name in ("time_ns", "duration_ns", "usage", *COLUMNS)
    ]
    arrow = pa.table([pa.array(table[f.name], type=f.type) for f in fields], schema=pa.schema(fields))
    write_whole(path, lambda file: pq.write_table(arrow, file, compression="zstd"))
    return arrow.num_rows
