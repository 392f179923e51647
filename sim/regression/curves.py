"""The curves of a run that a baseline stores: what they are, and their rows.

A row stands for one period of simulated time: the mean of its samples, or, for what counts since the start,
the value at its end. Values are rounded here, so that a stored curve and one that was just made can be
compared digit by digit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Steps = Mapping[str, NDArray[np.int64]]

SHARE_DIGITS, COUNT_DIGITS = 5, 2


@dataclass(frozen=True)
class Curve:
    """One curve.

    Attributes:
        key: name of its column.
        title: for people.
        of: values by row of the step log; not-a-number where there is none.
        is_share: in 0 .. 1; else a count.
        since_start: grows over the run, so a row holds its value at the end of the period.
        meaning: one sentence.
    """

    key: str
    title: str
    of: Callable[[Steps], FloatArray]
    is_share: bool
    since_start: bool
    meaning: str

    @property
    def digits(self) -> int:
        """Decimals that are stored."""
        return SHARE_DIGITS if self.is_share else COUNT_DIGITS


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64], empty: float) -> FloatArray:
    out = np.full(len(part), empty)
    np.divide(part, whole, out=out, where=whole > 0)
    return out


def _usable(s: Steps) -> NDArray[np.int64]:
    return np.asarray(s["used_blocks"] + s["num_free_blocks"])


def _column(name: str) -> Callable[[Steps], FloatArray]:
    return lambda s: s[name].astype(np.float64)


CURVES: tuple[Curve, ...] = (
    Curve(
        "usage",
        "KV cache usage",
        lambda s: _ratio(s["used_blocks"], _usable(s), 0.0),
        True,
        False,
        "Used blocks / usable blocks.",
    ),
    Curve(
        "evictable",
        "Evictable blocks",
        lambda s: _ratio(s["cached_free_blocks"], _usable(s), 0.0),
        True,
        False,
        "Free blocks that carry a hash / usable blocks.",
    ),
    Curve(
        "internal_fragmentation",
        "Internal fragmentation",
        lambda s: _ratio(s["wasted_slots"], s["allocated_slots"], 0.0),
        True,
        False,
        "Allocated slots of running requests without a token / allocated slots.",
    ),
    Curve(
        "external_fragmentation",
        "External fragmentation",
        lambda s: _ratio(s["num_free_blocks"] - s["largest_free_run"], s["num_free_blocks"], 0.0),
        True,
        False,
        "1 - longest run of consecutive free ids / free blocks; 0 when none is free.",
    ),
    Curve(
        "free_runs",
        "Free runs",
        _column("free_runs"),
        False,
        False,
        "Runs of consecutive ids in the free set.",
    ),
    Curve(
        "largest_free_run",
        "Largest free run",
        _column("largest_free_run"),
        False,
        False,
        "Blocks of the longest run of consecutive free ids.",
    ),
    Curve(
        "contiguity",
        "Table contiguity",
        lambda s: _ratio(s["table_blocks"] - s["table_runs"], s["table_blocks"] - s["num_tables"], np.nan),
        True,
        False,
        "Adjacent pairs in block tables whose ids are consecutive / all such pairs.",
    ),
    Curve(
        "hit_rate",
        "Token hit rate at first lookup, since the start",
        lambda s: _ratio(s["prefix_hits"], s["prefix_queries"], np.nan),
        True,
        True,
        "Tokens found in the prefix cache / tokens looked up, first lookups, since the start.",
    ),
    Curve("running", "Running requests", _column("num_running"), False, False, "Running requests."),
    Curve("waiting", "Waiting requests", _column("num_waiting"), False, False, "Waiting requests."),
    Curve(
        "preemptions",
        "Preemptions since the start",
        _column("preemptions"),
        False,
        True,
        "Times a running request lost its blocks, since the start.",
    ),
    Curve(
        "evictions",
        "Evictions since the start",
        _column("evictions"),
        False,
        True,
        "Cached blocks that were evicted, since the start.",
    ),
    Curve("finished", "Finished since the start", _column("finished"), False, True, "Finished requests."),
)
BY_KEY = {curve.key: curve for curve in CURVES}


def rows_of(steps: Steps, period_ns: int, end_ns: int, num_groups: int = 1) -> dict[str, FloatArray]:
    """The curves of a run by key, float64[rows] each, rounded; row k stands for the period that ends at
    (k + 1) * period_ns, the last one for what was left of it.

    Args:
        steps: columns of the step log, at least one row.
        period_ns: time of a row.
        end_ns: end of the run.
        num_groups: KV-cache groups: a running request has a block table in each.
    """
    steps = {**steps, "num_tables": steps["num_running"] * num_groups}
    rows = max(1, -(-end_ns // period_ns))
    time = steps["time_ns"]
    # a sample at the end of a period belongs to it
    row = np.clip(-(-time // period_ns) - 1, 0, rows - 1)
    last = np.searchsorted(row, np.arange(rows), side="right") - 1
    out: dict[str, FloatArray] = {}
    for curve in CURVES:
        values = curve.of(steps)
        held = np.where(last >= 0, values[np.maximum(last, 0)], np.nan)
        if curve.since_start:
            found = held
        else:
            known = ~np.isnan(values)
            count = np.bincount(row[known], minlength=rows)
            total = np.bincount(row[known], weights=values[known], minlength=rows)
            sampled = np.bincount(row, minlength=rows) > 0
            found = np.full(rows, np.nan)
            np.divide(total, count, out=found, where=count > 0)
            # a period without a sample is as the last one left it
            found = np.where(sampled, found, held)
        # + 0.0: never a negative zero
        out[curve.key] = np.asarray(np.round(found, curve.digits) + 0.0)
    return out
