"""A recording of a live vLLM in the shape of a run folder: the same keys of a summary, the same columns.

What a recording does not know is None in the summary and not a column of `steps`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim import __version__
from sim.analysis.recorded import Recorded
from sim.analysis.recording import load
from sim.analysis.recording_file import is_recording
from sim.analysis.runs import table_pairs
from sim.report.folder import RunFolder, read_run
from sim.summary import NS

Array = NDArray[Any]

_ENGINE_KEYS = (
    "block_size",
    "num_gpu_blocks",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "enable_prefix_caching",
    "enable_chunked_prefill",
    "long_prefill_token_threshold",
    "async_scheduling",
    "policy",
    "scheduler_reserve_full_isl",
    "watermark",
)


def read_any(path: str) -> RunFolder:
    """A run folder, or a recording in its shape.

    Raises:
        InputError: it is neither, or damaged.
    """
    return recorded_run(load(path)) if is_recording(path) else read_run(path)


def recorded_run(recorded: Recorded) -> RunFolder:
    """The recording as a run folder: `steps` is its step function, `requests` is empty."""
    run = RunFolder(
        recorded.path,
        summary_of(recorded),
        {"version": __version__, "content_id": recorded.sha256},
        {"engine": {k: recorded.settings[k] for k in _ENGINE_KEYS if k in recorded.settings}},
        {},
        problems=tuple(recorded.problems),
    )
    # external fragmentation relates free blocks and free runs of one moment
    steps = recorded.steps | {"num_free_blocks": free_in_state(recorded)}
    run.adopt_steps({name: column for name, column in steps.items() if not _unknown(column)})
    return run


def _unknown(column: Array) -> bool:
    return column.dtype.kind == "f" and len(column) > 0 and bool(np.isnan(column).all())


def weights_of(time_ns: Array, end_ns: int) -> NDArray[np.float64]:
    """Nanoseconds for which each row stands: up to the next one. All ones where no time passes."""
    if len(time_ns) == 0:
        return np.zeros(0)
    held = np.diff(np.append(time_ns, max(end_ns, int(time_ns[-1])))).astype(np.float64)
    return held if held.sum() > 0 else np.ones(len(time_ns))


def weighted(values: Array, time_ns: Array, end_ns: int) -> dict[str, float | None] | None:
    """Mean, percentiles and maximum of a step function of time; None: no value is known."""
    weights = weights_of(time_ns, end_ns)
    known = ~np.isnan(np.asarray(values, dtype=np.float64))
    x, w, t = np.asarray(values, dtype=np.float64)[known], weights[known], time_ns[known]
    if len(x) == 0:
        return None
    if w.sum() <= 0:
        w = np.ones(len(x))
    order = np.argsort(x, kind="stable")
    below = np.cumsum(w[order])
    out: dict[str, float | None] = {"mean": float(np.average(x, weights=w))}
    for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        at = int(np.searchsorted(below, q * below[-1]))
        out[name] = float(x[order][min(at, len(x) - 1)])
    worst = int(np.argmax(x))
    return out | {"max": float(x[worst]), "max_at_s": int(t[worst]) / NS}


def ratio(part: Array, whole: Array, empty: float = 0.0) -> NDArray[np.float64]:
    """part / whole; `empty` where whole is 0, not-a-number where either is."""
    a, b = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    out = np.full(len(a), empty)
    np.divide(a, b, out=out, where=b != 0)
    return out


def external_fragmentation(steps: Mapping[str, Array], free: Array) -> NDArray[np.float64]:
    """1 - largest free run / free blocks, by row; 0 where none is free."""
    return np.where(free == 0, 0.0, 1.0 - steps["largest_free_run"] / np.maximum(free, 1))


def free_in_state(recorded: Recorded) -> NDArray[np.float64]:
    """Free blocks of the last state, by row of `steps`: rows between states know newer counts.

    Where the longest free run is the whole pool, all of it is free: also in the rows of an idle engine.
    """
    rows = recorded.rows["num_free_blocks"][recorded.state_rows].astype(np.float64)
    steps = recorded.steps
    at = np.searchsorted(recorded.state_times, steps["time_ns"], side="right") - 1
    free = np.append(rows, np.nan)[np.where(at < 0, len(rows), at)]
    return np.where(steps["largest_free_run"] == recorded.usable_blocks, recorded.usable_blocks, free)


def summary_of(recorded: Recorded) -> dict[str, Any]:
    """The keys of summary.json that a recording knows; the others are None."""
    steps, end = recorded.steps, recorded.end_ns
    time = steps["time_ns"]
    free = free_in_state(recorded)

    def over_time(values: Array) -> dict[str, float | None] | None:
        return weighted(values, time, end)

    wasted = over_time(steps["wasted_slots"])
    sizes = recorded.block_sizes
    return {
        "name": recorded.path.name,
        "content_id": recorded.sha256,
        "seed": None,
        "exit_reason": "recorded, with losses" if recorded.problems else "recorded",
        "simulated_s": end / NS,
        "warmup_s": 0.0,
        "steps": int(recorded.rows["step"][-1]) + 1 if len(recorded.rows["step"]) else 0,
        "engine": {
            "vllm": recorded.vllm,
            "num_gpu_blocks": recorded.num_blocks,
            "usable_blocks": recorded.usable_blocks,
            "block_size": max(sizes, default=0),
            "pool_bytes": None,
        },
        "requests": _request_counts(recorded),
        "usage": over_time(steps["used_blocks"] / max(recorded.usable_blocks, 1)),
        "internal_fragmentation": over_time(ratio(steps["wasted_slots"], steps["allocated_slots"])),
        "external_fragmentation": over_time(external_fragmentation(steps, free)),
        "free_runs": over_time(steps["free_runs"]),
        "num_running": over_time(steps["num_running"]),
        "num_waiting": over_time(steps["num_waiting"]),
        "waste": {
            "mean_wasted_slots": None if wasted is None else wasted["mean"],
            "mean_wasted_bytes": None,
            "waste_at_finish": None,
        },
        "table_contiguity": _contiguity(recorded),
        "prefix_cache": _prefix_cache(recorded),
        "preemptions": {
            "preemptions": int(recorded.rows["preemptions"][-1]) if _has_rows(recorded) else None,
            "recomputed_tokens": None,
        },
        "latency": {"e2e_s": _quantiles(_latencies(recorded))},
        "throughput": _throughput(recorded),
    }


def _quantiles(seconds: NDArray[np.float64]) -> dict[str, float | None]:
    if len(seconds) == 0:
        return {"p50": None, "p99": None, "max": None}
    p50, p99 = np.percentile(seconds, [50, 99])
    return {"p50": float(p50), "p99": float(p99), "max": float(seconds.max())}


def _contiguity(recorded: Recorded) -> float | None:
    """Over the states: adjacent pairs in tables with consecutive ids / all such pairs."""
    rows = recorded.state_columns | {"num_running": recorded.rows["num_running"][recorded.state_rows]}
    pairs, adjacent = table_pairs(rows, len(recorded.block_sizes))
    return float(adjacent.sum() / pairs.sum()) if pairs.sum() > 0 else None


def _has_rows(recorded: Recorded) -> bool:
    return "preemptions" in recorded.rows and len(recorded.rows["preemptions"]) > 0


def _prefix_cache(recorded: Recorded) -> dict[str, Any]:
    out: dict[str, Any] = {}
    known = "prefix_queries" in recorded.rows and _has_rows(recorded)
    for key, queries, hits in (
        ("first_lookup", "prefix_queries", "prefix_hits"),
        ("resumed", "preempted_queries", "preempted_hits"),
    ):
        asked = int(recorded.rows[queries][-1]) if known else None
        found = int(recorded.rows[hits][-1]) if known else None
        out[f"{key}_tokens" if key == "first_lookup" else "resumed_lookup_tokens"] = asked
        out[f"{key}_hit_tokens"] = found
        out[f"{key}_token_hit_rate"] = found / asked if asked and found is not None else None
    history = recorded.history()
    if history is not None:
        history.advance()
    out["evicted_blocks"] = None if history is None else history.evicted
    out["evicted_unused_blocks"] = None if history is None else history.evicted_unused
    return out


def _request_counts(recorded: Recorded) -> dict[str, int | None]:
    r = recorded.requests
    if r is None:
        return {"arrived": None, "finished": None}
    done = np.isin(r["status"], ("stop", "length"))
    return {
        "arrived": int((r["arrival_ns"] >= 0).sum()),
        "finished": int(done.sum()),
        "ended_otherwise": int(((r["finish_ns"] >= 0) & ~done).sum()),
        "unfinished": int((r["finish_ns"] < 0).sum()),
        "before": int((r["arrival_ns"] < 0).sum()),
        "prompt_tokens": int(np.maximum(r["prompt_tokens"], 0).sum()),
        "output_tokens": int(np.maximum(r["output_tokens"], 0).sum()),
    }


def _latencies(recorded: Recorded) -> NDArray[np.float64]:
    """Seconds from arrival to end of the requests that ended by themselves."""
    r = recorded.requests
    if r is None:
        return np.zeros(0)
    done = np.isin(r["status"], ("stop", "length")) & (r["arrival_ns"] >= 0)
    return np.asarray((r["finish_ns"] - r["arrival_ns"])[done] / NS)


def _throughput(recorded: Recorded) -> dict[str, float | None]:
    counts, seconds = _request_counts(recorded), recorded.end_ns / NS
    if recorded.requests is None or seconds <= 0:
        return {"requests_per_s": None, "output_tokens_per_s": None}
    done = np.isin(recorded.requests["status"], ("stop", "length"))
    output = int(recorded.requests["output_tokens"][done].sum())
    return {
        "requests_per_s": (counts["finished"] or 0) / seconds,
        "output_tokens_per_s": output / seconds,
    }
