"""The summary of a run: every number with the name of its definition.

`summarize` gives plain data for summary.json; `sim.report.text` shows it on one screen. Times are seconds,
shares are fractions; keys say the unit. No number is called "hit rate" without saying whose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from sim.columns import STATUS_NAMES
from sim.step_totals import StepTotals

if TYPE_CHECKING:
    from sim.fleet.simulate import FleetResult
    from sim.resolve import Resolved
    from sim.simulate import RunResult

NS = 1e9

DEFINITIONS = {
    "usage": "used blocks / usable blocks (num_gpu_blocks - 1), as vLLM's kv_cache_usage; time-weighted",
    "internal_fragmentation": "slots allocated to running requests that hold no computed token / allocated"
    " slots, summed over block tables; time-weighted",
    "external_fragmentation": "1 - largest run of consecutive free ids / free blocks, 0 when none is free;"
    " time-weighted",
    "free_runs": "maximal runs of consecutive ids in the free set; time-weighted",
    "first_lookup_token_hit_rate": "tokens found / tokens looked up, over the first lookup of each request"
    " (vLLM's prefix cache hit rate)",
    "resumed_token_hit_rate": "tokens found / tokens looked up, over lookups of requests resumed after a"
    " preemption",
    "waste_at_finish": "slots without a token / allocated slots in the tables of finished requests, at"
    " their end",
    "mean_wasted_slots": "mean of wasted slots over the rows of steps.parquet, weighted by time",
    "table_contiguity": "adjacent pairs in running requests' tables with consecutive ids / all such pairs,"
    " over the rows of steps.parquet after the warm-up",
    "evicted_unused_blocks": "cached blocks evicted before any hit since they were cached (pollution)",
    "admissions_refused": "times that the head of the waiting queue was not admitted for want of free blocks:"
    " for its whole known text, above the watermark, or for its next chunk",
    "busy": "simulated time in which a step executes / simulated time",
    "recomputed_tokens": "tokens computed again because their request had been preempted",
    "ttft_s": "first output token - arrival, of requests that arrived after the warm-up",
    "tpot_s": "(end - first output token) / (output tokens - 1), of finished requests with two or more",
    "e2e_s": "end - arrival, of finished requests",
    "queue_s": "first time in a batch - arrival",
    "throughput": "over the simulated time after the warm-up: requests finished in it, and their prompt and"
    " output tokens",
    "worst_moment": "the row of steps.parquet with the fewest free blocks (the most waiting among those)",
    "most_waste": "the row of steps.parquet with the most wasted slots",
}

#: Of runs of models with cross attention.
ENCODER_DEFINITIONS = {
    "encoder": "of models with cross attention: tokens that went through the encoder, and times that the head"
    " of the waiting queue found no room in a step's budget of encoder tokens",
}

Rows = Mapping[str, NDArray[Any]]


def summarize(
    resolved: Resolved,
    result: RunResult,
    num_requests: int,
    content: str,
    version: str,
    steps: StepTotals | None = None,
) -> dict[str, Any]:
    """Everything that the terminal and summary.json show.

    Args:
        resolved: the run's config.
        result: what the simulation recorded.
        num_requests: requests of the workload.
        content: content id of the run.
        version: of kvpool.
        steps: what the step log says, where its rows are not in `result`.
    """
    requests, totals = result.requests, result.totals
    if steps is None:
        steps = StepTotals(resolved.warmup_ns, len(resolved.engine.kv_cache_groups))
        steps(result.steps)
    engine = resolved.engine
    end_ns = max(int(totals.get("now_ns", 0)), steps.last_ns, int(requests["finish_ns"].max(initial=0)))
    span = max(0, end_ns - resolved.warmup_ns)
    block = resolved.block_bytes_total
    slot_bytes = None if block is None else block / engine.block_size
    out: dict[str, Any] = {
        "kvpool": version,
        "name": resolved.name,
        "content_id": content,
        "seed": resolved.seed,
        "exit_reason": result.exit_reason,
        "simulated_s": end_ns / NS,
        "warmup_s": resolved.warmup_ns / NS,
        "steps": int(totals.get("steps", 0)),
        "busy": _ratio(int(totals.get("busy_ns", 0)), end_ns),
        "engine": {
            "vllm": engine.vllm,
            "switches": dict(engine.switches),
            "model": resolved.model.name if resolved.model else None,
            "gpu": resolved.gpu.name if resolved.gpu else None,
            "gpus": int(resolved.config["engine"]["tensor_parallel_size"]),
            "num_gpu_blocks": engine.num_gpu_blocks,
            "usable_blocks": engine.usable_blocks,
            "block_size": engine.block_size,
            "kv_cache_groups": [group.type for group in engine.kv_cache_groups],
            "pool_tokens": engine.usable_blocks * engine.block_size if engine.has_token_slots else None,
            "pool_bytes": None if block is None else block * engine.num_gpu_blocks,
        },
        "requests": _requests(requests, num_requests),
    }
    for metric in ("usage", "internal_fragmentation", "external_fragmentation", "free_runs"):
        out[metric] = _weighted(result.time_weighted.get(metric))
    for metric in ("num_running", "num_waiting"):
        out[metric] = _weighted(result.time_weighted.get(metric))
    wasted = steps.mean_wasted_slots(end_ns)
    allocated = int(requests["allocated_slots"][requests["status"] == 3].sum())
    at_finish = int(requests["wasted_slots"][requests["status"] == 3].sum())
    out["waste"] = {
        "mean_wasted_slots": wasted,
        "mean_wasted_bytes": None if slot_bytes is None or wasted is None else wasted * slot_bytes,
        "waste_at_finish": _ratio(at_finish, allocated),
        "wasted_slots_at_finish": at_finish,
        "allocated_slots_at_finish": allocated,
    }
    out["table_contiguity"] = steps.table_contiguity()
    out["prefix_cache"] = _prefix_cache(steps.last, totals)
    out["preemptions"] = {
        "preemptions": int(requests["preemptions"].sum()),
        "requests_preempted": int((requests["preemptions"] > 0).sum()),
        "recomputed_tokens": int(requests["recomputed_tokens"].sum()),
    }
    out["admissions_refused"] = {
        "by_full_sequence_reserve": int(totals.get("fail_reserve", 0)),
        "by_watermark": int(totals.get("fail_watermark", 0)),
        "by_pool": int(totals.get("fail_pool", 0)),
    }
    if engine.encoder_tokens:
        out["encoder"] = {"tokens": int(totals["encoder_tokens"]), "refused": int(totals["fail_encoder"])}
    late = requests["arrival_ns"] >= resolved.warmup_ns
    out["latency"] = _latency(requests, late)
    out["throughput"] = _throughput(requests, resolved.warmup_ns, end_ns, span)
    out["worst_moment"] = steps.worst_moment()
    out["most_waste"] = steps.most_waste()
    out["unservable"] = _named(requests, 5, engine.block_size)
    out["rejected"] = _named(requests, 4, engine.block_size)
    out["definitions"] = DEFINITIONS | (ENCODER_DEFINITIONS if engine.encoder_tokens else {})
    if resolved.fleet is not None:
        from sim.fleet.summary import add_fleet

        add_fleet(out, resolved, cast("FleetResult", result))
    return plain(out)


def plain(value: Any) -> Any:
    """Data of plain Python types; not-a-number becomes None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _requests(requests: Rows, total: int) -> dict[str, int]:
    status = requests["status"]
    counts = {k: int((status == k).sum()) for k in STATUS_NAMES}
    arrived = len(status) - counts[-1]
    return {
        "total": total,
        "arrived": arrived,
        "finished": counts[3],
        "rejected": counts[4],
        "unservable": counts[5],
        "unfinished": counts[0] + counts[1] + counts[2],
        "prompt_tokens": int(requests["prompt_tokens"].sum()),
        "output_tokens": int(requests["output_tokens"].sum()),
    }


def _weighted(metric: Mapping[str, float] | None) -> dict[str, float | None] | None:
    if metric is None:
        return None
    out: dict[str, float | None] = {k: metric.get(k) for k in ("mean", "p50", "p90", "p99", "max")}
    at = metric.get("max_at_ns")
    out["max_at_s"] = None if at is None or at < 0 else at / NS
    return out


def _prefix_cache(last_row: Mapping[str, int], totals: Mapping[str, Any]) -> dict[str, Any]:
    def last(name: str) -> int:
        if name in totals:
            return int(totals[name])
        return last_row.get(name, 0)

    queries, hits = last("prefix_queries"), last("prefix_hits")
    again, found = last("preempted_queries"), last("preempted_hits")
    return {
        "first_lookup_token_hit_rate": _ratio(hits, queries),
        "first_lookup_tokens": queries,
        "first_lookup_hit_tokens": hits,
        "resumed_token_hit_rate": _ratio(found, again),
        "resumed_lookup_tokens": again,
        "resumed_hit_tokens": found,
        "evicted_blocks": last("evictions"),
        "evicted_unused_blocks": last("evicted_unused"),
    }


def _quantiles(seconds: NDArray[np.float64]) -> dict[str, float | int | None]:
    if len(seconds) == 0:
        return {"count": 0, "mean": None, "p50": None, "p90": None, "p99": None, "max": None}
    p50, p90, p99 = np.percentile(seconds, [50, 90, 99])
    return {
        "count": len(seconds),
        "mean": float(seconds.mean()),
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "max": float(seconds.max()),
    }


def latencies(requests: Rows, keep: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
    """Seconds of each request that has the latency: ttft_s, tpot_s, e2e_s, queue_s."""
    arrival, first = requests["arrival_ns"], requests["first_token_ns"]
    finish, scheduled = requests["finish_ns"], requests["first_scheduled_ns"]
    output = requests["output_tokens"]
    done = keep & (requests["status"] == 3)
    many = done & (output > 1)
    began, ran = keep & (first >= 0), keep & (scheduled >= 0)
    return {
        "ttft_s": (first[began] - arrival[began]) / NS,
        "tpot_s": (finish[many] - first[many]) / (output[many] - 1) / NS,
        "e2e_s": (finish[done] - arrival[done]) / NS,
        "queue_s": (scheduled[ran] - arrival[ran]) / NS,
    }


def _latency(requests: Rows, keep: NDArray[np.bool_]) -> dict[str, Any]:
    return {name: _quantiles(values) for name, values in latencies(requests, keep).items()}


def _throughput(requests: Rows, begin_ns: int, end_ns: int, span_ns: int) -> dict[str, float | None]:
    done = (requests["status"] == 3) & (requests["finish_ns"] >= begin_ns) & (requests["finish_ns"] <= end_ns)
    seconds = span_ns / NS
    return {
        "requests_per_s": _ratio(int(done.sum()), seconds),
        "prompt_tokens_per_s": _ratio(int(requests["prompt_tokens"][done].sum()), seconds),
        "output_tokens_per_s": _ratio(int(requests["output_tokens"][done].sum()), seconds),
    }


def _named(requests: Rows, status: int, block_size: int, limit: int = 5) -> list[dict[str, int]]:
    """The first few requests of this state: who they are and how long."""
    picked = np.flatnonzero(requests["status"] == status)[:limit]
    return [
        {"index": int(requests["index"][i]), "prompt_tokens": int(requests["prompt_tokens"][i])}
        for i in picked
    ]
