"""Reading files, whole or line by line, and writing them whole, with errors that say where and what to do."""

from __future__ import annotations

import codecs
import contextlib
import difflib
import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from workloads.errors import WorkloadError

GZIP_MAGIC = b"\x1f\x8b"
_READ = 1 << 20


@dataclass(frozen=True)
class Content:
    """A file read whole."""

    path: Path
    data: bytes
    """Its bytes, decompressed."""
    sha256: str
    """Hex digest of the file as it lies on disk."""

    def lines(self) -> list[str]:
        """Its lines without their ends; a byte-order mark is dropped.

        Raises:
            WorkloadError: a byte is not UTF-8, with its line and column.
        """
        try:
            return self.data.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
        except UnicodeDecodeError as error:
            line = self.data.count(b"\n", 0, error.start) + 1
            column = error.start - (self.data.rfind(b"\n", 0, error.start) + 1) + 1
            raise _not_text(self.data[error.start], self.path, line, column) from None


def resolve(path: str | Path, base_dir: str | Path | None = None) -> Path:
    """The existing file that `path` names: beside `base_dir` if it is there, else in the working folder.

    Raises:
        WorkloadError: there is no such file; the message names near misses in the same folder.
    """
    given = Path(path).expanduser()
    places = [given] if base_dir is None or given.is_absolute() else [Path(base_dir) / given, given]
    try:
        for place in places:
            if place.is_file():
                return place
        for place in places:
            if place.is_dir():
                raise WorkloadError("is a folder; name a file in it", place)
    except OSError as error:
        raise WorkloadError(f"cannot be read: {error.strerror}", path) from error
    looked = list(dict.fromkeys(str(place) for place in places))
    siblings: set[str] = set()
    for place in places:
        with contextlib.suppress(OSError):
            siblings.update(os.listdir(place.parent))
    near = difflib.get_close_matches(given.name, sorted(siblings), n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    if not near and not any(place.parent.is_dir() for place in places):
        hint = f"; there is no folder {places[-1].parent} either"
    also = f" (nor {looked[0]})" if len(looked) > 1 else ""
    raise WorkloadError(f"no such file{also}{hint}", path)


def read(path: str | Path, base_dir: str | Path | None = None) -> Content:
    """Read a file whole, decompressing it if it is gzip (by its first bytes, whatever its name).

    Raises:
        WorkloadError: missing, unreadable, empty, or a gzip file that is truncated or damaged.
    """
    found = resolve(path, base_dir)
    with _reading(found):
        raw = found.read_bytes()
        data = gzip.decompress(raw) if raw.startswith(GZIP_MAGIC) else raw
    if not data.strip():
        raise WorkloadError("the file is empty; a trace needs at least one request", found)
    return Content(found, data, hashlib.sha256(raw).hexdigest())


class LineFile:
    """A text file, gzip or not, whose lines are read as they are asked for.

    Args:
        path: an existing file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest = hashlib.sha256()

    def sha256(self) -> str:
        """Hex digest of the file as it lies on disk, once all lines have been read."""
        return self._digest.hexdigest()

    def lines(self) -> Iterator[str]:
        """Its lines without their ends, to be gone through once; a byte-order mark is dropped.

        Raises:
            WorkloadError: as `read` and `Content.lines`.
        """
        empty = True
        with _reading(self.path), self.path.open("rb") as raw:
            packed = raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            raw.seek(0)
            hashed = io.BufferedReader(_Hashed(raw, self._digest), _READ)
            opened: Iterable[bytes] = gzip.GzipFile(fileobj=hashed) if packed else hashed
            for number, line in enumerate(opened, 1):
                text = _decoded(line, self.path, number)
                empty = empty and not text.strip()
                yield text
        if empty:
            raise WorkloadError("the file is empty; a trace needs at least one request", self.path)


def _decoded(line: bytes, path: Path, number: int) -> str:
    line = line.removesuffix(b"\n").removesuffix(b"\r") if line.endswith(b"\n") else line
    try:
        return line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode()
    except UnicodeDecodeError as error:
        raise _not_text(error.object[error.start], path, number, error.start + 1) from None


def _not_text(byte: int, path: Path, line: int, column: int) -> WorkloadError:
    return WorkloadError(f"byte 0x{byte:02x} is not UTF-8 text; is this a trace file?", path, line, column)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Within: what goes wrong with the file itself is told as a `WorkloadError`."""
    try:
        yield
    except EOFError:
        raise WorkloadError("the gzip file is truncated; fetch or write it again", path) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise WorkloadError(f"the gzip file is damaged ({error}); fetch or write it again", path) from None
    except OSError as error:
        raise WorkloadError(f"cannot be read: {error.strerror or error}", path) from error


class _Hashed(io.RawIOBase):
    """Hashes what is read of a file."""

    def __init__(self, raw: BinaryIO, digest: Any) -> None:
        self._raw, self._digest = raw, digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(len(buffer))
        self._digest.update(data)
        buffer[: len(data)] = data
        return len(data)


def write_whole(path: str | Path, write: Callable[[Path], None]) -> None:
    """Write a file whole or not at all.

    Args:
        path: where it shall be; an existing file is replaced.
        write: writes the content to the temporary path it is given, in the same folder.

    Raises:
        WorkloadError: the file cannot be written (no folder, no right, no space); nothing is left behind.
    """
    final = Path(path)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, final)
    except OSError as error:
        raise WorkloadError(
            f"cannot be written: {error.strerror or error}; nothing was written", path
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
