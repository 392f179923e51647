"""Reads what `workloads.io` writes: a workload as JSON lines or as Parquet, exactly as it was written."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from workloads.builder import WorkloadBuilder, assemble
from workloads.errors import WorkloadError
from workloads.files import Content, LineFile
from workloads.io import DEFAULTS, FORMAT, HEADER_TYPES, REQUIRED, VERSION
from workloads.readers.options import ReadOptions
from workloads.readers.rows import json_rows, refuse
from workloads.requests import Int64Array, Workload
from workloads.spool import CHUNK, Spool, SpoolWriter

Rows = Iterator[tuple[int, str, dict[str, Any]]]
_COLUMNS = (*DEFAULTS, *REQUIRED, "max_tokens")
_CHANGED = (
    "the content is not what content_hash of the header says; if it was edited on purpose, take "
    "content_hash out"
)


def read_content(content: Content, _options: ReadOptions | None = None) -> Workload:
    """Read a file that `write` made, exactly as it was written (no option applies).

    Raises:
        WorkloadError: the file is broken, of another version, or its content is not what its hash says.
    """
    return _read_parquet(content) if content.data.startswith(b"PAR1") else _read_lines(content)


def spool_lines(path: Path, folder: Callable[[], Path], limit: int) -> Spool | None:
    """A file of JSON lines with more than `limit` requests, written to disk as it is read.

    Args:
        path: of the file.
        folder: makes an empty folder for the spool; called only where one comes back.
        limit: requests.

    Returns:
        The spool; None for a workload of fewer requests, or one that says how many drafts are accepted.

    Raises:
        WorkloadError: as `read_content`.
        OSError: the spool can't be written.
    """
    rows = json_rows(LineFile(path).lines(), path)
    header = _header_of(rows, path)
    if header["requests"] <= limit or header.get("accepted_drafts") is not None:
        return None
    encoder = _encoder_tokens(header, path)
    builder = WorkloadBuilder(header["vocab_size"], header["clock"], header["closed_loop"])
    writer = SpoolWriter(
        folder(), clock=builder.clock, closed_loop=builder.closed_loop, vocab_size=builder.vocab_size
    )
    try:
        for pieces, values, name in _requests(rows, path, builder.add_tokens):
            numbers: dict[str, Any] = values
            own = -1 if encoder is None or len(builder) >= len(encoder) else int(encoder[len(builder)])
            builder.add(
                [segment for segment, _, _ in pieces],
                [length for _, _, length in pieces],
                seg_starts=[start for _, start, _ in pieces],
                request_id=name,
                encoder_tokens=None if own < 0 else own,
                **numbers,
            )
            if builder.held >= CHUNK:
                builder.spill(writer)
        builder.spill(writer)
        _check_number(header, len(writer), path)
        source = header.get("source")
        spool = writer.finish(source if isinstance(source, dict) else {})
    except WorkloadError as error:
        raise error if error.file is not None else WorkloadError(error.message, path) from error
    finally:
        writer.close()
    if header.get("content_hash") not in (None, spool.sha256):
        raise WorkloadError(_CHANGED, path, 1, 1)
    return spool


def _header_of(rows: Rows, path: Path) -> dict[str, Any]:
    number, line, header = next(rows)
    _check_header(header, path, number, line)
    return header


def _check_number(header: dict[str, Any], found: int, path: Path) -> None:
    if found != header["requests"]:
        says = f"the header says {header['requests']} requests, the file has {found}; is it cut off?"
        raise WorkloadError(says, path, 1, 1)


def _requests(
    rows: Rows, path: Path, add_tokens: Callable[[list[int]], object]
) -> Iterator[tuple[list[list[int]], dict[str, int], str | None]]:
    """Pieces, numbers by column, name of each request; explicit tokens, which come first, go elsewhere."""
    begun = False
    for number, line, row in rows:
        if "tokens" in row and not begun:
            add_tokens(_integers(row["tokens"], "tokens", path, number, line))
            continue
        begun = True
        unknown = sorted(row.keys() - {*_COLUMNS, "pieces", "id"})
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
        values = {}
        for name in _COLUMNS:
            value = row.get(name, DEFAULTS.get(name))
            if value is None and name == "max_tokens":
                value = row.get("output_len")
            if type(value) is not int or abs(value) >= 2**63:
                refuse(f"{name} must be an integer", path, number, line, name)
            values[name] = value
        if "id" in row and not isinstance(row["id"], str):
            refuse("id must be a string", path, number, line, "id")
        yield own, values, row.get("id")


def _read_lines(content: Content) -> Workload:
    path = content.path
    rows = json_rows(content.lines(), path)
    header = _header_of(rows, path)
    tokens: list[int] = []
    pieces: list[list[int]] = []
    counts: list[int] = []
    columns: dict[str, list[int]] = {name: [] for name in _COLUMNS}
    ids: list[str] = []
    for own, values, name in _requests(rows, path, tokens.extend):
        pieces += own
        counts.append(len(own))
        for column, value in values.items():
            columns[column].append(value)
        if name is not None:
            ids.append(name)
    _check_number(header, len(counts), path)
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
    for name, kind in HEADER_TYPES.items():
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
        raise WorkloadError(_CHANGED, path, 1, 1)
    return workload


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
    expected = [*DEFAULTS, *REQUIRED, "max_tokens", "seg_id", "seg_start", "seg_len", "tokens"]
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
