"""Residency of blocks, as vLLM's KVCacheMetricsCollector defines it, read from the engine's histograms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.core import residency as r
from sim.core.state import Pool

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class ResidencyHistogram:
    """Durations of one kind, in seconds.

    Attributes:
        count: durations seen.
        total_s: their sum.
        max_s: the longest, 0 if none.
        bounds_s: float64[b], upper bounds of vLLM's Prometheus buckets (without +Inf).
        counts: int64[b + 1], durations in each bucket (not cumulative), the last one above all bounds.
        fine_s: float64[k], middles of the occupied fine bins (under 1 % wide), ascending.
        fine_counts: int64[k].
    """

    count: int
    total_s: float
    max_s: float
    bounds_s: F64
    counts: I64
    fine_s: F64
    fine_counts: I64

    @property
    def mean_s(self) -> float | None:
        """None if nothing was seen."""
        return self.total_s / self.count if self.count else None

    def quantile(self, q: float) -> float | None:
        """To the width of a fine bin; None if nothing was seen."""
        if not self.count:
            return None
        i = int(np.searchsorted(np.cumsum(self.fine_counts), q * self.count))
        return min(float(self.fine_s[min(i, len(self.fine_s) - 1)]), self.max_s)


@dataclass(frozen=True)
class Residency:
    """vLLM's KVCacheMetricsCollector in simulated time; each record closes when its block is re-allocated.

    Attributes:
        sample_rate: share of the allocations that were followed.
        lifetime: allocation to re-allocation.
        idle: last hit (allocation, if there was none) to re-allocation.
        reuse_gap: between successive hits, of the last four.
        open_records: followed blocks not yet re-allocated at the end: they count nowhere above.
    """

    sample_rate: float
    lifetime: ResidencyHistogram
    idle: ResidencyHistogram
    reuse_gap: ResidencyHistogram
    open_records: int


def residency_of(pool: Pool, sample_rate: float) -> Residency:
    """Read the histograms of a pool whose blocks are followed.

    Args:
        pool: made with LogOptions.follow_blocks.
        sample_rate: the share that was asked for.
    """
    return Residency(
        sample_rate=sample_rate,
        lifetime=_histogram(pool, r.LIFETIME),
        idle=_histogram(pool, r.IDLE),
        reuse_gap=_histogram(pool, r.REUSE_GAP),
        open_records=int((pool.followed["open"] != 0).sum()),
    )


def _histogram(pool: Pool, kind: int) -> ResidencyHistogram:
    sums = pool.residency[kind]
    occupied = np.flatnonzero(pool.residency_fine[kind])
    return ResidencyHistogram(
        count=int(sums.count),
        total_s=int(sums.seconds) + int(sums.nanos) / 1e9,
        max_s=int(sums.longest) / 1e9,
        bounds_s=pool.residency_bounds / 1e9,
        counts=pool.residency_buckets[kind].copy(),
        fine_s=np.array([bin_middle(int(i)) for i in occupied]) / 1e9,
        fine_counts=pool.residency_fine[kind][occupied].copy(),
    )


def bin_middle(index: int) -> float:
    """Middle of a bin of ``sim.core.log_bins.log_bin``."""
    if index < 256:
        return float(index)
    octave, step = divmod(index - 256, 128)
    low = (128 + step) << (octave + 1)
    return low + ((1 << (octave + 1)) - 1) / 2
