"""Rules of scheduling, of the block pool and of groups that hold tokens."""

from __future__ import annotations

from sim.switches.kind import Onset, Switch

SCHEDULING: tuple[Switch, ...] = (
    Switch(
        "free_order",
        "Where freed blocks enter the free queue: which block is used next, which cached one is lost.",
        {
            "append": "all at the tail",
            "append_window_split": "all at the tail; but in front, if unhashed: what left a window or chunk,"
            " and all of a sliding-window group",
            "split": "unhashed blocks in front, hashed ones at the tail",
            "split_if_caching": "as split; with prefix caching off all at the tail",
        },
        (
            Onset("0.13", "append"),
            Onset("0.23", "append_window_split", 43447),
            Onset("0.24", "split", 42656),
            Onset("0.27", "split_if_caching", 48017),
            Onset("0.28", "split", 51482),
        ),
    ),
    Switch(
        "full_sequence_reserve",
        "Whether an admission wants free blocks for all known tokens (scheduler_reserve_full_isl).",
        {"off": "only for this step's tokens", "on": "as scheduler_reserve_full_isl says"},
        (Onset("0.13", "off"), Onset("0.19", "on", 37307)),
    ),
    Switch(
        "watermark",
        "Whether an admission can be made to leave a share of the pool free.",
        {"off": "no such option", "on": "as watermark says"},
        (Onset("0.13", "off"), Onset("0.24", "on", 44594)),
        ("watermark",),
    ),
    Switch(
        "async_default",
        "Whether async_scheduling is on where the config does not say.",
        {"off": "off", "on": "on"},
        (Onset("0.13", "off"), Onset("0.14", "on", 27614)),
    ),
    Switch(
        "empty_batch",
        "Asynchronous engines: what happens to a batch without tokens while none is in flight.",
        {
            "at_once": "its update follows at once",
            "queued": "it waits in the batch queue while requests are left",
        },
        (Onset("0.13", "at_once"), Onset("0.23", "queued")),
        ("async",),
    ),
    Switch(
        "priority_mode",
        "Priority policy: what the running phase does after it has taken a victim.",
        {
            "old": "a victim before the current request that was not scheduled shifts the list: one request"
            " misses the step; a request that is its own victim ends the phase",
            "fixed_index": "nobody is missed; a request that is its own victim ends the phase",
            "go_on": "nobody is missed; after a self-victim the phase goes on with the next request",
        },
        (Onset("0.13", "old"), Onset("0.28", "fixed_index", 49206), Onset("0.33", "go_on")),
        ("priority",),
    ),
    Switch(
        "single_request_exempt",
        "Whether long_prefill_token_threshold spares a request that is alone.",
        {"off": "no", "on": "yes"},
        (Onset("0.13", "off"), Onset("0.31", "on", 57951)),
        ("threshold",),
    ),
    Switch(
        "stats_at",
        "When a prefix look-up enters the statistics.",
        {
            "lookup": "at every look-up: again in each step in which the head of the queue is not admitted",
            "admission": "once, when the request is admitted",
        },
        (Onset("0.13", "lookup"), Onset("0.27", "admission", 48860)),
        ("caching",),
    ),
    Switch(
        "window_free_basis",
        "Sliding-window and chunked-local groups, async: which tokens count when blocks leave the window.",
        {"optimistic": "those in flight too", "processed": "only those that were processed"},
        (Onset("0.13", "optimistic"), Onset("0.26", "processed", 47728)),
        ("windows", "async"),
    ),
    Switch(
        "admission_cap",
        "Full-sequence reserve of window groups: tokens beyond the window that the reserve counts at most.",
        {
            "none": "all known tokens",
            "batch": "max_num_batched_tokens",
            "in_flight": "max_num_batched_tokens for each batch in flight",
        },
        (Onset("0.13", "none"), Onset("0.20", "batch", 40946), Onset("0.26", "in_flight", 47728)),
        ("windows",),
    ),
    Switch(
        "retention",
        "Which blocks of sliding-window groups are cached where the config does not say.",
        {
            "all": "every full block; prefix_cache_retention_interval does not exist",
            "uneven": "those that a hit of some length needs where other groups have larger blocks, else all",
            "dense": "those that a hit of some length needs (interval null)",
            "boundary": "those that a hit of the whole prompt needs (interval 0)",
        },
        (
            Onset("0.13", "all"),
            Onset("0.22", "uneven", 42258),
            Onset("0.23", "dense", 43447),
            Onset("0.29", "boundary", 52216),
        ),
        ("sparse", "caching"),
    ),
    Switch(
        "hybrid_cacheable",
        "Several groups: up to where tokens are cached.",
        {
            "all": "every full block of each group",
            "common": "rounded down to the common block size",
            "aligned": "rounded down to the common block size, and the block that a drafter drops behind it",
        },
        (Onset("0.13", "all"), Onset("0.22", "common", 42258), Onset("0.23", "aligned", 44082)),
        ("groups", "caching"),
    ),
    Switch(
        "shared_prefix_boundary",
        "Several groups: whether a prefix that only some groups hit is remembered as worth retaining.",
        {"off": "no", "chunks": "no, but a first chunk ends there for a Mamba state", "on": "yes"},
        (Onset("0.13", "off"), Onset("0.24", "chunks", 37898), Onset("0.26", "on", 47782)),
        ("groups", "caching"),
    ),
    Switch(
        "partial_tail_keys",
        "Groups of unequal block size: whether the prompt's last part of a block gets a key too.",
        {
            "off": "no",
            "whole": "yes, at the last hash unit of the whole prompt",
            "on": "yes, at the last hash unit that a hit on the same prompt can use",
        },
        (Onset("0.13", "off"), Onset("0.26", "whole", 46384), Onset("0.32", "on")),
        ("groups", "caching"),
    ),
    Switch(
        "hybrid_rounds",
        "Full attention beside one other kind of group: how often the two are asked for a common hit.",
        {"one": "once each", "until_equal": "until none of them shortens it"},
        (Onset("0.13", "one"), Onset("0.14", "until_equal", 31707), Onset("0.15", "one", 33524)),
        ("groups", "caching"),
    ),
    Switch(
        "trimmed_hits",
        "Full-attention groups of several block sizes: whose hits are cut to the common hit.",
        {
            "all": "those of each",
            "first": "those of the first size; the others keep, and use, blocks beyond the hit",
        },
        (Onset("0.13", "all"), Onset("0.15", "first", 33524), Onset("0.29", "all")),
        ("groups", "caching"),
    ),
    Switch(
        "skipped_hits",
        "Hits that lie before what attention will read.",
        {"taken": "are taken with the others, and given up in the next step", "left": "stay where they are"},
        (Onset("0.13", "taken"), Onset("0.14", "left", 30166)),
        ("sparse", "caching"),
    ),
)
