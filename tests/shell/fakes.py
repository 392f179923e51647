"""A made-up run with the shape of a real one, for tests of the shell that need no engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from sim.columns import REQUESTS, STEPS


def run_result(rows: int = 500, requests: int = 300, usable: int = 1023, block: int = 16) -> Any:
    """Columns of `rows` sampled steps and `requests` requests, deterministic."""
    rng = np.random.default_rng(7)
    t = np.arange(rows, dtype=np.int64) * 1_000_000_000
    wave = 0.55 + 0.4 * np.sin(np.arange(rows) / rows * 9) + rng.normal(0, 0.03, rows)
    used = np.clip(wave * usable, 0, usable).astype(np.int64)
    free = usable - used
    running = np.maximum(1, used // 12)
    allocated = used * block
    wasted = np.minimum(allocated, running * (block // 2) + rng.integers(0, 40, rows))
    steps: dict[str, np.ndarray] = {name: np.zeros(rows, np.int64) for name in STEPS}
    steps |= {
        "time_ns": t,
        "step": np.arange(rows, dtype=np.int64) * 40,
        "num_running": running,
        "num_waiting": np.where(free < 30, 12, 0),
        "num_free_blocks": free,
        "used_blocks": used,
        "num_cached_hashes": used,
        "num_cached_blocks": used + free // 3,
        "cached_free_blocks": free // 3,
        "num_scheduled_tokens": running * 3,
        "num_scheduled_reqs": running,
        "allocated_slots": allocated,
        "held_tokens": allocated - wasted,
        "wasted_slots": wasted,
        "free_runs": np.maximum(1, free // 9),
        "largest_free_run": np.maximum(0, free // 3),
        "table_blocks": used,
        "table_runs": np.maximum(running, used // 4),
        "prefix_queries": np.cumsum(rng.integers(100, 900, rows)),
        "preemptions": np.cumsum(free < 15).astype(np.int64),
        "finished": np.arange(rows) * requests // rows,
        "evictions": np.cumsum(rng.integers(0, 9, rows)),
        "step_duration_ns": np.full(rows, 25_000_000, np.int64),
    }
    steps["prefix_hits"] = steps["prefix_queries"] * 2 // 5
    arrival = np.sort(rng.integers(0, rows * 1_000_000_000, requests))
    prompt, output = rng.integers(20, 900, requests), rng.integers(1, 300, requests)
    ttft = rng.lognormal(-1.5, 0.8, requests) * 1e9
    first = (arrival + ttft).astype(np.int64)
    columns: dict[str, np.ndarray] = {name: np.zeros(requests, np.int64) for name in REQUESTS}
    columns |= {
        "index": np.arange(requests, dtype=np.int64),
        "arrival_ns": arrival,
        "first_scheduled_ns": (arrival + ttft / 3).astype(np.int64),
        "first_token_ns": first,
        "finish_ns": first + (output - 1) * rng.integers(18_000_000, 40_000_000, requests),
        "prompt_tokens": prompt,
        "output_tokens": output,
        "hit_tokens": prompt // 2,
        "preemptions": (rng.random(requests) < 0.05).astype(np.int64),
        "recomputed_tokens": np.zeros(requests, np.int64),
        "peak_blocks": (prompt + output) // block + 1,
        "wasted_slots": (-(prompt + output)) % block,
        "allocated_slots": ((prompt + output) // block + 1) * block,
        "status": np.full(requests, 3, np.int64),
    }

    def weighted(values: np.ndarray) -> dict[str, float]:
        p50, p90, p99 = (float(x) for x in np.percentile(values, [50, 90, 99]))
        at = int(t[int(values.argmax())])
        mean, high = float(values.mean()), float(values.max())
        return {"mean": mean, "p50": p50, "p90": p90, "p99": p99, "max": high, "max_at_ns": at}

    return SimpleNamespace(
        steps=steps,
        requests=columns,
        events=None,
        totals={"steps": int(steps["step"][-1]), "evicted_unused": 900, "fail_pool": 3},
        time_weighted={
            "usage": weighted(used / usable),
            "internal_fragmentation": weighted(wasted / np.maximum(allocated, 1)),
            "external_fragmentation": weighted(1 - steps["largest_free_run"] / np.maximum(free, 1)),
            "free_runs": weighted(steps["free_runs"]),
            "num_running": weighted(running),
            "num_waiting": weighted(steps["num_waiting"]),
        },
        exit_reason="finished",
    )
