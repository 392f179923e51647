"""What every term of a report means; the renderers show those that are used."""

from __future__ import annotations

from collections.abc import Sequence

from sim.report.document import Cards, Chart, Section, Table

DEFINITIONS: dict[str, tuple[str, str]] = {
    "usage": (
        "KV usage",
        "Used blocks / usable blocks (all but the null block), vLLM's kv_cache_usage. A block is used while"
        " at least one running request holds it. Time-weighted after the warm-up.",
    ),
    "internal_fragmentation": (
        "Internal fragmentation",
        "Slots allocated to running requests that hold no computed token / allocated slots, summed over their"
        " block tables (a block in two tables counts twice). Time-weighted after the warm-up.",
    ),
    "wasted_memory": (
        "Wasted memory",
        "Slots allocated to running requests that hold no computed token, times the bytes of a slot; mean"
        " over simulated time after the warm-up, from the rows of steps.parquet.",
    ),
    "external_fragmentation": (
        "External fragmentation",
        "1 - longest run of consecutive free block ids / free blocks; 0 when none is free. Time-weighted"
        " after the warm-up. Paged allocation does not need adjacent blocks; transfers and larger pages do.",
    ),
    "free_runs": (
        "Free runs",
        "Maximal runs of consecutive block ids in the free set (evictable blocks included).",
    ),
    "table_contiguity": (
        "Table contiguity",
        "Adjacent pairs in running requests' block tables whose ids are consecutive / all such pairs, over"
        " the rows of steps.parquet after the warm-up: pairs that one transfer descriptor could cover."
        " With several groups a table without blocks takes a pair away, which the rows do not tell.",
    ),
    "first_lookup_hit_rate": (
        "Hit rate at first lookup",
        "Tokens found in the prefix cache / tokens looked up, over the first lookup of each request: vLLM's"
        " prefix_cache_hits / prefix_cache_queries.",
    ),
    "resumed_hit_rate": (
        "Hit rate when resumed",
        "The same over lookups of requests that are resumed after a preemption.",
    ),
    "pollution": (
        "Pollution",
        "Cached blocks that were evicted without one hit since they were cached / all evicted cached blocks.",
    ),
    "preemptions": (
        "Preemptions",
        "Times that a running request lost its blocks because another one needed some.",
    ),
    "recomputed_tokens": (
        "Recomputed tokens",
        "Tokens computed a second time because their request had been preempted (those found in the cache are"
        " not).",
    ),
    "full_time": (
        "Time under pressure",
        "Simulated time in which more than 95 % of the usable blocks were used, from the rows of"
        " steps.parquet; of a fleet the mean over its replicas.",
    ),
    "ttft": (
        "Time to first token",
        "First output token - arrival, of requests that arrived after the warm-up.",
    ),
    "throughput": (
        "Throughput",
        "Requests finished, and their output tokens, per simulated second after the warm-up.",
    ),
    "waste_at_finish": (
        "Waste at finish",
        "Slots without a token in a request's block table at its end: the unfilled part of its last block.",
    ),
    "block_states": (
        "Block states",
        "free: in the free queue, without content; free and cached: in the free queue, but its content can"
        " still be hit, until it is evicted; used: held by a running request; used and cached: held, full and"
        " in the prefix cache.",
    ),
    "run_length": (
        "Run lengths",
        "Free runs by their length in powers of two, mean over equally spaced instants of the run.",
    ),
    "lifetime": (
        "Block lifetime",
        "From a block's allocation to its next allocation, as vLLM's kv_block_lifetime_seconds.",
    ),
    "idle": (
        "Idle before eviction",
        "From a block's last hit (its allocation, if there was none) to its next allocation, as vLLM's"
        " kv_block_idle_before_evict_seconds.",
    ),
    "reuse_gap": (
        "Reuse gap",
        "Between successive hits of a block, as vLLM's kv_block_reuse_gap_seconds.",
    ),
    "duplicates": (
        "Duplicate blocks",
        "Cached blocks whose content another block caches too; vLLM does not merge equal blocks.",
    ),
    "unreachable": (
        "Unreachable blocks",
        "Cached blocks that no lookup can reach, since a block before them in the prefix has been evicted.",
    ),
    "contiguous_fit_failures": (
        "Contiguous-fit failures",
        "Allocations of several blocks that a contiguous allocator would have refused although enough blocks"
        " were free.",
    ),
    "failures": (
        "Allocation failures",
        "Episodes in which a request wanted blocks and was refused at least once. Causes: full-sequence"
        " reserve (a waiting request's whole known text does not fit), watermark, pool (no block left for the"
        " next chunk), running request (no block for its next tokens, so something is preempted),"
        " state (no want of blocks: its prefix's recurrent state is computed by another request in this very"
        " step).",
    ),
    "splitters": (
        "Splitters",
        "Requests whose blocks stand between two free runs. A sole gap holds blocks of that request only:"
        " without it the two runs would be one.",
    ),
    "stripes": (
        "Stripes",
        "Ranges of at least 8 used blocks in which at least every second neighbour belongs to another"
        " request: left by requests that grew side by side, or by blocks handed out from scattered places."
        " Those of the instant with the most such neighbours.",
    ),
    "groups": (
        "KV-cache groups",
        "Layers that share block tables. Every group takes its blocks from the one pool; a block in two"
        " tables counts twice. Places without one: left of a window, or between the states that are kept;"
        " they hold the null block, which costs nothing. Blocks of states have no token slots. Padding: bytes"
        " of a block that this group has no use for, since all groups' blocks are of one size.",
    ),
    "regions": (
        "Regions that never coalesce",
        "Ranges of ids in which no free run was ever longer than a few blocks although some were free, by"
        " instants at which at least half of the pool was used.",
    ),
    "interval": (
        "95 % interval",
        "Where the difference of the means lies with 95 % confidence, by Student's t over the seeds: paired"
        " if both sides have the same seeds and workloads, Welch's otherwise; none with one run a side.",
    ),
    "verdict": (
        "Verdict",
        "clear: the interval excludes 0; within noise: it does not; same: no difference at all; better and"
        " worse say which way, where less or more is plainly wanted.",
    ),
}


def used_definitions(
    sections: Sequence[Section], known: dict[str, tuple[str, str]]
) -> dict[str, tuple[str, str]]:
    """Of the terms, those that a card, a chart or a column names, in the order of `known`."""
    used: set[str] = set()
    for section in sections:
        for part in section.parts:
            if isinstance(part, Cards):
                used |= {c.term for c in part.cards}
            elif isinstance(part, Chart):
                used.add(part.term)
            elif isinstance(part, Table):
                used |= {c.term for c in part.columns}
    unknown = used - set(known) - {""}
    if unknown:
        raise AssertionError(f"terms without a definition: {sorted(unknown)}")
    return {k: v for k, v in known.items() if k in used}
