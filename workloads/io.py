"""A workload in a file, exact to the byte: what is read has the content hash of what was written.

Two forms of the same content, chosen by the file's name:

- ``.jsonl`` or ``.jsonl.gz``: a header line (format version, clock, vocabulary, provenance, content hash),
  then one line for each request with its pieces ``[segment, start, length]``. For people, and for diffs.
- ``.parquet``: a row for each request, pieces as lists. For large workloads.

`export_logical` writes the logical-time JSON lines that the validation harness runs on a real vLLM.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from workloads.builder import assemble
from workloads.errors import WorkloadError
from workloads.files import Content, write_whole
from workloads.readers.options import ReadOptions
from workloads.readers.rows import json_rows, refuse
from workloads.requests import ARRAY_FIELDS, Int64Array, Workload

FORMAT = "kvpool_workload"
VERSION = 1
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_TOKENS_A_LINE = 4096

#: column of one number a request -> the value that a line leaves out.
_DEFAULTS: dict[str, int] = {
    "arrival": -1,
    "parent": -1,
    "think_ns": 0,
    "priority": 0,
    "salt": 0,
    "session": -1,
}
_REQUIRED = ("out_seg", "output_len")
_HEADER_TYPES: dict[str, type] = {"clock": str, "closed_loop": bool, "vocab_size": int, "requests": int}


def write(workload: Workload, path: str | Path) -> None:
    """Write a workload whole or not at all; the same workload gives the same bytes.

    Args:
        path: ends in one of `SUFFIXES`.

    Raises:
        WorkloadError: the ending is not known, or the file cannot be written.
    """
    name = Path(path).name
    if name.endswith(".parquet"):
        write_whole(path, lambda temporary: _write_parquet(workload, temporary))
    elif name.endswith((".jsonl", ".jsonl.gz")):
        write_whole(path, lambda temporary: _write_lines(_lines(workload), temporary, name.endswith(".gz")))
    else:
        raise WorkloadError(f"a workload is written as one of {', '.join(SUFFIXES)}", path)


def read_content(content: Content, _options: ReadOptions | None = None) -> Workload:
    """Read a file that `write` made, exactly as it was written (no option applies).

    Raises:
        WorkloadError: the file is broken, of another version, or its content is not what its hash says.
    """
    return _read_parquet(content) if content.data.startswith(b"PAR1") else _read_lines(content)


def _header(workload: Workload) -> dict[str, Any]:
    header = {
        FORMAT: VERSION,
        "clock": workload.clock,
        "closed_loop": workload.closed_loop,
        "vocab_size": workload.vocab_size,
        "requests": len(workload),
        "content_hash": workload.content_hash(),
        "source": workload.source,
    }
    if workload.encoder_tokens is not None:
        header["encoder_tokens"] = workload.encoder_tokens.tolist()
    if workload.accepted_drafts is not None:
        header["accepted_drafts"] = workload.accepted_drafts
    return header


def _accepted_drafts(header: dict[str, Any], path: Path) -> tuple[tuple[int, ...], ...] | None:
    given = header.get("accepted_drafts")
    if given is None:
        return None
    if not isinstance(given, list) or any(
        not isinstance(own, list) or any(type(k) is not int for k in own) for own in given
    ):
        raise WorkloadError("accepted_drafts of the header must be a list of integers for each request", path)
    return tuple(tuple(own) for own in given)


def _encoder_tokens(header: dict[str, Any], path: Path) -> Int64Array | None:
    given = header.get("encoder_tokens")
    if given is None:
        return None
    if not isinstance(given, list) or not _all_int64(given) or len(given) != header["requests"]:
        raise WorkloadError("encoder_tokens of the header must be a list of integers, one a request", path)
    return np.array(given, dtype=np.int64)


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _lines(workload: Workload) -> Iterator[str]:
    """The header, the pool of explicit tokens in chunks, then the requests."""
    yield _dump(_header(workload))
    tokens = workload.tokens.tolist()
    for start in range(0, len(tokens), _TOKENS_A_LINE):
        yield _dump({"tokens": tokens[start : start + _TOKENS_A_LINE]})
    pieces = np.stack([workload.seg_id, workload.seg_start, workload.seg_len], axis=1).tolist()
    ptr = workload.seg_ptr.tolist()
    columns = {name: getattr(workload, name).tolist() for name in (*_DEFAULTS, *_REQUIRED, "max_tokens")}
    for i in range(len(workload)):
        row: dict[str, Any] = {}
        if workload.request_ids is not None:
            row["id"] = workload.request_ids[i]
        for name, default in _DEFAULTS.items():
            if columns[name][i] != default:
                row[name] = columns[name][i]
        row["pieces"] = pieces[ptr[i] : ptr[i + 1]]
        row["out_seg"] = columns["out_seg"][i]
        row["output_len"] = columns["output_len"][i]
        if columns["max_tokens"][i] != columns["output_len"][i]:
            row["max_tokens"] = columns["max_tokens"][i]
        yield _dump(row)


def _write_lines(lines: Iterator[str], path: Path, compress: bool) -> None:
    with path.open("wb") as raw:
        if compress:
            # No name and no time in the gzip header: the same content gives the same bytes.
            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0, compresslevel=6) as packed:
                packed.writelines(f"{line}\n".encode() for line in lines)
        else:
            raw.writelines(f"{line}\n".encode() for line in lines)


def _read_lines(content: Content) -> Workload:
    path = content.path
    rows = json_rows(content.lines(), path)
    number, line, header = next(rows)
    _check_header(header, path, number, line)
    tokens: list[int] = []
    pieces: list[list[int]] = []
    counts: list[int] = []
    columns: dict[str, list[int]] = {name: [] for name in (*_DEFAULTS, *_REQUIRED, "max_tokens")}
    ids: list[str] = []
    for number, line, row in rows:
        if "tokens" in row and not counts:
            tokens += _integers(row["tokens"], "tokens", path, number, line)
            continue
        unknown = sorted(row.keys() - columns.keys() - {"pieces", "id"})
        if unknown:
            refuse(f"unknown key {unknown[0]!r}", path, number, line, unknown[0])
        own = row.get("pieces")
        if not isinstance(own, list) or not own:
            refuse(
                "pieces must be a non-empty list of [segment, start, length]", path, number, line, "pieces"
            )
        if set(map(type, own)) != {list} or set(map(len, own)) != {3} or not _all_int64(chain(*own)):
            refuse(
                "every piece must be three integers [segment, start, length]", path, number, line, "pieces"
            )
        pieces += own
        counts.append(len(own))
        for name, values in columns.items():
            value = row.get(name, _DEFAULTS.get(name))
            if value is None and name == "max_tokens":
                value = row.get("output_len")
            if type(value) is not int or abs(value) >= 2**63:
                refuse(f"{name} must be an integer", path, number, line, name)
            values.append(value)
        if "id" in row:
            if not isinstance(row["id"], str):
                refuse("id must be a string", path, number, line, "id")
            ids.append(row["id"])
    if len(counts) != header["requests"]:
        raise WorkloadError(
            f"the header says {header['requests']} requests, the file has {len(counts)}; is it cut off?",
            path,
            1,
            1,
        )
    if ids and len(ids) != len(counts):
        raise WorkloadError(f"{len(ids)} of {len(counts)} requests have an id", path)
    if not pieces:
        raise WorkloadError("the workload has no requests", path, 1, 1)
    flat = np.array(pieces, dtype=np.int64)
    arrays = {name: np.array(values, dtype=np.int64) for name, values in columns.items()}
    arrays["seg_ptr"] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    for k, name in enumerate(("seg_id", "seg_start", "seg_len")):
        arrays[name] = np.ascontiguousarray(flat[:, k])
    arrays["tokens"] = np.array(tokens, dtype=np.int64)
    return _restore(header, arrays, tuple(ids) or None, path)


def _integers(value: Any, name: str, path: Path, number: int, line: str) -> list[int]:
    if not isinstance(value, list) or not _all_int64(value):
        refuse(f"{name} must be a list of integers", path, number, line, name)
    return value


def _all_int64(values: Iterable[Any]) -> bool:
    return all(type(v) is int and -(2**63) <= v < 2**63 for v in values)


def _check_header(header: Any, path: Path, number: int, line: str) -> None:
    if not isinstance(header, dict) or FORMAT not in header:
        raise WorkloadError(f"not a workload file: the first line has no {FORMAT!r}", path, number, 1)
    if header[FORMAT] != VERSION:
        refuse(
            f"workload version {header[FORMAT]!r}; this release reads {VERSION}", path, number, line, FORMAT
        )
    for name, kind in _HEADER_TYPES.items():
        if type(header.get(name)) is not kind:
            refuse(f"{name} of the header must be of type {kind.__name__}", path, number, line, name)


def _restore(
    header: dict[str, Any], arrays: dict[str, Int64Array], ids: tuple[str, ...] | None, path: Path
) -> Workload:
    """The workload of the columns, checked against the hash of the header (which a person may take out)."""
    source = header.get("source")
    columns: dict[str, Any] = dict(arrays)
    try:
        workload = assemble(
            clock=header["clock"],
            closed_loop=header["closed_loop"],
            vocab_size=header["vocab_size"],
            request_ids=ids,
            source=source if isinstance(source, dict) else {},
            accepted_drafts=_accepted_drafts(header, path),
            encoder_tokens=_encoder_tokens(header, path),
            **columns,
        )
    except WorkloadError as error:
        raise WorkloadError(error.message, path) from error
    expected = header.get("content_hash")
    if expected is not None and expected != workload.content_hash():
        raise WorkloadError(
            "the content is not what content_hash of the header says; if it was edited on purpose, take "
            "content_hash out",
            path,
            1,
            1,
        )
    return workload


def _write_parquet(workload: Workload, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    n = len(workload)
    columns: dict[str, Any] = {}
    if workload.request_ids is not None:
        columns["id"] = pa.array(list(workload.request_ids), pa.string())
    for name, (dtype, symbol) in ARRAY_FIELDS.items():
        if symbol == "n" and name != "prompt_len":
            columns[name] = pa.array(getattr(workload, name), pa.from_numpy_dtype(dtype))
    ptr = pa.array(workload.seg_ptr, pa.int64())
    for name in ("seg_id", "seg_start", "seg_len"):
        columns[name] = pa.LargeListArray.from_arrays(ptr, pa.array(getattr(workload, name)))
    # The pool of explicit tokens, cut evenly over the rows; it is their concatenation.
    cuts = pa.array(np.linspace(0, len(workload.tokens), n + 1).astype(np.int64))
    columns["tokens"] = pa.LargeListArray.from_arrays(cuts, pa.array(workload.tokens))
    table = pa.table(columns).replace_schema_metadata({FORMAT: _dump(_header(workload))})
    pq.write_table(table, path, compression="zstd", row_group_size=65536, store_schema=True)


def _read_parquet(content: Content) -> Workload:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = content.path
    try:
        table = pq.read_table(io.BytesIO(content.data)).combine_chunks()
    except (pa.ArrowException, OSError) as error:
        raise WorkloadError(f"not a readable Parquet file ({str(error).splitlines()[0]})", path) from None
    metadata = (table.schema.metadata or {}).get(FORMAT.encode())
    if metadata is None:
        raise WorkloadError(f"not a workload file: its metadata has no {FORMAT!r}", path)
    header = json.loads(metadata)
    _check_header(header, path, 1, "")
    expected = [*_DEFAULTS, *_REQUIRED, "max_tokens", "seg_id", "seg_start", "seg_len", "tokens"]
    missing = [name for name in expected if name not in table.column_names]
    if missing:
        raise WorkloadError(f"the column {missing[0]!r} is missing", path)

    def column(name: str) -> Int64Array:
        values = table.column(name)
        flat = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        if pa.types.is_large_list(flat.type) or pa.types.is_list(flat.type):
            flat = flat.flatten()
        return np.ascontiguousarray(flat.to_numpy(zero_copy_only=False).astype(np.int64))

    arrays = {name: column(name) for name in expected}
    lengths = table.column("seg_id").combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
    arrays["seg_ptr"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = tuple(table.column("id").to_pylist()) if "id" in table.column_names else None
    return _restore(header, arrays, ids, path)


def export_logical(workload: Workload, path: str | Path, step_ns: int | None = None) -> list[str]:
    """Write the logical-time JSON lines (explicit token ids, arrival as a step of the engine's loop).

    Args:
        workload: of either clock.
        path: ends in .jsonl or .jsonl.gz.
        step_ns: for a workload in time: nanoseconds that one step stands for. A request that follows another
            is given a nominal step: the other's step + its output length + the think time.

    Returns:
        Notes on what the format cannot hold and was changed.

    Raises:
        WorkloadError: the workload is a closed-loop pool, `step_ns` is missing, or the file can't be written.
    """
    name = Path(path).name
    if not name.endswith((".jsonl", ".jsonl.gz")):
        raise WorkloadError("a logical-time workload is written as .jsonl or .jsonl.gz", path)
    steps, notes = _logical_steps(workload, step_ns)
    if bool((workload.max_tokens > workload.output_len).any()):
        notes.append(
            "requests that stop by an end token stop by length instead: the format has no max_tokens"
        )
    salts = workload.source.get("cache_salts", {})

    def lines() -> Iterator[str]:
        for i in range(len(workload)):
            salt = int(workload.salt[i])
            row = {
                "request_id": workload.request_id(i),
                "arrival_step": steps[i],
                "prompt_token_ids": workload.prompt_tokens(i).tolist(),
                "output_token_ids": workload.output_tokens(i).tolist(),
                "priority": int(workload.priority[i]),
                "cache_salt": salts.get(str(salt), f"salt-{salt}") if salt else None,
            }
            if workload.encoder_tokens is not None and workload.encoder_tokens[i] >= 0:
                row["encoder_tokens"] = int(workload.encoder_tokens[i])
            yield _dump(row)

    write_whole(path, lambda temporary: _write_lines(lines(), temporary, name.endswith(".gz")))
    return notes


def _logical_steps(workload: Workload, step_ns: int | None) -> tuple[list[int], list[str]]:
    if workload.clock == "logical":
        return workload.arrival.tolist(), []
    if step_ns is None or step_ns < 1:
        raise WorkloadError("the workload is in time: say how long a step is (--step, such as 20ms)")
    if bool(((workload.arrival == -1) & (workload.parent == -1)).any()):
        raise WorkloadError("a closed-loop pool has no arrival steps; use per_client arrivals")
    steps: list[int] = []
    arrivals, parents = workload.arrival.tolist(), workload.parent.tolist()
    thinks, outputs = workload.think_ns.tolist(), workload.output_len.tolist()
    for i, parent in enumerate(parents):
        if parent < 0:
            steps.append(arrivals[i] // step_ns)
        else:
            steps.append(steps[parent] + outputs[parent] + 1 + thinks[i] // step_ns)
    notes = []
    if max(parents) >= 0:
        notes.append("requests that follow others were given nominal steps (one token a step)")
    return steps, notes
