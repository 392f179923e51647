"""The fleet's part of a summary: what the routing did, replica by replica.

The rest of the summary describes the fleet as a whole: the pool is that of all replicas together, counters
are sums, requests and latencies are those of everybody. What is weighted over time (usage, fragmentation,
running, waiting, free runs) is that of one replica, weighted over replicas and time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sim.fleet.simulate import FleetResult
    from sim.resolve import Resolved
    from sim.simulate import RunResult

DEFINITIONS = {
    "fleet": "several engines behind a router; usage, fragmentation, free runs, running and waiting are those"
    " of one replica, weighted over replicas and time; pool, counters and requests are those of all together",
    "imbalance": "the largest of the replicas' values / their mean (1: perfectly even)",
    "computed_tokens": "the largest of the replicas' computed tokens / their mean",
    "load_spread": "standard deviation over the replicas of running + waiting requests / their mean, averaged"
    " over the rows of steps.parquet after the warm-up in which there is any request",
    "copies_per_cached_block": "hashes in all prefix caches / distinct hashes, at the end of the run",
    "stayed": "conversations of two requests or more that one replica served alone / all such conversations",
    "replicas_per_conversation": "mean number of replicas that served a conversation of two requests or more",
}


def add_fleet(out: dict[str, Any], resolved: Resolved, result: FleetResult) -> None:
    """Make a summary of the sums one of the fleet: pool of all, busy time a replica, the section `fleet`."""
    assert resolved.fleet is not None
    n = resolved.fleet.replicas
    engine = out["engine"]
    usable = engine["usable_blocks"]
    for name in ("num_gpu_blocks", "usable_blocks", "pool_tokens", "pool_bytes", "gpus"):
        if engine[name] is not None:
            engine[name] *= n
    end_ns = out["simulated_s"] * 1e9
    out["busy"] = out["busy"] / n if out["busy"] is not None else None
    per_replica = [_replica(k, part, end_ns, resolved.warmup_ns) for k, part in enumerate(result.replicas)]
    for entry, routed in zip(per_replica, result.routed, strict=True):
        entry["requests"] = routed
    conversations, stayed, served_by = result.conversations
    distinct, copies = result.cached
    rates = [r["first_lookup_token_hit_rate"] for r in per_replica]
    known = [r for r in rates if r is not None]
    out["fleet"] = {
        "replicas": n,
        "router": resolved.config["router"],
        "usable_blocks_per_replica": usable,
        "imbalance": {
            "requests": _imbalance([r["requests"] for r in per_replica]),
            "busy": _imbalance([r["busy_s"] for r in per_replica]),
            "computed_tokens": _imbalance([r["computed_tokens"] for r in per_replica]),
        },
        "load_spread": load_spread(
            [part.steps for part in result.replicas], result.steps["time_ns"], resolved.warmup_ns
        ),
        "hit_rate_least": min(known) if known else None,
        "hit_rate_most": max(known) if known else None,
        "cached_blocks_distinct": distinct,
        "copies_per_cached_block": copies / distinct if distinct else None,
        "conversations": conversations,
        "stayed": stayed / conversations if conversations else None,
        "replicas_per_conversation": served_by / conversations if conversations else None,
        "per_replica": per_replica,
    }
    out["definitions"] = out["definitions"] | DEFINITIONS


def _imbalance(values: list[float]) -> float | None:
    total = sum(values)
    return max(values) * len(values) / total if total else None


def _replica(k: int, part: RunResult, end_ns: float, warmup_ns: int) -> dict[str, Any]:
    totals, requests = part.totals, part.requests
    queries = totals["prefix_queries"]
    late = (requests["arrival_ns"] >= warmup_ns) & (requests["first_token_ns"] >= 0)
    ttft = (requests["first_token_ns"] - requests["arrival_ns"])[late] / 1e9
    weighted = part.time_weighted
    return {
        "replica": k,
        "requests": 0,
        "finished": int((requests["status"] == 3).sum()),
        "steps": totals["steps"],
        "busy": totals["busy_ns"] / end_ns if end_ns else None,
        "busy_s": totals["busy_ns"] / 1e9,
        "computed_tokens": totals["scheduled_tokens"],
        "usage": weighted["usage"]["mean"],
        "usage_p99": weighted["usage"]["p99"],
        "num_running": weighted["num_running"]["mean"],
        "num_waiting": weighted["num_waiting"]["mean"],
        "internal_fragmentation": weighted["internal_fragmentation"]["mean"],
        "external_fragmentation": weighted["external_fragmentation"]["mean"],
        "free_runs": weighted["free_runs"]["mean"],
        "first_lookup_token_hit_rate": totals["prefix_hits"] / queries if queries else None,
        "evicted_blocks": totals["evictions"],
        "preemptions": totals["preemptions"],
        "ttft_s_p50": float(np.percentile(ttft, 50)) if len(ttft) else None,
        "ttft_s_p99": float(np.percentile(ttft, 99)) if len(ttft) else None,
    }


def load_spread(
    parts: list[dict[str, NDArray[np.int64]]], times: NDArray[np.int64], warmup_ns: int
) -> float | None:
    """Mean over time of the relative standard deviation of the replicas' requests; see DEFINITIONS.

    Args:
        parts: the replicas' steps.
        times: ns at which to compare them, as in the fleet's steps.
        warmup_ns: earlier rows are left out.
    """
    times = times[times >= warmup_ns]
    load = []
    for part in parts:
        if not len(part["time_ns"]):
            load.append(np.zeros(len(times)))
            continue
        at = np.searchsorted(part["time_ns"], times, side="right") - 1
        requests = (part["num_running"] + part["num_waiting"])[np.maximum(at, 0)]
        load.append(np.where(at >= 0, requests, 0))
    table = np.array(load, dtype=np.float64)
    mean = table.mean(axis=0)
    busy = mean > 0
    if not busy.any():
        return None
    return float((table.std(axis=0)[busy] / mean[busy]).mean())
