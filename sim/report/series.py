"""Columns over time as curves: the unit of the axis, thinning, windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Mapping[str, NDArray[Any]]
MAX_POINTS = 1600


def time_unit(span_ns: float) -> tuple[float, str]:
    """Nanoseconds in, and name of, the unit that fits a span."""
    for limit, scale, unit in ((2.0, 1e6, "ms"), (300.0, 1e9, "s"), (10800.0, 6e10, "min")):
        if span_ns / 1e9 < limit:
            return scale, unit
    return 3.6e12, "h"


def time_axis(ns: NDArray[Any]) -> tuple[NDArray[np.float64], str]:
    """Times in the unit that fits their span."""
    scale, unit = time_unit(float(ns[-1]) if len(ns) else 0.0)
    return ns / scale, unit


def spread(places: Sequence[float], least: float, end: float = 1.0) -> list[float]:
    """Where labels go that want these places, in ascending order, so that neighbours are `least` apart.

    A label moves no further than it must; none lies beyond `end` unless they do not fit at all.
    """
    out: list[float] = []
    for place in places:
        out.append(max(place, out[-1] + least) if out else place)
    limit = end
    for i in reversed(range(len(out))):
        out[i] = max(min(out[i], limit), i * least)
        limit = out[i] - least
    return out


def stretches(n: int, max_points: int = MAX_POINTS) -> NDArray[np.intp] | None:
    """First row of each stretch, half as many as points may be drawn; None: n rows need no thinning."""
    return None if n <= max_points else np.linspace(0, n, max_points // 2 + 1).astype(np.intp)[:-1]


class Series:
    """Columns over time, thinned to the mean, least and most of equal stretches where there are many rows."""

    def __init__(self, steps: Rows, max_points: int = MAX_POINTS) -> None:
        self.steps = steps
        self.time, self.unit = time_axis(steps["time_ns"])
        self.edges = stretches(len(steps["time_ns"]), max_points)
        self.x = self.time if self.edges is None else self.time[self.edges]

    def mean(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """One value a point: as it is, or the mean of a stretch."""
        if self.edges is None:
            return np.asarray(values, np.float64)
        sums = np.add.reduceat(np.asarray(values, np.float64), self.edges)
        return np.asarray(sums / np.diff(np.append(self.edges, len(values))))

    def low_high(self, values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Least and most of each stretch; None where nothing is thinned."""
        if self.edges is None:
            return None
        data = np.asarray(values, np.float64)
        return np.minimum.reduceat(data, self.edges), np.maximum.reduceat(data, self.edges)

    def line(self, ax: Axes, values: NDArray[Any], color: str, label: str | None = None) -> None:
        """A line of the means, and a band from the least to the most where rows were thinned."""
        band = self.low_high(values)
        if band is not None:
            ax.fill_between(self.x, *band, color=color, alpha=0.22, linewidth=0, rasterized=False)
        ax.plot(self.x, self.mean(values), color=color, label=label)


def windows(
    time_ns: NDArray[Any], cumulative: NDArray[Any], parts: int = 60
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Edges (ns, float64[parts + 1]) of equal windows and the growth of a cumulative column in each."""
    edges = np.linspace(0.0, float(time_ns[-1]), parts + 1)
    at = np.searchsorted(time_ns, edges, side="right") - 1
    values = np.where(at >= 0, cumulative[np.maximum(at, 0)], 0)
    values[0] = 0
    return edges, np.diff(values).astype(np.int64)
