"""The bounded queue between an engine and its recording, and the thread that empties it into a file.

The file is a sequence of gzip members of JSON lines, written as `NAME.part` and renamed when the recording
ends. Each member is made durable (fsync) as a whole, so a process that is killed leaves a file that can be
read up to its last member; `zcat` reads it too.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

#: A member of the file is closed at this many bytes before compression.
_MEMBER_BYTES = 4 << 20
#: What an item takes in memory beside its payload, roughly.
ITEM_BYTES = 400

#: (kind, bytes in memory, function that makes the line's object). The function runs in the writer's thread.
Item = tuple[str, int, Callable[[], dict[str, Any]]]


def pack(data: bytes) -> str:
    """Bytes of an array for a JSON line: zlib, base64."""
    return base64.b64encode(zlib.compress(data, 1)).decode("ascii")


def create_part(path: Path) -> tuple[Path, Any]:
    """The final name and the open `.part` file; a name that is taken gets a number, nothing is overwritten.

    The name's folder must exist. Suffix: `.jsonl.gz`, added when it is missing.
    """
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
    for number in range(10_000):
        name = f"{stem}.{number}.jsonl.gz" if number else f"{stem}.jsonl.gz"
        final = path.with_name(name)
        if final.exists():
            continue
        try:
            return final, open(f"{final}.part", "xb")
        except FileExistsError:
            continue
    raise FileExistsError(f"{path}: ten thousand recordings are there already")


class Writer:
    """A queue of bounded size and the thread that writes it.

    `put` never blocks and never raises for want of space: what does not fit is counted by kind, and the next
    item that fits is preceded by a line that says what was lost. `put` belongs to one thread, the engine's.

    Attributes: lost: kind -> number of items dropped, over the whole recording. peak_bytes: most bytes that
        ever waited in memory. cpu_ns: CPU time of the writer's thread. failure: why writing has stopped, None
        while all is well. The file then ends with its last good member.
    """

    def __init__(self, path: Path, queue_bytes: int, flush_s: float, compress: int) -> None:
        self.final, self._file = create_part(path)
        self.limit = queue_bytes
        self.lost: dict[str, int] = {}
        self.failure: str | None = None
        self.peak_bytes = 0
        self.cpu_ns = 0
        self._lost_since: dict[str, int] = {}
        self._flush_s = max(flush_s, 0.01)
        self._level = compress
        self._queue: deque[Item] = deque()
        # One is written by the engine's thread and the other by the writer's: no lock.
        self._bytes_in = 0
        self._bytes_out = 0
        self._wake = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="kvpool-live-writer", daemon=True)
        self._thread.start()

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait in memory."""
        return self._bytes_in - self._bytes_out

    def put(self, kind: str, size: int, make: Callable[[], dict[str, Any]]) -> bool:
        """Queue a line; False if it was dropped because the queue is full or writing has failed."""
        size += ITEM_BYTES
        pending = self._bytes_in - self._bytes_out + size
        if pending > self.limit or self.failure is not None:
            self.lost[kind] = self.lost.get(kind, 0) + 1
            self._lost_since[kind] = self._lost_since.get(kind, 0) + 1
            return False
        self._note_losses()
        self._bytes_in += size
        self._queue.append((kind, size, make))
        self.peak_bytes = max(self.peak_bytes, pending)
        if pending > self.limit / 4:
            self._wake.set()
        return True

    def _note_losses(self) -> None:
        """A line for what was dropped since the last one; it takes no part in the accounting, being rare."""
        if self._lost_since:
            lost, self._lost_since = self._lost_since, {}
            self._queue.append(("lost", 0, lambda: {"lost": lost}))

    def close(self, make_end: Callable[[], dict[str, Any]], timeout_s: float = 10.0) -> None:
        """Write what waits and a last line, and give the file its final name."""
        if self._ending:
            return
        self._note_losses()
        self._queue.append(("end", 0, make_end))
        self._ending = True
        self._wake.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while True:
                self._wake.wait(self._flush_s)
                self._wake.clear()
                ending = self._ending
                self._drain()
                self.cpu_ns = time.thread_time_ns()
                if ending:
                    break
            self._finish()
        except Exception as exc:
            self.failure = f"{type(exc).__name__}: {exc}"
            self._queue.clear()
            if not isinstance(exc, OSError):
                self._note_failure()
            with suppress(OSError):
                self._file.close()

    def _finish(self) -> None:
        self._file.close()
        os.rename(self._file.name, self.final)
        _sync_folder(self.final.parent)

    def _note_failure(self) -> None:
        """The file's last line says why it ends."""
        line = json.dumps({"kind": "error", "text": f"the writer stopped: {self.failure}"}) + "\n"
        with suppress(OSError):
            self._append(gzip.compress(line.encode(), self._level, mtime=0))
            self._finish()

    def _drain(self) -> None:
        """Write all that waits, in members of a few MB."""
        while self._queue:
            lines: list[bytes] = []
            length = size = 0
            while self._queue and length < _MEMBER_BYTES:
                kind, cost, make = self._queue.popleft()
                lines.append(json.dumps({"kind": kind} | make(), separators=(",", ":")).encode() + b"\n")
                length += len(lines[-1])
                size += cost
            self._append(gzip.compress(b"".join(lines), self._level, mtime=0))
            self._bytes_out += size

    def _append(self, member: bytes) -> None:
        start = self._file.tell()
        try:
            self._file.write(member)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            # a member that is cut off would hide nothing, but the file should end with a whole one
            os.ftruncate(self._file.fileno(), start)
            raise


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
