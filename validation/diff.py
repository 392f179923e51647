"""Compare two step logs row by row: the first difference, and how much differs column by column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sim.errors import InputError, did_you_mean
from validation.steplog import COLUMNS, NOT_COMPARED, num_rows

#: Shown beside the first difference, where both logs have them: enough to see what the engine was doing.
CONTEXT = ("num_running", "num_waiting", "num_free_blocks", "num_scheduled_tokens", "preempted", "finished")


@dataclass(frozen=True)
class FirstDifference:
    """Where two logs part.

    row: 0-based row. column: its name, or "(rows)" when one log ends before the other.
    a, b: both values (None where the log has no such row). at: step, phase and batch_step of the row.
    """

    row: int
    column: str
    a: Any
    b: Any
    at: dict[str, Any]
    context_a: dict[str, Any]
    context_b: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """The result of comparing logs A and B.

    differing: column -> number of rows (of the rows both have) that differ; only columns that differ.
    only_in_a, only_in_b: compared columns that just one of the logs has.
    """

    rows_a: int
    rows_b: int
    columns: tuple[str, ...]
    differing: dict[str, int] = field(default_factory=dict)
    first: FirstDifference | None = None
    only_in_a: tuple[str, ...] = ()
    only_in_b: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Same rows, same columns, same values."""
        return self.first is None and not self.only_in_a and not self.only_in_b

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `validation diff --json` prints it."""
        return {
            "equal": self.equal,
            "rows_a": self.rows_a,
            "rows_b": self.rows_b,
            "columns": list(self.columns),
            "differing": self.differing,
            "only_in_a": list(self.only_in_a),
            "only_in_b": list(self.only_in_b),
            "first": None if self.first is None else dict(vars(self.first)),
        }

    def summary(self) -> str:
        """One line: `equal` or the first difference."""
        if self.first is not None:
            at = self.first.at
            where = f"row {self.first.row} (step {at['step']} {at['phase']}, batch {at['batch_step']})"
            if self.first.column == "(rows)":
                return f"{where}: only in {'A' if self.first.b is None else 'B'}"
            return f"{where} {self.first.column}: {self.first.a} != {self.first.b}"
        if not self.equal:
            return f"columns only in A: {list(self.only_in_a)}, only in B: {list(self.only_in_b)}"
        return f"equal: {self.rows_a} rows, {len(self.columns)} columns"


def compare(
    a: Mapping[str, Sequence[Any]], b: Mapping[str, Sequence[Any]], columns: Iterable[str] | None = None
) -> Comparison:
    """Compare two logs in memory.

    columns: the ones to compare (default: every column of the contract but `NOT_COMPARED`).
    Raises InputError for a name that is no column.
    """
    chosen = _chosen(columns)
    common = tuple(name for name in chosen if name in a and name in b)
    n_a, n_b = num_rows(a), num_rows(b)
    both = min(n_a, n_b)
    differing: dict[str, int] = {}
    first_row, first_column = both, "(rows)"
    for name in common:
        bad = [i for i in range(both) if a[name][i] != b[name][i]]
        if bad:
            differing[name] = len(bad)
            if bad[0] < first_row:
                first_row, first_column = bad[0], name
    first = None
    if first_row < max(n_a, n_b):
        first = _describe(a, b, first_row, first_column)
    return Comparison(
        rows_a=n_a,
        rows_b=n_b,
        columns=common,
        differing=differing,
        first=first,
        only_in_a=tuple(name for name in chosen if name in a and name not in b),
        only_in_b=tuple(name for name in chosen if name in b and name not in a),
    )


def _describe(
    a: Mapping[str, Sequence[Any]], b: Mapping[str, Sequence[Any]], row: int, column: str
) -> FirstDifference:
    def values(log: Mapping[str, Sequence[Any]], names: Iterable[str]) -> dict[str, Any]:
        return {name: log[name][row] for name in names if name in log} if row < num_rows(log) else {}

    keys = ("step", "phase", "batch_step")
    at_a, at_b = values(a, keys), values(b, keys)
    if column == "(rows)":
        cell_a, cell_b = at_a or None, at_b or None
    else:
        cell_a, cell_b = a[column][row], b[column][row]
    return FirstDifference(row, column, cell_a, cell_b, at_a or at_b, values(a, CONTEXT), values(b, CONTEXT))


def _chosen(columns: Iterable[str] | None) -> tuple[str, ...]:
    if columns is None:
        return tuple(name for name in COLUMNS if name not in NOT_COMPARED)
    wanted = tuple(columns)
    for name in wanted:
        if name not in COLUMNS:
            hint = did_you_mean(name, COLUMNS)
            raise InputError(f"no column {name!r} in a step log", "--columns", hint=hint)
    return wanted


def render(comparison: Comparison, name_a: str, name_b: str) -> str:
    """The comparison as text for a terminal."""
    c = comparison
    lines = [f"A: {name_a} ({c.rows_a} rows)", f"B: {name_b} ({c.rows_b} rows)"]
    if c.equal:
        return "\n".join([*lines, f"equal in {len(c.columns)} columns of {c.rows_a} rows"])
    for side, names in (("A", c.only_in_a), ("B", c.only_in_b)):
        if names:
            lines.append(f"columns only in {side}: {', '.join(names)}")
    if c.first is not None:
        f = c.first
        where = f"row {f.row}: step {f.at['step']}, phase {f.at['phase']}, batch_step {f.at['batch_step']}"
        if f.column == "(rows)":
            side, rest = ("A", c.rows_a - f.row) if f.b is None else ("B", c.rows_b - f.row)
            lines.append(f"the rows are equal until only {side} goes on, for {rest} rows, from {where}")
        else:
            lines += [f"first difference: {where}, column {f.column}", f"  A: {f.a}", f"  B: {f.b}"]
            for side, context in (("A", f.context_a), ("B", f.context_b)):
                lines.append(f"  {side} there: " + ", ".join(f"{k}={v}" for k, v in context.items()))
    if c.differing:
        both = min(c.rows_a, c.rows_b)
        lines.append(f"rows that differ, of the {both} that both have:")
        width = max(map(len, c.differing))
        lines += [f"  {name:<{width}}  {count}" for name, count in c.differing.items()]
    return "\n".join(lines)
