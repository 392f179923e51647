"""Records of the engine's state: what is kept of a block, a request, a table, and in single counters.

Things that come in numbers (blocks, requests, slots) are record arrays, one cache line or less each; counters
are single records. Numba passes a record as one pointer, which keeps the argument lists of the jitted
functions short: compile time grows faster than linearly with the number of arrays in a NamedTuple.

G KV-cache groups of P different specs, N blocks; a slot is the index of a request's block tables and hashes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: A record (np.record) or record array (np.recarray); fields are attributes, checked by the jitted code.
Record = Any

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
F64 = NDArray[np.float64]


def record_dtype(fields: dict[str, type]) -> np.dtype[Any]:
    """The dtype of a record with these fields, each aligned as in C."""
    return np.dtype(list(fields.items()), align=True)


#: Settings that never change during a run.
PARAMS = record_dtype(
    {
        "num_blocks": np.int64,  # N, the null block included
        "num_groups": np.int64,  # G
        "num_specs": np.int64,  # P
        "hybrid": np.int64,  # several groups under prefix caching (HybridKVCacheCoordinator)
        "foresees_refusals": np.int64,  # a request may be refused again before all of its hits are known
        "block_size": np.int64,  # the engine's own, tokens
        "scheduler_block_size": np.int64,  # least common multiple of the groups' block sizes
        "hit_alignment": np.int64,  # every hit's length is a multiple of it, tokens
        "mask_alignment": np.int64,  # the same, as retention takes it
        "fine_grained": np.int64,  # hits may end inside a block
        "mamba_align": np.int64,  # prefills are cut where a Mamba state is to be cached
        "export_alignment": np.int64,  # tokens between states that all Mamba kernels export, 0: none
        "num_drafts": np.int64,  # draft tokens that a decode step verifies
        "lookahead": np.int64,  # slots beyond the scheduled tokens, which the drafter writes
        "admission_lookahead": np.int64,  # the same for a request that is to be admitted
        "draft_lookup": np.int64,  # LOOKUP_*
        "draft_padding": np.int64,  # PADS_*
        "replays_dropped": np.int64,  # prompts are retained for hits that have lost a block
        "encoder_tokens": np.int64,  # of a request that has no number of its own
        "encoder_budget": np.int64,  # encoder tokens that a step runs at most, and slots of the encoder cache
        "encoder_most": np.int64,  # encoder tokens that an admission takes blocks for, 0: its own
        "encoder_freed_early": np.int64,  # slots of the encoder cache come back when the step is scheduled
        "skips_full_encoder": np.int64,  # a request without room in the encoder is passed over
        "draft_slots": np.int64,  # input tokens that the drafter adds to each scheduled request
        "draft_threshold": np.int64,  # a draft is right when a 63-bit draw is at most this
        "drops_checkpoint": np.int64,  # eagle or mtp: Mamba states are kept one block further left
        "eagle_groups": np.int64,  # hits of some group lose their last block
        "max_num_scheduled_tokens": np.int64,
        "max_num_batched_tokens": np.int64,
        "max_num_active_seqs": np.int64,
        "max_model_len": np.int64,
        "enable_caching": np.int64,
        "enable_chunked_prefill": np.int64,
        "long_prefill_token_threshold": np.int64,
        "long_prefill_adaptive": np.int64,
        "async_scheduling": np.int64,
        "policy": np.int64,  # POLICY_*
        "reserve_full_isl": np.int64,
        "watermark_blocks": np.int64,
        "free_order": np.int64,  # FREE_*
        "single_request_exempt": np.int64,  # the long-prefill threshold spares a request that is alone
        "priority_mode": np.int64,  # PRIORITY_*
        "stats_at_lookup": np.int64,  # look-ups are counted when made, not when they led to an admission
        "queue_empty_batch": np.int64,  # async: a batch without tokens may wait in the batch queue
        "window_free_basis": np.int64,  # WINDOW_*: computed tokens that move a window on
        "retention": np.int64,  # RETAIN_*, or the retention interval in tokens
        "hybrid_aligned": np.int64,  # CACHES_*, several groups
        "shared_prefix_boundary": np.int64,  # SHARED_*, several groups: a prefix that only some groups hit
        "partial_width": np.int64,  # keys inside a block that it can have, see ``partial_keys``
        "partial_tail_keys": np.int64,  # TAIL_*, groups of unequal block size: a key for a prompt's last part
        "hybrid_one_round": np.int64,  # full attention and one other spec: one look-up each is enough
        "takes_skipped_hits": np.int64,  # hits before what attention will read are taken with the others
        "hash_lookahead": np.int64,  # 1: a hash covers the token behind its unit too
        "caches_accepted": np.int64,  # synchronous: blocks that accepted drafts fill are cached at once
        "renews_states": np.int64,  # the state at a prompt's end is new in each step at which it stands there
        "state_wait": np.int64,  # a hit on a state of this very step waits for the next one
        "keeps_drafts": np.int64,  # a preempted request keeps its drafts
        "state_retention": np.int64,  # the retention interval is about states too
        "state_tails": np.int64,  # STATE_TAIL_*; but for NONE exported states get keys
        "short_windows": np.int64,  # drafts that are taken back may lie before what windows have given up
        "state_drafts": np.int64,  # computed tokens that may be drafts, and don't count when states are freed
        "keeps_states": np.int64,  # Mamba states that lie behind are never given up
        "states_to_gap": np.int64,  # states that lie behind are freed up to the first gap only
        "state_chunks": np.int64,  # CHUNKS_*, where prefill chunks end
        "splits_tails": np.int64,  # a chunk ends at the prompt's last hash unit, too
        "state_exports": np.int64,  # EXPORTS_*
        "copies_want_two": np.int64,  # a step that copies a state must find two blocks free
        "trims_all_hits": np.int64,  # all full-attention specs are cut to the common hit, not just the first
        "clock": np.int64,  # CLOCK_*
        "idle_run": np.int64,  # logical clock: step through idle indices instead of skipping them
        "vocab_size": np.int64,
        "closed_loop": np.int64,
        "sample_period_ns": np.int64,  # 0: no samples by time
        "log_every_step": np.int64,
        "log_events": np.int64,  # LOG_*
        "follow_blocks": np.int64,  # keep pool.followed and the residency histograms
        "follow_threshold": np.int64,  # an allocation is followed when a 63-bit draw is at most this
        "warmup_ns": np.int64,
    }
)

#: Where the engine stands.
CONTROL = record_dtype(
    {
        "now": np.int64,  # ns, or the step index on a logical clock
        "phase": np.int64,  # P_*, to come
        "last_phase": np.int64,  # X_SCHEDULED or X_UPDATED
        "step": np.int64,  # index of the engine-loop step
        "num_running": np.int64,
        "num_waiting": np.int64,
        "finished_pending": np.int64,  # finished ids that the next schedule() reports to the workers
        "num_in_flight": np.int64,  # batches in flight
        "ring_head": np.int64,  # ring index of the oldest of them
        "last_done": np.int64,  # ns at which the youngest of them completes
        "last_batch": np.int64,  # ring index of the batch of the last phase
        "head_req": np.int64,  # waiting request that owns a slot without running, or -1
        "memo_req": np.int64,  # request whose look-up is remembered, or -1
        "memo_slot": np.int64,
        "memo_hits": np.int64,  # blocks a group that are known to be hit still
        "memo_marked": np.int64,  # blocks a group that were marked
        "memo_free": np.int64,  # marked blocks that nobody references
        "num_preempted": np.int64,  # in the last schedule()
        "encoder_budget": np.int64,  # encoder tokens that the last schedule() left of its budget
        "encoder_free": np.int64,  # slots of the encoder cache; vLLM gives back more than it takes
        "prefill_scheduled": np.int64,  # drafts: this schedule() continued a prefill
        "num_finished": np.int64,  # in the last update_from_output()
        "order_pos": np.int64,  # next entry of the sorted arrivals
        "heap_len": np.int64,  # released successors that have not arrived
        "closed_next": np.int64,  # next request of the closed-loop pool
        "closed_end": np.int64,
        "num_requests": np.int64,  # known to the engine; grows in coupled runs
        "num_arrived": np.int64,  # requests that have been queued
        "num_ended": np.int64,  # requests that reached a final state
        "num_ended_watched": np.int64,  # watched ones among them that the caller has not seen yet
        "num_free_slots": np.int64,  # height of the stack of free slots
        "alone_req": np.int64,  # request that was its own victim with nobody else running, or -1
        "alone_tokens": np.int64,  # the tokens known of it when it came furthest
        "alone_lost": np.int64,  # and those that it had computed
        "alone_rounds": np.int64,  # times that it came back and got no further
        "fruitless": np.int64,  # schedule() calls that preempted, without one token sampled since
        "sampled_before": np.int64,  # tokens sampled up to the first of them
        "num_step_keys": np.int64,  # entries of step_keys in use
        "num_copies": np.int64,  # entries of copies in use; none between two phases
        "next_sample": np.int64,
        "log_len": np.int64,
        "num_events": np.int64,
        "events_lost": np.int64,  # stays 0, or the headroom rule was broken
        "last_time": np.int64,  # up to here the time-weighted sums and the notes are complete
        "num_notes": np.int64,  # entries of notes in use
        "stuck": np.int64,  # 1: nothing can happen until another request arrives
    }
)

#: Cumulative counters of the engine, and two gauges.
COUNTERS = record_dtype(
    {
        "steps": np.int64,  # schedule() calls with at least one token
        "prefix_requests": np.int64,
        "prefix_queries": np.int64,
        "prefix_hits": np.int64,
        "preempted_requests": np.int64,
        "preempted_queries": np.int64,
        "preempted_hits": np.int64,
        "preemptions": np.int64,
        "recomputed_tokens": np.int64,
        "fail_reserve": np.int64,  # admissions refused by the full-sequence reserve
        "fail_watermark": np.int64,  # by the watermark alone
        "fail_pool": np.int64,  # by the pool
        "fail_encoder": np.int64,  # by the step's encoder budget or the encoder cache
        "scheduled_tokens": np.int64,
        "prefill_tokens": np.int64,
        "decode_tokens": np.int64,
        "sampled_tokens": np.int64,
        "draft_tokens": np.int64,  # scheduled to be verified
        "accepted_tokens": np.int64,  # of these, found right
        "encoder_tokens": np.int64,  # run through the encoder
        "finished": np.int64,
        "busy_ns": np.int64,
        "grants": np.int64,  # times that a table was given new blocks
        "contiguous_fit_failures": np.int64,  # of these, without a free run of as many blocks
        "table_blocks": np.int64,  # gauge: sum of the running requests' table lengths
        "table_runs": np.int64,  # gauge: maximal runs of consecutive ids in those tables
    }
)

#: Counters and gauges of the block pool.
POOL_META = record_dtype(
    {
        "num_free": np.int64,  # length of the free queue
        "num_keys": np.int64,  # keys in the prefix map
        "num_partial_keys": np.int64,  # different keys of prefixes that end inside a block
        "num_cached": np.int64,  # blocks that carry a hash
        "num_cached_free": np.int64,  # of these, free (evictable)
        "allocations": np.int64,  # cumulative
        "evictions": np.int64,  # cumulative: cached blocks that lost their key
        "evicted_unused": np.int64,  # of these, without one hit since they were cached
    }
)

#: Maximal runs of consecutive ids in the free set, see probes.
FREE_RUNS = record_dtype(
    {
        "number": np.int64,
        "top": np.int64,  # first block of a stretch of free ones
        "length": np.int64,  # its blocks; where not below the bound: the largest run
        "bound": np.int64,  # every other run is at most so long
    }
)

#: The free queue: positions in it only grow at its end and fall at its front, see free_queue.
FREE_QUEUE = record_dtype(
    {
        "first": np.int64,  # position of the front
        "end": np.int64,  # one behind the last position
        "spare": np.int64,  # blocks at the front that do not know that they are free; none between two calls
        "pending": np.int64,  # of these, the first ones, which are not in the bitmap of the free set yet
        "lacks": np.int64,  # so many in a row are not free, until one comes free; 0: not known
    }
)

#: One block (vLLM 0.32.0, KVCacheBlock), half a cache line. Block 0 is the null block.
BLOCK = record_dtype(
    {
        "block_hash": np.uint64,  # key in the prefix map, 0: none
        "place": np.int32,  # in the ring of the free queue, -1: not in it
        "dup_prev": np.int32,  # ring of the blocks with one key, in order of insertion; -1: not in the map
        "dup_next": np.int32,
        "ref_cnt": np.int32,  # not kept for the null block
        "mark": np.int32,  # position + 1 among the hits of the remembered look-up, 0: not among them
        "reused": np.int32,  # 1: hit at least once since it was cached
    }
)

#: What is known of one block while blocks are followed (vLLM 0.32.0, BlockMetricsState), and its hash chain.
FOLLOWED = record_dtype(
    {
        "birth": np.int64,  # ns of the last allocation; -1: never allocated
        "last_access": np.int64,  # ns of the last hit, or birth
        "hash": np.uint64,  # without group, valid while block_hash is not 0
        "parent": np.uint64,  # hash of the block before it in the prefix, 0: it is the first
        "accesses": np.int32,  # hits since birth
        "open": np.int32,  # 1: the allocation is one of those sampled
    }
)

#: Durations of one kind: their sum is seconds and nanos together, both cumulative.
DURATIONS = record_dtype({"count": np.int64, "seconds": np.int64, "nanos": np.int64, "longest": np.int64})

#: One KV-cache group.
GROUP = record_dtype(
    {
        "attention": np.int64,  # GROUP_*
        "block_size": np.int64,  # tokens
        "hash_ratio": np.int64,  # hash units a block
        "spec": np.int64,  # index of the group's spec
        "like_last": np.int64,  # 1: all about its tables but the blocks is as in the group before
        "window": np.int64,  # tokens of a sliding window or of an attention chunk
        "admission_cap": np.int64,  # blocks that one request can hold at once, 0: no limit
        "drops": np.int64,  # 1: hits lose their last block, which the drafter wants computed
        "export_alignment": np.int64,  # Mamba: tokens between states that a chunk may export, 0: none
        "token_slots": np.int64,  # SLOTS_*
        "allocated": np.int64,  # gauge: blocks in the tables, null blocks not counted
        "held": np.int64,  # gauge: computed (or encoder) tokens that they hold, 0 for states
    }
)

#: KV-cache groups that share one spec are looked up together (vLLM 0.32.0, SpecGroup).
SPEC = record_dtype(
    {
        "attention": np.int64,  # GROUP_*
        "block_size": np.int64,  # tokens
        "hash_ratio": np.int64,
        "window": np.int64,
        "first_group": np.int64,  # of its groups
        "end_group": np.int64,  # one behind the last of them
        "tail_blocks": np.int64,  # cached blocks in a row that a hit in a sliding window needs
        "hit_tokens": np.int64,  # of the look-up in progress, -1: not looked up
        "drops": np.int64,  # 1: hits lose their last block
        "dropped": np.int64,  # 1: in the look-up in progress they have
    }
)

#: One block table: group x slot.
TABLE = record_dtype(
    {
        "length": np.int32,
        "num_cached": np.int32,  # blocks already offered to the prefix map
        "runs": np.int32,  # maximal runs of consecutive ids
        "nulls": np.int32,  # places that hold the null block
        "hits": np.int32,  # blocks of the last look-up, null blocks included
        "first_hit": np.int32,  # the hits before this one are null blocks
        "last_state": np.int32,  # Mamba: place of the state before the running one, -1: none
        "retired": np.int32,  # Mamba: places before this one have been given up
    }
)

#: What hits inside blocks and exported states add to a block table: group x slot.
STATES = record_dtype(
    {
        "shared": np.int32,  # place of a block that is copied before the request writes into it, -1: none
        "exported": np.int32,  # tokens of the state that the last step exported from inside
        "exported_at": np.int32,  # place of that state's block, -1: none
    }
)

#: Where the blocks of one table stand that may have a key or another owner: group x slot.
KEYED = record_dtype({"first": np.int32, "end": np.int32})

#: When something happens to the tables of a slot's running request, in tokens; not before.
DUE = record_dtype(
    {
        "leaves": np.int32,  # processed tokens with which a block leaves its window
        "grows": np.int32,  # tokens that need a block more
        "fills": np.int32,  # known tokens that fill a block
    }
)

#: One slot's chain of hashes.
SLOT = record_dtype(
    {
        "hash_piece": np.int64,  # piece of the prompt in which the next hash unit begins
        "hash_offset": np.int64,  # tokens of that piece that are already hashed
        "num_hashed": np.int32,
        "encoder_tokens": np.int32,  # of the slot's owner
        "free_stack": np.int32,  # entry of the stack of free slots, not a property of this slot
    }
)

#: One request, three cache lines; what each step asks for is in the first.
REQUEST = record_dtype(
    {
        "num_computed": np.int32,
        "num_tokens": np.int32,  # prompt + generated
        "placeholders": np.int32,  # scheduled to be sampled, not delivered yet (async)
        "in_flight": np.int32,  # tokens of batches in flight
        "stale": np.int32,  # of these, from before a preemption
        "prompt_len": np.int32,
        "output_len": np.int32,  # tokens after which the request stops
        "max_tokens": np.int32,
        "slot": np.int32,  # -1: none
        "batch_pos": np.int32,  # position in the batch being built, -1: not in it
        "status": np.int32,  # S_*
        "quiet": np.int32,  # up to so many computed tokens it needs no block, fills none and gives none up
        "preemptions": np.int32,
        "peak_blocks": np.int32,
        "lost": np.int32,  # tokens computed before the last preemption
        "first_child": np.int32,  # -1: none
        "arrival": np.int64,  # ns or step; -1: not known yet
        "order_time": np.int64,  # vLLM's arrival_time, as far as the priority policy compares it
        "out_seg": np.int64,
        "salt": np.int64,
        "think_ns": np.int64,
        "first_scheduled": np.int64,
        "first_token": np.int64,
        "finish": np.int64,
        "wasted_slots": np.int64,  # at the end
        "allocated_slots": np.int64,
        "priority": np.int32,
        "hit_tokens": np.int32,
        "resumed_hits": np.int32,
        "recomputed": np.int32,
        "shared_boundary": np.int32,  # longest prefix that one group had and another lacked, tokens; 0: none
        "id_rank": np.int32,  # rank of the request id as a string
        "parent": np.int32,
        "next_sibling": np.int32,
        "wait_prev": np.int32,  # FCFS queue; records R and R+1 are its sentinels
        "wait_next": np.int32,
        "heap_pos": np.int32,  # position in the priority queue, -1
        "watched": np.int32,  # 1: run_until returns when it has ended
    }
)

#: One piece of a prompt.
PIECE = record_dtype({"seg": np.int64, "start": np.int32, "length": np.int32})

#: One request of a batch.
BATCH_ENTRY = record_dtype({"req": np.int32, "tokens": np.int32, "sampled": np.int32, "drafts": np.int32})

#: What an engine with drafts knows of one request more.
DRAFTS = record_dtype(
    {
        "proposed": np.int32,  # drafts that its next step verifies
        "prefill": np.int32,  # 1: its last step did not reach its last known token
        "turn": np.int32,  # steps that have verified drafts
        "pattern_len": np.int32,  # own numbers of accepted drafts, 0: they are drawn
        "pattern": np.int64,  # where they begin in accepted_drafts
    }
)

#: One batch.
BATCH = record_dtype(
    {
        "entries": np.int64,
        "loop_step": np.int64,
        "tokens": np.int64,
        "done": np.int64,  # ns
        "duration": np.int64,  # ns
        "encoder_tokens": np.int64,  # run through the encoder in this batch
        "encoder_pairs": np.int64,  # query-key pairs in it
    }
)

#: Lists of requests, one entry a slot.
LISTS = record_dtype({"running": np.int32, "preempted": np.int32, "finished": np.int32})

#: Time-weighted sums of one metric.
WEIGHTED = record_dtype({"total": np.float64, "peak": np.float64, "peak_at": np.int64})

#: What stood for some time and is not in the time-weighted sums yet.
NOTE = record_dtype(
    {
        "since": np.int64,  # ns
        "lasted": np.int64,  # ns
        "allocated": np.int64,  # slots of the running requests' blocks
        "wasted": np.int64,  # those of them without a computed token
        "free": np.int32,  # blocks
        "largest_run": np.int32,  # free blocks in a row
        "runs": np.int32,  # of free blocks
        "running": np.int32,  # requests
        "waiting": np.int32,
    }
)
