"""State of the engine: a few structs of arrays, allocated once by the shell (see ``sim.capacity``).

What the records of ``sim.core.records`` hold is said there.

N blocks, G KV-cache groups of P different specs, R requests (capacity), S slots, B blocks a table can have, H
hash units a request can have. A slot is the index of a request's block tables and hashes; a request owns one
from its first look-up to its end or preemption.
"""

from __future__ import annotations

from sim.core.records import F64, I32, I64, U64, Record
from sim.core.struct import Struct


class Pool(Struct):
    """BlockPool (vLLM 0.32.0, v1/core/block_pool.py)."""

    plain: bool  # see KVCache
    windows_only: bool
    params: Record  # PARAMS
    ctl: Record  # CONTROL
    meta: Record  # POOL_META
    runs: Record  # FREE_RUNS
    queue: Record  # FREE_QUEUE
    ring: I32  # see free_queue: ids of the free blocks by place, 0: none
    blocks: Record  # BLOCK[N]
    table: U64  # prefix map, see prefix_map: buckets of eight words
    partial_keys: U64  # (N*partial_width or 1,) by place of the boundary in its block, 0: none
    partial_table: U64  # (2*capacity,) [2*i] a key (0: empty), [2*i+1] the first place that has it
    partial_links: I32  # (2*N*partial_width or 2,) ring of the places with one key: before, behind
    free_bits: U64  # (N//64 + 4,) bit 64 + b: block b is free
    events: I64  # (rows, EVENT_COLUMNS): time, type, request, block, a, b
    followed: Record  # FOLLOWED[N], or [1] when blocks are not followed
    access_times: I64  # (N or 1, 4) ns of the last hits, a ring
    residency: Record  # DURATIONS[3]: lifetime, idle, reuse gap
    residency_fine: I64  # (3, TW_BINS) bins of log_bin() of ns
    residency_buckets: I64  # (3, bounds + 1) of vLLM's Prometheus histograms, not cumulative
    residency_bounds: I64  # (bounds,) ns


class KVCache(Struct):
    """KVCacheManager and coordinator: the pool, the block tables and the hashes of the requests' tokens."""

    plain: bool  # full attention alone, with one block size and no drafts; see ``switch``
    windows_only: bool  # full attention, windows and chunks, without drafts and keys inside blocks
    params: Record  # PARAMS
    ctl: Record  # CONTROL
    count: Record  # COUNTERS
    pool: Pool
    groups: Record  # GROUP[G]
    specs: Record  # SPEC[P], full attention first
    requests: Record  # REQUEST[R+2]
    tables: Record  # TABLE[G, S]
    keyed: Record  # KEYED[G, S], or [1, 1] in a plain engine
    due: Record  # DUE[S], or [1] in a plain engine; kept where windows_only
    table_blocks: I32  # (G, S, B)
    states: Record  # STATES[G, S], or [1, 1] where windows_only
    copies: I32  # (1, G*S, 3) group, block and copy of it that this step's batch makes
    held_by_copies: I32  # (1, 1, 2*G*S) the blocks and copies, to be freed
    slots: Record  # SLOT[S]
    hashes: U64  # (S, H)
    step_keys: U64  # ((12 + 2*drafts)*G*S,) keys of the Mamba states cached since the last schedule() began
    encoder_tokens: I32  # (R,) of each request, or (0,): all have params.encoder_tokens
    seg_ptr: I64  # (R+1,) pieces of a prompt
    pieces: Record  # PIECE[M]
    tokens: I32  # (K,) pool of explicit token ids
    hash_mult: U64  # (hash unit,) odd multipliers of the content sum


class Queues(Struct):
    """Waiting and running requests, arrivals to come, and the batches in flight."""

    lists: Record  # LISTS[S]
    wait_heap: I32  # (R,) priority queue
    order: I32  # requests with a known arrival, sorted by (arrival, index)
    arrival_heap: I32  # (R,) released successors, a heap by (arrival, index)
    ended_watched: I32  # (R,) watched requests that ended, in that order
    entries: Record  # BATCH_ENTRY[3, S]
    batches: Record  # BATCH[3]


class StepTime(Struct):
    """Model of the duration of a step, see ``step_time.step_duration_ns``."""

    kind: int
    coef: F64  # (12,)
    axis_tokens: F64
    axis_context: F64
    table: F64


class Logs(Struct):
    """Preallocated logs, drained by the shell between calls."""

    steps: I64  # (rows, len(LOG_COLUMNS))
    weighted: Record  # WEIGHTED[metrics]
    histogram: I64  # (metrics, TW_BINS) ns
    notes: Record  # NOTE[n]


class State(Struct):
    """Everything that the engine reads or changes."""

    params: Record  # PARAMS
    ctl: Record  # CONTROL
    count: Record  # COUNTERS
    kv: KVCache
    requests: Record  # REQUEST[R+2], the same array as in kv
    drafts: Record  # DRAFTS[R], or [1] where windows_only
    accepted_drafts: I32  # (A,) drafts that are right, for requests that say so
    queues: Queues
    step_time: StepTime
    logs: Logs
