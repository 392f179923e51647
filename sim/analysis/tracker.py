"""What happened to the pool over a run: curves, failures, cache, residency, requests' patterns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class AllocationFailure:
    """One episode: a request wanted blocks, was refused at least once, and something came of it.

    Attributes:
        time_ns: first refusal.
        request: position in the workload.
        request_id: its name.
        cause: "full-sequence reserve", "watermark" or "pool" (an admission), or "running request" (a running
            one found no block for its next tokens).
        wanted_blocks: blocks it would have taken out of the free queue at the first refusal (hits that are
            free included).
        free_blocks: blocks that were free then.
        attempts: refusals in the episode.
        outcome: "admitted" after waiting; "preempted others"; "preempted itself"; "dropped"; "open" at the
            end of the run.
        waited_ns: from the first refusal to the outcome (0 for preemptions, which happen at once).
        preempted: requests that were preempted for it, in order.
        recomputed_tokens: tokens that these had to compute again when they were resumed.
    """

    time_ns: int
    request: int
    request_id: str
    cause: str
    wanted_blocks: int
    free_blocks: int
    attempts: int
    outcome: str
    waited_ns: int
    preempted: tuple[int, ...]
    recomputed_tokens: int


@dataclass(frozen=True)
class CacheEffectiveness:
    """What the prefix cache was good for, over a whole run.

    Attributes:
        queries, hits: tokens looked up and found at first look-ups (vLLM's prefix_cache_queries, _hits).
        resumed_queries, resumed_hits: the same for requests resumed after a preemption.
        evicted: cached blocks that lost their content.
        evicted_unused: of these, without one hit since they were cached ("pollution").
        cached_at_end, duplicates_at_end, unreachable_at_end: blocks when the run ended.
    """

    queries: int
    hits: int
    resumed_queries: int
    resumed_hits: int
    evicted: int
    evicted_unused: int
    cached_at_end: int
    duplicates_at_end: int
    unreachable_at_end: int

    @property
    def hit_rate(self) -> float | None:
        """Tokens found / looked up at first look-ups; None: none looked up."""
        return self.hits / self.queries if self.queries else None

    @property
    def resumed_hit_rate(self) -> float | None:
        """The same for resumed requests."""
        return self.resumed_hits / self.resumed_queries if self.resumed_queries else None

    @property
    def pollution(self) -> float | None:
        """Evicted without a hit / evicted; None: nothing was evicted."""
        return self.evicted_unused / self.evicted if self.evicted else None


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


@dataclass(frozen=True)
class RequestPatterns:
    """Samples of running requests at the instants of a grid; equally long arrays, ordered by time.

    Attributes:
        time_ns: instant.
        request: position in the workload.
        blocks, runs: blocks in its tables, and maximal runs of consecutive ids in them.
        allocated_slots, wasted_slots: token slots.
    """

    time_ns: I64
    request: I64
    blocks: I64
    runs: I64
    allocated_slots: I64
    wasted_slots: I64

    def of(self, request: int) -> dict[str, I64]:
        """The samples of one request, by column."""
        keep = self.request == request
        names = ("time_ns", "blocks", "runs", "allocated_slots", "wasted_slots")
        return {name: getattr(self, name)[keep] for name in names}

    def waste_by_request(self) -> dict[int, float]:
        """Mean wasted slots of each sampled request over its samples."""
        requests, inverse = np.unique(self.request, return_inverse=True)
        mean = np.bincount(inverse, weights=self.wasted_slots) / np.bincount(inverse)
        return {int(r): float(m) for r, m in zip(requests, mean, strict=True)}


@dataclass(frozen=True)
class Tracked:
    """Everything that a tracker found out about a run.

    Attributes:
        steps: rows of the step log (columns of steps.parquet), int64 arrays.
        curves: derived from them, float64 arrays of the same length: usage, internal_fragmentation,
            external_fragmentation, token_usage (slots that hold a token / usable slots), table_contiguity,
            hit_rate (tokens found / looked up since the row before; NaN where nothing was looked up).
        time_weighted: metric -> mean, p50, p90, p99, max, max_at_ns.
        requests: columns of requests.parquet.
        request_ids: name by position in the workload.
        failures: episodes in order of time.
        cache, residency: see there.
        patterns: samples of the running requests.
        contiguous_fit_failures: times that an allocation of several blocks at once found enough free blocks
            but no free run that long.
        allocations: times that a request was given new blocks.
        totals: all counters of the engine.
    """

    steps: dict[str, I64]
    curves: dict[str, F64]
    time_weighted: dict[str, dict[str, float]]
    requests: dict[str, I64]
    request_ids: tuple[str, ...]
    failures: tuple[AllocationFailure, ...]
    cache: CacheEffectiveness
    residency: Residency
    patterns: RequestPatterns
    contiguous_fit_failures: int
    allocations: int
    totals: dict[str, Any]
