"""A run folder, read back for reports and comparisons."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.columns import REQUESTS
from sim.errors import InputError
from workloads.units import parse_duration

Rows = Mapping[str, NDArray[Any]]

#: What readers of a run ask its files for without further ado.
_SUMMARY = (
    *("name", "content_id", "seed", "exit_reason", "simulated_s", "warmup_s", "steps", "engine", "requests"),
    *("usage", "internal_fragmentation", "external_fragmentation", "free_runs", "num_running", "num_waiting"),
    *("waste", "table_contiguity", "prefix_cache", "preemptions", "admissions_refused", "latency"),
    *("throughput", "worst_moment", "most_waste"),
)
_PROVENANCE = ("content_id", "seed", "config_file", "workload", "core_digest", "version")

_HINT = "give the folder that `python -m sim run` wrote, such as runs/NAME-CONTENTID"


@dataclass
class RunFolder:
    """What a run wrote.

    Attributes:
        path: the folder.
        summary: summary.json.
        provenance: provenance.json.
        config: config.yaml as plain data.
        requests: columns of requests.parquet, arrays of one length.
        problems: of a recording, what went wrong while it was made.
        replica: of a fleet, where all of this is that one's own.
    """

    path: Path
    summary: Mapping[str, Any]
    provenance: Mapping[str, Any]
    config: Mapping[str, Any]
    requests: Rows
    _steps: Rows | None = None
    problems: Sequence[str] = ()
    replica: int | None = None

    @property
    def steps(self) -> Rows:
        """Columns of steps.parquet, read when they are first wanted.

        Raises:
            InputError: the file can't be read.
        """
        if self._steps is None:
            self._steps = _parquet(self.path / "steps.parquet")
        return self._steps

    def adopt_steps(self, steps: Rows) -> None:
        """Take the rows that somebody else has read, so that long runs are held once."""
        self._steps = steps

    @property
    def end_ns(self) -> int:
        """Simulated nanoseconds of the run."""
        return round(self.summary["simulated_s"] * 1e9)

    @property
    def warmup_ns(self) -> int:
        """Nanoseconds left out of time-weighted numbers."""
        return round(self.summary["warmup_s"] * 1e9)


def read_run(folder: str | Path) -> RunFolder:
    """Read a run folder.

    Raises:
        InputError: it is none, or a file of it is missing or broken.
    """
    path = Path(folder)
    name = str(folder)
    if not path.exists():
        raise InputError("there is no such folder", name, hint=_HINT)
    if not path.is_dir():
        raise InputError("this is a file, not a run folder", name, hint=_HINT)
    missing = [
        f
        for f in ("provenance.json", "summary.json", "config.yaml", "steps.parquet", "requests.parquet")
        if not (path / f).is_file()
    ]
    if missing and (path / "recording.json").is_file():
        hint = "open its report.html, or simulate its config.yaml with `python -m sim run`"
        raise InputError("this is the report of a replay, not a run folder", name, hint=hint)
    if missing:
        raise InputError(f"this is not a run folder: it has no {', '.join(missing)}", name, hint=_HINT)
    _rows_in(path / "steps.parquet")
    summary, provenance = _json(path / "summary.json"), _json(path / "provenance.json")
    require_keys(summary, _SUMMARY, path / "summary.json")
    require_keys(provenance, _PROVENANCE, path / "provenance.json")
    requests = _parquet(path / "requests.parquet")
    require_keys(requests, tuple(REQUESTS), path / "requests.parquet")
    return RunFolder(path, summary, provenance, _yaml(path / "config.yaml"), requests)


def require_keys(found: Mapping[str, Any], wanted: Sequence[str], file: Path) -> None:
    """Refuse a file of a run that lacks something.

    Raises:
        InputError: it does; another version of kvpool may have written it.
    """
    missing = [key for key in wanted if key not in found]
    if missing:
        raise InputError(
            f"this file of the run has no {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}",
            str(file),
            hint="another version of kvpool has written it, or it was changed: run it again",
        )


def _json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise InputError(f"this file of the run can't be read: {e}", str(file), hint="run it again") from e
    if not isinstance(data, dict):
        raise InputError("this file of the run holds no JSON object", str(file), hint="run it again")
    return data


def _yaml(file: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        data = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError) as e:
        why = str(e).splitlines()[0]
        raise InputError(f"this file of the run can't be read: {why}", str(file), hint="run it again") from e
    if not isinstance(data, dict):
        raise InputError("this file of the run holds no section of keys", str(file), hint="run it again")
    return data


def _rows_in(file: Path) -> int:
    """Rows of a Parquet file, by its footer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(file).num_rows)
    except (OSError, pa.ArrowException) as e:
        raise _unreadable(file, e) from e


def _unreadable(file: Path, e: Exception) -> InputError:
    why = str(e).splitlines()[0]
    return InputError(f"this file of the run can't be read: {why}", str(file), hint="run it again")


def read_rows(file: Path) -> dict[str, NDArray[Any]]:
    """Columns of a Parquet file of a run.

    Raises:
        InputError: it can't be read.
    """
    return _parquet(file)


def _parquet(file: Path) -> dict[str, NDArray[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as e:
        raise _unreadable(file, e) from e
    return {name: np.asarray(table.column(name).to_numpy()) for name in table.column_names}


def parse_time(text: str, end_ns: int, option: str) -> int:
    """An instant of a run that ends at `end_ns` ("12.5s", "3min", seconds without a unit), in ns.

    Raises:
        InputError: not a time, or one that lies beyond the run's end.
    """
    from sim.report.units import seconds

    value: str | float = text
    with contextlib.suppress(ValueError):
        value = float(text)
    try:
        ns = parse_duration(value)
    except ValueError as e:
        raise InputError(str(e), option) from None
    if ns > end_ns:
        raise InputError(
            f"{text} lies beyond the end, which is at {seconds(end_ns / 1e9)}",
            option,
            hint=f"choose a time from 0s to {end_ns / 1e9:.6g}s",
        )
    return ns
