"""Runs of consecutive block ids, computed naively with numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]


def runs_of(mask: NDArray[np.bool_]) -> tuple[I64, I64]:
    """Maximal runs of True: their first indices and lengths, int64 arrays in ascending order."""
    edges = np.flatnonzero(np.diff(mask.view(np.int8), prepend=0, append=0))
    return edges[::2].astype(np.int64), np.diff(edges)[::2].astype(np.int64)


def power_of_two_histogram(lengths: NDArray[np.integer]) -> tuple[I64, I64]:
    """How many lengths lie in [1, 2), [2, 4), [4, 8) ...: lower bounds and counts, both empty for no lengths.

    Lengths are at least 1.
    """
    if len(lengths) == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    octave = np.frexp(lengths.astype(np.float64))[1] - 1
    counts = np.bincount(octave).astype(np.int64)
    return 1 << np.arange(len(counts), dtype=np.int64), counts


def consecutive_runs(ids: NDArray[np.integer], ptr: NDArray[np.integer]) -> I64:
    """Runs of consecutive ids in each list ``ids[ptr[i]:ptr[i+1]]``: int64[len(ptr) - 1].

    A list of n ids has between 1 and n runs, an empty one 0.
    """
    starts_run = np.ones(len(ids), dtype=np.int64)
    if len(ids) > 1:
        starts_run[1:] = np.diff(ids) != 1
    starts_run[ptr[:-1][ptr[:-1] < len(ids)]] = 1
    total = np.concatenate([[0], np.cumsum(starts_run)])
    return total[ptr[1:]] - total[ptr[:-1]]


def table_pairs(rows: Mapping[str, NDArray[Any]], num_groups: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Adjacent pairs of blocks in the running requests' tables, and how many of them have consecutive ids.

    Args:
        rows: num_running, table_blocks and table_runs, arrays of one length.
        num_groups: KV-cache groups. A running request has a table in each, which is never empty, so that n
            blocks make n - 1 pairs.
    """
    tables = rows["num_running"] * num_groups
    return rows["table_blocks"] - tables, rows["table_blocks"] - rows["table_runs"]
