"""The loop over a fleet: arrivals are routed, and each replica runs on the one clock.

Events are ordered by (time, kind, sequence): at one instant the router looks at the replicas, then routes
what has arrived in order of index, then the replicas make their phases in order of their number. A request
that an end releases (the next turn of a session, the next of a closed loop) goes through the router again.

Replicas meet only at the router, so they need not keep step. Nothing is released sooner than ``lookahead_ns``
after an end, hence all that arrives in a window of that length is known when it begins: the window is routed
and each replica runs through it alone. A rule that looks at the replicas bounds the window by its next look.
Where an end may release something at once, or the order of ends matters, phases are made one replica at a
time in order. How the run is cut into calls, or time into windows, never changes its result.
"""

from __future__ import annotations

from sim.core import codes as c
from sim.core.engine import next_time
from sim.core.fleet_state import Fleet
from sim.core.jit import entry, inner, leaf
from sim.core.lifecycle import NEVER, arrival_heap_push, next_arrival, pop_arrival
from sim.core.native import call_engine, struct_at
from sim.core.routing import choose, refresh_view

_NO_LIMIT = 1 << 60


@leaf
def _release(f: Fleet, r: int, now: int) -> None:
    f.requests.arrival[r] = now + f.requests.think_ns[r]
    arrival_heap_push(f, r)


@inner
def _release_after(f: Fleet, r: int, now: int) -> None:
    """Request r has ended: release its successors, then the next of the closed-loop pool."""
    child = f.first_child[r]
    while child >= 0:
        _release(f, child, now)
        child = f.next_sibling[child]
    if f.params.closed_loop and f.ctl.closed_next < f.ctl.closed_end:
        n = f.ctl.closed_next
        # requests with a parent or a known arrival are not of the pool
        while n < f.ctl.closed_end and (f.requests.arrival[n] >= 0 or f.requests.parent[n] >= 0):
            n += 1
        f.ctl.closed_next = n + 1
        if n < f.ctl.closed_end:
            _release(f, n, now)


@inner
def _advance(f: Fleet, k: int, t_end: int) -> int:
    """Run replica k's phases before ``t_end``; returns an ExitReason, ENDED when an end has released
    something and the order of events matters.
    """
    address = f.replicas.address[k]
    st = struct_at(f.first, address)
    while True:
        reason = call_engine(f.params.engine, f.first, address, t_end, _NO_LIMIT)
        n = st.ctl.num_ended_watched
        st.ctl.num_ended_watched = 0
        for i in range(n):
            r = st.queues.ended_watched[i]
            _release_after(f, r, f.requests.finish[r])
        if reason != c.X_ENDED or f.params.ordered_ends or f.params.lookahead_ns == 0:
            break
    f.replicas.next_time[k] = next_time(st)
    f.replicas.ended[k] = st.ctl.num_ended
    f.ctl.now = max(f.ctl.now, st.ctl.now)
    return reason


@inner
def _route_next(f: Fleet) -> None:
    """Send the next arrival to a replica."""
    time = next_arrival(f)
    r = pop_arrival(f)
    f.ctl.now = max(f.ctl.now, time)
    if f.params.uses_view and f.params.interval_ns == 0:
        refresh_view(f)
    k = choose(f, r)
    f.ctl.num_routed += 1
    f.replica_of[r] = k
    f.replicas.routed[k] += 1
    st = struct_at(f.first, f.replicas.address[k])
    arrival_heap_push(st, r)
    f.replicas.next_time[k] = next_time(st)
    if f.requests.prompt_len[r] >= f.params.max_model_len:
        # the front end refuses it on the spot; the replica notes it when it takes its arrivals in
        _release_after(f, r, time)


@inner
def _run_window(f: Fleet) -> int:
    """Advance every replica to the window's end; DONE, or the reason of a replica whose log is full."""
    end = f.ctl.window_end
    for k in range(f.params.num_replicas):
        if f.replicas.next_time[k] < end:
            reason = _advance(f, k, end)
            if reason in (c.X_LOG_FULL, c.X_EVENTS_FULL):
                f.ctl.full_replica = k
                return reason
    f.ctl.window_end = 0
    return c.X_DONE


@inner
def _run_in_order(f: Fleet, k: int, limit: int) -> int:
    """Advance replica k, whose phase is the next event, until another event may come first."""
    time = f.replicas.next_time[k]
    for j in range(f.params.num_replicas):
        if j != k:
            limit = min(limit, f.replicas.next_time[j])
    # its other phases of this very instant come before those of replicas with higher numbers
    reason = _advance(f, k, max(limit, time + 1))
    if reason in (c.X_LOG_FULL, c.X_EVENTS_FULL):
        f.ctl.full_replica = k
        return reason
    return c.X_DONE


@leaf
def _first_replica(f: Fleet) -> int:
    """The replica whose next phase comes first, the lowest number among equals."""
    best = 0
    for k in range(1, f.params.num_replicas):
        if f.replicas.next_time[k] < f.replicas.next_time[best]:
            best = k
    return best


@entry
def run_fleet(f: Fleet, t_end: int, max_events: int) -> int:
    """Run the fleet up to ``t_end`` (ns, exclusive) or until one of the exit reasons holds.

    ``max_events`` bounds the routed requests and the advances of replicas in this call, roughly. Returns an
    ExitReason: DONE, TIME, MAX_STEPS, or LOG_FULL or EVENTS_FULL for replica ``ctl.full_replica``. Modifies
    the fleet and its replicas in place; a later call goes on where this one stopped.
    """
    budget = max_events
    looks = f.params.uses_view and f.params.interval_ns > 0
    in_order = f.params.ordered_ends or f.params.lookahead_ns == 0
    sees_ends = f.params.uses_in_flight or (f.params.uses_view and f.params.interval_ns == 0)
    while True:
        if f.ctl.window_end > 0:
            reason = _run_window(f)
            if reason != c.X_DONE:
                return reason
        if budget <= 0:
            return c.X_MAX_STEPS
        k = _first_replica(f)
        phase = f.replicas.next_time[k]
        arrival = next_arrival(f)
        time = min(phase, arrival)
        if time == NEVER:
            return c.X_DONE
        if time >= t_end:
            return c.X_TIME
        limit = t_end
        if looks:
            if time >= f.ctl.next_refresh:
                refresh_view(f)
                f.ctl.next_refresh = (time // f.params.interval_ns + 1) * f.params.interval_ns
            limit = min(limit, f.ctl.next_refresh)
        if arrival <= phase and (in_order or sees_ends):
            _route_next(f)
            budget -= 1
            continue
        if in_order:
            reason = _run_in_order(f, k, min(limit, arrival))
            budget -= 1
            if reason != c.X_DONE:
                return reason
            continue
        limit = min(limit, time + f.params.lookahead_ns)
        if sees_ends:
            limit = min(limit, arrival)
        else:
            while next_arrival(f) < limit:
                _route_next(f)
                budget -= 1
        f.ctl.window_end = limit
        budget -= f.params.num_replicas
