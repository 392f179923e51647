"""Rows of JSON-lines and CSV traces: parsing, types, and errors that point at the very column."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from workloads.errors import WorkloadError
from workloads.requests import Int64Array

MAX_TOKENS = 2**31 - 1
MAX_TIME_NS = 2**62


class KeyTwiceError(ValueError):
    """A key that is twice in one JSON object, which json would let pass: the last one would count."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key!r} is given twice")
        self.key = key

    def column(self, line: str) -> int:
        """Where the second one stands in its line, from 1."""
        places = [m.start() for m in re.finditer(re.escape(json.dumps(self.key)) + r"\s*:", line)]
        return places[1] + 1 if len(places) > 1 else 1


def keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` for json that refuses a key which is given twice.

    Raises:
        KeyTwiceError: that.
    """
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [key for key, _ in pairs]
        raise KeyTwiceError(next(key for i, key in enumerate(names) if key in names[:i]))
    return row


def json_rows(lines: Iterable[str], path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(line number, text, object) of every line that is not blank.

    Raises:
        WorkloadError: a line is not a JSON object or has a key twice, with file:line:column.
    """
    decode = json.JSONDecoder(object_pairs_hook=keys_once).decode
    for number, line in enumerate(lines, 1):
        if not line or line.isspace():
            continue
        try:
            row = decode(line)
        except json.JSONDecodeError as error:
            raise WorkloadError(
                f"not valid JSON: {error.msg}; every line must hold one JSON object",
                path,
                number,
                error.colno,
            ) from None
        except KeyTwiceError as error:
            raise WorkloadError(f"{error}; leave one out", path, number, error.column(line)) from None
        except RecursionError:
            raise WorkloadError("not a request: brackets nested too deep", path, number, 1) from None
        except ValueError:
            raise WorkloadError("not a request: a number with too many digits", path, number, 1) from None
        if type(row) is not dict:
            raise WorkloadError(
                f"expected a JSON object, got {_kind(row)}; every line must hold one request", path, number, 1
            )
        yield number, line, row


def refuse(message: str, path: Path, number: int, line: str, key: str) -> NoReturn:
    """Raise the error of `key` on a JSON line, at the key's column (1 if the key is not there)."""
    at = line.find(f'"{key}"')
    raise WorkloadError(message, path, number, at + 1 if at >= 0 else 1)


def integer(row: dict[str, Any], key: str, low: int, high: int, path: Path, number: int, line: str) -> int:
    """row[key], an integer in [low, high]."""
    value = row.get(key)
    if type(value) is int and low <= value <= high:
        return value
    if key not in row:
        refuse(f"the key {key!r} is missing", path, number, line, key)
    if type(value) is float and value.is_integer() and low <= value <= high:
        return int(value)
    if type(value) is not int:
        refuse(f"{key} must be an integer, got {_kind(value)}", path, number, line, key)
    return _out_of_range(key, value, low, high, path, number, line)


def encoder_input(row: dict[str, Any], path: Path, number: int, line: str) -> int:
    """Tokens of the encoder's input that the line names, -1: none."""
    if row.get("encoder_tokens") is None:
        return -1
    return integer(row, "encoder_tokens", 0, MAX_TOKENS, path, number, line)


def _out_of_range(key: str, value: int, low: int, high: int, path: Path, number: int, line: str) -> NoReturn:
    wanted = f"at least {low}" if value < low else f"at most {high}"
    refuse(f"{key} must be {wanted}, got {value}", path, number, line, key)


def seconds(row: dict[str, Any], key: str, unit_ns: int, path: Path, number: int, line: str) -> int:
    """row[key], a time in units of `unit_ns`, as integer ns >= 0."""
    value = row.get(key)
    if key not in row:
        refuse(f"the key {key!r} is missing", path, number, line, key)
    if type(value) is not int and type(value) is not float:
        refuse(f"{key} must be a number, got {_kind(value)}", path, number, line, key)
    if not 0 <= value <= MAX_TIME_NS / unit_ns:
        refuse(f"{key} must be at least 0 and finite, got {value}", path, number, line, key)
    return round(value * unit_ns)


def token_list(row: dict[str, Any], key: str, path: Path, number: int, line: str) -> list[int]:
    """row[key], a non-empty list of token ids in [0, 2**31 - 1)."""
    value = row.get(key)
    if key not in row:
        refuse(f"the key {key!r} is missing", path, number, line, key)
    if type(value) is not list or not value:
        what = "an empty list" if value == [] else _kind(value)
        refuse(f"{key} must be a non-empty list of token ids, got {what}", path, number, line, key)
    if set(map(type, value)) != {int}:
        bad = next(i for i, token in enumerate(value) if type(token) is not int)
        refuse(f"{key}[{bad}] must be an integer, got {_kind(value[bad])}", path, number, line, key)
    if min(value) < 0 or max(value) >= MAX_TOKENS:
        bad = next(i for i, token in enumerate(value) if not 0 <= token < MAX_TOKENS)
        refuse(f"{key}[{bad}] must be a token id of at least 0, got {value[bad]}", path, number, line, key)
    return value


def optional_text(row: dict[str, Any], key: str, path: Path, number: int, line: str) -> str | None:
    """row[key], a string or null; None if it is missing."""
    value = row.get(key)
    if value is not None and type(value) is not str:
        refuse(f"{key} must be a string or null, got {_kind(value)}", path, number, line, key)
    return value


def _kind(value: object) -> str:
    """How a JSON value is called in a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Table:
    """Rows of a CSV file with a header, by columns.

    Args:
        path: of the file.
        index: name of a column -> its place.
        line_numbers: of the rows.
        rows: their values.
    """

    def __init__(
        self, path: Path, index: dict[str, int], line_numbers: list[int], rows: list[list[str]]
    ) -> None:
        self.path = path
        self.index = index
        self.line_numbers = line_numbers
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def text(self, name: str) -> list[str]:
        """A column as it stands in the file."""
        at = self.index[name]
        return [row[at] for row in self._rows]

    def integers(self, name: str, low: int = 0, high: int = MAX_TOKENS) -> Int64Array:
        """A column of integers in [low, high], int64[rows].

        Raises:
            WorkloadError: a value is not one, with file:line:column.
        """
        texts = self.text(name)
        try:
            values = np.array(list(map(int, texts)), dtype=np.int64)
        except (ValueError, OverflowError):
            for i, text in enumerate(texts):
                if not text.strip().lstrip("+-").isdecimal():
                    self.refuse(i, name, f"{name} must be an integer, got {text!r}")
            self.refuse(0, name, f"{name} holds a number that does not fit 64 bits")
        bad = (values < low) | (values > high)
        if bad.any():
            i = int(np.argmax(bad))
            wanted = f"at least {low}" if values[i] < low else f"at most {high}"
            self.refuse(i, name, f"{name} must be {wanted}, got {int(values[i])}")
        return values

    def refuse(self, row: int, name: str, message: str) -> NoReturn:
        """Raise the error of one cell, at its column in the line."""
        number = self.line_numbers[row]
        before = self._rows[row][: self.index[name]]
        column = 1 + sum(len(value) + 1 for value in before)
        raise WorkloadError(message, self.path, number, column)


def tables(
    path: Path, lines: Iterable[str], columns: Sequence[str], what: str, size: int | None = None
) -> Iterator[Table]:
    """A CSV file as tables of `size` rows (None: one table); blank lines are left out.

    Args:
        columns: names that the header must have.
        what: name of the format, for messages.

    Raises:
        WorkloadError: no header, a column is missing, a row is too short, or there are no rows.
    """
    last = [""]

    def remembered() -> Iterator[str]:
        for line in lines:
            last[0] = line
            yield line

    reader = csv.reader(remembered())
    index: dict[str, int] = {}
    width = 0
    numbers: list[int] = []
    rows: list[list[str]] = []
    found = False
    try:
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in columns if name not in header]
        if missing:
            raise WorkloadError(
                f"the header has no column {missing[0]!r}; {what} needs {', '.join(columns)}, the file has "
                f"{', '.join(header)}",
                path,
                1,
                1,
            )
        index = {name: header.index(name) for name in header}
        width = 1 + max(index[name] for name in columns)
        for row in reader:
            if not row:
                continue
            found = True
            if len(row) < width:
                message = f"{len(row)} values where {width} are needed"
                raise WorkloadError(message, path, reader.line_num, len(last[0]) + 1)
            numbers.append(reader.line_num)
            rows.append(row)
            if size is not None and len(rows) >= size:
                yield Table(path, index, numbers, rows)
                numbers, rows = [], []
    except csv.Error as error:
        raise WorkloadError(f"not valid CSV: {error}", path, reader.line_num, 1) from None
    if not found:
        raise WorkloadError("the trace has a header and no requests", path, 2, 1)
    if rows:
        yield Table(path, index, numbers, rows)


def whole_table(path: Path, lines: Iterable[str], columns: Sequence[str], what: str) -> Table:
    """As `tables`, all rows in one."""
    return next(tables(path, lines, columns, what))
