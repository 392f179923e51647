"""The step log: one row after each `schedule()` and one after each `update_from_output()`.

Columns, order and types are a contract between recorders (the simulator, a real vLLM's scheduler, a whole
real engine) and with stored recordings; `validation diff` compares two logs row by row. A log in memory is
a `dict[str, list]` of equally long columns, in `COLUMNS` order, of plain Python ints, strings and lists.

Files: `.parquet` (zstd), `.jsonl` and `.jsonl.gz` (one object a row, same keys), written whole or not at all.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

Columns = dict[str, list[Any]]

#: name -> type, one of: "int64", "uint32", "string", "list<string>", "list<int64>", "list<uint32>"
COLUMNS: dict[str, str] = {
    "step": "int64",
    "phase": "string",
    "batch_step": "int64",
    "num_running": "int64",
    "num_waiting": "int64",
    "num_free_blocks": "int64",
    "used_blocks": "int64",
    "num_cached_hashes": "int64",
    "num_cached_blocks": "int64",
    "num_scheduled_tokens": "int64",
    "num_scheduled_reqs": "int64",
    "preempted": "list<string>",
    "finished": "list<string>",
    "prefix_requests": "int64",
    "prefix_queries": "int64",
    "prefix_hits": "int64",
    "preempted_requests": "int64",
    "preempted_queries": "int64",
    "preempted_hits": "int64",
    "allocated_slots": "int64",
    "held_tokens": "int64",
    "wasted_slots": "int64",
    "wasted_by_group": "list<int64>",
    "free_runs": "int64",
    "largest_free_run": "int64",
    "free_queue_crc": "uint32",
    "tables_crc": "uint32",
    "tables_crc_by_group": "list<uint32>",
    "refcnt_crc": "uint32",
    "refcnt_crc_nonull": "uint32",
    "cached_crc": "uint32",
    "computed_crc": "uint32",
    "running_ids_crc": "uint32",
    "waiting_ids_crc": "uint32",
    "sched_crc": "uint32",
}

#: The counters of vLLM's PrefixCacheStats, in its order.
PREFIX_COLUMNS = (
    "prefix_requests",
    "prefix_queries",
    "prefix_hits",
    "preempted_requests",
    "preempted_queries",
    "preempted_hits",
)

#: Includes the null block's reference count, which vLLM does not maintain: recorded, never compared.
NOT_COMPARED = frozenset({"refcnt_crc"})

#: Columns that say where a row belongs; a log without them can't be aligned with another one.
KEY_COLUMNS = ("step", "phase", "batch_step")

PHASES = ("scheduled", "updated")


@dataclass(frozen=True)
class Recording:
    """A recorded log; `stuck` says why the run had to end early (None: every request finished)."""

    log: Columns
    stuck: str | None = None


def empty_log() -> Columns:
    """Columns of a log with no rows."""
    return {name: [] for name in COLUMNS}


def num_rows(log: Mapping[str, Sequence[Any]]) -> int:
    """Rows of a log in memory (all columns are equally long)."""
    return len(next(iter(log.values()))) if log else 0


def schema() -> pa.Schema:
    """The Arrow schema of a step log."""
    import pyarrow as pa

    scalar = {"int64": pa.int64(), "uint32": pa.uint32(), "string": pa.string()}

    def arrow_type(name: str) -> pa.DataType:
        if name.startswith("list<"):
            return pa.list_(pa.field("element", scalar[name[5:-1]]))
        return scalar[name]

    return pa.schema([pa.field(name, arrow_type(kind)) for name, kind in COLUMNS.items()])


def to_table(log: Mapping[str, Sequence[Any]]) -> pa.Table:
    """A log in memory as an Arrow table with `schema()`.

    A log may leave out what is not compared; KeyError for any other missing column.
    """
    import pyarrow as pa

    fields = pa.schema([f for f in schema() if f.name in log or f.name not in NOT_COMPARED])
    return pa.table([pa.array(_plain(log[f.name]), type=f.type) for f in fields], schema=fields)


def from_table(table: pa.Table) -> Columns:
    """An Arrow table as a log in memory; columns that are no part of the contract are dropped."""
    return {name: table.column(name).to_pylist() for name in COLUMNS if name in table.column_names}


def _plain(values: Any) -> Any:
    return values.tolist() if hasattr(values, "tolist") else values


def rows(log: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """The rows of a log as dicts, keys in column order."""
    names = [name for name in COLUMNS if name in log]
    for values in zip(*(_plain(log[name]) for name in names), strict=True):
        yield dict(zip(names, values, strict=True))


def write(path: str | os.PathLike[str], log: Mapping[str, Sequence[Any]] | pa.Table) -> Path:
    """Write a log; the suffix (.parquet, .jsonl, .jsonl.gz) chooses the format.

    The file appears whole or not at all; same log, same bytes. Raises InputError for an unknown suffix or a
    folder that can't be written.
    """
    target = Path(path)
    kind = _format_of(target)
    if not isinstance(log, Mapping):
        log = from_table(log)
    try:
        fd, tmp = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    except OSError as exc:
        raise InputError(f"can't write there: {exc.strerror or exc}", file=str(target)) from exc
    try:
        with os.fdopen(fd, "wb") as file:
            if kind == "parquet":
                import pyarrow.parquet as pq

                pq.write_table(to_table(log), file, compression="zstd")
            elif kind == "jsonl.gz":
                with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
                    packed.write(_json_lines(log))
            else:
                file.write(_json_lines(log))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(tmp, 0o644)
        os.replace(tmp, target)
    except BaseException as exc:
        Path(tmp).unlink(missing_ok=True)
        if isinstance(exc, OSError):
            raise InputError(f"can't write the step log: {exc.strerror or exc}", file=str(target)) from exc
        raise
    return target


def _json_lines(log: Mapping[str, Sequence[Any]]) -> bytes:
    return "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows(log)).encode()


def read(path: str | os.PathLike[str]) -> Columns:
    """Read a log written by any recorder, the live one's recordings included.

    Raises InputError, with the file and where there is one the line, for a file that can't be used.
    """
    source = Path(path)
    kind = _format_of(source)
    try:
        if kind == "parquet":
            log = _read_parquet(source)
        else:
            log = _read_json_lines(source, packed=kind == "jsonl.gz")
    except OSError as exc:
        raise InputError(f"can't read the step log: {exc.strerror or exc}", file=str(source)) from exc
    missing = [name for name in KEY_COLUMNS if name not in log]
    if missing:
        raise InputError(f"not a step log: no column {', '.join(missing)}", file=str(source))
    return log


def _read_parquet(source: Path) -> Columns:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return from_table(pq.ParquetFile(source).read())
    except pa.ArrowException as exc:
        reason = str(exc).splitlines()[0]
        raise InputError(f"not a readable Parquet file: {reason}", file=str(source)) from exc


def _read_json_lines(source: Path, *, packed: bool) -> Columns:
    log: Columns = {}
    number = 0
    try:
        with gzip.open(source, "rt") if packed else open(source) as file:
            for number, line in enumerate(file, 1):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise InputError(f"expected a JSON object, got {type(row).__name__}", str(source), number)
                if number == 1 and row.get("kind") == "header":
                    return _read_live(source)
                if not log:
                    log = {name: [] for name in COLUMNS if name in row}
                for name in log:
                    if name not in row:
                        raise InputError(f"no key {name!r}, which the first row has", str(source), number)
                    log[name].append(row[name])
    except json.JSONDecodeError as exc:
        raise InputError(f"not JSON: {exc.msg}", str(source), number, exc.colno) from exc
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as exc:
        raise InputError(f"damaged file: {exc}", str(source), number + 1) from exc
    return log or empty_log()


def _read_live(source: Path) -> Columns:
    """The step log of a live recording at full rate."""
    from validation.live.reader import read as read_recording
    from validation.live.reader import step_log

    return step_log(read_recording(source), str(source))


def _format_of(path: Path) -> str:
    for suffix in ("parquet", "jsonl.gz", "jsonl"):
        if path.name.endswith("." + suffix):
            return suffix
    raise InputError("a step log ends in .parquet, .jsonl or .jsonl.gz", file=str(path))
