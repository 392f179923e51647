"""Every array of the engine, sized and allocated before the run: the core allocates nothing.

numpy reserves address space for zeros but touches no page of it, so generous bounds (the block hashes of a
long context for every slot, say) cost memory only where a run really goes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.core import codes as c
from sim.core import records as rec
from sim.core import state as s
from sim.core.block_hash import hash_multipliers
from sim.core.engine import init_engine
from sim.core.free_queue import ring_places
from sim.core.prefix_map import table_words
from sim.core.probes import bitmap_words
from sim.core.residency import HISTORY
from sim.engine_settings import EngineSettings
from sim.errors import InputError
from sim.groups import GroupLayout, layout_of
from sim.memory import memory_problems
from sim.record_arrays import aligned_zeros, record, record_array
from sim.request_records import SharedRequests, arrival_order, prompt_pieces, request_records
from sim.step_time import StepTime
from workloads.requests import Workload

_POLICIES = {"fcfs": c.POLICY_FCFS, "priority": c.POLICY_PRIORITY}
_FREE_ORDERS = {
    "append": c.FREE_APPEND,
    "append_window_split": c.FREE_SPLIT_WINDOWS,
    "split": c.FREE_SPLIT,
}
_PRIORITY_MODES = {
    "old": c.PRIORITY_OLD,
    "fixed_index": c.PRIORITY_FIXED_INDEX,
    "go_on": c.PRIORITY_GO_ON,
}
_WINDOW_BASES = {"optimistic": c.WINDOW_OPTIMISTIC, "processed": c.WINDOW_PROCESSED}
_SHARED = {"off": c.SHARED_NONE, "chunks": c.SHARED_CHUNKS, "on": c.SHARED_KEPT}
_CACHEABLE = {"all": c.CACHES_ALL, "common": c.CACHES_COMMON, "aligned": c.CACHES_ALIGNED}
_LOOKUPS = {
    "each_round": c.LOOKUP_EACH_ROUND,
    "prompt": c.LOOKUP_IN_PROMPT,
    "attention": c.LOOKUP_ATTENTION,
    "behind": c.LOOKUP_BEHIND,
}
_PADDINGS = {
    "none": c.PADS_NONE,
    "beside": c.PADS_BESIDE,
    "fits": c.PADS_FITTING,
    "hits": c.PADS_HITS,
}
_TAILS = {"off": c.TAIL_NONE, "whole": c.TAIL_WHOLE, "on": c.TAIL_USABLE}
_CHUNKS = {
    "prompts": c.CHUNKS_PROMPTS,
    "blocks": c.CHUNKS_BLOCKS,
    "to_last": c.CHUNKS_TO_LAST,
    "ends": c.CHUNKS_ENDS,
    "hits": c.CHUNKS_HITS,
}
_STATE_TAILS = {
    "off": c.STATE_TAIL_NONE,
    "unit": c.STATE_TAIL_INSIDE,
    "inside": c.STATE_TAIL_INSIDE,
    "marked": c.STATE_TAIL_MARKED,
    "dropped": c.STATE_TAIL_DROPPED,
    "on": c.STATE_TAIL_USABLE,
}
_EXPORTS = {"each": c.EXPORTS_EACH, "prompt": c.EXPORTS_PROMPT, "hits": c.EXPORTS_HITS}
_LOG_ROWS = 16384
_SAMPLED_ROWS = 1024
#: Notes that are weighed together: they and what they are added to stay in the first-level cache.
_NOTES = 128
_EVENT_ROWS = 65536
#: Upper bounds of the buckets of vLLM's residency histograms (vLLM 0.32.0, KV_CACHE_RESIDENCY_BUCKETS).
RESIDENCY_BOUNDS_NS = tuple(
    milliseconds * 1_000_000 for decade in (1, 10, 100) for milliseconds in (decade, 2 * decade, 5 * decade)
) + tuple(s * 1_000_000_000 for s in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800))


@dataclass(frozen=True)
class LogOptions:
    """What a run keeps: times in ns; a period of 0 takes no samples."""

    sample_period_ns: int = 1_000_000_000
    every_step: bool = False
    events: bool = False
    warmup_ns: int = 0
    request_events: bool = False  # only the events about requests, when ``events`` is off
    follow_blocks: bool = False  # residency histograms, births and hash chains of blocks
    residency_sample: float = 1.0  # share of the allocations whose residency is measured, in (0, 1]

    @property
    def level(self) -> int:
        """LOG_*, what goes into the event log."""
        if self.events:
            return c.LOG_ALL
        return c.LOG_REQUESTS if self.request_events else c.LOG_NOTHING


def _has_short_windows(e: EngineSettings) -> bool:
    """Whether a window may be given up by drafts that are taken back later: those in flight count up to 0.25,
    of two steps where scheduling is asynchronous.
    """
    if e.rules.window_free_basis == "processed" or not e.num_speculative_tokens:
        return False
    chunks = any(group.type == "chunked_local" for group in e.kv_cache_groups)
    windows = (group.sliding_window for group in e.kv_cache_groups if group.sliding_window)
    return chunks or any(window <= 2 * e.num_speculative_tokens + 2 for window in windows)


def _rules(e: EngineSettings) -> dict[str, int]:
    """The switches of the release (``sim.profiles``) as the core takes them."""
    rules = e.rules
    order = rules.free_order
    if order == "split_if_caching":
        order = "split" if e.enable_prefix_caching else "append"
    if rules.retention == "all":
        retention = c.RETAIN_ALL
    elif rules.retention == "uneven":
        retention = c.RETAIN_UNEVEN
    elif e.prefix_cache_retention_interval is None:
        retention = c.RETAIN_DENSE
    else:
        retention = e.prefix_cache_retention_interval
    return {
        "reserve_full_isl": int(e.reserves_full_sequence),
        "watermark_blocks": int(e.watermark * e.num_gpu_blocks) if rules.watermark == "on" else 0,
        "free_order": _FREE_ORDERS[order],
        "single_request_exempt": int(rules.single_request_exempt == "on"),
        "priority_mode": _PRIORITY_MODES[rules.priority_mode],
        "stats_at_lookup": int(rules.stats_at == "lookup"),
        "queue_empty_batch": int(rules.empty_batch == "queued"),
        "window_free_basis": _WINDOW_BASES[rules.window_free_basis],
        "short_windows": int(_has_short_windows(e)),
        "retention": retention,
        "hybrid_aligned": _CACHEABLE[rules.hybrid_cacheable],
        "shared_prefix_boundary": _SHARED[rules.shared_prefix_boundary],
        "partial_tail_keys": _TAILS[rules.partial_tail_keys],
        "hybrid_one_round": int(rules.hybrid_rounds == "one"),
        "trims_all_hits": int(rules.trimmed_hits == "all"),
        "takes_skipped_hits": int(rules.skipped_hits == "taken"),
        "hash_lookahead": int(e.uses_eagle and e.enable_prefix_caching and not e.drops_hits),
        "caches_accepted": int(
            e.num_speculative_tokens > 0 and not e.async_scheduling and rules.accepted_cached == "output"
        ),
        "renews_states": int(rules.state_renewal == "on"),
        "state_wait": int(rules.state_wait == "on"),
        "state_retention": int(rules.state_retention == "on"),
        "state_tails": _STATE_TAILS[rules.state_tails if e.mamba_cache_mode == "align" else "off"],
        "state_exports": _EXPORTS[rules.state_exports],
        "copies_want_two": int(rules.state_copies == "two"),
        "state_drafts": e.num_speculative_tokens if rules.state_free_basis == "less_drafts" else 0,
        "states_to_gap": int(rules.states_retired != "all"),
        "keeps_states": int(rules.states_retired == "never"),
        "state_chunks": _CHUNKS[rules.state_chunks],
        "draft_lookup": _LOOKUPS[rules.draft_lookup],
        "draft_padding": _PADDINGS[rules.draft_padding],
        "keeps_drafts": int(rules.preempted_drafts == "kept"),
        "encoder_most": e.admitted_encoder_tokens,
        "encoder_freed_early": int(rules.encoder_freed == "schedule"),
        "skips_full_encoder": int(rules.encoder_full == "skipped"),
    }


def _draft_params(e: EngineSettings, layout: GroupLayout) -> dict[str, int]:
    """What the core is told of the drafter."""
    dropping = any(g.drops for g in layout.groups)
    return {
        "num_drafts": e.num_speculative_tokens,
        "lookahead": e.num_lookahead_tokens,
        "admission_lookahead": e.num_lookahead_tokens if e.rules.draft_slots == "all" else 0,
        "draft_slots": e.num_draft_slots,
        "draft_threshold": int((e.draft_acceptance or 0.0) * 2.0**63) - 1,
        "drops_checkpoint": int(e.drops_hits),
        "eagle_groups": int(dropping),
        "replays_dropped": int(dropping and e.rules.draft_replay == "dropped"),
    }


def _drafts(w: Workload, capacity: int, none: bool) -> tuple[rec.Record, np.ndarray]:
    """DRAFTS[capacity], or [1] where there are none; and int32[A], the numbers of accepted drafts that
    requests bring with them.
    """
    given = w.accepted_drafts
    numbers = [0] if given is None else [0, *(k for own in given for k in own)]
    records = record_array(rec.DRAFTS, 1 if none else capacity)
    if not none and given is not None:
        lengths = np.array([len(own) for own in given], dtype=np.int64)
        records.pattern_len[: len(w)] = lengths
        records.pattern[: len(w)] = 1 + np.cumsum(lengths) - lengths
    return records, np.array(numbers, dtype=np.int32)


def _encoder_tokens(w: Workload, e: EngineSettings, capacity: int, none: bool) -> np.ndarray:
    """int32[capacity] if the workload says how many encoder tokens its requests have, else int32[0]."""
    if none or w.encoder_tokens is None:
        return np.zeros(0, dtype=np.int32)
    own = np.full(capacity, e.encoder_tokens, dtype=np.int32)
    own[: len(w)] = np.where(w.encoder_tokens >= 0, w.encoder_tokens, e.encoder_tokens)
    return own


def check_encoder_inputs(e: EngineSettings, longest: int) -> None:
    """Refuse a workload with an encoder input of ``longest`` tokens that the engine can't take."""
    if longest <= e.encoder_tokens:
        return
    if e.encoder_tokens == 0:
        raise InputError(
            f"a request has an encoder input ({longest} tokens), but no KV-cache group has cross attention",
            hint="use a model with an encoder, or leave the encoder inputs out of the workload",
        )
    raise InputError(
        f"a request has an encoder input of {longest} tokens, the engine takes at most {e.encoder_tokens}",
        hint="the longest input is encoder_tokens of the cross_attention group, as the model says",
    )


def _splits_tails(e: EngineSettings, layout: GroupLayout) -> bool:
    """Whether chunks end at the prompt's last hash unit; up to 0.27 also where no hit can end there."""
    anyway = e.rules.state_tails == "unit" and layout.hash_unit < layout.block_size
    return layout.fine_grained or anyway


def _foresees_refusals(e: EngineSettings, layout: GroupLayout, log: LogOptions) -> bool:
    """Whether nothing but the refusal itself depends on the hits of a request that the reserve refuses."""
    asked = log.level or e.rules.stats_at == "lookup"
    reserve_first = e.enable_chunked_prefill and e.reserves_full_sequence
    return layout.hybrid and layout.windows_only and reserve_first and not asked


def _params(e: EngineSettings, layout: GroupLayout, w: Workload, log: LogOptions) -> rec.Record:
    logical = w.clock == "logical"
    return record(
        rec.PARAMS,
        {
            "num_blocks": e.num_gpu_blocks,
            "num_groups": len(layout.groups),
            "num_specs": len(layout.specs),
            "hybrid": int(layout.hybrid),
            "foresees_refusals": int(_foresees_refusals(e, layout, log)),
            "block_size": e.block_size,
            "scheduler_block_size": layout.block_size,
            "hit_alignment": layout.hit_alignment,
            "mask_alignment": layout.hit_alignment if e.rules.state_replay == "hits" else layout.block_size,
            "fine_grained": int(layout.fine_grained),
            "splits_tails": int(_splits_tails(e, layout)),
            "mamba_align": int(layout.mamba_align),
            "export_alignment": layout.export_alignment,
            **_draft_params(e, layout),
            "encoder_tokens": e.encoder_tokens,
            "encoder_budget": e.encoder_budget,
            "partial_width": layout.partial_width,
            "max_num_scheduled_tokens": e.scheduled_tokens,
            "max_num_batched_tokens": e.max_num_batched_tokens,
            "max_num_active_seqs": e.active_seqs,
            "max_model_len": e.max_model_len,
            "enable_caching": int(e.enable_prefix_caching),
            "enable_chunked_prefill": int(e.enable_chunked_prefill),
            "long_prefill_token_threshold": e.long_prefill_token_threshold,
            "long_prefill_adaptive": int(e.long_prefill_token_threshold_adaptive),
            "async_scheduling": int(e.async_scheduling),
            "policy": _POLICIES[e.policy],
            **_rules(e),
            "clock": c.CLOCK_LOGICAL if logical else c.CLOCK_TIME,
            "idle_run": int(logical and e.idle_steps == "run"),
            "vocab_size": w.vocab_size,
            "closed_loop": int(w.closed_loop),
            "sample_period_ns": 0 if logical else log.sample_period_ns,
            "log_every_step": int(log.every_step),
            "log_events": log.level,
            "follow_blocks": int(log.follow_blocks),
            "follow_threshold": int(log.residency_sample * 2.0**63) - 1,
            "warmup_ns": log.warmup_ns,
        },
    )


def _groups(layout: GroupLayout) -> tuple[rec.Record, rec.Record]:
    """The records of the groups and of their specs."""
    groups = record_array(rec.GROUP, len(layout.groups))
    specs = record_array(rec.SPEC, len(layout.specs))
    for records, sources in ((groups, layout.groups), (specs, layout.specs)):
        records.attention[:] = [g.attention for g in sources]
        records.block_size[:] = [g.block_size for g in sources]
        records.hash_ratio[:] = records.block_size // layout.hash_unit
        records.window[:] = [g.window for g in sources]
        records.drops[:] = [g.drops for g in sources]
    groups.spec[:] = [g.spec for g in layout.groups]
    groups.admission_cap[:] = [g.admission_cap for g in layout.groups]
    groups.token_slots[:] = [g.token_slots for g in layout.groups]
    groups.export_alignment[:] = [g.export_alignment for g in layout.groups]
    if layout.windows_only:
        groups.like_last[1:] = np.diff(groups.spec) == 0
    for spec in range(specs.size):
        of_spec = np.flatnonzero(groups.spec == spec)
        specs.first_group[spec], specs.end_group[spec] = of_spec[0], of_spec[-1] + 1
    specs.tail_blocks[:] = [g.tail_blocks for g in layout.specs]
    return groups, specs


def pool_bytes(num_blocks: int) -> int:
    """Bytes of a pool's records that are written before the first step; its table of keys fills later."""
    return num_blocks * rec.BLOCK.itemsize + 4 * ring_places(num_blocks) + 8 * bitmap_words(num_blocks)


def _pool(params: rec.Record, ctl: rec.Record, slots: int, layout: GroupLayout) -> s.Pool:
    n = int(params.num_blocks)
    keys = n * int(params.partial_width)
    partial_capacity = 1 << (2 * keys).bit_length()
    blocks = record_array(rec.BLOCK, n)
    event_rows = 1
    if params.log_events:
        per_phase = (
            (4 * n * (1 + params.partial_width) if params.log_events == c.LOG_ALL else 0) + 8 * slots + 64
        )
        event_rows = max(_EVENT_ROWS, 2 * per_phase)
    followed = record_array(rec.FOLLOWED, n if params.follow_blocks else 1)
    followed["birth"] = -1
    return s.Pool(
        plain=layout.plain,
        windows_only=layout.windows_only,
        params=params,
        ctl=ctl,
        meta=record(rec.POOL_META, {}),
        runs=record(rec.FREE_RUNS, {}),
        queue=record(rec.FREE_QUEUE, {}),
        ring=np.zeros(ring_places(n), dtype=np.int32),
        blocks=blocks,
        table=aligned_zeros(np.dtype(np.uint64), table_words(n)),
        partial_keys=np.zeros(max(keys, 1), dtype=np.uint64),
        partial_table=np.zeros(2 * partial_capacity, dtype=np.uint64),
        partial_links=np.zeros(2 * max(keys, 1), dtype=np.int32),
        free_bits=np.zeros(bitmap_words(n), dtype=np.uint64),
        events=np.zeros((event_rows, c.EVENT_COLUMNS), dtype=np.int64),
        followed=followed,
        access_times=np.zeros((followed.size, HISTORY), dtype=np.int64),
        residency=record_array(rec.DURATIONS, 3),
        residency_fine=np.zeros((3, c.TW_BINS), dtype=np.int64),
        residency_buckets=np.zeros((3, len(RESIDENCY_BOUNDS_NS) + 1), dtype=np.int64),
        residency_bounds=np.array(RESIDENCY_BOUNDS_NS, dtype=np.int64),
    )


def _queues(order: np.ndarray, capacity: int, slots: int, sentinel: int) -> s.Queues:
    return s.Queues(
        lists=record_array(rec.LISTS, slots),
        wait_heap=np.zeros(sentinel, dtype=np.int32),
        order=order,
        arrival_heap=np.zeros(capacity, dtype=np.int32),
        ended_watched=np.zeros(capacity, dtype=np.int32),
        entries=record_array(rec.BATCH_ENTRY, (3, slots)),
        batches=record_array(rec.BATCH, 3),
    )


def _logs(log: LogOptions) -> s.Logs:
    rows = _LOG_ROWS if log.every_step else min(_LOG_ROWS, _SAMPLED_ROWS)
    weighted = record_array(rec.WEIGHTED, len(c.TW_METRICS))
    weighted["peak"] = -1.0
    weighted["peak_at"] = -1
    return s.Logs(
        steps=np.zeros((rows, len(c.LOG_COLUMNS)), dtype=np.int64),
        weighted=weighted,
        histogram=np.zeros((len(c.TW_METRICS), c.TW_BINS), dtype=np.int64),
        notes=record_array(rec.NOTE, _NOTES),
    )


def allocate(
    engine: EngineSettings,
    workload: Workload,
    step_time: StepTime,
    log: LogOptions,
    *,
    extra_requests: int = 0,
    extra_pieces: int = 0,
    longest: int = 0,
    shared: SharedRequests | None = None,
) -> s.State:
    """Allocate and initialise the state of an engine that will serve the workload.

    ``extra_requests`` and ``extra_pieces`` leave room for requests that are added during a coupled run, whose
    sequences are at most ``longest`` tokens. The workload's arrays are copied, never changed. With ``shared``
    the engine has no arrivals of its own and knows the requests by the shared records.
    """
    check_encoder_inputs(engine, workload.longest_encoder_input)
    for problem in memory_problems(engine):
        raise InputError(problem.message, hint=problem.hint)
    layout = layout_of(engine)
    params = _params(engine, layout, workload, log)
    groups, specs = _groups(layout)
    capacity = max(1, len(workload) + extra_requests)
    # the head of the waiting queue owns a slot beside the running requests
    slots = min(engine.active_seqs, capacity) + 1
    if len(workload):
        longest = max(longest, int((workload.prompt_len.astype(np.int64) + workload.output_len).max()))
    # an asynchronous step may lie one token past the last one, and drafts of two steps and a lookahead beyond
    drafted = engine.num_speculative_tokens
    longest = min(longest + 2 + 3 * drafted, engine.max_model_len)
    smallest = int(groups.block_size.min())
    cross = max(engine.encoder_tokens, engine.admitted_encoder_tokens)
    table_width = max(1, -(-longest // smallest), -(-cross // smallest)) + drafted
    hash_units = max(1, -(-longest // layout.hash_unit))
    # states that a step caches, of each request: in mode all one in every block
    new_states = 12 + (table_width if engine.mamba_cache_mode == "all" else 0)
    own = 0 if shared else len(workload)
    ctl = record(rec.CONTROL, {"num_requests": own, "closed_end": own, "next_sample": log.sample_period_ns})
    count = record(rec.COUNTERS, {})
    if shared:
        params.closed_loop = 0
        requests, seg_ptr, pieces = shared.requests, shared.seg_ptr, shared.pieces
        order, sentinel = np.zeros(0, dtype=np.int32), capacity + 2 * shared.position
    else:
        requests = request_records(engine, workload, capacity)
        seg_ptr, pieces = prompt_pieces(workload, capacity, max(1, workload.seg_id.size + extra_pieces))
        order, sentinel = arrival_order(workload), capacity
    tables = record_array(rec.TABLE, (groups.size, slots))
    tables.last_state[:] = -1
    states = record_array(rec.STATES, (1, 1) if layout.windows_only else (groups.size, slots))
    states.shared[:] = -1
    states.exported_at[:] = -1
    kv = s.KVCache(
        plain=layout.plain,
        windows_only=layout.windows_only,
        params=params,
        ctl=ctl,
        count=count,
        pool=_pool(params, ctl, slots, layout),
        groups=groups,
        specs=specs,
        requests=requests,
        tables=tables,
        keyed=record_array(rec.KEYED, (1, 1) if layout.plain else tables.shape),
        due=record_array(rec.DUE, 1 if layout.plain else slots),
        table_blocks=np.zeros((groups.size, slots, table_width), dtype=np.int32),
        states=states,
        copies=np.zeros((1, states.size, 3), dtype=np.int32),
        held_by_copies=np.zeros((1, 1, 2 * states.size), dtype=np.int32),
        slots=record_array(rec.SLOT, slots),
        hashes=np.zeros((slots, hash_units), dtype=np.uint64),
        step_keys=np.zeros((new_states + 2 * drafted) * groups.size * slots, dtype=np.uint64),
        encoder_tokens=_encoder_tokens(workload, engine, capacity, layout.windows_only),
        seg_ptr=seg_ptr,
        pieces=pieces,
        tokens=workload.tokens if workload.tokens.size else np.zeros(1, dtype=np.int32),
        hash_mult=hash_multipliers(layout.hash_unit),
    )
    draft_records, accepted_drafts = _drafts(workload, capacity, layout.windows_only)
    state = s.State(
        params=params,
        ctl=ctl,
        count=count,
        kv=kv,
        requests=requests,
        drafts=draft_records,
        accepted_drafts=accepted_drafts,
        queues=_queues(order, capacity, slots, sentinel),
        step_time=s.StepTime(**step_time._asdict()),
        logs=_logs(log),
    )
    init_engine(state)
    return state
