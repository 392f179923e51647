"""The files of a live vLLM: what the live recorder writes (`kvpool-live`), and tables of its states
(`kvpool-snapshots`). docs/live.md describes both formats; `validation.live` writes them and reads them here.

A recording that was not closed (`.part`, or a process that was killed) is read up to its last whole gzip
member; `Recording.complete` says whether it came to its end.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
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

FORMAT = "kvpool-live"
FORMAT_VERSION = 1
SNAPSHOTS = "kvpool-snapshots"
SNAPSHOTS_VERSION = 1
_CHUNK = 1 << 16

#: What a damaged line of the right outer form raises where its content is used.
DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, zlib.error, binascii.Error)


@dataclass
class Recording:
    """A live recording in memory.

    Attributes:
        header: engine settings, groups, recorder options, versions.
        rows: one object a recorded call, in order; "state" where the whole state was taken.
        ops: (call, operation) in order; an operation is a list whose first element is its name.
        op_times: ns since the recording began, of each operation: the end of the call that ended after it;
            -1: a recorder that did not note it.
        requests: "added" and "ended" lines in order.
        lost: kind -> lines that did not fit the queue.
        errors: why the recorder switched itself off.
        end: the last line of a recording that was closed, None otherwise.
        torn_bytes: bytes at the end of the file that are no whole member.
    """

    header: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    ops: list[tuple[int, list[Any]]] = field(default_factory=list)
    op_times: list[int] = field(default_factory=list)
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
class RecordedState:
    """The whole state after one call.

    Attributes:
        row: the counters of the same call; of a table of states only `time_ns`, `step` and `phase`.
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


@dataclass(frozen=True)
class StateTable:
    """A `kvpool-snapshots` file.

    Attributes:
        num_gpu_blocks: blocks of the pool, the null block included.
        block_sizes: tokens of a block, by group.
        null_block: its id.
        specs: class of the KVCacheSpec of each group; empty: not noted.
        started_unix_ns: when the recording began, None: not noted.
        states: in order of time.
    """

    num_gpu_blocks: int
    block_sizes: tuple[int, ...]
    null_block: int
    specs: tuple[str, ...]
    started_unix_ns: int | None
    states: list[RecordedState]


def is_recording(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a file, and not a folder as a run has one."""
    return Path(path).is_file()


def looks_recorded(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a recording or a table of states does, and not as text."""
    if not is_recording(path):
        return False
    with contextlib.suppress(OSError), Path(path).open("rb") as file:
        return file.read(4).startswith((b"\x1f\x8b", b"PAR1"))
    return False


def read(path: str | os.PathLike[str]) -> Recording:
    """Read a live recording.

    Raises:
        InputError: a file that is none, or of a later version, or can't be read.
    """
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
                if recording is None:
                    recording = Recording(_checked_header(kind, line, source))
                else:
                    _take(recording, kind, line)
            except DAMAGED as exc:
                raise InputError("not a line of a live recording", str(source), number) from exc
    if recording is None:
        raise InputError("no live recording: it holds no whole line", str(source))
    recording.torn_bytes = torn
    return recording


def _members(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Each whole gzip member, decompressed, and the bytes behind it."""
    at = 0
    while at < len(data):
        unpacker = zlib.decompressobj(wbits=31)
        parts = []
        try:
            while not unpacker.eof and at < len(data):
                chunk = data[at : at + _CHUNK]
                parts.append(unpacker.decompress(chunk))
                at += len(chunk)
        except zlib.error:
            return
        if not unpacker.eof:
            return
        at -= len(unpacker.unused_data)
        yield b"".join(parts), len(data) - at


def _checked_header(kind: str, line: dict[str, Any], source: Path) -> dict[str, Any]:
    if kind != "header" or line.get("format") != FORMAT:
        raise InputError("not a live recording of kvpool", str(source), 1)
    if line["version"] > FORMAT_VERSION:
        raise InputError(
            f"a recording of format version {line['version']}; this reader knows {FORMAT_VERSION}",
            str(source),
            1,
            hint="use a later kvpool",
        )
    int(line["settings"]["num_gpu_blocks"])
    line["options"], line["null_block"], [group["block_size"] for group in line["groups"]]
    return line


def _take(recording: Recording, kind: str, line: dict[str, Any]) -> None:
    if kind == "row":
        recording.rows.append(line)
    elif kind == "ops":
        recording.ops += [(line["call"], op) for op in line["ops"]]
        recording.op_times += [line.get("time_ns", -1)] * len(line["ops"])
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


def state_of(row: dict[str, Any]) -> RecordedState | None:
    """The state that was taken with a row, None where there was none.

    Raises:
        one of `DAMAGED`: the state is not whole.
    """
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
    return RecordedState(
        row=row,
        free_queue=_unpack(state["free_queue"], "<i4"),
        ref_cnt=_unpack(state["ref_cnt"], "<i4"),
        hashed=_unpack(state["hashed"], "u1"),
        running=state["running"],
        waiting=state["waiting"],
        computed=state["computed"],
        tables=tables,
    )


def states(recording: Recording) -> Iterator[RecordedState]:
    """All states of a recording, in order."""
    for row in recording.rows:
        found = state_of(row)
        if found is not None:
            yield found


def read_states(path: str | os.PathLike[str]) -> StateTable:
    """Read a table of states.

    Raises:
        InputError: a file that is none, or of a later version, or can't be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = str(path)
    try:
        file = pq.ParquetFile(name)
        given = {k.decode(): v.decode() for k, v in (file.schema_arrow.metadata or {}).items()}
        if given.get("format") != SNAPSHOTS:
            raise InputError(
                "a Parquet file, but no table of states",
                name,
                hint="such a table is what `python -m validation live export --snapshots` writes",
            )
        if int(given["version"]) > SNAPSHOTS_VERSION:
            raise InputError(
                f"a table of states of version {given['version']}; this reader knows {SNAPSHOTS_VERSION}",
                name,
                hint="use a later kvpool",
            )
        started = given.get("started_unix_ns")
        return StateTable(
            num_gpu_blocks=int(given["num_gpu_blocks"]),
            block_sizes=tuple(int(size) for size in given["block_sizes"].split(",") if size),
            null_block=int(given["null_block"]),
            specs=tuple(spec for spec in given.get("specs", "").split(",") if spec),
            started_unix_ns=None if started is None else int(started),
            states=[_state_row(row) for row in file.read().to_pylist()],
        )
    except (OSError, pa.ArrowException, *DAMAGED) as e:
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(f"not a readable table of states: {why}", name) from e


def _state_row(row: dict[str, Any]) -> RecordedState:
    return RecordedState(
        row={"time_ns": row["time_ns"], "step": row["step"], "phase": row["phase"]},
        free_queue=np.array(row["free_queue"], dtype=np.int32),
        ref_cnt=np.array(row["ref_cnt"], dtype=np.int32),
        hashed=np.array(row["hashed"], dtype=np.uint8),
        running=row["running"],
        waiting=row["waiting"],
        computed=row["num_computed_tokens"],
        tables=[[np.array(t, dtype=np.int32) for t in tables] for tables in row["block_tables"]],
    )
