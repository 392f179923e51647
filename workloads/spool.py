"""A workload on disk, written and read in chunks: one raw file a field, little-endian, as in `Workload`.

A run of millions of requests needs only those that are near; the content hash is that of the same workload in
memory.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workloads.requests import ARRAY_FIELDS, Workload

#: Requests that are read together.
CHUNK = 16384
#: Arrival of a chunk behind which nobody comes at a known time.
NEVER = 1 << 62
_READ = 1 << 20
_LAST_CHILD = "last_child"
_NAMES = "names"
_ENCODER = "encoder_tokens"
_PER_REQUEST = tuple(name for name, (_, length) in ARRAY_FIELDS.items() if length == "n")
_PER_PIECE = tuple(name for name, (_, length) in ARRAY_FIELDS.items() if length == "m")


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(ARRAY_FIELDS[name][0]).newbyteorder("<")


@dataclass(frozen=True)
class Chunk:
    """Requests first, first + 1, ... of a spooled workload.

    Attributes:
        first: index of the first one.
        columns: the fields of `Workload` by name, without `tokens`; `seg_ptr` counts from the chunk's own
            first piece, `parent` is an index of the workload.
        last_child: int32, index of the last request that has this one as its parent, -1: none.
    """

    first: int
    columns: Mapping[str, NDArray[Any]]
    last_child: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.last_child)


@dataclass(frozen=True)
class Spool:
    """A workload on disk; what `Workload` has beside its arrays, and what a reader must know beforehand.

    Attributes:
        folder: holds the files.
        size, pieces: requests, and pieces of their prompts.
        longest: tokens of the longest request, prompt and output.
        last_arrival: greatest known arrival.
        in_order: known arrivals never fall from one request to the next.
        first_arrivals: for each chunk the least known arrival in it or in a later one, NEVER: none.
        named: the requests have names.
        tokens: int32, pool of explicit token ids.
        sha256: content hash of the workload.
        longest_encoder_input: most encoder tokens that a request names.
        has_encoder_inputs: some request names them; then the chunks have a column `encoder_tokens`.
    """

    folder: Path
    clock: str
    closed_loop: bool
    vocab_size: int
    size: int
    pieces: int
    longest: int
    last_arrival: int
    in_order: bool
    first_arrivals: tuple[int, ...]
    named: bool
    tokens: NDArray[np.int32]
    source: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    longest_encoder_input: int = 0
    has_encoder_inputs: bool = False

    def __len__(self) -> int:
        return self.size

    def content_hash(self) -> str:
        """SHA-256 (hex), the "trace hash"; see `Workload.content_hash`."""
        return self.sha256

    def chunk(self, c: int) -> Chunk:
        """Read chunk c."""
        first = c * CHUNK
        n = min(CHUNK, self.size - first)
        columns = {name: self._read(name, first, n) for name in _PER_REQUEST}
        ptr = self._read("seg_ptr", first, n + 1)
        for name in _PER_PIECE:
            columns[name] = self._read(name, int(ptr[0]), int(ptr[-1] - ptr[0]))
        columns["seg_ptr"] = ptr - ptr[0]
        if self.has_encoder_inputs:
            columns[_ENCODER] = np.fromfile(self.folder / _ENCODER, "<i4", n, offset=4 * first)
        return Chunk(first, columns, np.fromfile(self.folder / _LAST_CHILD, "<i4", n, offset=4 * first))

    def load(self) -> Workload:
        """The whole workload in memory."""
        arrays: dict[str, Any] = {
            name: np.fromfile(self.folder / name, _dtype(name)).astype(dtype, copy=False)
            for name, (dtype, _) in ARRAY_FIELDS.items()
        }
        return Workload(
            clock=self.clock,
            closed_loop=self.closed_loop,
            vocab_size=self.vocab_size,
            request_ids=self._request_ids() if self.named else None,
            source=self.source,
            encoder_tokens=self._encoder_tokens(),
            **arrays,
        )

    def _encoder_tokens(self) -> NDArray[np.int32] | None:
        if not self.has_encoder_inputs:
            return None
        return np.fromfile(self.folder / _ENCODER, "<i4").astype(np.int32, copy=False)

    def _request_ids(self) -> tuple[str, ...]:
        text = (self.folder / _NAMES).read_bytes()
        found, at = [], 0
        while at < len(text):
            space = text.index(b" ", at)
            end = space + 1 + int(text[at:space])
            found.append(text[space + 1 : end].decode())
            at = end
        return tuple(found)

    def _read(self, name: str, first: int, n: int) -> NDArray[Any]:
        dtype = _dtype(name)
        return np.fromfile(self.folder / name, dtype, n, offset=first * dtype.itemsize)


class SpoolWriter:
    """Writes a workload part by part into an empty folder; `finish` gives the spool.

    Raises:
        OSError: the disk is full, say.
    """

    def __init__(self, folder: Path, *, clock: str, closed_loop: bool, vocab_size: int) -> None:
        self.folder = folder
        self.clock, self.closed_loop, self.vocab_size = clock, closed_loop, vocab_size
        with contextlib.ExitStack() as stack:
            names = (*ARRAY_FIELDS, _NAMES, _ENCODER)
            self._files = {name: stack.enter_context(open(folder / name, "wb")) for name in names}
            self._open = stack.pop_all()
        self._files["seg_ptr"].write(np.zeros(1, dtype="<i8").tobytes())
        self._size = self._pieces = self._longest = self._last_arrival = 0
        self._in_order, self._named = True, False
        self._longest_encoder_input = -1

    def __len__(self) -> int:
        return self._size

    def append(
        self, part: Workload, parents: NDArray[np.int32], tokens: NDArray[np.int32], skip: int = 0
    ) -> None:
        """Write the next requests.

        Args:
            part: a validated workload of which the first `skip` requests are left out.
            parents: parents of the written ones, as indices of the whole workload.
            tokens: explicit tokens that have been added to the pool since the last time.
            skip: stand-ins for requests that have been written before.
        """
        begin = int(part.seg_ptr[skip])
        values: dict[str, NDArray[Any]] = {name: getattr(part, name)[skip:] for name in _PER_REQUEST}
        values |= {name: getattr(part, name)[begin:] for name in _PER_PIECE}
        values |= {"parent": parents, "tokens": tokens}
        values["seg_ptr"] = part.seg_ptr[skip + 1 :] - begin + self._pieces
        for name, array in values.items():
            self._files[name].write(np.ascontiguousarray(array, dtype=_dtype(name)).tobytes())
        if part.request_ids is not None:
            self._named = True
            for text in part.request_ids[skip:]:
                encoded = text.encode()
                self._files[_NAMES].write(b"%d " % len(encoded) + encoded)
        own = part.encoder_tokens
        own = np.full(len(parents), -1, dtype="<i4") if own is None else own[skip:].astype("<i4")
        self._files[_ENCODER].write(own.tobytes())
        self._longest_encoder_input = max(self._longest_encoder_input, int(own.max(initial=-1)))
        known = values["arrival"][values["arrival"] >= 0]
        if len(known):
            self._in_order &= bool(known[0] >= self._last_arrival and (np.diff(known) >= 0).all())
            self._last_arrival = max(self._last_arrival, int(known.max()))
        lengths = values["prompt_len"].astype(np.int64) + values["output_len"]
        self._longest = max(self._longest, int(lengths.max(initial=0)))
        self._size += len(parents)
        self._pieces += len(values["seg_id"])

    def close(self) -> None:
        """Close the files, finished or not."""
        self._open.close()

    def finish(self, source: Mapping[str, Any]) -> Spool:
        """Close the files and take stock of them."""
        self.close()
        firsts = self._second_pass()
        return Spool(
            folder=self.folder,
            clock=self.clock,
            closed_loop=self.closed_loop,
            vocab_size=self.vocab_size,
            size=self._size,
            pieces=self._pieces,
            longest=self._longest,
            last_arrival=self._last_arrival,
            in_order=self._in_order,
            first_arrivals=firsts,
            named=self._named,
            tokens=np.fromfile(self.folder / "tokens", "<i4").astype(np.int32, copy=False),
            source=dict(source),
            sha256=self._hash(),
            longest_encoder_input=max(0, self._longest_encoder_input),
            has_encoder_inputs=self._longest_encoder_input >= 0,
        )

    def _second_pass(self) -> tuple[int, ...]:
        """Write the last child of each request; returns the first arrivals."""
        last = np.full(self._size, -1, dtype="<i4")
        firsts = []
        for first in range(0, self._size, CHUNK):
            parent = np.fromfile(self.folder / "parent", "<i4", CHUNK, offset=4 * first)
            children = np.flatnonzero(parent >= 0)
            np.maximum.at(last, parent[children], (first + children).astype(np.int32))
            arrival = np.fromfile(self.folder / "arrival", "<i8", CHUNK, offset=8 * first)
            firsts.append(int(arrival[arrival >= 0].min(initial=NEVER)))
        last.tofile(self.folder / _LAST_CHILD)
        return tuple(np.minimum.accumulate(firsts[::-1])[::-1].tolist()) if firsts else ()

    def _hash(self) -> str:
        """As `Workload.content_hash`."""
        digest = hashlib.sha256()
        digest.update(f"kvpool-workload-1 {self.clock} {self.closed_loop} {self.vocab_size}\n".encode())
        for name in ARRAY_FIELDS:
            path = self.folder / name
            digest.update(f"{name} {path.stat().st_size // _dtype(name).itemsize}\n".encode())
            self._update(digest, path)
        if self._named:
            self._update(digest, self.folder / _NAMES)
        if self._longest_encoder_input >= 0:
            digest.update(f"{_ENCODER} {self._size}\n".encode())
            self._update(digest, self.folder / _ENCODER)
        return digest.hexdigest()

    @staticmethod
    def _update(digest: Any, path: Path) -> None:
        with open(path, "rb") as f:
            while block := f.read(_READ):
                digest.update(block)


def spool_workload(workload: Workload, folder: Path) -> Spool:
    """A workload in memory written to an empty folder."""
    writer = SpoolWriter(
        folder, clock=workload.clock, closed_loop=workload.closed_loop, vocab_size=workload.vocab_size
    )
    try:
        writer.append(workload, workload.parent, workload.tokens)
        return writer.finish(workload.source)
    finally:
        writer.close()


__all__ = ["CHUNK", "NEVER", "Chunk", "Spool", "SpoolWriter", "spool_workload"]
