"""The engine loop: which call comes next, and when (vLLM 0.32.0, EngineCore.step and step_with_batch_queue).

A synchronous engine schedules, executes, updates. An asynchronous one keeps two batches in flight: it
schedules batch k+1 before it updates from batch k, and executes them one after the other.

On the real clock a schedule call takes no time, a batch runs for the duration of the step-time model and its
update follows at once. On the logical clock the time is the index of the loop step. Events at one instant are
ordered: arrivals, then the engine. How a run is cut into calls never changes its result: a call ends only
between phases.
"""

from __future__ import annotations

import numpy as np

from sim.core import codes as c
from sim.core.block_pool import init_pool
from sim.core.events import event_headroom
from sim.core.jit import entry, inner, leaf
from sim.core.kv_cache_manager import call_ends
from sim.core.lifecycle import (
    NEVER,
    arrival_heap_push,
    drop_running,
    drop_waiting,
    ingest_arrivals,
    next_arrival,
    request_ended,
)
from sim.core.log import write_row
from sim.core.request_queue import init_waiting, waiting_peek
from sim.core.scheduler import has_requests, schedule, update_from_output
from sim.core.state import State
from sim.core.time_weighted import note_time, weigh_notes

_RING = 3


@leaf
def _depth(st: State) -> int:
    """Batches in flight at the most."""
    return 2 if st.params.async_scheduling else 1


@inner
def _log_until(st: State, time: int) -> bool:
    """Write the samples that fall before or at ``time``; False when the log is full first."""
    period = st.params.sample_period_ns
    if period <= 0 or st.params.log_every_step:
        return True
    while st.ctl.next_sample <= time:
        if st.ctl.log_len >= st.logs.steps.shape[0]:
            return False
        write_row(st, st.ctl.next_sample)
        st.ctl.next_sample += period
    return True


@leaf
def _has_room(st: State) -> int:
    """0 when the logs have room for one more phase, else the reason to return with."""
    if st.params.log_every_step and st.ctl.log_len >= st.logs.steps.shape[0]:
        return c.X_LOG_FULL
    if (
        st.params.log_events
        and st.ctl.num_events + event_headroom(st.kv.pool, st.queues.lists.size) > st.kv.pool.events.shape[0]
    ):
        return c.X_EVENTS_FULL
    return 0


@leaf
def _move_clock(st: State, time: int) -> bool:
    """Let ``time`` come, with samples and sums of the state before it; False when the log is full."""
    if not _log_until(st, time):
        return False
    note_time(st, time)
    st.ctl.now = time
    return True


@leaf
def _idles(st: State) -> bool:
    """Whether every batch in flight is empty."""
    for i in range(st.ctl.num_in_flight):
        if st.queues.batches.entries[(st.ctl.ring_head + i) % _RING] > 0:
            return False
    return True


@inner
def _give_up(st: State, r: int) -> None:
    """r keeps the engine from ever doing anything else: vLLM would repeat its last steps without end.

    On the real clock r is dropped as unservable and the run goes on; on the logical clock the engine stays as
    it is, as vLLM's does, and is noted as stuck.
    """
    if st.params.clock == c.CLOCK_LOGICAL:
        st.ctl.stuck = 1
    elif st.requests.status[r] == c.S_RUNNING:
        drop_running(st, r, c.S_UNSERVABLE, st.ctl.now)
    else:
        drop_waiting(st, r, c.S_UNSERVABLE, st.ctl.now)


@inner
def _note_stuck(st: State, batch: int, flushed: bool) -> None:
    """Detect that the head of the queue can never be admitted, or a running request never be continued.

    With nothing in flight an empty schedule call that preempts nobody is final. The head of the queue has
    its chance when nothing runs and every block is free.
    """
    if st.queues.batches.entries[batch] > 0 or flushed or st.ctl.num_preempted > 0:
        return
    if st.ctl.num_running > 0:
        if _idles(st):
            _give_up(st, st.queues.lists.running[0])
    elif st.ctl.num_waiting > 0 and st.kv.pool.meta.num_free == st.params.num_blocks - 1:
        _give_up(st, waiting_peek(st))


@leaf
def _comes_no_further(st: State, r: int) -> bool:
    """Whether r, alone, was its own victim time and again, with no more tokens known or computed.

    In a group that gives blocks up it may come further when it resumes behind a hit, with drafts when a step
    has none; not always the next time, since an asynchronous engine's steps differ by turns.
    """
    known, lost = np.int64(st.requests.num_tokens[r]), np.int64(st.requests.lost[r])
    if st.ctl.alone_req != r or known > st.ctl.alone_tokens or lost > st.ctl.alone_lost:
        st.ctl.alone_req = r
        st.ctl.alone_tokens = known
        st.ctl.alone_lost = lost
        st.ctl.alone_rounds = 0
        st.ctl.fruitless = 0
        return False
    st.ctl.alone_rounds += 1
    return st.ctl.alone_rounds >= c.ALONE_ROUNDS


@inner
def _note_hopeless(st: State) -> None:
    """A request that outgrows the pool preempts itself over and over: it is alone and was its own victim.

    The admission caps of groups that give blocks up let such a request in, and so does an engine without the
    full-sequence reserve. In full attention it needs as many blocks again, so that once is enough.
    """
    if st.kv.plain and st.params.reserve_full_isl:
        return
    if st.ctl.num_running > 0 or st.kv.pool.meta.num_free != st.params.num_blocks - 1:
        return
    r = st.queues.lists.preempted[st.ctl.num_preempted - 1]
    if st.requests.lost[r] >= st.requests.num_tokens[r]:
        # the batch in flight brings it a token, which may be its last
        return
    if not st.kv.plain and not _comes_no_further(st, r):
        return
    if st.params.clock == c.CLOCK_TIME or waiting_peek(st) == r:
        _give_up(st, r)


@inner
def _note_fruitless(st: State) -> None:
    """Requests of equal priority and arrival time preempt each other in turn, so that nobody gets a token.

    Where one of them gets on, it computes a token in two schedule calls at the least, and samples when all
    its known tokens are computed. So after twice as many calls as there are known tokens, each of which
    preempted somebody, nobody will get on.
    """
    if st.count.sampled_tokens != st.ctl.sampled_before:
        st.ctl.sampled_before = st.count.sampled_tokens
        st.ctl.fruitless = 0
        return
    st.ctl.fruitless += 1
    if st.ctl.fruitless % c.PATIENCE != 0:
        return
    known = 0
    for r in range(st.ctl.num_requests):
        if c.S_WAITING <= st.requests.status[r] <= c.S_PREEMPTED:
            known += np.int64(st.requests.num_tokens[r])
    if st.ctl.fruitless >= c.PATIENCE + 2 * known:
        st.ctl.fruitless = 0
        _give_up(st, st.queues.lists.preempted[st.ctl.num_preempted - 1])


@inner
def _schedule_phase(st: State) -> bool:
    """One schedule call and its place in the batch queue; False when there was nothing to schedule."""
    length = st.ctl.num_in_flight
    if not has_requests(st) and not (st.params.idle_run and length == 0):
        if length > 0:
            st.ctl.phase = c.P_UPDATE
        return False
    batch = (st.ctl.ring_head + length) % _RING
    flushed = st.ctl.finished_pending > 0
    schedule(st, batch)
    st.ctl.last_batch = batch
    start = max(st.ctl.now, st.ctl.last_done)
    st.ctl.last_done = start + st.queues.batches.duration[batch]
    st.queues.batches.done[batch] = st.ctl.last_done
    st.ctl.num_in_flight = length + 1
    _note_stuck(st, batch, flushed)
    if st.ctl.num_preempted > 0:
        _note_fruitless(st)
        _note_hopeless(st)
    waits = st.queues.batches.entries[batch] > 0
    if st.params.queue_empty_batch:  # >= 0.23
        waits = waits or has_requests(st)
    if st.ctl.num_in_flight < _depth(st) and waits:
        st.ctl.step += 1
    else:
        st.ctl.phase = c.P_UPDATE
    return True


@leaf
def _update_phase(st: State) -> None:
    """Take the oldest batch out of the queue and deliver its tokens; ends the loop step."""
    batch = st.ctl.ring_head
    update_from_output(st, batch, st.ctl.now)
    st.ctl.last_batch = batch
    st.ctl.ring_head = (batch + 1) % _RING
    st.ctl.num_in_flight -= 1
    st.ctl.phase = c.P_SCHEDULE
    st.ctl.step += 1
    if st.params.log_every_step:
        write_row(st, st.ctl.now)


@leaf
def _phase_time(st: State) -> int:
    """When the next phase happens: never before now; on the logical clock, the step index."""
    if st.params.clock == c.CLOCK_LOGICAL:
        return st.ctl.step
    if st.ctl.phase == c.P_UPDATE:
        return max(st.ctl.now, st.queues.batches.done[st.ctl.ring_head])
    return st.ctl.now


@leaf
def _is_idle(st: State) -> bool:
    return st.ctl.num_in_flight == 0 and not has_requests(st)


@leaf
def next_time(st: State) -> int:
    """When the next phase of an engine on the real clock happens; NEVER while nothing is known to come."""
    if st.ctl.phase == c.P_SCHEDULE and _is_idle(st):
        return max(st.ctl.now, next_arrival(st))
    return _phase_time(st)


@leaf
def _logical_end(st: State) -> bool:
    """The recorded loop ends when no request is left or to come and no batch is in flight."""
    unfinished = st.ctl.num_running + st.ctl.num_waiting
    return unfinished == 0 and st.ctl.num_in_flight == 0


@inner
def _one_phase(st: State, t_end: int) -> int:
    """Make the next phase if it lies before ``t_end``; returns an ExitReason."""
    while True:
        if st.ctl.num_ended_watched > 0:
            return c.X_ENDED
        full = _has_room(st)
        if full != 0:
            return full
        time = _phase_time(st)
        if st.ctl.phase == c.P_UPDATE:
            if time >= t_end:
                return c.X_TIME
            if not _move_clock(st, time):
                return c.X_LOG_FULL
            _update_phase(st)
            return c.X_UPDATED
        nxt = next_arrival(st)
        if nxt > time:
            if st.params.clock == c.CLOCK_LOGICAL and nxt == NEVER:
                if _logical_end(st):
                    return c.X_DONE
                if st.ctl.stuck == 1:
                    return c.X_STUCK
            if _is_idle(st) and not (st.params.idle_run and nxt != NEVER):
                if nxt == NEVER:
                    return c.X_DONE
                time = nxt
        if time >= t_end:
            return c.X_TIME
        if not _move_clock(st, time):
            return c.X_LOG_FULL
        if st.params.clock == c.CLOCK_LOGICAL:
            st.ctl.step = time
        ingest_arrivals(st, time)
        if st.ctl.num_ended_watched > 0:
            # one that was rejected may have a successor at this very time, which the caller has yet to bring
            return c.X_ENDED
        if _schedule_phase(st):
            return c.X_SCHEDULED


@entry
def run_until(st: State, t_end: int, max_steps: int) -> int:
    """Run phases that lie before ``t_end`` until one of the exit reasons holds.

    ``max_steps`` bounds the phases of this call. Returns an ExitReason: DONE, TIME, MAX_STEPS, LOG_FULL,
    EVENTS_FULL, STUCK or ENDED. Modifies the arrays of ``st`` in place; a later call goes on where this one
    stopped.
    """
    reason = c.X_MAX_STEPS
    for _ in range(max_steps):
        phase = _one_phase(st, t_end)
        if phase > c.X_UPDATED:
            reason = phase
            break
        st.ctl.last_phase = phase
    call_ends(st.kv)
    return reason


def advance(st: State, t_end: int) -> int:
    """Make one phase, schedule or update, if it lies before ``t_end`` (ns or step index).

    Returns an ExitReason: SCHEDULED, UPDATED, DONE, TIME, LOG_FULL, EVENTS_FULL, STUCK or ENDED.
    """
    reason = run_until(st, t_end, 1)
    return int(st.ctl.last_phase) if reason == c.X_MAX_STEPS else reason


@entry
def init_engine(st: State) -> None:
    """Bring freshly allocated arrays into the state of an engine that has seen no request."""
    init_pool(st.kv.pool)
    init_waiting(st)
    n = st.kv.slots.size
    for i in range(n):
        st.kv.slots.free_stack[i] = n - 1 - i
    st.ctl.num_free_slots = n
    st.ctl.head_req = -1
    st.ctl.memo_req = -1
    st.ctl.alone_req = -1
    st.ctl.encoder_free = st.params.encoder_budget


@entry
def add_arrival(st: State, r: int) -> None:
    """Make request r known to a running engine; its row is filled in, its arrival not in the past."""
    arrival_heap_push(st, r)


@entry
def abort_request(st: State, r: int) -> bool:
    """``finish_requests`` with status ABORTED at the current time.

    A request whose arrival is known but still to come is taken back. False when the request has ended
    already, or waits for another one's end.
    """
    note_time(st, st.ctl.now)
    st.ctl.stuck = 0
    status = st.requests.status[r]
    if status == c.S_NOT_ARRIVED and st.requests.arrival[r] >= 0:
        request_ended(st, r, c.S_ABORTED, st.ctl.now)
        return True
    if status in (c.S_WAITING, c.S_PREEMPTED):
        drop_waiting(st, r, c.S_ABORTED, st.ctl.now)
        st.ctl.finished_pending += 1
        return True
    if status != c.S_RUNNING:
        return False
    drop_running(st, r, c.S_ABORTED, st.ctl.now)
    st.ctl.finished_pending += 1
    return True


@entry
def settle(st: State, time: int) -> int:
    """Let the state as it stands last until ``time`` (not before now), with the samples that fall in between.

    For the end of a run between two phases. Returns DONE, or LOG_FULL: drain and call again. The weighted
    sums are left to whoever changes or reads the state next: a stop has no part in their rounding.
    """
    if not _log_until(st, time):
        return c.X_LOG_FULL
    st.ctl.now = time
    return c.X_DONE


@entry
def weigh_now(st: State) -> None:
    """Complete the time-weighted sums up to now."""
    note_time(st, st.ctl.now)
    weigh_notes(st)


@entry
def sample_now(st: State) -> None:
    """Append a row of the step log at the current time; there must be room for one."""
    write_row(st, st.ctl.now)
