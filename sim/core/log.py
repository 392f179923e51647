"""Rows of the step log, and time-weighted sums and histograms of what the pool looks like."""

from __future__ import annotations

from sim.core import codes as c
from sim.core.jit import inner, leaf
from sim.core.probes import highest_bit_of_int, largest_free_run
from sim.core.state import State


@leaf
def slots_in_tables(st: State) -> int:
    """Slots of the running requests' blocks, over all groups."""
    total = 0
    for g in range(st.params.num_groups):
        if st.kv.groups.token_slots[g]:
            total += st.kv.groups.allocated[g] * st.kv.groups.block_size[g]
    return total


@leaf
def tokens_in_tables(st: State) -> int:
    """Computed tokens that those slots hold."""
    total = 0
    for g in range(st.params.num_groups):
        total += st.kv.groups.held[g]
    return total


@inner
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


@leaf
def log_bin(v: int) -> int:
    """Histogram bin of a count: exact below 256, then 128 bins an octave (under 1 % wide)."""
    beyond = highest_bit_of_int(v | 255) - 7
    return beyond * 128 + (v >> beyond)


@leaf
def _weigh(st: State, m: int, value: float, bin_: int, dt: int, since: int) -> None:
    st.logs.weighted.total[m] += value * dt
    st.logs.histogram[m, bin_] += dt
    if value > st.logs.weighted.peak[m]:
        st.logs.weighted.peak[m] = value
        st.logs.weighted.peak_at[m] = since


@leaf
def _weigh_fraction(st: State, m: int, part: int, whole: int, dt: int, since: int) -> None:
    value = part / whole if whole > 0 else 0.0
    _weigh(st, m, value, log_bin(int(value * c.TW_FRACTION_UNIT + 0.5)), dt, since)


@inner
def advance_time_weighted(st: State, now: int) -> None:
    """Weigh the state that has stood since the last call with the time that has passed."""
    since = max(st.ctl.last_time, st.params.warmup_ns)
    st.ctl.last_time = now
    dt = now - since
    if dt <= 0:
        return
    free = st.kv.pool.meta.num_free
    usable = st.params.num_blocks - 1
    allocated = slots_in_tables(st)
    _weigh_fraction(st, 0, usable - free, usable, dt, since)
    _weigh_fraction(st, 1, allocated - tokens_in_tables(st), allocated, dt, since)
    _weigh_fraction(st, 2, free - largest_free_run(st.kv.pool), free, dt, since)
    running = st.ctl.num_running
    _weigh(st, 3, float(running), log_bin(running), dt, since)
    waiting = st.ctl.num_waiting
    _weigh(st, 4, float(waiting), log_bin(waiting), dt, since)
    runs = st.kv.pool.runs.number
    _weigh(st, 5, float(runs), log_bin(runs), dt, since)
