"""A workload into a file, exact to the byte; `workloads.readers.native` reads it, with the same content hash.

Two forms of the same content, chosen by the file's name:

- ``.jsonl`` or ``.jsonl.gz``: a header line (format version, clock, vocabulary, provenance, content hash),
  then one line for each request with its pieces ``[segment, start, length]``. For people, and for diffs.
- ``.parquet``: a row for each request, pieces as lists. For large workloads.

`export_logical` writes the logical-time JSON lines that the validation harness runs on a real vLLM.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from workloads.errors import WorkloadError
from workloads.files import write_whole
from workloads.requests import ARRAY_FIELDS, Workload

FORMAT = "kvpool_workload"
VERSION = 1
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_TOKENS_A_LINE = 4096

#: Column of one number a request -> the value that a line leaves out.
DEFAULTS: dict[str, int] = {
    "arrival": -1,
    "parent": -1,
    "think_ns": 0,
    "priority": 0,
    "salt": 0,
    "session": -1,
}
REQUIRED = ("out_seg", "output_len")
#: Key of the header -> its type.
HEADER_TYPES: dict[str, type] = {"clock": str, "closed_loop": bool, "vocab_size": int, "requests": int}


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
    columns = {name: getattr(workload, name).tolist() for name in (*DEFAULTS, *REQUIRED, "max_tokens")}
    for i in range(len(workload)):
        row: dict[str, Any] = {}
        if workload.request_ids is not None:
            row["id"] = workload.request_ids[i]
        for name, default in DEFAULTS.items():
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
