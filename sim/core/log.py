"""Rows of the step log."""

from __future__ import annotations

from sim.core import codes as c
from sim.core.jit import apart, inner, leaf
from sim.core.probes import largest_free_run
from sim.core.state import State


@leaf
def slots_in_tables(st: State) -> int:
    """Slots of the running requests' blocks, over all groups."""
    total = 0
    for g in range(st.params.num_groups):
        if st.kv.groups.token_slots[g]:
            total += st.kv.groups.allocated[g] * st.kv.groups.block_size[g]
    return total


@inner
def _given_up_ahead(st: State) -> int:
    """Tokens that windows have given up though running requests have not computed them: drafts that were
    taken back. The gauges of tokens held count them below zero.
    """
    total = 0
    for g in range(st.params.num_groups):
        if st.kv.groups.token_slots[g] == c.SLOTS_TOKENS:
            for i in range(st.ctl.num_running):
                r = st.queues.lists.running[i]
                given = st.kv.tables.nulls[g, st.requests.slot[r]] * st.kv.groups.block_size[g]
                total += max(given - st.requests.num_computed[r], 0)
    return total


@leaf
def tokens_in_tables(st: State) -> int:
    """Computed tokens that those slots hold."""
    total = 0
    for g in range(st.params.num_groups):
        total += st.kv.groups.held[g]
    return total + _given_up_ahead(st) if st.params.short_windows else total


@apart
def write_row(st: State, time: int) -> None:
    """Append a row that describes the state as it stands; the engine has made sure that there is room."""
    i = st.ctl.log_len
    st.ctl.log_len = i + 1
    row = st.logs.steps
    free = st.kv.pool.meta.num_free
    allocated = slots_in_tables(st)
    held = tokens_in_tables(st)
    batch = st.ctl.last_batch
    row[i, 0] = time
    row[i, 1] = st.ctl.step
    row[i, 2] = st.ctl.num_running
    row[i, 3] = st.ctl.num_waiting
    row[i, 4] = free
    row[i, 5] = st.params.num_blocks - 1 - free
    row[i, 6] = st.kv.pool.meta.num_keys + st.kv.pool.meta.num_partial_keys
    row[i, 7] = st.kv.pool.meta.num_cached
    row[i, 8] = st.kv.pool.meta.num_cached_free
    row[i, 9] = st.queues.batches.tokens[batch]
    row[i, 10] = st.queues.batches.entries[batch]
    row[i, 11] = allocated
    row[i, 12] = held
    row[i, 13] = allocated - held
    row[i, 14] = st.kv.pool.runs.number
    row[i, 15] = largest_free_run(st.kv.pool)
    row[i, 16] = st.count.table_blocks
    row[i, 17] = st.count.table_runs
    row[i, 18] = st.count.prefix_queries
    row[i, 19] = st.count.prefix_hits
    row[i, 20] = st.count.preempted_queries
    row[i, 21] = st.count.preempted_hits
    row[i, 22] = st.count.preemptions
    row[i, 23] = st.count.finished
    row[i, 24] = st.kv.pool.meta.evictions
    row[i, 25] = st.queues.batches.duration[batch]
