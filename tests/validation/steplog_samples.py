"""Made-up step logs for the tests of files and comparison."""

from __future__ import annotations

from typing import Any

from validation import steplog


def small_log(rows: int = 4) -> steplog.Columns:
    """A log whose values differ from row to row in every column."""
    values: dict[str, Any] = {
        "string": lambda i: steplog.PHASES[i % 2],
        "int64": lambda i: i,
        "uint32": lambda i: 2**32 - 1 - i,
        "list<string>": lambda i: [f"r{k}" for k in range(i % 3)],
        "list<int64>": lambda i: [i, -i],
        "list<uint32>": lambda i: [2**32 - 1, i],
    }
    return {name: [values[kind](i) for i in range(rows)] for name, kind in steplog.COLUMNS.items()}
