"""Arrivals and ends of requests: who comes when, and whom a completion releases."""

from __future__ import annotations

from sim.core import codes as c
from sim.core import encoder_cache
from sim.core import kv_cache_manager as kv
from sim.core.events import emit
from sim.core.jit import apart, inner, leaf
from sim.core.kv_tables import hold_tokens
from sim.core.request_queue import waiting_push, waiting_remove
from sim.core.state import State

NEVER = 1 << 62


@leaf
def _comes_before(st: State, a: int, b: int) -> bool:
    arrival = st.requests.arrival
    if arrival[a] != arrival[b]:
        return arrival[a] < arrival[b]
    return a < b


@inner
def arrival_heap_push(st: State, r: int) -> None:
    """Add a released request, whose arrival is set, to those still to come."""
    heap = st.queues.arrival_heap
    i = st.ctl.heap_len
    st.ctl.heap_len = i + 1
    while i > 0:
        up = (i - 1) >> 1
        if not _comes_before(st, r, heap[up]):
            break
        heap[i] = heap[up]
        i = up
    heap[i] = r


@inner
def _arrival_heap_pop(st: State) -> int:
    heap = st.queues.arrival_heap
    n = st.ctl.heap_len - 1
    st.ctl.heap_len = n
    top = heap[0]
    r = heap[n]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        if child + 1 < n and _comes_before(st, heap[child + 1], heap[child]):
            child += 1
        if not _comes_before(st, heap[child], r):
            break
        heap[i] = heap[child]
        i = child
    if n > 0:
        heap[i] = r
    return top


@leaf
def _next_is_heap(st: State) -> bool:
    """Whether the next arrival is a released successor rather than one of the sorted list."""
    if st.ctl.heap_len == 0:
        return False
    if st.ctl.order_pos >= st.queues.order.size:
        return True
    return _comes_before(st, st.queues.arrival_heap[0], st.queues.order[st.ctl.order_pos])


@leaf
def next_arrival(st: State) -> int:
    """Time of the next known arrival, NEVER when none is known."""
    if _next_is_heap(st):
        return st.requests.arrival[st.queues.arrival_heap[0]]
    if st.ctl.order_pos < st.queues.order.size:
        return st.requests.arrival[st.queues.order[st.ctl.order_pos]]
    return NEVER


@inner
def pop_arrival(st: State) -> int:
    """Take the next known arrival off the list; there must be one."""
    if _next_is_heap(st):
        return _arrival_heap_pop(st)
    r = st.queues.order[st.ctl.order_pos]
    st.ctl.order_pos += 1
    return r


@leaf
def _release(st: State, r: int, now: int) -> None:
    st.requests.arrival[r] = now + st.requests.think_ns[r]
    arrival_heap_push(st, r)


@apart
def request_ended(st: State, r: int, status: int, now: int) -> None:
    """Record the final state and release who waited for it: session successors, then the closed-loop pool."""
    st.requests.status[r] = status
    st.requests.finish[r] = now
    st.ctl.num_ended += 1
    if st.ctl.alone_req == r:
        st.ctl.alone_req = -1
    if st.requests.watched[r]:
        n = st.ctl.num_ended_watched
        st.queues.ended_watched[n] = r
        st.ctl.num_ended_watched = n + 1
    child = st.requests.first_child[r]
    while child >= 0:
        _release(st, child, now)
        child = st.requests.next_sibling[child]
    if st.params.closed_loop and st.ctl.closed_next < st.ctl.closed_end:
        n = st.ctl.closed_next
        # requests with a parent or a known arrival are not of the pool
        while n < st.ctl.closed_end and (st.requests.arrival[n] >= 0 or st.requests.parent[n] >= 0):
            n += 1
        st.ctl.closed_next = n + 1
        if n < st.ctl.closed_end:
            _release(st, n, now)


@inner
def ingest_arrivals(st: State, now: int) -> None:
    """Queue every request that has arrived by ``now``; a prompt that leaves no room for a token is rejected.

    vLLM's front end refuses a prompt of max_model_len tokens or more before the scheduler sees it.
    """
    while next_arrival(st) <= now:
        r = pop_arrival(st)
        if st.requests.status[r] != c.S_NOT_ARRIVED:
            continue  # aborted before it came
        st.ctl.stuck = 0
        if st.requests.order_time[r] < 0:
            # a server stamps requests one by one, so two arrivals at one instant are no tie
            st.requests.order_time[r] = st.ctl.num_arrived
        st.ctl.num_arrived += 1
        if st.requests.prompt_len[r] >= st.params.max_model_len:
            request_ended(st, r, c.S_REJECTED, st.requests.arrival[r])
        else:
            st.requests.status[r] = c.S_WAITING
            st.requests.num_tokens[r] = st.requests.prompt_len[r]
            waiting_push(st, r, False)


@apart
def drop_waiting(st: State, r: int, status: int, now: int) -> None:
    """Take a waiting request out for good (``finish_requests`` of a waiting one)."""
    waiting_remove(st, r)
    encoder_cache.give_back(st, r)
    kv.free(st.kv, r)
    if st.ctl.head_req == r:
        st.ctl.head_req = -1
    emit(st.kv.pool, c.EV_FINISHED, r, -1, status, st.requests.num_tokens[r])
    request_ended(st, r, status, now)


@apart
def drop_running(st: State, r: int, status: int, now: int) -> None:
    """Take a running request out for good (``finish_requests`` of a running one)."""
    kept = 0
    for i in range(st.ctl.num_running):
        other = st.queues.lists.running[i]
        if other != r:
            st.queues.lists.running[kept] = other
            kept += 1
    st.ctl.num_running = kept
    hold_tokens(st.kv, -st.requests.num_computed[r])
    encoder_cache.give_back(st, r)
    kv.free(st.kv, r)
    kv.call_ends(st.kv)
    emit(st.kv.pool, c.EV_FINISHED, r, -1, status, st.requests.num_tokens[r])
    request_ended(st, r, status, now)
