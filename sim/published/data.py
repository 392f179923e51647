"""Where the public traces and the configs of the published runs lie."""

from __future__ import annotations

import os
from pathlib import Path

from sim.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def trace_path(name: str, given: str | None = None) -> Path:
    """A trace file: as given, or ``name`` in the folder KVPOOL_DATA, else in ``../shared/data``.

    Raises:
        InputError: there is no such file.
    """
    folder = os.environ.get("KVPOOL_DATA")
    path = Path(given) if given else (Path(folder) if folder else ROOT.parent / "shared" / "data") / name
    if not path.is_file():
        raise InputError(
            "no such trace file",
            str(path),
            hint="give its path with --trace, or its folder in KVPOOL_DATA; README.md says where to get it",
        )
    return path


def config_path(name: str) -> Path:
    """A config in configs/published."""
    return ROOT / "configs" / "published" / name
