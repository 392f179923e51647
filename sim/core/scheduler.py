"""Scheduler and AsyncScheduler (vLLM 0.32.0, v1/core/sched): who computes how many tokens in the next step.

Running requests first, in order of admission; then, unless somebody was preempted in this step, waiting ones.
A preempted request loses its blocks but keeps its generated tokens and comes back as if they were prompt.
"""

from __future__ import annotations

from sim.core import codes as c
from sim.core import drafts, encoder_cache
from sim.core import kv_cache_manager as kv
from sim.core.cross_attention import tokens_in_group
from sim.core.events import emit
from sim.core.jit import apart, inner, leaf
from sim.core.kv_rules import fit_chunk, release_copies
from sim.core.kv_tables import blocks_held, hold_tokens
from sim.core.lifecycle import request_ended
from sim.core.request_queue import waiting_peek, waiting_push, waiting_remove
from sim.core.state import State
from sim.core.step_time import step_duration_ns


@leaf
def _long_prefill_threshold(st: State) -> int:
    """Cap on one request's tokens in this step, 0: none; a request that is alone is spared (>= 0.31)."""
    threshold = st.params.long_prefill_token_threshold
    if threshold <= 0:
        return 0
    eligible = st.ctl.num_running + st.ctl.num_waiting
    if st.params.single_request_exempt and eligible <= 1:
        return 0
    if st.params.long_prefill_adaptive:
        threshold = max(threshold, st.params.max_num_batched_tokens // eligible)
    return threshold


@apart
def _preempt(st: State, r: int) -> None:
    """``_preempt_request``: free the blocks, forget what was computed, go to the head of the queue."""
    slot = st.requests.slot[r]
    hold_tokens(st.kv, -st.requests.num_computed[r])
    emit(st.kv.pool, c.EV_PREEMPTED, r, -1, st.requests.num_computed[r], blocks_held(st.kv, slot))
    kv.free(st.kv, r)
    encoder_cache.give_back(st, r)
    st.requests.status[r] = c.S_PREEMPTED
    st.requests.lost[r] = st.requests.num_computed[r]
    st.requests.num_computed[r] = 0
    # tokens of the batch in flight are still delivered, but no longer move the counters
    st.requests.stale[r] = st.requests.in_flight[r]
    st.requests.placeholders[r] = 0
    drafts.set_proposed(st, r, 0)
    st.requests.preemptions[r] += 1
    st.count.preemptions += 1
    waiting_push(st, r, True)
    n = st.ctl.num_preempted
    st.queues.lists.preempted[n] = r
    st.ctl.num_preempted = n + 1


@inner
def _pop_victim(st: State) -> int:
    """Index in ``running`` of the request to preempt.

    FCFS: the last one. Priority: the first maximum of (priority, arrival time) in running order.
    """
    n = st.ctl.num_running
    if st.params.policy == c.POLICY_FCFS:
        return n - 1
    rq = st.requests
    best = 0
    for i in range(1, n):
        a = st.queues.lists.running[i]
        b = st.queues.lists.running[best]
        if rq.priority[a] > rq.priority[b] or (
            rq.priority[a] == rq.priority[b] and rq.order_time[a] > rq.order_time[b]
        ):
            best = i
    return best


@leaf
def _remove_running(st: State, index: int) -> None:
    n = st.ctl.num_running - 1
    for i in range(index, n):
        st.queues.lists.running[i] = st.queues.lists.running[i + 1]
    st.ctl.num_running = n


@inner
def _remove_from_batch(st: State, slot: int, r: int) -> int:
    """Take a request out of the batch being built; returns its tokens."""
    p = st.requests.batch_pos[r]
    tokens = st.queues.entries.tokens[slot, p]
    n = st.queues.batches.entries[slot] - 1
    for i in range(p, n):
        moved = st.queues.entries.req[slot, i + 1]
        st.queues.entries.req[slot, i] = moved
        st.queues.entries.tokens[slot, i] = st.queues.entries.tokens[slot, i + 1]
        st.requests.batch_pos[moved] = i
    st.queues.batches.entries[slot] = n
    st.requests.batch_pos[r] = -1
    return tokens


@leaf
def _add_to_batch(st: State, slot: int, r: int, tokens: int) -> None:
    n = st.queues.batches.entries[slot]
    st.queues.entries.req[slot, n] = r
    st.queues.entries.tokens[slot, n] = tokens
    st.queues.batches.entries[slot] = n + 1
    st.requests.batch_pos[r] = n


@leaf
def _moves_index(st: State, victim: int, victim_index: int, index: int) -> bool:
    """Whether the running phase steps back after a victim was taken out of the list.

    Up to 0.27 only if the victim was scheduled in this step: where one in front had been skipped, the request
    that moves up to ``index`` misses the step.
    """
    if st.params.priority_mode == c.PRIORITY_OLD:
        return st.requests.batch_pos[victim] >= 0
    return victim_index < index


@inner
def _schedule_running(st: State, batch: int, budget: int, threshold: int) -> int:
    """Give tokens to running requests, preempting from the end when the pool is short; returns the budget
    left.
    """
    rq = st.requests
    index = 0
    while index < st.ctl.num_running and budget > 0:
        room = drafts.room(st, batch, budget)
        if room <= 0:
            break
        r = st.queues.lists.running[index]
        ph = rq.placeholders[r]
        computed = rq.num_computed[r]
        if ph > 0 and computed + 2 - ph >= rq.prompt_len[r] + rq.max_tokens[r]:
            # async: the step in flight is known to be the last one
            index += 1
            continue
        n = rq.num_tokens[r] + ph + drafts.proposed(st, r) - computed
        if 0 < threshold < n:
            n = threshold
        n = min(n, room, st.params.max_model_len - computed - 1)
        n = fit_chunk(st, r, computed, n)
        if n == 0:
            index += 1
            continue
        scheduled = True
        while not kv.allocate_running(st.kv, r, rq.slot[r], n):
            if st.params.log_events:
                wanted = kv.blocks_wanted_running(st.kv, r, rq.slot[r], n)
                free = st.kv.pool.meta.num_free
                emit(st.kv.pool, c.EV_ALLOCATION_FAILED, r, free, kv.FAIL_RUNNING, wanted)
            victim_index = _pop_victim(st)
            victim = st.queues.lists.running[victim_index]
            _remove_running(st, victim_index)
            if _moves_index(st, victim, victim_index, index):
                index -= 1
            if rq.batch_pos[victim] >= 0:
                drafts.forget(st, victim)
                budget += _remove_from_batch(st, batch, victim)
            _preempt(st, victim)
            if victim == r:
                scheduled = False
                break
        if not scheduled:
            if st.params.policy == c.POLICY_PRIORITY and st.params.priority_mode == c.PRIORITY_GO_ON:
                # its own victim left the list: the next request stands at this index (>= 0.33)
                continue
            break
        _add_to_batch(st, batch, r, n)
        drafts.runs(st, r)
        budget -= n
        index += 1
    return budget


@leaf
def _take_slot_as_head(st: State, r: int) -> int:
    """Slot for the request at the head of the queue; an earlier head that never got in gives its own back."""
    head = st.ctl.head_req
    if head != r:
        if head >= 0:
            kv.release_slot(st.kv, head)
        st.ctl.head_req = r
    return kv.acquire_slot(st.kv, r)


@inner
def _record_failure(st: State, r: int, slot: int, n: int, hit_tokens: int, outcome: int) -> None:
    """Count a refused admission; its event has the free blocks in the place of a block id."""
    if outcome == kv.FAIL_RESERVE:
        st.count.fail_reserve += 1
    elif outcome == kv.FAIL_WATERMARK:
        st.count.fail_watermark += 1
    elif outcome == kv.FAIL_POOL:
        st.count.fail_pool += 1
    if st.params.log_events:
        wanted = kv.blocks_wanted(st.kv, r, slot, n, hit_tokens)
        emit(st.kv.pool, c.EV_ALLOCATION_FAILED, r, st.kv.pool.meta.num_free, outcome, wanted)


@inner
def _record_lookup(st: State, r: int, hits: int) -> None:
    """Statistics of a look-up (``record_prefix_cache_stats``): of those admitted, or (<= 0.26) of each."""
    if st.params.enable_caching == 0:
        return
    if st.requests.preemptions[r] > 0:
        st.count.preempted_requests += 1
        st.count.preempted_queries += st.requests.num_tokens[r]
        st.count.preempted_hits += hits
    else:
        st.count.prefix_requests += 1
        st.count.prefix_queries += st.requests.num_tokens[r]
        st.count.prefix_hits += hits


@inner
def _record_admission(st: State, r: int, hits: int, now: int) -> None:
    """What is kept of the request's look-up, and statistics where they count admissions."""
    rq = st.requests
    resumed = rq.preemptions[r] > 0
    if st.params.stats_at_lookup == 0:
        _record_lookup(st, r, hits)
    if resumed:
        rq.resumed_hits[r] += hits
        again = max(rq.lost[r] - hits, 0)
        rq.recomputed[r] += again
        st.count.recomputed_tokens += again
    else:
        rq.hit_tokens[r] = hits
        rq.first_scheduled[r] = now
    emit(st.kv.pool, c.EV_ADMITTED, r, -1, hits, rq.num_tokens[r])


@inner
def _pass_over(st: State, r: int, passed_over: int) -> int:
    """Take the head out of the queue for the rest of the scan (>= 0.33); returns how many are out by now.

    They stand at the end of the heap's array, which has room for all requests, until ``_put_back``.
    """
    waiting_remove(st, r)
    st.queues.wait_heap[st.queues.wait_heap.size - 1 - passed_over] = r
    return passed_over + 1


@inner
def _put_back(st: State, passed_over: int) -> None:
    """Requests that were passed over go to the front of the queue again, in their old order."""
    heap = st.queues.wait_heap
    for i in range(passed_over - 1, -1, -1):
        waiting_push(st, heap[heap.size - 1 - i], True)


@inner
def _schedule_waiting(st: State, batch: int, budget: int, threshold: int) -> None:
    """Admit from the head of the queue until something does not fit; the first refusal ends the scan."""
    rq = st.requests
    num_decoding = st.queues.batches.entries[batch]
    passed_over = 0
    while budget > 0 and st.ctl.num_waiting > 0:
        room = drafts.room(st, batch, budget)
        if room <= 0 or st.ctl.num_running >= st.params.max_num_active_seqs:
            break
        r = waiting_peek(st)
        slot = _take_slot_as_head(st, r)
        if kv.is_refused_again(st.kv, r, slot):
            kv.remember_lookup(st.kv, r, slot)
            st.count.fail_reserve += 1
            break
        hit_tokens = kv.get_computed_blocks(st.kv, r, slot)
        if st.params.stats_at_lookup:
            _record_lookup(st, r, hit_tokens)
        pad = drafts.padding(st, r, hit_tokens, num_decoding)
        n = rq.num_tokens[r] - hit_tokens + pad
        if pad > 0 and (n > room or hit_tokens + n > st.params.max_model_len):
            break
        if 0 < threshold < n:
            n = threshold
        if st.params.enable_chunked_prefill == 0 and n > room:
            break
        n = fit_chunk(st, r, hit_tokens, min(n, room))
        if n == 0:
            break
        if pad > 0 and n != 1 + pad:
            # rows of drafts come all or not at all
            pad = 0
            n = 1
        if not encoder_cache.has_room(st, r):
            st.count.fail_encoder += 1
            if st.params.skips_full_encoder:
                passed_over = _pass_over(st, r, passed_over)
                continue
            break
        outcome = kv.can_admit(st.kv, r, slot, n, hit_tokens, st.ctl.num_running > 0)
        if outcome != kv.ALLOCATED:
            kv.remember_lookup(st.kv, r, slot)
            encoder_cache.give_back(st, r)
            _record_failure(st, r, slot, n, hit_tokens, outcome)
            break
        kv.admit(st.kv, r, slot, n, hit_tokens)
        encoder_cache.take(st, batch, r)
        _record_admission(st, r, hit_tokens, st.ctl.now)
        waiting_remove(st, r)
        st.ctl.head_req = -1
        st.queues.lists.running[st.ctl.num_running] = r
        st.ctl.num_running += 1
        rq.status[r] = c.S_RUNNING
        rq.num_computed[r] = hit_tokens
        hold_tokens(st.kv, hit_tokens)
        drafts.set_proposed(st, r, pad)
        _add_to_batch(st, batch, r, n)
        budget -= n
    _put_back(st, passed_over)


@inner
def _after_schedule(st: State, batch: int) -> None:
    """Advance the computed tokens and note who will sample (``_update_after_schedule``); time the batch."""
    rq = st.requests
    total = 0
    decode_seqs = 0
    decode_context = 0
    pairs = 0
    prefill_context = 0
    sampled_seqs = 0
    draft_tokens = 0
    for i in range(st.queues.batches.entries[batch]):
        r = st.queues.entries.req[batch, i]
        n = st.queues.entries.tokens[batch, i]
        rq.batch_pos[r] = -1
        before = rq.num_computed[r]
        verified = drafts.take_along(st, batch, i, r, n)
        draft_tokens += verified
        rq.num_computed[r] = before + n
        rq.in_flight[r] += n
        if st.params.encoder_freed_early:
            encoder_cache.give_back(st, r)
        sampled = before + n >= rq.num_tokens[r] + rq.placeholders[r]
        st.queues.entries.sampled[batch, i] = sampled
        if sampled:
            sampled_seqs += 1
            if st.params.async_scheduling:
                rq.placeholders[r] += 1 + verified
        total += n
        if n - verified == 1:
            # a decode; the rows of its drafts read as much context again
            decode_seqs += 1
            decode_context += before
            pairs += verified * before + verified * (verified + 1) // 2
            prefill_context += verified
        else:
            pairs += n * before + n * (n + 1) // 2
            prefill_context += before + n
    hold_tokens(st.kv, total)
    st.queues.batches.tokens[batch] = total
    encoder, encoder_pairs, encoder_context, cross_pairs = encoder_cache.work(st, batch)
    st.queues.batches.duration[batch] = step_duration_ns(
        st.step_time,
        total,
        total - decode_seqs,
        decode_seqs,
        decode_context,
        pairs,
        prefill_context,
        sampled_seqs + draft_tokens,
        encoder,
        encoder_pairs,
        encoder_context,
        cross_pairs,
    )
    if total > 0:
        st.count.steps += 1
        st.count.scheduled_tokens += total
        st.count.decode_tokens += decode_seqs + draft_tokens
        st.count.prefill_tokens += total - decode_seqs - draft_tokens
        st.count.sampled_tokens += sampled_seqs
        st.count.busy_ns += st.queues.batches.duration[batch]


@inner
def schedule(st: State, batch: int) -> None:
    """Build one batch in ring entry ``batch`` (``Scheduler.schedule``)."""
    st.ctl.num_preempted = 0
    kv.new_step_starts(st.kv)
    st.queues.batches.entries[batch] = 0
    st.queues.batches.loop_step[batch] = st.ctl.step
    encoder_cache.step_starts(st, batch)
    threshold = _long_prefill_threshold(st)
    drafts.step_starts(st)
    budget = min(st.params.max_num_scheduled_tokens, st.params.max_num_batched_tokens)
    budget = _schedule_running(st, batch, budget, threshold)
    if st.ctl.num_preempted == 0:
        _schedule_waiting(st, batch, budget, threshold)
    release_copies(st.kv)
    kv.step_ends(st.kv)
    _after_schedule(st, batch)
    st.ctl.finished_pending = 0


@inner
def _finish(st: State, r: int, was_running: bool, now: int) -> None:
    """Free a request that has produced its last token; a preempted one leaves the queue instead."""
    rq = st.requests
    slot = rq.slot[r]
    if was_running:
        for g in range(st.params.num_groups):
            if st.kv.groups.token_slots[g]:
                slots = st.kv.tables.length[g, slot] - st.kv.tables.nulls[g, slot]
                slots *= st.kv.groups.block_size[g]
                rq.allocated_slots[r] += slots
                rq.wasted_slots[r] += slots - tokens_in_group(st.kv, r, slot, g)
        hold_tokens(st.kv, -rq.num_computed[r])
    else:
        waiting_remove(st, r)
        if st.ctl.head_req == r:
            st.ctl.head_req = -1
    emit(st.kv.pool, c.EV_FINISHED, r, -1, c.S_FINISHED, rq.num_tokens[r])
    encoder_cache.give_back(st, r)
    kv.free(st.kv, r)
    n = st.ctl.num_finished
    st.queues.lists.finished[n] = r
    st.ctl.num_finished = n + 1
    st.ctl.finished_pending += 1
    st.count.finished += 1
    request_ended(st, r, c.S_FINISHED, now)


@inner
def update_from_output(st: State, batch: int, now: int) -> None:
    """Deliver the tokens of an executed batch, in its order (``Scheduler.update_from_output``)."""
    rq = st.requests
    st.ctl.num_finished = 0
    stopped_running = 0
    for i in range(st.queues.batches.entries[batch]):
        r = st.queues.entries.req[batch, i]
        n = st.queues.entries.tokens[batch, i]
        status = rq.status[r]
        if status >= c.S_FINISHED:
            continue
        rq.in_flight[r] -= n
        stale = rq.stale[r] > 0
        if stale:
            rq.stale[r] -= n
        if rq.num_computed[r] > 0 and st.params.encoder_freed_early == 0:
            encoder_cache.give_back(st, r)
        if st.queues.entries.sampled[batch, i] == 0:
            continue
        delivered = drafts.deliver(st, batch, i, r, stale)
        tokens = rq.num_tokens[r] + delivered
        rq.num_tokens[r] = tokens
        generated = tokens - rq.prompt_len[r]
        if generated == delivered:
            rq.first_token[r] = now
        stopped = tokens >= st.params.max_model_len or generated >= rq.output_len[r]
        was_running = status == c.S_RUNNING
        if st.params.async_scheduling:
            if not stale:
                rq.placeholders[r] -= delivered
            known = rq.num_computed[r] - rq.placeholders[r]
            if was_running and known > rq.quiet[r]:
                kv.cache_blocks(st.kv, r, rq.slot[r], known)
        elif st.params.caches_accepted and was_running and tokens - 1 > rq.quiet[r]:
            # all but the newest token have been computed (>= 0.33)
            kv.cache_blocks(st.kv, r, rq.slot[r], tokens - 1)
        if stopped:
            _finish(st, r, was_running, now)
            if was_running:
                stopped_running += 1
    if stopped_running > 0:
        kept = 0
        for i in range(st.ctl.num_running):
            r = st.queues.lists.running[i]
            if rq.status[r] == c.S_RUNNING:
                st.queues.lists.running[kept] = r
                kept += 1
        st.ctl.num_running = kept
    kv.step_ends(st.kv)


@leaf
def has_requests(st: State) -> bool:
    """Unfinished requests, or finished ids that the workers have not been told (``has_requests``)."""
    return st.ctl.num_running + st.ctl.num_waiting + st.ctl.finished_pending > 0
