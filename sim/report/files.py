"""Writing reports: whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from sim.errors import InputError
from sim.results import OutputError, write_bytes


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it into place.

    Raises:
        InputError: `path` is a folder, or its folder is a file.
        OutputError: the operating system refused; nothing is left behind.
    """
    if path.is_dir():
        raise InputError("this is a folder, not a file to write to", str(path), hint="name a file in it")
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        write_bytes(temporary, data)
        os.replace(temporary, path)
    except OSError as e:
        raise OutputError(
            f"the report can't be written: {e.strerror or e}", str(path), hint="nothing was written there"
        ) from e
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write several files into a folder, each of them whole; other files there stay.

    Raises:
        InputError, OutputError: as `write_whole`.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError("this is a file, not a folder for results", str(folder), hint="choose another --out")
    for name, data in files.items():
        write_whole(folder / name, data)
