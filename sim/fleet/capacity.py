"""Every array of a fleet, sized and allocated before the run.

The requests and their prompts are allocated once, for all replicas; what a replica has for itself (pool,
block tables, queues, logs) costs memory only where its run really goes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.capacity import LogOptions, allocate
from sim.core import fleet_state as fs
from sim.core.block_hash import hash_multipliers
from sim.core.lifecycle import NEVER
from sim.core.native import address_of, engine_address
from sim.core.state import State
from sim.engine_settings import EngineSettings
from sim.fleet.config import (
    FleetSettings,
    LeastLoaded,
    PrefixAffinity,
    Random,
    RoundRobin,
    Router,
    SessionAffinity,
)
from sim.record_arrays import record, record_array
from sim.request_records import SharedRequests, arrival_order, prompt_pieces, request_records
from sim.step_time import StepTime
from workloads.requests import Workload

_RULES = {
    RoundRobin: fs.ROUTE_ROUND_ROBIN,
    Random: fs.ROUTE_RANDOM,
    LeastLoaded: fs.ROUTE_LEAST_LOADED,
    SessionAffinity: fs.ROUTE_SESSION,
    PrefixAffinity: fs.ROUTE_PREFIX,
}
#: Where ends release nothing a window could be endless; it is at most so long, for progress and Ctrl-C.
_LONGEST_WINDOW_NS = 1_000_000_000
_MIN_UNIT = 64


@dataclass(frozen=True)
class FleetState:
    """The arrays of a fleet: the loop's own, and the replicas'."""

    fleet: fs.Fleet
    states: tuple[State, ...]


def sessions(workload: Workload) -> tuple[np.ndarray, int]:
    """Session of each request as int32[n] from 0, and their number.

    A conversation is the requests of one session id or, where there is none, a request and all that follow on
    its end; others are conversations of their own.
    """
    n = len(workload)
    root = np.arange(n, dtype=np.int64)
    parent = workload.parent.astype(np.int64)
    root[parent >= 0] = parent[parent >= 0]
    # parents come first, so pointers shorten to the first ancestor
    while True:
        shorter = root[root]
        if np.array_equal(shorter, root):
            break
        root = shorter
    named = workload.session >= 0
    label = np.where(named, workload.session.astype(np.int64), np.int64(2) ** 32 + root)
    unique, dense = np.unique(label, return_inverse=True)
    return dense.astype(np.int32).reshape(n), len(unique)


def _prefix_index(
    router: Router, replicas: int, engine: EngineSettings, workload: Workload
) -> tuple[fs.PrefixIndex, int]:
    """The index, and how many hash units of a prompt are looked at; of the least size for other rules."""
    if not isinstance(router, PrefixAffinity):
        unit, capacity, max_units = 1, 1, 1
    else:
        unit = max(_MIN_UNIT, engine.block_size) if router.unit_tokens == "auto" else router.unit_tokens
        max_units = max(1, router.max_prefix_tokens // unit)
        units = np.minimum(-(-workload.prompt_len.astype(np.int64) // unit), max_units)
        max_units = int(units.max(initial=1))
        wanted = engine.num_gpu_blocks if router.index_capacity == "auto" else router.index_capacity
        # a prompt's own hashes must all fit; more than all hashes there are is never needed
        capacity = max(max_units, min(wanted, int(units.sum())))
    rows = 2
    while rows < 2 * replicas * capacity + 2:
        rows *= 2
    words = -(-replicas // 64)
    return fs.PrefixIndex(
        capacity=capacity,
        words=words,
        entries=record_array(fs.ENTRY, replicas * capacity),
        holders=np.zeros((rows, 1 + words), dtype=np.uint64),
        places=np.zeros((rows, 2), dtype=np.uint64),
        units=np.zeros(max_units, dtype=np.uint64),
        mult=hash_multipliers(unit),
    ), max_units


def _fleet_params(
    settings: FleetSettings, engine: EngineSettings, workload: Workload, seed: int, max_units: int
) -> fs.Record:
    router = settings.router
    by_load = isinstance(router, LeastLoaded) or (
        isinstance(router, SessionAffinity) and router.first == "least_loaded"
    )
    score = fs.SCORE_IN_FLIGHT
    if isinstance(router, LeastLoaded) and router.score == "waiting_x4":
        score = fs.SCORE_WAITING_X4
    uses_view = by_load or isinstance(router, PrefixAffinity)
    released = workload.arrival < 0
    think = int(workload.think_ns[released].min()) if released.any() else _LONGEST_WINDOW_NS
    params = record(
        fs.FLEET_PARAMS,
        {
            "num_replicas": settings.replicas,
            "rule": _RULES[type(router)],
            "score": score,
            "first_by_load": int(isinstance(router, SessionAffinity) and by_load),
            "interval_ns": int(getattr(router, "stats_interval", 0)) if uses_view else 0,
            "uses_view": int(uses_view),
            "uses_in_flight": int(by_load and score == fs.SCORE_IN_FLIGHT),
            "ordered_ends": int(workload.closed_loop),
            "lookahead_ns": min(think, _LONGEST_WINDOW_NS),
            "closed_loop": int(workload.closed_loop),
            "max_model_len": engine.max_model_len,
            "vocab_size": workload.vocab_size,
            "seed": seed,
            "max_units": max_units,
        },
    )
    if isinstance(router, PrefixAffinity):
        params.weight_prefix = router.prefix_weight
        params.weight_queue = router.queue_weight
        params.weight_usage = router.usage_weight
    return params


def allocate_fleet(
    engine: EngineSettings,
    workload: Workload,
    step_time: StepTime,
    log: LogOptions,
    settings: FleetSettings,
    seed: int = 0,
) -> FleetState:
    """Allocate and initialise a fleet that will serve the workload.

    Args:
        engine, step_time, log: of each replica.
        workload: on the real clock.
        settings: replicas and router.
        seed: of what the router draws.

    Raises:
        ValueError: the workload is on a logical clock.
    """
    if workload.clock != "time":
        raise ValueError("a fleet needs a workload on the real clock")
    n, replicas = len(workload), settings.replicas
    requests = request_records(engine, workload, max(1, n), queues=replicas)
    seg_ptr, pieces = prompt_pieces(workload, max(1, n), max(1, workload.seg_id.size))
    first_child = requests.first_child[: max(1, n)].copy()
    next_sibling = requests.next_sibling[: max(1, n)].copy()
    # the router releases successors, not the replica on which the parent ran
    requests.first_child[:] = -1
    requests.next_sibling[:] = -1
    releases = np.ones(n, dtype=np.bool_) if workload.closed_loop else first_child[:n] >= 0
    requests.watched[:n] = releases & (workload.prompt_len < engine.max_model_len)
    states = []
    for k in range(replicas):
        shared = SharedRequests(requests, seg_ptr, pieces, k)
        states.append(allocate(engine, workload, step_time, log, shared=shared))
    index, max_units = _prefix_index(settings.router, replicas, engine, workload)
    params = _fleet_params(settings, engine, workload, seed, max_units)
    params.engine = engine_address(states[0])
    view = record_array(fs.REPLICA, replicas)
    view.address[:] = [address_of(st) for st in states]
    view.next_time[:] = NEVER
    view.newest[:] = -1
    view.oldest[:] = -1
    session, num_sessions = sessions(workload)
    fleet = fs.Fleet(
        params=params,
        ctl=record(fs.FLEET_CTL, {"closed_end": n}),
        first=states[0],
        replicas=view,
        requests=requests,
        queues=fs.Arrivals(order=arrival_order(workload), arrival_heap=np.zeros(max(1, n), dtype=np.int32)),
        index=index,
        replica_of=np.full(max(1, n), -1, dtype=np.int32),
        first_child=first_child,
        next_sibling=next_sibling,
        session=session,
        session_replica=np.full(max(1, num_sessions), -1, dtype=np.int32),
        seg_ptr=seg_ptr,
        pieces=pieces,
        tokens=states[0].kv.tokens,
    )
    return FleetState(fleet, tuple(states))
