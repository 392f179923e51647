"""The run folder: written whole or not at all.

Everything is written to a hidden folder beside the target, synced, and renamed into place. Files other than
provenance.json hold no time and no path of the machine: the same config and seed give the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOOL = "kvpool"
FORMAT = "1"


class OutputError(InputError):
    """The results could not be written: a full disk, no permission. Nothing is left behind."""


def run_folder(out: str | Path | None, name: str, content: str) -> Path:
    """The folder of a run: `out`, or runs/NAME-CONTENTID."""
    return Path(out) if out is not None else Path("runs") / f"{name}-{content[:8]}"


def check_target(folder: Path) -> None:
    """Refuse to replace anything but an earlier run's own files.

    Raises:
        InputError: `folder` is a file, or holds files that no run has written; it can't be made.
    """
    name = str(folder)
    try:
        there = folder.exists()
        parent = folder.parent
        while not parent.exists():
            parent = parent.parent
    except OSError as e:
        raise output_error(folder, e) from e
    if not there:
        if not parent.is_dir():
            raise InputError(f"'{parent}' is a file, so no folder can be made in it", name)
        if not os.access(parent, os.W_OK | os.X_OK):
            raise InputError(f"nothing can be written in '{parent}'", name, hint="choose another --out")
        return
    if not folder.is_dir():
        raise InputError("this is a file, not a folder for results", name, hint="choose another --out")
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    if not found:
        return
    try:
        record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        own = set(record["files"]) | {"provenance.json"} if record["tool"] == TOOL else set()
    except (OSError, ValueError, KeyError, TypeError):
        own = set()
    others = sorted(found - own)
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise InputError(
            f"the folder holds files that no earlier run has written ({shown})",
            name,
            hint="nothing was overwritten: choose another --out, or move those files",
        )


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill; it takes `folder`'s place when the block ends, or vanishes if it raises.

    Raises:
        OutputError: the operating system refused (full disk, permissions).
    """
    temporary = folder.parent / f".{folder.name}.tmp-{os.getpid()}"
    aside = folder.parent / f".{folder.name}.old-{os.getpid()}"
    try:
        made = _make_parents(folder.parent)
    except OSError as e:
        raise output_error(folder, e) from e
    remove_orphans(folder, "tmp")
    done = False
    try:
        temporary.mkdir()
        yield temporary
        _sync(temporary)
        if folder.exists():
            os.rename(folder, aside)
        try:
            os.rename(temporary, folder)
        except OSError:
            if aside.exists():
                os.rename(aside, folder)
            raise
        done = True
        _sync(folder.parent)
    except OSError as e:
        raise output_error(folder, e) from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if done:
            shutil.rmtree(aside, ignore_errors=True)
            remove_orphans(folder, "old")
        else:
            for parent in reversed(made):
                with contextlib.suppress(OSError):
                    parent.rmdir()


def remove_orphans(folder: Path, kind: str) -> None:
    """Hidden folders beside `folder` that a process left when it was killed."""
    start = f".{folder.name}.{kind}-"
    for left in folder.parent.iterdir():
        pid = left.name.removeprefix(start)
        if left.name.startswith(start) and pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _make_parents(folder: Path) -> list[Path]:
    """Make missing parent folders; returns those made, outermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    made = []
    for parent in reversed(missing):
        parent.mkdir(exist_ok=True)
        made.append(parent)
    return made


def output_error(folder: Path, e: OSError) -> OutputError:
    """What a failed write is told as."""
    why = e.strerror or str(e)
    return OutputError(
        f"the results can't be written: {why}", str(folder), hint="nothing was left behind; try another --out"
    )


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Write and sync one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def to_json(data: Any) -> bytes:
    """JSON with stable text: keys in their order, shortest exact floats."""
    return (json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def to_yaml(data: Mapping[str, Any], header: str) -> bytes:
    """YAML of plain data below a comment."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="rt", pure=True)
    yaml.default_flow_style = False
    yaml.width = 100
    # ruamel writes an empty value for null; `null` is what the docs say.
    yaml.representer.add_representer(
        type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    text = io.StringIO()
    yaml.dump(dict(data), text)
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    return (comment + text.getvalue()).encode()


#: Rows of a row group: a file that is written part by part has the bytes of one that is written at once.
ROW_GROUP = 1 << 17


class ParquetFile:
    """A Parquet file (zstd) that grows row group by row group; fields carry `unit` and `description`.

    Args:
        sink: path, or an Arrow output stream.
        known: name -> (unit, description).
        metadata: of the whole file.

    Raises:
        OSError: it can't be written.
    """

    def __init__(self, sink: Any, known: Mapping[str, tuple[str, str]], metadata: Mapping[str, str]) -> None:
        self._sink = sink
        self._known = known
        self._metadata = {f"{TOOL}.{k}": v for k, v in metadata.items()}
        self._writer: Any = None
        self._schema: Any = None
        self._waiting: list[Any] = []
        self._rows = 0

    def add(self, columns: Mapping[str, NDArray[np.generic]]) -> None:
        """Append rows: arrays of one length; those in `known` come first, in its order."""
        import pyarrow as pa

        names = [n for n in self._known if n in columns] + [n for n in columns if n not in self._known]
        arrays = [pa.array(columns[name]) for name in names]
        if self._schema is None:
            fields = []
            for name, array in zip(names, arrays, strict=True):
                unit, text = self._known.get(name, ("", ""))
                fields.append(pa.field(name, array.type, False, {"unit": unit, "description": text}))
            self._schema = pa.schema(fields, metadata=self._metadata)
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        self._waiting.append(table)
        self._rows += table.num_rows
        while self._rows >= ROW_GROUP:
            whole = pa.concat_tables(self._waiting)
            self._write(whole.slice(0, ROW_GROUP))
            self._waiting = [whole.slice(ROW_GROUP)]
            self._rows -= ROW_GROUP

    def close(self) -> None:
        """Write what is left, and the footer; `add` must have been called."""
        import pyarrow as pa

        if self._rows or self._writer is None:
            self._write(pa.concat_tables(self._waiting))
        self._writer.close()

    def abandon(self) -> None:
        """Close without caring for what the file holds."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()

    def _write(self, table: Any) -> None:
        import pyarrow.parquet as pq

        if self._writer is None:
            self._writer = pq.ParquetWriter(self._sink, self._schema, compression="zstd")
        self._writer.write_table(table.combine_chunks(), row_group_size=ROW_GROUP)


def to_parquet(
    columns: Mapping[str, NDArray[np.generic]],
    known: Mapping[str, tuple[str, str]],
    metadata: Mapping[str, str],
) -> bytes:
    """The bytes of a `ParquetFile` with these columns."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    file = ParquetFile(sink, known, metadata)
    file.add(columns)
    file.close()
    return sink.getvalue().to_pybytes()


def _move(file: Path, target: Path) -> str:
    """Move a file and sync it; returns its SHA-256."""
    os.replace(file, target)
    digest = hashlib.sha256()
    with open(target, "rb+") as f:
        while block := f.read(1 << 20):
            digest.update(block)
        os.fsync(f.fileno())
    return digest.hexdigest()


def write_run(
    folder: Path,
    files: Mapping[str, bytes | Callable[[], bytes] | Path],
    provenance: Mapping[str, Any],
) -> None:
    """Write all files of a run, then provenance.json with the SHA-256 of each.

    Args:
        folder: the run folder; an earlier run there is replaced.
        files: path in the folder -> content, or a function that makes it, or a file that is moved there.
        provenance: everything else that provenance.json holds.

    Raises:
        InputError: see `check_target`.
        OutputError: the operating system refused; nothing is left behind.
    """
    check_target(folder)
    with whole_folder(folder) as place:
        digests = {}
        for name, content in files.items():
            if isinstance(content, Path):
                digests[name] = _move(content, place / name)
                continue
            data = content() if callable(content) else content
            write_bytes(place / name, data)
            digests[name] = hashlib.sha256(data).hexdigest()
        record = {"tool": TOOL, "format": FORMAT, **provenance, "files": digests}
        write_bytes(place / "provenance.json", to_json(record))
        for sub in sorted({(place / name).parent for name in files}):
            _sync(sub)
