"""What is in a workload: counts, times, lengths, sessions, prefix reuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workloads.lru import lru_hit_rates
from workloads.requests import Workload
from workloads.reuse import measure
from workloads.units import NS_PER_SECOND

PERCENTILES = (50, 90, 99)

#: Block sizes whose waste in the last block is always told.
WASTE_BLOCK_SIZES = (8, 16, 32, 64, 128, 256)


def describe(
    workload: Workload, block_size: int, top: int = 5, lru_capacities: Sequence[int] = ()
) -> dict[str, Any]:
    """Numbers that say what a workload is; JSON-able, every key says its unit.

    Args:
        block_size: tokens of a block, for the reuse.
        top: how many shared prefixes to name.
        lru_capacities: sizes, in blocks, of plain LRU caches whose hit rates are wanted.
    """
    reuse = measure(workload, block_size, top)
    prompt_tokens, output_tokens = int(workload.prompt_len.sum()), int(workload.output_len.sum())
    return {
        "source": {
            key: workload.source[key]
            for key in ("kind", "format", "file", "sha256", "seed", "options")
            if key in workload.source
        },
        "notes": list(workload.source.get("notes", [])),
        "trace_hash": workload.content_hash(),
        "requests": len(workload),
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "prompt_len": _spread(workload.prompt_len),
        "output_len": _spread(workload.output_len),
        "longest_request_tokens": int((workload.prompt_len.astype(np.int64) + workload.output_len).max()),
        "stop_by_end_token": int((workload.max_tokens > workload.output_len).sum()),
        "priorities": len(np.unique(workload.priority)),
        "cache_salts": len(np.unique(workload.salt[workload.salt > 0])),
        "explicit_tokens": len(workload.tokens),
        "arrivals": _arrivals(workload),
        "sessions": _sessions(workload),
        "reuse": {
            "block_size": block_size,
            "vllm_token_hit_rate": reuse.vllm_hit_rate,
            "block_hit_rate": reuse.block_hit_rate,
            "token_hit_rate": reuse.token_hit_rate,
            "hit_blocks": reuse.block_hits,
            "blocks": reuse.blocks,
            "distinct_full_blocks": reuse.distinct_blocks,
            "top_prefixes": [
                {"tokens": prefix.tokens, "requests": prefix.requests} for prefix in reuse.prefixes
            ],
            "lru_block_hit_rate": {
                str(capacity): rate
                for capacity, rate in lru_hit_rates(workload, block_size, lru_capacities).items()
            },
        },
        "last_block_waste": {
            str(size): last_block_waste(workload, size) for size in sorted({*WASTE_BLOCK_SIZES, block_size})
        },
    }


def last_block_waste(workload: Workload, block_size: int) -> float:
    """Slots of the last block that stay empty / slots allocated, when each request has all its tokens.

    A request of t tokens (prompt and output) has ceil(t / block_size) blocks.
    """
    tokens = workload.prompt_len.astype(np.int64) + workload.output_len
    slots = -(-tokens // block_size) * block_size
    return float((slots - tokens).sum() / slots.sum())


def _spread(values: NDArray[Any]) -> dict[str, float | int]:
    cuts = np.percentile(values, PERCENTILES)
    return {
        "min": int(values.min()),
        "mean": float(values.mean()),
        **{f"p{p}": float(cut) for p, cut in zip(PERCENTILES, cuts, strict=True)},
        "max": int(values.max()),
    }


def _arrivals(workload: Workload) -> dict[str, Any]:
    """Of the requests that arrive by themselves; those that follow others or wait in the pool are counted."""
    own = np.sort(workload.arrival[workload.arrival >= 0])
    following = int((workload.parent >= 0).sum())
    result: dict[str, Any] = {
        "clock": workload.clock,
        "by_themselves": len(own),
        "after_another": following,
        "closed_loop_pool": len(workload) - len(own) - following,
    }
    span = int(own[-1] - own[0])
    if workload.clock == "logical":
        return {**result, "first_step": int(own[0]), "last_step": int(own[-1])}
    gaps = np.diff(own)
    result["span_s"] = span / NS_PER_SECOND
    result["mean_rate_per_s"] = (len(own) - 1) * NS_PER_SECOND / span if span else None
    result["gap_cv"] = float(gaps.std() / gaps.mean()) if span else None
    minutes = np.bincount((own - own[0]) // (60 * NS_PER_SECOND))
    result["busiest_minute_rate_per_s"] = int(minutes.max()) / 60 if span >= 60 * NS_PER_SECOND else None
    return result


def _sessions(workload: Workload) -> dict[str, Any] | None:
    """Sessions, turns and think times; None when no request belongs to a session."""
    member = workload.session >= 0
    if not member.any():
        return None
    turns = np.bincount(workload.session[member])
    turns = turns[turns > 0]
    later = member & (workload.parent >= 0)
    think = workload.think_ns[later] / NS_PER_SECOND
    return {
        "sessions": len(turns),
        "mean_turns": float(turns.mean()),
        "max_turns": int(turns.max()),
        "mean_think_s": float(think.mean()) if len(think) else None,
        "p90_think_s": float(np.percentile(think, 90)) if len(think) else None,
    }


def rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The summary of `describe` as (name, value) lines for people; an empty name is a heading."""
    arrivals, reuse, sessions = summary["arrivals"], summary["reuse"], summary["sessions"]
    source = summary["source"]
    lines = [
        ("", "Requests"),
        ("source", " ".join(str(source[key]) for key in ("kind", "format", "file") if key in source)),
        ("trace hash", summary["trace_hash"]),
        ("requests", f"{summary['requests']:,}"),
        ("prompt tokens", f"{summary['prompt_tokens']:,}"),
        ("output tokens", f"{summary['output_tokens']:,}"),
        ("prompt length", _spread_text(summary["prompt_len"])),
        ("output length", _spread_text(summary["output_len"])),
        ("longest request", f"{summary['longest_request_tokens']:,} tokens (prompt + output)"),
    ]
    for key, name in (
        ("stop_by_end_token", "stop by an end token"),
        ("explicit_tokens", "explicit token ids"),
    ):
        if summary[key]:
            lines.append((name, f"{summary[key]:,}"))
    if summary["priorities"] > 1:
        lines.append(("priorities", str(summary["priorities"])))
    if summary["cache_salts"]:
        lines.append(("cache salts", str(summary["cache_salts"])))
    lines += [("note", note) for note in summary["notes"]]
    lines += [("", "Arrivals"), *_arrival_rows(arrivals)]
    if sessions is not None:
        lines += [
            ("", "Sessions"),
            ("sessions", f"{sessions['sessions']:,}"),
            ("turns", f"mean {sessions['mean_turns']:.2f}, max {sessions['max_turns']}"),
        ]
        if sessions["mean_think_s"] is not None:
            think = f"mean {sessions['mean_think_s']:.2f} s, p90 {sessions['p90_think_s']:.2f} s"
            lines.append(("time between turns", think))
    lines += [
        ("", f"Prefix reuse, blocks of {reuse['block_size']} tokens, a cache without limit"),
        (
            "hit rate, vLLM's",
            f"{reuse['vllm_token_hit_rate']:.4f} of prompt tokens (full blocks, last token never)",
        ),
        ("hit rate by blocks", f"{reuse['block_hit_rate']:.4f} (partial last blocks included)"),
        ("hit rate by tokens", f"{reuse['token_hit_rate']:.4f} (of the tokens in those blocks)"),
        ("distinct full blocks", f"{reuse['distinct_full_blocks']:,} of prompts and outputs"),
    ]
    for prefix in reuse["top_prefixes"]:
        lines.append(("shared prefix", f"{prefix['tokens']:,} tokens by {prefix['requests']:,} requests"))
    for capacity, rate in reuse["lru_block_hit_rate"].items():
        lines.append((f"LRU of {int(capacity):,} blocks", f"{rate:.4f} hit rate by blocks (prompts only)"))
    lines.append(("", "Waste in the last block, of the slots of finished requests"))
    for size, waste in summary["last_block_waste"].items():
        lines.append((f"blocks of {size}", f"{100 * waste:.2f} %"))
    return lines


def _arrival_rows(arrivals: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [("arrive by themselves", f"{arrivals['by_themselves']:,}")]
    if arrivals["after_another"]:
        lines.append(("follow another request", f"{arrivals['after_another']:,}"))
    if arrivals["closed_loop_pool"]:
        lines.append(("wait in the pool", f"{arrivals['closed_loop_pool']:,} (closed loop)"))
    if arrivals["clock"] == "logical":
        lines.append(("engine steps", f"{arrivals['first_step']:,} to {arrivals['last_step']:,}"))
        return lines
    lines.append(("time span", f"{arrivals['span_s']:,.3f} s"))
    if arrivals["mean_rate_per_s"] is not None:
        rate = f"mean {arrivals['mean_rate_per_s']:.3f} /s"
        if arrivals["busiest_minute_rate_per_s"] is not None:
            rate += f", busiest minute {arrivals['busiest_minute_rate_per_s']:.3f} /s"
        lines.append(("arrival rate", f"{rate}, CV of gaps {arrivals['gap_cv']:.2f}"))
    return lines


def _spread_text(spread: dict[str, float | int]) -> str:
    cuts = ", ".join(f"p{p} {spread[f'p{p}']:,.0f}" for p in PERCENTILES)
    return f"mean {spread['mean']:,.1f}, {cuts}, min {spread['min']:,}, max {spread['max']:,}"
