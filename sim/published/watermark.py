"""Preemptions against the watermark, as vLLM PR #44594 measured them on a real vLLM (GB200, Qwen2.5-7B).

The published figures are one run each; the lengths there were drawn from another generator than ours, and
between seeds the count varies by some 7 % (standard deviation), so the mean over seeds is compared, and a
published run counts as met where it could be one of ours.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence

from sim.published.data import config_path
from sim.published.registry import Options
from sim.published.table import Row, Table

CONFIG = "watermark.yaml"

#: watermark (share of the pool) -> preemptions of the real vLLM
PUBLISHED = {0.0: "1065", 0.02: "400", 0.05: "187", 0.10: "168", 0.15: "168"}

#: At most so far from the published run, whatever the spread over seeds: three times 7 %.
RELATIVE_BOUND = 0.21

#: Standard deviations of a single run that the published one may lie from our mean.
DEVIATIONS = 3.0


def preemptions(watermark: float, seed: int) -> int:
    """Preemptions of one simulation of configs/published/watermark.yaml."""
    from sim.runner import check
    from sim.simulate import LogOptions, Simulation

    resolved, workload = check(str(config_path(CONFIG)), [f"engine.watermark={watermark}"], seed)
    simulation = Simulation(resolved.engine, workload, resolved.step_time, LogOptions(sample_period_ns=0))
    simulation.run()
    return simulation.result().totals["preemptions"]


def count_all(seeds: int, jobs: int | None = None) -> dict[float, list[int]]:
    """Preemptions by watermark, one for each of the seeds 0 to ``seeds`` - 1.

    Args:
        jobs: threads (the engine runs without Python's lock); None: one a processor.
    """
    from joblib import Parallel, delayed

    points = [(share, seed) for share in PUBLISHED for seed in range(seeds)]
    jobs = min(jobs or os.cpu_count() or 1, len(points))
    # the first point alone, so that an engine that is not compiled yet is compiled once
    counts = {points[0]: preemptions(*points[0])}
    rest = Parallel(n_jobs=jobs, prefer="threads")(delayed(preemptions)(*point) for point in points[1:])
    counts |= dict(zip(points[1:], rest, strict=True))
    return {share: [counts[share, seed] for seed in range(seeds)] for share in PUBLISHED}


def row(share: float, values: Sequence[int]) -> Row:
    """One watermark: the mean over seeds beside the published run."""
    published, mean, n = float(PUBLISHED[share]), statistics.fmean(values), len(values)
    bound = RELATIVE_BOUND * published
    spread = away = "-"
    if n > 1:
        deviation = statistics.stdev(values)
        # of the difference between one more run and the mean of n
        single = deviation * (1 + 1 / n) ** 0.5
        bound = min(bound, DEVIATIONS * single)
        spread = f"{deviation:.0f}"
        away = f"{(published - mean) / single:+.1f}" if single else "-"
    others = (spread, f"{min(values)}-{max(values)}", f"{100 * (mean / published - 1):+.0f} %", away)
    return Row("off" if share == 0 else f"{share:.2f}", PUBLISHED[share], mean, others, bound)


def make(options: Options) -> Table:
    """The published table with ours beside it."""
    counts = count_all(options.seeds)
    seeds = "1 seed" if options.seeds == 1 else f"{options.seeds} seeds"
    return Table(
        name="watermark",
        title=f"vLLM PR #44594: preemptions by watermark, mean of {seeds}",
        columns=("watermark", "real vLLM", "ours", "std", "range", "ours / real - 1", "deviations"),
        rows=tuple(row(share, values) for share, values in counts.items()),
        met_when=(
            f"the published figure, which is one run, lies within {DEVIATIONS:.0f} standard deviations of"
            f" a single run of ours (std: over seeds), and our mean within {RELATIVE_BOUND:.0%} of it"
        ),
        notes="Deviations: how many the published run lies from our mean.",
    )
