"""The waiting queue (vLLM 0.32.0, v1/core/sched/request_queue.py): a FCFS deque or a heap by priority.

The heap's order is total (priority, arrival time, request id), so its inner shape has no effect.
"""

from __future__ import annotations

from sim.core import codes as c
from sim.core.jit import inner, leaf
from sim.core.state import State


@leaf
def served_before(st: State, a: int, b: int) -> bool:
    """Order of the priority queue (``Request.__lt__``)."""
    rq = st.requests
    if rq.priority[a] != rq.priority[b]:
        return rq.priority[a] < rq.priority[b]
    if rq.order_time[a] != rq.order_time[b]:
        return rq.order_time[a] < rq.order_time[b]
    return rq.id_rank[a] < rq.id_rank[b]


@inner
def _sift_up(st: State, i: int) -> None:
    heap = st.queues.wait_heap
    pos = st.requests.heap_pos
    r = heap[i]
    while i > 0:
        up = (i - 1) >> 1
        if not served_before(st, r, heap[up]):
            break
        heap[i] = heap[up]
        pos[heap[i]] = i
        i = up
    heap[i] = r
    pos[r] = i


@inner
def _sift_down(st: State, i: int, n: int) -> None:
    heap = st.queues.wait_heap
    pos = st.requests.heap_pos
    r = heap[i]
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        if child + 1 < n and served_before(st, heap[child + 1], heap[child]):
            child += 1
        if not served_before(st, heap[child], r):
            break
        heap[i] = heap[child]
        pos[heap[i]] = i
        i = child
    heap[i] = r
    pos[r] = i


@leaf
def _link_after(st: State, r: int, prev: int) -> None:
    rq = st.requests
    nxt = rq.wait_next[prev]
    rq.wait_prev[r] = prev
    rq.wait_next[r] = nxt
    rq.wait_next[prev] = r
    rq.wait_prev[nxt] = r


@leaf
def init_waiting(st: State) -> None:
    """Empty queue: the head sentinel is R, the tail R + 1."""
    head = st.queues.wait_heap.size
    rq = st.requests
    rq.wait_prev[head] = -1
    rq.wait_next[head] = head + 1
    rq.wait_prev[head + 1] = head
    rq.wait_next[head + 1] = -1


@inner
def waiting_push(st: State, r: int, front: bool) -> None:
    """``add_request`` (front=False) or ``prepend_request`` (front=True, which the priority queue ignores)."""
    n = st.ctl.num_waiting
    st.ctl.num_waiting = n + 1
    if st.params.policy == c.POLICY_PRIORITY:
        st.queues.wait_heap[n] = r
        _sift_up(st, n)
        return
    head = st.queues.wait_heap.size
    if front:
        _link_after(st, r, head)
    else:
        _link_after(st, r, st.requests.wait_prev[head + 1])


@leaf
def waiting_peek(st: State) -> int:
    """The request that is served next; the queue must not be empty."""
    if st.params.policy == c.POLICY_PRIORITY:
        return st.queues.wait_heap[0]
    head = st.queues.wait_heap.size
    return st.requests.wait_next[head]


@inner
def waiting_remove(st: State, r: int) -> None:
    """Take a waiting request out, wherever it stands."""
    n = st.ctl.num_waiting - 1
    st.ctl.num_waiting = n
    if st.params.policy == c.POLICY_PRIORITY:
        i = st.requests.heap_pos[r]
        st.requests.heap_pos[r] = -1
        last = st.queues.wait_heap[n]
        if i != n:
            st.queues.wait_heap[i] = last
            st.requests.heap_pos[last] = i
            _sift_up(st, i)
            _sift_down(st, st.requests.heap_pos[last], n)
        return
    rq = st.requests
    prev = rq.wait_prev[r]
    nxt = rq.wait_next[r]
    rq.wait_next[prev] = nxt
    rq.wait_prev[nxt] = prev
