"""Azure and BurstGPT traces: CSV files of times and lengths.

Nothing is known of shared prefixes, so nothing is shared: every request has a segment of its own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from workloads.errors import WorkloadError
from workloads.files import Content
from workloads.readers.options import ReadOptions
from workloads.readers.parts import PART, Part, TraceParts, put_together
from workloads.readers.rows import MAX_TIME_NS, Table, tables
from workloads.requests import Int64Array, Workload
from workloads.units import NS_PER_SECOND

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MAX_DAYS = 84_000
BURSTGPT_COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")


def read_azure(content: Content, options: ReadOptions) -> Workload:
    """Read an Azure LLM inference trace; arrivals are relative to the first.

    Raises:
        WorkloadError: a row is broken (file:line:column), or no request is left.
    """
    return _read(Azure(content.path, options), content)


def read_burstgpt(content: Content, options: ReadOptions) -> Workload:
    """Read a BurstGPT trace (times in seconds); rows without response tokens failed: left out, with a note.

    Raises:
        WorkloadError: a row is broken (file:line:column), or no request is left.
    """
    return _read(BurstGPT(content.path, options), content)


def _read(trace: _Unshared, content: Content) -> Workload:
    return put_together(trace, list(trace.parts(iter(content.lines()))), content.sha256)


class _Unshared(TraceParts):
    """A table of requests that share nothing; rows that failed (no output, or no prompt) are left out."""

    #: Columns that the file must have, and what it is called.
    columns: tuple[str, ...]
    what: str
    #: Columns of prompt and output tokens.
    lengths: tuple[str, str]

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        self._rows = self._chosen = self._failed = 0

    def parts(self, lines: Iterator[str]) -> Iterator[Part]:
        for table in tables(self.path, lines, self.columns, self.what, PART):
            prompts, outputs = (table.integers(name) for name in self.lengths)
            times = self.times(table)
            keep = self.keep(table)
            self._rows += len(table)
            prompts, outputs, times = prompts[keep], outputs[keep], times[keep]
            # a segment is named by its row among those that were asked for
            rows = np.arange(self._chosen, self._chosen + len(prompts), dtype=np.int64)
            self._chosen += len(prompts)
            works = (prompts > 0) & (outputs > 0)
            self._failed += int(np.count_nonzero(~works))
            n = int(np.count_nonzero(works))
            lens = prompts[works]
            yield Part(times[works], lens, outputs[works], np.ones(n, dtype=np.int64), rows[works], lens)
        self.check()
        if self._failed == self._chosen:
            message = "no row has a prompt and an output; the trace has no requests"
            raise WorkloadError(message, self.path)

    @abstractmethod
    def times(self, table: Table) -> Int64Array:
        """int64[rows], ns."""

    def keep(self, table: Table) -> NDArray[np.bool_]:
        """bool[rows]: which of them were asked for."""
        return np.ones(len(table), dtype=np.bool_)

    def check(self) -> None:
        """Refuse a file without a row that was asked for."""

    @property
    def notes(self) -> list[str]:
        if not self._failed:
            return []
        return [f"{self._failed} of {self._chosen} rows have no output or no prompt (failed); left out"]


class Azure(_Unshared):
    """An Azure LLM inference trace part by part."""

    name = "azure"
    columns, what = AZURE_COLUMNS, "an Azure trace"
    lengths = ("ContextTokens", "GeneratedTokens")

    def times(self, table: Table) -> Int64Array:
        return _utc_times(table)


class BurstGPT(_Unshared):
    """A BurstGPT trace part by part."""

    name = "burstgpt"
    columns, what = BURSTGPT_COLUMNS, "a BurstGPT trace"
    lengths = ("Request tokens", "Response tokens")

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        asked = (("Model", options.model), ("Log Type", options.log_type))
        self._asked = [(name, wanted) for name, wanted in asked if wanted is not None]
        self._found: dict[str, set[str]] = {name: set() for name, _ in self._asked}
        # rows that have the first value asked for, and those that have both
        self._left = [0] * len(self._asked)

    def times(self, table: Table) -> Int64Array:
        return _second_times(table, "Timestamp")

    def keep(self, table: Table) -> NDArray[np.bool_]:
        keep = super().keep(table)
        for i, (name, wanted) in enumerate(self._asked):
            column = table.text(name)
            self._found[name].update(column)
            keep &= np.array([text == wanted for text in column])
            self._left[i] += int(keep.sum())
        return keep

    def check(self) -> None:
        for (name, wanted), left in zip(self._asked, self._left, strict=True):
            if not left:
                found = ", ".join(sorted(self._found[name]))
                raise WorkloadError(f"no row has {name} {wanted!r}; the file has {found}", self.path)

    @property
    def notes(self) -> list[str]:
        if self._chosen == self._rows:
            return super().notes
        chosen = f"{self._chosen} of {self._rows} rows have the model and log type asked for"
        return [chosen, *super().notes]


def _utc_times(table: Table) -> Int64Array:
    """ns since 1970 of the column TIMESTAMP: a date and a time, "+00:00" or "Z" allowed."""
    texts = [text.strip().removesuffix("+00:00").removesuffix("Z") for text in table.text("TIMESTAMP")]
    for i, text in enumerate(texts):
        if "+" in text or text.count("-") > 2:
            _refuse_time(table, i, "TIMESTAMP", "in UTC (no other time zone is understood)")
    try:
        days = np.array(texts, dtype="datetime64[D]").astype(np.int64)
        bad = (days < -MAX_DAYS) | (days > MAX_DAYS)  # NaT, of an empty text, is far below
        if bad.any():
            _refuse_time(table, int(np.argmax(bad)), "TIMESTAMP", "a date and time between 1740 and 2199")
        times = np.array(texts, dtype="datetime64[ns]")
    except ValueError:
        for i, text in enumerate(texts):
            try:
                np.datetime64(text, "ns")
            except ValueError:
                _refuse_time(table, i, "TIMESTAMP", "a date and time such as 2023-11-16 18:15:46.68")
        raise
    return times.astype(np.int64)


def _second_times(table: Table, name: str) -> Int64Array:
    """ns of a column of seconds."""
    texts = table.text(name)
    try:
        values = np.array(texts, dtype=np.float64)
    except ValueError:
        for i, text in enumerate(texts):
            try:
                float(text)
            except ValueError:
                _refuse_time(table, i, name, "a number of seconds")
        raise
    bad = ~((values >= 0) & (values <= MAX_TIME_NS / NS_PER_SECOND))
    if bad.any():
        _refuse_time(table, int(np.argmax(bad)), name, "a number of seconds of at least 0")
    return np.rint(values * NS_PER_SECOND).astype(np.int64)


def _refuse_time(table: Table, row: int, name: str, wanted: str) -> NoReturn:
    table.refuse(row, name, f"{name} must be {wanted}, got {table.text(name)[row]!r}")
