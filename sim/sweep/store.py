"""The folder of a sweep: one file a point, each written whole, and what is made of them at the end.

    sweep.json           marks the folder as a sweep's, with its name
    points/ID.json.gz    a point with one seed: its summary and curves
    traces.json          what is known of the workloads, so that a finished sweep builds none again
    traces/HASH/*.npy    arrays of the workloads while the sweep runs
    points.parquet ...   the results; see docs/sweep.md

A process that dies at any moment leaves whole files only (and perhaps a hidden temporary one, which the next
start removes), so the same command goes on where it was.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError
from sim.results import OutputError, to_json, write_bytes
from sim.sweep.point import Result
from sim.sweep.traces import TraceInfo

MARK = "sweep.json"
_OWN = {"points", "plots", "traces"}


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    """Numbers for JSON; not-a-number becomes null."""
    known = values.tolist()
    return [None if math.isnan(v) else v for v in known] if np.isnan(values).any() else known


class Store:
    """An open sweep folder; only one process has it at a time. Use as a context manager.

    Args:
        folder: made if it is not there.
        name: of the sweep.
        finals: names of the files that `write` will write.

    Raises:
        InputError: the folder holds something else, or another process works in it.
        OutputError: it can't be made.
    """

    def __init__(self, folder: Path, name: str, finals: frozenset[str]) -> None:
        self.folder = folder
        self.cache = folder / "traces"
        self._points = folder / "points"
        self._lock: IO[bytes] | None = None
        self._check(name, finals)
        with self._writing():
            self._points.mkdir(parents=True, exist_ok=True)
            self.cache.mkdir(exist_ok=True)
        self._take_lock()
        with self._writing():
            self._sweep_up()
            if not (folder / MARK).exists():
                self._put(folder / MARK, to_json({"tool": "kvpool", "kind": "sweep", "name": name}))
        self._traces = self._read_traces()

    def _check(self, name: str, finals: frozenset[str]) -> None:
        folder, shown = self.folder, str(self.folder)
        for parent in folder.parents:
            if parent.exists():
                if not parent.is_dir():
                    raise InputError(f"'{parent}' is a file, so no folder can be made in it", shown)
                break
        if not folder.exists():
            return
        if not folder.is_dir():
            raise InputError("this is a file, not a folder for results", shown, hint="choose another --out")
        found = {p.name for p in folder.iterdir()}
        if not found - {".lock", "points", "traces"}:
            return
        try:
            mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
            ours = (mark["tool"], mark["kind"]) == ("kvpool", "sweep")
        except (OSError, ValueError, KeyError, TypeError):
            ours, mark = False, {}
        others = sorted(
            n for n in found - finals - _OWN - {MARK, "traces.json", ".lock"} if not n.startswith(".")
        )
        if not ours or others:
            named = ", ".join(others[:3]) or ", ".join(sorted(found)[:3])
            raise InputError(
                f"the folder holds files that no sweep has written ({named})",
                shown,
                hint="nothing was overwritten: choose another --out, or move those files",
            )
        if mark["name"] != name:
            raise InputError(
                f"the folder is that of another sweep, '{mark['name']}'", shown, hint="choose another --out"
            )

    def _take_lock(self) -> None:
        import fcntl

        try:
            self._lock = open(self.folder / ".lock", "ab")  # noqa: SIM115 (held until the sweep ends)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise InputError(
                "another sweep is at work in this folder",
                str(self.folder),
                hint="wait for it, or choose another --out",
            ) from None
        except OSError as e:
            raise self._refused(e) from e

    def _sweep_up(self) -> None:
        """Temporary files of a process that died."""
        for place in (self.folder, self._points, self.cache):
            for left in place.glob(".*.tmp-*"):
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # ---- points ----

    def load(self, point_id: str) -> Result | None:
        """A finished point; None if it is not there (or damaged)."""
        try:
            data = json.loads(gzip.decompress((self._points / f"{point_id}.json.gz").read_bytes()))
            curves = {
                k: np.array([np.nan if v is None else v for v in values], np.float64)
                for k, values in data["curves"].items()
            }
            return Result(data["summary"], curves, data["wall_s"], data["worker"])
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def save(self, point_id: str, result: Result) -> None:
        """Keep a finished point.

        Raises:
            OutputError: the operating system refused; every point that was kept before is still there.
        """
        curves = {k: _plain(v) for k, v in result.curves.items()}
        data = {"summary": result.summary, "curves": curves, "wall_s": result.wall_s, "worker": result.worker}
        text = json.dumps(data, separators=(",", ":"), allow_nan=False)
        with self._writing():
            self._put(self._points / f"{point_id}.json.gz", gzip.compress(text.encode(), 5, mtime=0))

    # ---- workloads ----

    def _read_traces(self) -> dict[str, TraceInfo]:
        try:
            data = json.loads((self.folder / "traces.json").read_text(encoding="utf-8"))
            return {k: TraceInfo(**v) for k, v in data.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def trace(self, key: str) -> TraceInfo | None:
        """What an earlier start has learnt of a workload."""
        return self._traces.get(key)

    def add_traces(self, found: Mapping[str, TraceInfo]) -> None:
        """Remember workloads by their keys."""
        if not found:
            return
        self._traces |= found
        data = {k: vars(v) for k, v in sorted(self._traces.items())}
        with self._writing():
            self._put(self.folder / "traces.json", to_json(data))

    def drop_arrays(self) -> None:
        """Remove the workloads' arrays, which only a running sweep needs."""
        for left in self.cache.glob("*"):
            shutil.rmtree(left, ignore_errors=True)

    # ---- results ----

    def write(self, files: Mapping[str, bytes | Callable[[], bytes]]) -> None:
        """Write files, each of them whole.

        Raises:
            OutputError: the operating system refused.
        """
        for name, content in files.items():
            data = content() if callable(content) else content
            with self._writing():
                self._put(self.folder / name, data)

    def _put(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        try:
            write_bytes(temporary, data)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    @contextlib.contextmanager
    def _writing(self) -> Any:
        try:
            yield
        except OSError as e:
            raise self._refused(e) from e

    def _refused(self, e: OSError) -> OutputError:
        return self.refused(e.strerror or str(e))

    def refused(self, why: str) -> OutputError:
        """The operating system's refusal as an error for the user."""
        return OutputError(
            f"the results can't be written: {why}",
            str(self.folder),
            hint="finished points are kept there: make room and give the same command again",
        )
