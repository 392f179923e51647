"""Workloads of a sweep: built once, kept as memory-mapped arrays, loaded once by each process.

A workload is known by two names. Its *key* is made of what it is built from (the `workload:` section, the
seed, the files that it reads and the code that builds it), and can be had without building it. Its *trace
hash* is `Workload.content_hash`, which is part of every content id.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.config_workload import AnyClient, to_workload
from sim.errors import InputError
from sim.resolve import Resolved

if TYPE_CHECKING:
    from workloads.requests import Workload

#: Workloads that a process keeps loaded.
_KEPT = 6
_loaded: dict[str, Workload] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class Trace:
    """How to get a workload.

    Attributes:
        key: hex digest of what it is built from.
        spec: the `workload:` section.
        seed: of everything random in it.
        folder: absolute; relative paths in the section are looked for here first.
        working: absolute; then here.
        cache: folder with the arrays of workloads by their trace hash, absolute.
    """

    key: str
    spec: AnyClient
    seed: int
    folder: str
    working: str
    cache: str


@dataclass(frozen=True)
class TraceInfo:
    """What is known of a workload once it has been built.

    Attributes:
        trace_hash: `Workload.content_hash`.
        period_ns: between sampled rows where the config says `auto`.
        requests: how many.
    """

    trace_hash: str
    period_ns: int
    requests: int


@functools.cache
def _code_digest() -> str:
    """Of the package that builds workloads."""
    import workloads

    root = Path(workloads.__file__).parent
    digest = hashlib.sha256(np.__version__.encode())
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    """SHA-256 of a file, empty if it can't be read (building the workload then says why)."""
    try:
        status = path.stat()
        return _read_digest(path, status.st_mtime_ns, status.st_size)
    except OSError:
        return ""


@functools.cache
def _read_digest(path: Path, _time: int, _size: int) -> str:
    """Of the file as it is at this time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def trace_of(resolved: Resolved, cache: Path) -> Trace:
    """The workload of a run."""
    from workloads.spec.clients import Trace as TraceSpec

    spec = resolved.spec
    data = spec.model_dump(mode="json")
    folder = resolved.folder.resolve()
    files = {p: _file_digest(_found(p, folder)) for p in sorted(_paths(data))}
    # A trace as it stands is the same for every seed.
    seed = 0 if isinstance(spec, TraceSpec) else resolved.seed
    text = json.dumps([data, seed, files, _code_digest()], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()
    return Trace(key, spec, seed, str(folder), os.getcwd(), str(cache.resolve()))


def _found(path: str, folder: Path) -> Path:
    beside = folder / path
    return beside if beside.exists() else Path(path).absolute()


def _paths(node: Any) -> Iterator[str]:
    """Values of all keys called `path`."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "path" and isinstance(value, str):
                yield value
            else:
                yield from _paths(value)
    elif isinstance(node, list):
        for item in node:
            yield from _paths(item)


def build(trace: Trace) -> TraceInfo:
    """Build a workload and leave its arrays in the cache.

    Raises:
        InputError: a file can't be used, or no request comes out.
        OSError: the arrays can't be written.
    """
    from sim.runner import auto_period

    workload = _build(trace)
    info = TraceInfo(workload.content_hash(), auto_period(workload), len(workload))
    _write(Path(trace.cache) / info.trace_hash, workload)
    return info


def load(trace: Trace, info: TraceInfo) -> Workload:
    """The workload, mapped from the cache if it is there, else built.

    Raises:
        InputError: it can't be built here, or comes out otherwise than where the sweep was started.
    """
    with _lock:
        workload = _loaded.get(info.trace_hash)
        if workload is None:
            workload = _read(Path(trace.cache) / info.trace_hash, info.trace_hash)
        if workload is None:
            workload = _build(trace)
            if workload.content_hash() != info.trace_hash:
                raise InputError(
                    "the workload comes out differently in this worker than where the sweep was started",
                    hint="use the same trace files and the same versions of kvpool and numpy everywhere",
                )
        _loaded.pop(info.trace_hash, None)
        _loaded[info.trace_hash] = workload  # the most recently used is the last
        while len(_loaded) > _KEPT:
            _loaded.pop(next(iter(_loaded)))
        return workload


def _build(trace: Trace) -> Workload:
    try:
        return to_workload(trace.spec, trace.seed, trace.folder)
    except InputError:
        # A worker of a cluster may run in another folder than the sweep.
        if trace.working == os.getcwd():
            raise
        return to_workload(trace.spec, trace.seed, trace.working)


def _write(folder: Path, workload: Workload) -> None:
    """Arrays as .npy files in a folder that appears as a whole."""
    from workloads.requests import ARRAY_FIELDS

    if folder.exists():
        return
    temporary = folder.with_name(f".{folder.name[:16]}.tmp-{os.getpid()}-{threading.get_ident()}")
    try:
        temporary.mkdir(parents=True)
        for name in ARRAY_FIELDS:
            np.save(temporary / f"{name}.npy", getattr(workload, name))
        meta = {
            "clock": workload.clock,
            "closed_loop": workload.closed_loop,
            "vocab_size": workload.vocab_size,
            "request_ids": workload.request_ids,
        }
        (temporary / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        with contextlib.suppress(FileExistsError):
            # another process may have been quicker
            temporary.rename(folder)
    except OSError as e:
        if not folder.exists():
            raise e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(folder: Path, trace_hash: str) -> Workload | None:
    """The arrays mapped copy-on-write; None if they are not there, or are not what they should be."""
    from workloads.requests import ARRAY_FIELDS, Workload

    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        arrays: dict[str, Any] = {}
        for name in ARRAY_FIELDS:
            file = folder / f"{name}.npy"
            mapped = np.load(file, mmap_mode="c") if file.stat().st_size > 128 else np.load(file)
            arrays[name] = np.asarray(mapped)
        ids = meta["request_ids"]
        workload = Workload(
            clock=meta["clock"],
            closed_loop=meta["closed_loop"],
            vocab_size=meta["vocab_size"],
            request_ids=None if ids is None else tuple(ids),
            **arrays,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return workload if workload.content_hash() == trace_hash else None
