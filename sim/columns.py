"""Columns of the result files: unit and meaning of each, stored in the Parquet files' metadata.

Also the names of a request's states, and which of the columns are counters since the start.
"""

from __future__ import annotations

STATUS_NAMES = {
    -1: "never arrived",
    0: "waiting",
    1: "running",
    2: "preempted",
    3: "finished",
    4: "rejected: prompt not shorter than max_model_len",
    5: "unservable: can never fit the pool",
}

STEPS: dict[str, tuple[str, str]] = {
    "time_ns": ("ns", "simulated time of the row"),
    "step": ("", "engine steps so far"),
    "num_running": ("requests", "running requests"),
    "num_waiting": ("requests", "waiting requests, preempted ones included"),
    "num_free_blocks": ("blocks", "length of the free queue"),
    "used_blocks": ("blocks", "usable blocks that are not free"),
    "num_cached_hashes": ("hashes", "keys in the prefix map"),
    "num_cached_blocks": ("blocks", "blocks that carry a hash"),
    "cached_free_blocks": ("blocks", "free blocks that carry a hash: hit-able and evictable"),
    "num_scheduled_tokens": ("tokens", "tokens of the last batch"),
    "num_scheduled_reqs": ("requests", "requests of the last batch"),
    "allocated_slots": ("tokens", "slots in the block tables of running requests"),
    "held_tokens": ("tokens", "computed tokens in those slots"),
    "wasted_slots": ("tokens", "allocated minus held: internal fragmentation"),
    "free_runs": ("runs", "maximal runs of consecutive ids in the free set"),
    "largest_free_run": ("blocks", "longest of them"),
    "table_blocks": ("blocks", "sum of the lengths of the running requests' block tables"),
    "table_runs": ("runs", "maximal runs of consecutive ids in those tables"),
    "prefix_queries": ("tokens", "cumulative: tokens looked up at first lookups"),
    "prefix_hits": ("tokens", "cumulative: tokens found at first lookups"),
    "preempted_queries": ("tokens", "cumulative: tokens looked up by resumed requests"),
    "preempted_hits": ("tokens", "cumulative: tokens found by resumed requests"),
    "preemptions": ("", "cumulative: preemptions"),
    "finished": ("requests", "cumulative: finished requests"),
    "evictions": ("blocks", "cumulative: blocks whose cached content was evicted"),
    "step_duration_ns": ("ns", "duration of the last step"),
}

EVENT_TYPES = (
    "block_stored",
    "block_removed",
    "all_blocks_cleared",
    "admitted",
    "preempted",
    "finished",
    "allocation_failed",
)

EVENTS: dict[str, tuple[str, str]] = {
    "time_ns": ("ns", "simulated time"),
    "type": ("", "; ".join(f"{i} {name}" for i, name in enumerate(EVENT_TYPES))),
    "request": ("", "position of the request in the workload; -1: none"),
    "block": ("", "block id; allocation_failed: number of free blocks; -1: none"),
    "a": (
        "",
        "block_stored, block_removed: identity of the block's hash; admitted: cached tokens found; preempted:"
        " computed tokens; finished: status; allocation_failed: cause, 1 full-sequence"
        " reserve, 2 watermark, 3 pool, 4 a running request",
    ),
    "b": (
        "",
        "block_stored: KV-cache group; admitted, finished: tokens of the request; preempted: blocks it held;"
        " allocation_failed: blocks wanted",
    ),
}

REQUESTS: dict[str, tuple[str, str]] = {
    "index": ("", "position in the workload, from 0"),
    "arrival_ns": ("ns", "arrival"),
    "first_scheduled_ns": ("ns", "first time in a batch; -1: never"),
    "first_token_ns": ("ns", "first output token; -1: never"),
    "finish_ns": ("ns", "end; -1: never"),
    "prompt_tokens": ("tokens", "length of the prompt"),
    "output_tokens": ("tokens", "tokens generated"),
    "hit_tokens": ("tokens", "prompt tokens found in the prefix cache at the first lookup"),
    "resumed_hit_tokens": ("tokens", "tokens found in the cache when resumed after preemptions"),
    "preemptions": ("", "times it was preempted"),
    "recomputed_tokens": ("tokens", "tokens computed again after preemptions"),
    "peak_blocks": ("blocks", "most blocks it held at once"),
    "wasted_slots": ("tokens", "allocated slots without a token when it finished"),
    "allocated_slots": ("tokens", "slots in its block table when it finished"),
    "status": ("", "; ".join(f"{k} {v}" for k, v in STATUS_NAMES.items())),
}
