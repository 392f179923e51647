"""Time-weighted sums and histograms of what the pool looks like.

What stands between two instants is noted, and a batch of notes at a time is weighed: the divisions and the
histograms then cost a third of what they do one by one between the phases of the engine. The order of the
additions is that of time, so when notes are weighed never changes a sum.
"""

from __future__ import annotations

import numpy as np

from sim.core import codes as c
from sim.core.jit import apart, leaf
from sim.core.log import slots_in_tables, tokens_in_tables
from sim.core.log_bins import log_bin
from sim.core.probes import largest_free_run
from sim.core.state import State


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


@leaf
def _weigh_count(st: State, m: int, value: int, dt: int, since: int) -> None:
    _weigh(st, m, float(value), log_bin(value), dt, since)


@apart
def weigh_notes(st: State) -> None:
    """Add what is noted to the sums and histograms."""
    usable = st.params.num_blocks - 1
    notes = st.logs.notes
    for i in range(st.ctl.num_notes):
        dt, since = notes.lasted[i], notes.since[i]
        free = np.int64(notes.free[i])
        _weigh_fraction(st, 0, usable - free, usable, dt, since)
        _weigh_fraction(st, 1, notes.wasted[i], notes.allocated[i], dt, since)
        _weigh_fraction(st, 2, free - notes.largest_run[i], free, dt, since)
        _weigh_count(st, 3, np.int64(notes.running[i]), dt, since)
        _weigh_count(st, 4, np.int64(notes.waiting[i]), dt, since)
        _weigh_count(st, 5, np.int64(notes.runs[i]), dt, since)
    st.ctl.num_notes = 0


@leaf
def note_time(st: State, now: int) -> None:
    """Note the state that has stood since the last call, with the time that has passed."""
    since = max(st.ctl.last_time, st.params.warmup_ns)
    st.ctl.last_time = now
    if now <= since:
        return
    if st.ctl.num_notes == st.logs.notes.size:
        weigh_notes(st)
    i = st.ctl.num_notes
    st.ctl.num_notes = i + 1
    notes = st.logs.notes
    notes.since[i] = since
    notes.lasted[i] = now - since
    notes.allocated[i] = slots_in_tables(st)
    notes.wasted[i] = notes.allocated[i] - tokens_in_tables(st)
    notes.free[i] = st.kv.pool.meta.num_free
    notes.largest_run[i] = largest_free_run(st.kv.pool)
    notes.runs[i] = st.kv.pool.runs.number
    notes.running[i] = st.ctl.num_running
    notes.waiting[i] = st.ctl.num_waiting
