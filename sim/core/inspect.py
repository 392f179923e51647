"""Read-only walks over the state for recorders and checks; nothing of the engine needs them."""

from __future__ import annotations

import numpy as np

from sim.core import codes as c
from sim.core.free_queue import GAP, queue_place
from sim.core.jit import entry
from sim.core.probes import largest_free_run
from sim.core.state import Pool, State


@entry
def free_queue_order(pool: Pool, out: np.ndarray) -> int:
    """Write the ids of the free queue in queue order into ``out`` (int32[>= N]); returns their number."""
    n = 0
    for position in range(pool.queue.first, pool.queue.end):
        b = pool.ring[queue_place(pool, position)]
        if b != GAP:
            out[n] = b
            n += 1
    return n


@entry
def largest_run(pool: Pool) -> int:
    """Blocks of the longest run of free ones."""
    return largest_free_run(pool)


@entry
def waiting_order(st: State, out: np.ndarray) -> int:
    """Write the waiting requests into ``out`` (int32[>= R]); returns their number.

    FCFS: in queue order. Priority: the heap as it stands, which the caller sorts.
    """
    n = st.ctl.num_waiting
    if st.params.policy == c.POLICY_PRIORITY:
        for i in range(n):
            out[i] = st.queues.wait_heap[i]
        return n
    r = st.requests.wait_next[st.queues.wait_heap.size]
    for i in range(n):
        out[i] = r
        r = st.requests.wait_next[r]
    return n
