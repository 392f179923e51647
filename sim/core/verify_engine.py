"""The numbered invariants of the engine loop: arrivals, ends, batches in flight, logs; see ``verify``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from sim.core import codes as c
from sim.core.state import State

EngineCheck = Callable[[State], Iterator[str]]


def inv_23(st: State) -> Iterator[str]:
    """INV-23: a request that is to come at a known time is listed once; one that waits for a release is not.

    A successor arrives its think time after its parent's end; the closed-loop pool is released in order.
    """
    rq, ctl = st.requests[: st.ctl.num_requests], st.ctl
    heap = st.queues.arrival_heap[: ctl.heap_len].tolist()
    keys = [(int(rq.arrival[r]), r) for r in heap]
    for i in range(1, len(keys)):
        if keys[i] < keys[(i - 1) // 2]:
            yield f"successor {heap[i]} stands behind one that comes later"
    coming = st.queues.order[ctl.order_pos :].tolist()
    for a, b in pairwise(coming):
        if (rq.arrival[a], a) >= (rq.arrival[b], b):
            yield f"arrivals {a} and {b} are not in order"
    listed = Counter([*heap, *coming])
    status, arrival = rq["status"], rq["arrival"]
    for r in np.flatnonzero((status == c.S_NOT_ARRIVED) & (arrival >= 0)).tolist():
        if listed[r] != 1:
            yield f"request {r} is to come at {arrival[r]}, listed {listed[r]} times"
    for r, times in listed.items():
        if times != 1 or arrival[r] < 0 or status[r] not in (c.S_NOT_ARRIVED, c.S_ABORTED):
            yield f"request {r} of status {status[r]} is listed {times} times to come at {arrival[r]}"
    for r in np.flatnonzero(rq["parent"] >= 0).tolist():
        p = int(rq.parent[r])
        due = int(rq.finish[p] + rq.think_ns[r]) if status[p] >= c.S_FINISHED else -1
        if arrival[r] != due:
            yield f"request {r} arrives at {arrival[r]}, its parent's end says {due}"
    for r in np.flatnonzero((rq["parent"] < 0) & (arrival < 0)).tolist():
        if not st.params.closed_loop or r < ctl.closed_next:
            yield f"request {r} will never be released"


def inv_24(st: State) -> Iterator[str]:
    """INV-24: ended requests are counted, have their times in order, and hold nothing."""
    rq = st.requests[: st.ctl.num_requests]
    status = rq["status"]
    ended = status >= c.S_FINISHED
    if int(ended.sum()) != st.ctl.num_ended:
        yield f"{ended.sum()} requests have ended, counted {st.ctl.num_ended}"
    finished = int((status == c.S_FINISHED).sum())
    if finished != st.count.finished:
        yield f"{finished} requests are finished, counted {st.count.finished}"
    for r in np.flatnonzero(ended != (rq["finish"] >= 0)):
        yield f"request {r} of status {status[r]} ended at {rq.finish[r]}"
    for r in np.flatnonzero(ended & (rq["slot"] >= 0)):
        yield f"request {r} has ended and owns slot {rq.slot[r]}"
    for r in np.flatnonzero((status != c.S_NOT_ARRIVED) & (status != c.S_ABORTED)):
        times = [int(rq[f][r]) for f in ("arrival", "first_scheduled", "first_token", "finish")]
        known = [t for t in times if t >= 0]
        if known != sorted(known) or (status[r] == c.S_FINISHED and len(known) < len(times)):
            yield f"request {r} arrived, was scheduled, answered and ended at {times}"
    for r in np.flatnonzero(status == c.S_FINISHED):
        generated = int(rq.num_tokens[r] - rq.prompt_len[r])
        if generated != rq.output_len[r] and rq.num_tokens[r] < st.params.max_model_len:
            yield f"request {r} ended with {generated} of {rq.output_len[r]} tokens"


def inv_25(st: State) -> Iterator[str]:
    """INV-25: the ring holds one or two batches in the order of their ends, and no batch is half built."""
    ctl = st.ctl
    depth = 2 if st.params.async_scheduling else 1
    if not 0 <= ctl.num_in_flight <= depth or not 0 <= ctl.ring_head < len(st.queues.batches):
        yield f"{ctl.num_in_flight} batches in flight from ring entry {ctl.ring_head}"
        return
    if ctl.phase == c.P_UPDATE and not ctl.num_in_flight:
        yield "an update is to come without a batch"
    if ctl.phase == c.P_SCHEDULE and ctl.num_in_flight == depth:
        yield f"a schedule is to come with {depth} batches in flight"
    ring = [int(ctl.ring_head + i) % 3 for i in range(ctl.num_in_flight)]
    done = [int(st.queues.batches.done[k]) for k in ring]
    if done != sorted(done) or (done and done[-1] != ctl.last_done):
        yield f"batches end at {done}, the last at {ctl.last_done}"
    if st.params.clock == c.CLOCK_TIME and done and done[0] < ctl.now:
        yield f"a batch ended at {done[0]}, now is {ctl.now}"
    steps = [int(st.queues.batches.loop_step[k]) for k in ring]
    if steps != sorted(set(steps)) or (steps and steps[-1] > ctl.step):
        yield f"batches of the steps {steps} in step {ctl.step}"
    for r in np.flatnonzero(st.requests["batch_pos"][: ctl.num_requests] != -1):
        yield f"request {r} is in a batch being built"


def inv_26(st: State) -> Iterator[str]:
    """INV-26: histograms and notes cover exactly the time after the warm-up, and histograms bound sums.

    They are complete up to now, unless the run was stopped between two phases.
    """
    if st.ctl.last_time > st.ctl.now:
        yield f"the sums are complete up to {st.ctl.last_time}, now is {st.ctl.now}"
    noted = st.logs.notes[: st.ctl.num_notes]
    elapsed = max(0, int(st.ctl.last_time - st.params.warmup_ns)) - int(noted.lasted.sum())
    if not (noted.lasted > 0).all() or (noted.since[1:] != (noted.since + noted.lasted)[:-1]).any():
        yield f"notes begin at {noted.since} and last {noted.lasted}"
    for m, name in enumerate(c.TW_METRICS):
        covered = int(st.logs.histogram[m].sum())
        if covered != elapsed:
            yield f"{name} is weighted over {covered} ns of {elapsed}"
        w = st.logs.weighted[m]
        if not 0.0 <= w.total <= w.peak * elapsed * (1 + 1e-9):
            yield f"{name} adds up to {w.total} over {elapsed} ns with a peak of {w.peak}"
        if elapsed and not st.params.warmup_ns <= w.peak_at <= st.ctl.now:
            yield f"{name} peaks at {w.peak_at}"


def inv_27(st: State) -> Iterator[str]:
    """INV-27: the logs are within their arrays, no event is lost, and no sample is overdue."""
    ctl = st.ctl
    if not 0 <= ctl.log_len <= st.logs.steps.shape[0] or not 0 <= ctl.num_events <= len(st.kv.pool.events):
        yield f"{ctl.log_len} rows and {ctl.num_events} events are logged"
    if ctl.events_lost:
        yield f"{ctl.events_lost} events are lost"
    period = int(st.params.sample_period_ns)
    if period and not st.params.log_every_step and (ctl.next_sample <= ctl.now or ctl.next_sample % period):
        yield f"the next sample is at {ctl.next_sample}, now is {ctl.now}"
    if not 0 <= ctl.num_ended_watched <= st.requests["watched"].sum():
        yield f"{ctl.num_ended_watched} watched requests have ended"


def inv_33(st: State) -> Iterator[str]:
    """INV-33: the blocks of a window's table that have a key or another owner stand where that is noted."""
    kv = st.kv
    for g, slot in np.ndindex(kv.keyed.shape):
        if kv.groups.attention[g] not in (c.GROUP_SLIDING_WINDOW, c.GROUP_CHUNKED_LOCAL):
            continue
        noted = range(kv.keyed.first[g, slot], kv.keyed.end[g, slot])
        for i, b in enumerate(kv.table_blocks[g, slot, : kv.tables.length[g, slot]].tolist()):
            known = kv.pool.blocks.block_hash[b] != 0 or kv.pool.blocks.ref_cnt[b] != 1
            if b and known and i not in noted:
                yield f"block {b} at place {i} of slot {slot}, group {g} is known, noted are {noted}"


def inv_34(st: State) -> Iterator[str]:
    """INV-34: nothing happens to the tables of a running request before it is noted as due."""
    kv = st.kv
    if not kv.windows_only or kv.due.size < kv.slots.size:
        return
    for r in st.queues.lists.running[: st.ctl.num_running]:
        slot = kv.requests.slot[r]
        due = kv.due[slot]
        for g in range(kv.groups.size):
            table, size, window = kv.tables[g, slot], kv.groups.block_size[g], kv.groups.window[g]
            if due.grows > table.length * size + 1:
                yield f"request {r} is to grow at {due.grows} tokens, group {g} has {table.length} blocks"
            if st.params.enable_caching and due.fills > (table.num_cached + 1) * size:
                yield f"request {r} fills at {due.fills} tokens, {table.num_cached} are cached in group {g}"
            leaves = (table.nulls + 1) * size
            if kv.groups.attention[g] == c.GROUP_SLIDING_WINDOW:
                leaves += window - 1
            elif kv.groups.attention[g] == c.GROUP_CHUNKED_LOCAL:
                leaves = -(-leaves // window) * window
            else:
                continue
            if due.leaves > leaves:
                yield f"request {r} gives up at {due.leaves} tokens, group {g} gave up {table.nulls} blocks"
        if kv.requests.quiet[r] > min(due.leaves, due.grows - 1, due.fills - 1):
            yield f"request {r} is quiet up to {kv.requests.quiet[r]} tokens, due are {due}"


ENGINE_INVARIANTS: dict[str, EngineCheck] = {
    **{f"INV-{i}": check for i, check in enumerate((inv_23, inv_24, inv_25, inv_26, inv_27), 23)},
    "INV-33": inv_33,
    "INV-34": inv_34,
}
