"""What happened to the pool over a run: curves, failures, cache, residency, requests' patterns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.analysis.failures import AllocationFailure, allocation_failures
from sim.analysis.from_state import block_sizes, live_tables, snapshot_of_state
from sim.analysis.rerun import Rerun
from sim.analysis.residency import Residency, ResidencyHistogram, residency_of
from sim.analysis.runs import table_pairs
from sim.analysis.snapshot import FragmentationSnapshot

if TYPE_CHECKING:
    from sim.simulate import Progress, RunResult, Simulation

__all__ = [
    "AllocationFailure",
    "CacheEffectiveness",
    "FragmentationTracker",
    "RequestPatterns",
    "Residency",
    "ResidencyHistogram",
    "Tracked",
    "curves_of",
    "track",
]

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
PATTERN_SAMPLES = 200


@dataclass(frozen=True)
class CacheEffectiveness:
    """What the prefix cache was good for, over a whole run.

    Attributes:
        queries, hits: tokens looked up and found at first look-ups (vLLM's prefix_cache_queries, _hits).
        resumed_queries, resumed_hits: the same for requests resumed after a preemption.
        evicted: cached blocks that lost their content.
        evicted_unused: of these, without one hit since they were cached ("pollution").
        cached_at_end, duplicates_at_end, unreachable_at_end: blocks when the run ended; unreachable ones are
            None with windows or states, of which a look-up needs the last ones only.
    """

    queries: int
    hits: int
    resumed_queries: int
    resumed_hits: int
    evicted: int
    evicted_unused: int
    cached_at_end: int
    duplicates_at_end: int
    unreachable_at_end: int | None

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
            external_fragmentation, token_usage (slots that hold a token, a shared one once / slots of the
            usable blocks; NaN where groups differ in block size or hold states), table_contiguity,
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


class FragmentationTracker:
    """Follows one simulation to its end.

    Args:
        simulation: made with LogOptions(request_events=True, follow_blocks=True, ...), not run yet.
        until_ns: simulated time at which to stop, None: at the end of the workload.
        pattern_period_ns: simulated time between samples of the running requests; None: no samples.
        residency_sample: the share that the simulation was made with.
    """

    def __init__(
        self,
        simulation: Simulation,
        until_ns: int | None = None,
        pattern_period_ns: int | None = None,
        residency_sample: float = 1.0,
    ) -> None:
        self._simulation = simulation
        self._until = until_ns
        self._period = pattern_period_ns
        self._residency_sample = residency_sample

    def run(self, progress: Callable[[Progress], None] | None = None) -> Tracked:
        """Simulate and collect; ``progress`` as in ``Simulation.run``."""
        sim = self._simulation
        patterns = self._run_with_samples(progress)
        result, state = sim.result(), sim.state
        events = result.events
        if events is None or not state.params.follow_blocks:
            raise ValueError("the simulation does not log the events of requests or does not follow blocks")
        names = tuple(sim.workload.request_id(i) for i in range(len(sim.workload)))
        end = int(state.ctl.now)
        at_end = snapshot_of_state(state, sim.workload)
        sizes = block_sizes(state)
        return Tracked(
            steps=result.steps,
            curves=curves_of(result.steps, sizes),
            time_weighted=result.time_weighted,
            requests=result.requests,
            request_ids=names,
            failures=allocation_failures(events, names, end),
            cache=_cache(result, at_end),
            residency=residency_of(state.kv.pool, self._residency_sample),
            patterns=patterns,
            contiguous_fit_failures=int(state.count.contiguous_fit_failures),
            allocations=int(state.count.grants),
            totals=dict(result.totals),
        )

    def _run_with_samples(self, progress: Callable[[Progress], None] | None) -> RequestPatterns:
        sim = self._simulation
        parts: list[NDArray[np.int64]] = []
        time = self._period
        sizes = block_sizes(sim.state)
        while time is not None and self._period and (self._until is None or time < self._until):
            if sim.run(time, progress) != "until":
                break
            rows = live_tables(sim.state, sim.workload).rows(sizes)
            columns = (rows.request, rows.blocks, rows.runs, rows.allocated_slots, rows.wasted_slots)
            at = np.full(len(rows.request), time, dtype=np.int64)
            parts.append(np.stack([at, *(column.astype(np.int64) for column in columns)]))
            time += self._period
        sim.run(self._until, progress)
        return RequestPatterns(*np.concatenate([np.zeros((6, 0), dtype=np.int64), *parts], axis=1))


def track(
    folder: str | Path,
    pattern_samples: int = PATTERN_SAMPLES,
    residency_sample: float = 1.0,
    progress: Callable[[Progress], None] | None = None,
    replica: int | None = None,
) -> Tracked:
    """Simulate a run folder again and track it.

    Args:
        folder: written by `python -m sim run`.
        pattern_samples: instants at which the running requests are sampled.
        residency_sample: share of the allocations whose residency is measured, in (0, 1].
        progress: as in ``Simulation.run``.
        replica: of a fleet.

    Raises:
        InputError: as ``Rerun``; also when the simulation does not give the folder's rows any more.
    """
    rerun = Rerun(folder, residency_sample=residency_sample, replica=replica)
    period = max(1, rerun.end_ns // (pattern_samples + 1)) if pattern_samples else None
    simulation = rerun.fresh()
    tracker = FragmentationTracker(simulation, rerun.until_ns, period, residency_sample)
    tracked = tracker.run(progress)
    rerun.check_rows(tracked.steps)
    return tracked


def curves_of(steps: dict[str, I64], block_sizes: Sequence[int]) -> dict[str, F64]:
    """Ratios over the rows of a step log; see ``Tracked.curves``.

    Args:
        steps: columns of steps.parquet.
        block_sizes: tokens of a block, by KV-cache group; 0 where blocks hold states instead of tokens.
    """

    def ratio(part: NDArray[Any], whole: NDArray[Any], empty: float) -> F64:
        out = np.full(len(part), empty)
        np.divide(part, whole, out=out, where=whole > 0)
        return out

    free, used = steps["num_free_blocks"], steps["used_blocks"]
    pairs, adjacent = table_pairs(steps, len(block_sizes))
    queries = np.diff(steps["prefix_queries"], prepend=0)
    usage = ratio(used, used + free, 0.0)
    # only full blocks are shared, so no slot is wasted twice
    token_usage = usage - ratio(steps["wasted_slots"], (used + free) * max(block_sizes), 0.0)
    if len(set(block_sizes)) > 1 or not max(block_sizes):
        # the rows do not tell how many of the used blocks have slots, and of what size
        token_usage = np.full(len(used), np.nan)
    return {
        "usage": usage,
        "internal_fragmentation": ratio(steps["wasted_slots"], steps["allocated_slots"], 0.0),
        "external_fragmentation": ratio(free - steps["largest_free_run"], free, 0.0),
        "token_usage": token_usage,
        "table_contiguity": ratio(adjacent, pairs, np.nan),
        "hit_rate": ratio(np.diff(steps["prefix_hits"], prepend=0), queries, np.nan),
    }


def _cache(result: RunResult, at_end: FragmentationSnapshot) -> CacheEffectiveness:
    t = result.totals
    assert at_end.num_duplicates is not None
    return CacheEffectiveness(
        queries=t["prefix_queries"],
        hits=t["prefix_hits"],
        resumed_queries=t["preempted_queries"],
        resumed_hits=t["preempted_hits"],
        evicted=t["evictions"],
        evicted_unused=t["evicted_unused"],
        cached_at_end=t["num_cached"],
        # a block may have several keys, so the number of keys does not tell
        duplicates_at_end=at_end.num_duplicates,
        unreachable_at_end=at_end.num_unreachable,
    )
