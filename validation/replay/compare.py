"""How far two curves of one quantity are apart, and latencies side by side.

A curve is a step function: a value holds from its row to the next one. Two curves are read at the same
moments, k * period for k = 1 .. n, each just before what happens at that moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.summary import latencies
from validation.replay.recording import Table

GRID_POINTS = 2000
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """A quantity over time: how it follows from a timeline's columns, and how it is written.

    unit: "share" (a fraction, written in percent) or "" (a number).
    needs: columns without which it can't be computed.
    """

    name: str
    title: str
    unit: str
    needs: tuple[str, ...]
    of: Callable[[Table, int], Array]


def _ratio(part: Any, whole: Any) -> Array:
    whole = np.asarray(whole, np.float64)
    return np.asarray(np.where(whole > 0, part / np.maximum(whole, 1), 0.0), np.float64)


def _column(name: str) -> Callable[[Table, int], Array]:
    return lambda t, usable: np.asarray(t[name], np.float64)


METRICS = (
    Metric("usage", "KV cache usage", "share", ("used_blocks",), lambda t, u: t["used_blocks"] / u),
    Metric(
        "internal_waste", "Internal waste: allocated slots, no token", "share",
        ("wasted_slots", "allocated_slots"), lambda t, u: _ratio(t["wasted_slots"], t["allocated_slots"]),
    ),
    Metric("free_runs", "Free runs", "", ("free_runs",), _column("free_runs")),
    Metric(
        "external_fragmentation", "External: 1 - largest free run / free", "share",
        ("largest_free_run", "num_free_blocks"),
        lambda t, u: _ratio(t["num_free_blocks"] - t["largest_free_run"], t["num_free_blocks"]),
    ),
    Metric(
        "contiguity", "Contiguity: table runs / table blocks", "share",
        ("table_runs", "table_blocks"), lambda t, u: _ratio(t["table_runs"], t["table_blocks"]),
    ),
    Metric(
        "hit_rate", "Token hit rate since the start, first lookups", "share",
        ("prefix_hits", "prefix_queries"), lambda t, u: _ratio(t["prefix_hits"], t["prefix_queries"]),
    ),
    Metric("preemptions", "Preemptions since the start", "", ("preemptions",), _column("preemptions")),
    Metric("running", "Running requests", "", ("num_running",), _column("num_running")),
    Metric("waiting", "Waiting requests", "", ("num_waiting",), _column("num_waiting")),
    Metric("finished", "Finished requests since the start", "", ("finished",), _column("finished")),
)  # fmt: skip


@dataclass(frozen=True)
class Gap:
    """Distance of a simulated curve from the real one, both read at the same moments.

    Attributes:
        mean_real, mean_simulated: over the moments.
        area: area between the curves / time: the mean of |simulated - real|.
        relative_area: area / mean_real; None where that is 0.
        max_gap: largest |simulated - real|, and the moment at which it is reached first.
    """

    mean_real: float
    mean_simulated: float
    area: float
    relative_area: float | None
    max_gap: float
    max_gap_at_s: float

    def to_json(self) -> dict[str, float | None]:
        """The numbers, with nine digits."""
        return {k: None if v is None else round(float(v), 9) for k, v in vars(self).items()}


@dataclass(frozen=True)
class Curves:
    """The values of one metric at the grid's moments, by the name of the curve ("real", ...)."""

    metric: Metric
    time_s: Array
    values: dict[str, Array]

    def gap(self, name: str) -> Gap:
        """Distance of the curve `name` from "real"."""
        real, other = self.values["real"], self.values[name]
        apart = np.abs(other - real)
        at = int(np.argmax(apart))
        mean, area = float(real.mean()), float(apart.mean())
        relative = area / mean if mean > 0 else None
        return Gap(mean, float(other.mean()), area, relative, float(apart[at]), float(self.time_s[at]))


def grid_period(end_ns: int) -> int:
    """Nanoseconds between the moments of comparison."""
    return max(1, end_ns // GRID_POINTS)


def read_at(time_ns: NDArray[Any], values: Array, moments: NDArray[Any]) -> Array:
    """A step function just before each moment; 0 before its first row."""
    at = np.searchsorted(time_ns, moments, side="left") - 1
    return np.where(at >= 0, values[np.maximum(at, 0)], 0.0)


def curves(timelines: Mapping[str, Table], usable_blocks: int, period_ns: int) -> list[Curves]:
    """Every metric that all timelines have, on one grid up to the end of the longest.

    Args:
        timelines: name -> columns; one of them is "real".
        usable_blocks: blocks without the null block.
        period_ns: of the grid.
    """
    end = max((int(t["time_ns"][-1]) for t in timelines.values() if len(t["time_ns"])), default=0)
    moments = np.arange(1, max(1, -(-end // period_ns)) + 1, dtype=np.int64) * period_ns
    out = []
    for metric in METRICS:
        if any(name not in t for t in timelines.values() for name in metric.needs):
            continue
        values = {
            name: read_at(t["time_ns"], metric.of(t, usable_blocks), moments) for name, t in timelines.items()
        }
        out.append(Curves(metric, moments / 1e9, values))
    return out


LATENCIES = {
    "ttft_s": "Time to the first token",
    "tpot_s": "Time per output token after it",
    "e2e_s": "Whole request",
    "queue_s": "Arrival to the first batch",
}


def latency_table(requests: Mapping[str, Table]) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """latency -> curve's name -> count, mean, p50, p90, p99, max in seconds (percentiles interpolated)."""
    out: dict[str, dict[str, dict[str, float | int | None]]] = {name: {} for name in LATENCIES}
    for who, table in requests.items():
        found = latencies(table, np.ones(len(table["arrival_ns"]), bool))
        for name in LATENCIES:
            out[name][who] = _quantiles(found[name])
    return {name: by for name, by in out.items() if any(row["count"] for row in by.values())}


def _quantiles(seconds: Array) -> dict[str, float | int | None]:
    if len(seconds) == 0:
        return {"count": 0, "mean": None, "p50": None, "p90": None, "p99": None, "max": None}
    p50, p90, p99 = (float(x) for x in np.percentile(seconds, [50, 90, 99]))
    return {
        "count": len(seconds), "mean": float(seconds.mean()),
        "p50": p50, "p90": p90, "p99": p99, "max": float(seconds.max()),
    }  # fmt: skip
