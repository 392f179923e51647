"""Preemptions against the watermark, as vLLM PR #44594 measured them on a real vLLM (GB200, Qwen2.5-7B).

The published figures are one run each; the lengths there were drawn from another generator than ours, and
between seeds the count varies by some 7 % (standard deviation), so the mean over seeds is compared.
"""

from __future__ import annotations

import os
import statistics

from sim.published.data import config_path
from sim.published.table import Row, Table

CONFIG = "watermark.yaml"

#: watermark (share of the pool) -> preemptions of the real vLLM
PUBLISHED = {0.0: "1065", 0.02: "400", 0.05: "187", 0.10: "168", 0.15: "168"}

#: Three standard deviations of a single run.
RELATIVE_BOUND = 0.21


def preemptions(watermark: float, seed: int) -> int:
    """Preemptions of one simulation of configs/published/watermark.yaml."""
    from sim.runner import check
    from sim.simulate import LogOptions, Simulation

    resolved, workload = check(str(config_path(CONFIG)), [f"engine.watermark={watermark}"], seed)
    simulation = Simulation(resolved.engine, workload, resolved.step_time, LogOptions(sample_period_ns=0))
    simulation.run()
    return simulation.result().totals["preemptions"]


def watermark(seeds: int, jobs: int | None = None) -> Table:
    """The published table with ours beside it, over seeds 0 to ``seeds`` - 1 in ``jobs`` threads."""
    from joblib import Parallel, delayed

    points = [(share, seed) for share in PUBLISHED for seed in range(seeds)]
    jobs = min(jobs or os.cpu_count() or 1, len(points))
    # the first point alone, so that an engine that is not compiled yet is compiled once
    counts = {points[0]: preemptions(*points[0])}
    rest = Parallel(n_jobs=jobs, prefer="threads")(delayed(preemptions)(*point) for point in points[1:])
    counts |= dict(zip(points[1:], rest, strict=True))
    rows = []
    for share, published in PUBLISHED.items():
        values = [counts[share, seed] for seed in range(seeds)]
        spread = f"{statistics.stdev(values):.0f}" if seeds > 1 else "-"
        others = (spread, f"{min(values)}-{max(values)}")
        bound = RELATIVE_BOUND * float(published)
        rows.append(
            Row("off" if share == 0 else f"{share:.2f}", published, statistics.fmean(values), others, bound)
        )
    return Table(
        name="watermark",
        title=f"vLLM PR #44594: preemptions by watermark, mean of {seeds} seed{'s' if seeds > 1 else ''}",
        columns=("watermark", "real vLLM", "ours", "std", "range"),
        rows=tuple(rows),
        notes=(
            f"met within {RELATIVE_BOUND:.0%} of the published figure, which is one run: three times the",
            "spread of a single seed, some 7 %.",
        ),
    )
