"""Baseline files: CSV with a header of comments, for people and diffs.

    # kvpool baseline 1
    # config: chat.yaml
    # ...
    time_s,usage,internal_fragmentation,...
    5,0.31415,0.01234,...

Every line is checked when it is read, and what is wrong is told with line and column.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim.errors import InputError, did_you_mean
from sim.regression.curves import BY_KEY, FloatArray
from workloads.units import format_duration, parse_duration

FORMAT = "kvpool baseline 1"
_AGAIN = "restore the file, or make it again with `python -m sim baseline update`"
_TIME = "time_s"


@dataclass(frozen=True)
class Provenance:
    """Where a baseline comes from.

    Attributes:
        config: path of the config, relative to the baseline file.
        overrides: `key=value` texts of `--set`; `--seed` is one of them.
        seed: of the workload; for information.
        period_ns: simulated time of a row.
        sample_ns: simulated time between samples; the period is a multiple.
        trace: content hash of the workload.
        requests: of the workload.
        vllm: release whose rules apply.
        core: digest of the core; for information, never compared.
        kvpool: version; for information.
        command: that makes the file again.
    """

    config: str
    overrides: tuple[str, ...]
    seed: int
    period_ns: int
    sample_ns: int
    trace: str
    requests: int
    vllm: str
    core: str
    kvpool: str
    command: str


@dataclass(frozen=True, eq=False)
class Baseline:
    """A baseline: its name, where it comes from, and its curves by key, float64[rows] each."""

    name: str
    provenance: Provenance
    curves: dict[str, FloatArray]

    @property
    def rows(self) -> int:
        """Rows of the curves."""
        return len(next(iter(self.curves.values())))


def _number(value: float, digits: int) -> str:
    if np.isnan(value):
        return ""
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def row_time(row: int, period_ns: int) -> str:
    """Seconds at the end of a row, exactly."""
    return _number((row + 1) * period_ns / 1e9, 9)


def to_text(baseline: Baseline) -> str:
    """The file's text."""
    p = baseline.provenance
    header = [
        FORMAT,
        f"config: {p.config}",
        *(f"set: {text}" for text in p.overrides),
        f"seed: {p.seed}",
        f"period: {format_duration(p.period_ns)}",
        f"sample: {format_duration(p.sample_ns)}",
        f"trace: {p.trace}",
        f"requests: {p.requests}",
        f"vllm: {p.vllm}",
        f"core: {p.core}",
        f"kvpool: {p.kvpool}",
        f"command: {p.command}",
        f"rows: {baseline.rows}",
    ]
    lines = [f"# {line}" for line in header]
    lines.append(",".join([_TIME, *baseline.curves]))
    for i in range(baseline.rows):
        values = (_number(float(v[i]), BY_KEY[k].digits) for k, v in baseline.curves.items())
        lines.append(",".join([row_time(i, p.period_ns), *values]))
    return "\n".join(lines) + "\n"


def read_baseline(path: Path) -> Baseline:
    """Read a baseline file.

    Raises:
        InputError: missing, or damaged, with line and column.
    """
    name = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = did_you_mean(path.stem, [p.stem for p in sorted(path.parent.glob("*.csv"))])
        raise InputError("no such baseline", name, hint=near) from None
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"the baseline can't be read: {e}", name, hint=_AGAIN) from e
    lines = text.split("\n")
    if lines[0] != f"# {FORMAT}":
        raise InputError(f"not a baseline: the first line must be '# {FORMAT}'", name, 1, 1, _AGAIN)
    fields, overrides, at = _header(lines, name)
    provenance, rows = _provenance(fields, overrides, name)
    return Baseline(path.stem, provenance, _table(lines, at, rows, provenance.period_ns, name))


_FIELDS = (
    "config",
    "seed",
    "period",
    "sample",
    "trace",
    "requests",
    "vllm",
    "core",
    "kvpool",
    "command",
    "rows",
)


def _header(lines: list[str], name: str) -> tuple[dict[str, tuple[str, int]], tuple[str, ...], int]:
    """Fields with their lines, overrides, and the index of the line behind the header."""
    fields: dict[str, tuple[str, int]] = {}
    overrides: list[str] = []
    at = 1
    while at < len(lines) and lines[at].startswith("#"):
        match = re.fullmatch(r"# (\w+): (.*)", lines[at])
        if match is None:
            raise InputError("expected '# key: value'", name, at + 1, 1, _AGAIN)
        if match[1] == "set":
            overrides.append(match[2])
        elif match[1] not in _FIELDS:
            hint = did_you_mean(match[1], [*_FIELDS, "set"]) or _AGAIN
            raise InputError(f"unknown key '{match[1]}'", name, at + 1, 3, hint)
        elif match[1] in fields:
            raise InputError(f"the key '{match[1]}' is given twice", name, at + 1, 3, _AGAIN)
        else:
            fields[match[1]] = (match[2], at + 1)
        at += 1
    missing = [key for key in _FIELDS if key not in fields]
    if missing:
        raise InputError(f"the header has no '{missing[0]}'", name, at + 1, 1, _AGAIN)
    return fields, tuple(overrides), at


def _provenance(
    fields: dict[str, tuple[str, int]], overrides: tuple[str, ...], name: str
) -> tuple[Provenance, int]:
    def parsed(key: str, duration: bool) -> int:
        text, line = fields[key]
        try:
            value = parse_duration(text) if duration else int(text)
        except ValueError:
            value = -1
        if value < 0 or (duration and value == 0):
            what = "a duration" if duration else "a whole number"
            raise InputError(f"'{key}' must be {what}, got '{text}'", name, line, len(key) + 5, _AGAIN)
        return value

    texts = {key: text for key, (text, _) in fields.items()}
    provenance = Provenance(
        config=texts["config"],
        overrides=overrides,
        seed=parsed("seed", False),
        period_ns=parsed("period", True),
        sample_ns=parsed("sample", True),
        trace=texts["trace"],
        requests=parsed("requests", False),
        vllm=texts["vllm"],
        core=texts["core"],
        kvpool=texts["kvpool"],
        command=texts["command"],
    )
    if provenance.period_ns % provenance.sample_ns:
        line = fields["period"][1]
        raise InputError("the period is no multiple of the time between samples", name, line, 11, _AGAIN)
    return provenance, parsed("rows", False)


def _table(lines: list[str], at: int, rows: int, period_ns: int, name: str) -> dict[str, FloatArray]:
    if at >= len(lines) or not lines[at]:
        raise InputError("the file ends before the names of the columns", name, at + 1, 1, _AGAIN)
    columns = lines[at].split(",")
    if columns[0] != _TIME:
        raise InputError(f"the first column must be '{_TIME}'", name, at + 1, 1, _AGAIN)
    keys = columns[1:]
    for i, key in enumerate(keys):
        place = 1 + sum(len(c) + 1 for c in columns[: i + 1])
        if key not in BY_KEY:
            hint = did_you_mean(key, BY_KEY) or _AGAIN
            raise InputError(f"unknown curve '{key}'", name, at + 1, place, hint)
        if key in keys[:i]:
            raise InputError(f"the column '{key}' is there twice", name, at + 1, place, _AGAIN)
    if not keys:
        raise InputError("there is no curve", name, at + 1, len(_TIME) + 1, _AGAIN)
    table = np.empty((rows, len(keys)))
    first = at + 1
    body = lines[first:]
    whole = bool(body) and body[-1] == ""
    body = body[:-1] if whole else body
    for i, line in enumerate(body):
        if i >= rows:
            raise InputError(
                f"there are more rows than the {rows} of the header", name, first + i + 1, 1, _AGAIN
            )
        if i == len(body) - 1 and not whole:
            raise InputError(
                f"the last line is not complete: row {i + 1} of {rows}, without a line break",
                name,
                first + i + 1,
                len(line) + 1,
                _AGAIN,
            )
        table[i] = _row(line, i, columns, period_ns, name, first + i + 1)
    if len(body) < rows:
        message = f"the file is not complete: it ends after {len(body)} of {rows} rows"
        raise InputError(message, name, first + len(body) + 1, 1, _AGAIN)
    return {key: table[:, i].copy() for i, key in enumerate(keys)}


def _row(line: str, i: int, columns: list[str], period_ns: int, name: str, number: int) -> list[float]:
    cells = line.split(",")
    if len(cells) != len(columns):
        message = f"{len(cells)} values in a row of {len(columns)} columns"
        raise InputError(message, name, number, 1, _AGAIN)
    if cells[0] != row_time(i, period_ns):
        message = f"the time must be {row_time(i, period_ns)}, got '{cells[0]}': a row is missing or moved"
        raise InputError(message, name, number, 1, _AGAIN)
    out = []
    place = len(cells[0]) + 2
    for cell, column in zip(cells[1:], columns[1:], strict=True):
        if cell and not re.fullmatch(r"-?\d+(\.\d+)?", cell):
            message = f"'{column}' must be a decimal number or empty, got '{cell}'"
            raise InputError(message, name, number, place, _AGAIN)
        out.append(float(cell) if cell else float("nan"))
        place += len(cell) + 1
    return out
