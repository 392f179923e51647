"""A window on a long workload: its requests come in chunks, and those that are over make room.

The window is the records [0, size) of the requests; record i is request ``base + i``. Shifting it keeps the
order of the records, so every comparison of two requests by index stays as it is.
"""

from __future__ import annotations

from sim.core import codes as c
from sim.core.jit import entry
from sim.core.lifecycle import arrival_heap_push
from sim.core.state import State


@entry
def admit_loaded(st: State, first: int, last: int) -> None:
    """Make the records [first, last) known to the engine, whose fields are filled in.

    One with an arrival is to come; one with a parent is linked to it, or comes its think time after its
    parent's end if that is over; the others are of the closed-loop pool.
    """
    rq = st.requests
    for r in range(first, last):
        p = rq.parent[r]
        if p >= 0:
            if rq.first_child[p] < 0:
                rq.first_child[p] = r
            else:
                sibling = rq.first_child[p]
                while rq.next_sibling[sibling] >= 0:
                    sibling = rq.next_sibling[sibling]
                rq.next_sibling[sibling] = r
            if rq.status[p] >= c.S_FINISHED:
                rq.arrival[r] = rq.finish[p] + rq.think_ns[r]
                arrival_heap_push(st, r)
        elif rq.arrival[r] >= 0:
            arrival_heap_push(st, r)


@entry
def shift_window(st: State, k: int, size: int, pieces: int, capacity: int) -> None:
    """Forget the first k of ``size`` records, which are over, and the first ``pieces`` pieces.

    ``capacity`` is the record from which on the waiting queue's sentinels stand. The logs must be empty of
    events: they name requests.
    """
    rq = st.requests
    for i in range(k, size):
        rq[i - k] = rq[i]
    for i in range(k, min(size, st.kv.encoder_tokens.size)):
        st.kv.encoder_tokens[i - k] = st.kv.encoder_tokens[i]
    for i in range(k, min(size, st.drafts.size)):
        st.drafts[i - k] = st.drafts[i]
    for i in range(max(size - k, 0), min(size, st.drafts.size)):
        st.drafts.proposed[i] = 0
        st.drafts.prefill[i] = 0
        st.drafts.turn[i] = 0
    left = size - k
    for j in range(left + 2):
        i = j if j < left else capacity + j - left
        # whoever is not linked has old numbers there, which mean nothing
        if i < left:
            rq.parent[i] = max(rq.parent[i] - k, -1)
            if rq.first_child[i] >= 0:
                rq.first_child[i] -= k
            if rq.next_sibling[i] >= 0:
                rq.next_sibling[i] -= k
        if 0 <= rq.wait_prev[i] < capacity:
            rq.wait_prev[i] = max(rq.wait_prev[i] - k, -1)
        if 0 <= rq.wait_next[i] < capacity:
            rq.wait_next[i] = max(rq.wait_next[i] - k, -1)
    for i in range(st.ctl.num_waiting):
        st.queues.wait_heap[i] = max(st.queues.wait_heap[i] - k, 0)
    for i in range(st.ctl.heap_len):
        st.queues.arrival_heap[i] -= k
    for i in range(st.queues.lists.size):
        st.queues.lists.running[i] = max(st.queues.lists.running[i] - k, 0)
        st.queues.lists.preempted[i] = max(st.queues.lists.preempted[i] - k, 0)
        st.queues.lists.finished[i] = max(st.queues.lists.finished[i] - k, 0)
        for batch in range(st.queues.entries.shape[0]):
            st.queues.entries.req[batch, i] = max(st.queues.entries.req[batch, i] - k, 0)
    if st.ctl.head_req >= 0:
        st.ctl.head_req -= k
    if st.ctl.alone_req >= 0:
        st.ctl.alone_req -= k
    if st.ctl.memo_req >= k:
        if st.ctl.memo_req < capacity:
            st.ctl.memo_req -= k
    elif st.ctl.memo_req >= 0:
        # over, and nobody's look-up any more; its marks are still to be taken off
        st.ctl.memo_req = capacity
    st.ctl.num_requests -= k
    st.ctl.closed_next = max(st.ctl.closed_next - k, 0)
    st.ctl.closed_end -= k
    last = st.kv.seg_ptr[size]
    for i in range(left + 1):
        st.kv.seg_ptr[i] = st.kv.seg_ptr[i + k] - pieces
    for i in range(pieces, last):
        st.kv.pieces[i - pieces] = st.kv.pieces[i]
    for slot in range(st.kv.slots.size):
        st.kv.slots.hash_piece[slot] -= pieces
