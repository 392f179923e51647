"""The step log as curves of bounded length, made in one pass over rows that come whole or in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sim.report.series import MAX_POINTS, stretches, time_unit

Rows = Mapping[str, NDArray[Any]]
F64 = NDArray[np.float64]
#: Name of a curve -> its value in each row.
Formulas = Mapping[str, Callable[[Rows], NDArray[Any]]]
PARTS = 60


class StepRows(Protocol):
    """Rows of a step log, in order of time."""

    def __len__(self) -> int: ...

    @property
    def span_ns(self) -> tuple[int, int]:
        """Time of the first row and of the last one; there must be one."""
        ...

    def pieces(self) -> Iterator[Rows]:
        """All rows, piece by piece."""
        ...


class RowsInMemory:
    """Columns as `StepRows`: one piece."""

    def __init__(self, steps: Rows) -> None:
        self._steps = steps

    def __len__(self) -> int:
        return len(self._steps["time_ns"])

    @property
    def span_ns(self) -> tuple[int, int]:
        times = self._steps["time_ns"]
        return int(times[0]), int(times[-1])

    def pieces(self) -> Iterator[Rows]:
        yield self._steps


class RowsInFile:
    """A Parquet file as `StepRows`: a piece is a row group."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self._path = path
        with pq.ParquetFile(path) as file:
            self._len, self._groups = file.metadata.num_rows, file.num_row_groups

    def __len__(self) -> int:
        return int(self._len)

    @property
    def span_ns(self) -> tuple[int, int]:
        first, last = (next(self._read([i], ["time_ns"]))["time_ns"] for i in (0, self._groups - 1))
        return int(first[0]), int(last[-1])

    def pieces(self) -> Iterator[Rows]:
        return self._read(range(self._groups))

    def _read(self, groups: Iterable[int], names: list[str] | None = None) -> Iterator[Rows]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(self._path) as file:
            for group in groups:
                table = file.read_row_group(group, columns=names)
                yield {name: table.column(name).to_numpy() for name in table.column_names}


@dataclass
class Curve:
    """Values of one quantity, float64[points]: means of the stretches, with their least and most.

    Attributes:
        mean, low, high: `low` and `high` are empty where each row is a point.
        most: greatest value of any row.
    """

    mean: F64
    low: F64
    high: F64
    most: float


@dataclass
class StepCurves:
    """What a picture of the step log needs.

    Attributes:
        unit: of `x` and `x_edges`.
        x: time of each point.
        x_edges: of PARTS equal windows, float64[PARTS + 1].
        curves: by name.
        at_points: cumulative columns at each point, by name.
        at_edges: the same columns at the last row up to each edge, by name.
    """

    unit: str
    x: F64
    x_edges: F64
    curves: dict[str, Curve]
    at_points: dict[str, NDArray[Any]] = field(default_factory=dict)
    at_edges: dict[str, NDArray[Any]] = field(default_factory=dict)


def step_curves(
    rows: StepRows, formulas: Formulas, cumulative: tuple[str, ...], max_points: int = MAX_POINTS
) -> StepCurves:
    """Thin rows to the mean, least and most of equal stretches where they are more than `max_points`."""
    starts = stretches(len(rows), max_points)
    begin, end = rows.span_ns
    scale, unit = time_unit(float(end))
    edges = np.linspace(float(begin), float(end), PARTS + 1)
    at_edges = {name: np.zeros(PARTS + 1, dtype=np.int64) for name in cumulative}
    found: dict[str, list[tuple[NDArray[Any], ...]]] = {name: [] for name in formulas}
    points: dict[str, list[NDArray[Any]]] = {name: [] for name in ("time_ns", *cumulative)}
    for first, piece in _whole_stretches(rows, starts):
        times = piece["time_ns"]
        own = np.arange(len(times)) if starts is None else _inside(starts, first, len(times))
        for name, parts in points.items():
            parts.append(piece[name][own])
        for name, formula in formulas.items():
            values = np.asarray(formula(piece), np.float64)
            found[name].append(_thinned(values, None if starts is None else own))
        last = np.searchsorted(times.astype(np.float64), edges, side="right") - 1
        known = last >= 0
        for name, column in at_edges.items():
            column[known] = piece[name][last[known]]
    curves = {}
    for name, thinned in found.items():
        mean, low, high, most = (np.concatenate(x) for x in zip(*thinned, strict=True))
        curves[name] = Curve(mean, low, high, float(most.max()))
    at_points = {name: np.concatenate(parts) for name, parts in points.items()}
    return StepCurves(unit, at_points.pop("time_ns") / scale, edges / scale, curves, at_points, at_edges)


def _whole_stretches(rows: StepRows, starts: NDArray[np.intp] | None) -> Iterator[tuple[int, Rows]]:
    """Pieces that end where a stretch ends, each with the number of its first row."""
    first, left = 0, None
    for read in rows.pieces():
        piece = read
        if left is not None:
            piece = {name: np.concatenate([left[name], column]) for name, column in read.items()}
        n = len(piece["time_ns"])
        done = n
        if starts is not None and first + n < len(rows):
            done = int(starts[np.searchsorted(starts, first + n, side="right") - 1]) - first
        if done:
            yield first, {name: column[:done] for name, column in piece.items()}
        left = {name: column[done:] for name, column in piece.items()} if done < n else None
        first += done


def _inside(starts: NDArray[np.intp], first: int, n: int) -> NDArray[np.intp]:
    """The starts that lie in the rows first .. first + n - 1, counted from `first`."""
    a, b = np.searchsorted(starts, (first, first + n))
    return starts[a:b] - first


def _thinned(values: F64, starts: NDArray[np.intp] | None) -> tuple[NDArray[Any], ...]:
    """Mean, least and most of each stretch, and the most of all as an array of one."""
    most = values.max(keepdims=True)
    if starts is None:
        return values, values[:0], values[:0], most
    means = np.add.reduceat(values, starts) / np.diff(np.append(starts, len(values)))
    return means, np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts), most
