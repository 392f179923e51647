"""State of a fleet: replicas of one engine on a shared clock, and the router in front of them.

Each replica is a ``State`` of its own, with its own pool, queues and logs. The requests, and the pieces of
their prompts, are one array that all replicas and the router share: a request belongs to the replica that it
was routed to. N replicas, R requests, D sessions, H hash units of the longest prompt, E entries of the index.
"""

from __future__ import annotations

import numpy as np

from sim.core.records import I32, I64, U64, Record, record_dtype
from sim.core.state import State
from sim.core.struct import Struct

# Routing rules, see ``routing``
ROUTE_ROUND_ROBIN = 0
ROUTE_RANDOM = 1
ROUTE_LEAST_LOADED = 2
ROUTE_SESSION = 3
ROUTE_PREFIX = 4

# Scores of ROUTE_LEAST_LOADED
SCORE_IN_FLIGHT = 0
SCORE_WAITING_X4 = 1

#: Settings of the fleet.
FLEET_PARAMS = record_dtype(
    {
        "num_replicas": np.int64,  # N
        "rule": np.int64,  # ROUTE_*
        "score": np.int64,  # SCORE_*
        "first_by_load": np.int64,  # ROUTE_SESSION: a session's first request goes to the least loaded
        "interval_ns": np.int64,  # between two looks at the replicas; 0: a look for every request
        "uses_view": np.int64,  # the rule looks at waiting, running and usage
        "uses_in_flight": np.int64,  # the rule counts requests that have not ended, at every routing
        "ordered_ends": np.int64,  # who is released depends on the order of the ends (closed loop)
        "lookahead_ns": np.int64,  # no request is released sooner than this after an end
        "closed_loop": np.int64,
        "max_model_len": np.int64,
        "vocab_size": np.int64,
        "seed": np.uint64,
        "max_units": np.int64,  # hash units of a prompt that are looked at
        "engine": np.int64,  # address of the machine code of run_until
        "weight_prefix": np.float64,
        "weight_queue": np.float64,
        "weight_usage": np.float64,
    }
)

#: Where the fleet stands.
FLEET_CTL = record_dtype(
    {
        "now": np.int64,  # ns of the last event
        "window_end": np.int64,  # replicas are being advanced to this time; 0: they are not
        "next_refresh": np.int64,  # when the router looks at the replicas next
        "order_pos": np.int64,  # next entry of the sorted arrivals
        "heap_len": np.int64,  # released requests that have not been routed
        "closed_next": np.int64,  # next request of the closed-loop pool
        "closed_end": np.int64,
        "num_routed": np.int64,
        "start": np.int64,  # ROUTE_LEAST_LOADED: replica from which the scan begins
        "draws": np.uint64,  # random numbers drawn so far
        "full_replica": np.int64,  # whose log is full
        "touches": np.int64,  # cumulative: entries of the index that were touched
    }
)

#: One replica, as the loop and the router see it.
REPLICA = record_dtype(
    {
        "address": np.int64,  # of its State
        "next_time": np.int64,  # ns of its next phase, NEVER
        "routed": np.int64,  # requests sent to it
        "ended": np.int64,  # of these, at an end
        "waiting": np.int64,  # as the router last saw it
        "running": np.int64,
        "usage": np.float64,
        "matched": np.int64,  # scratch: units of the prompt that it is thought to hold
        "newest": np.int64,  # ends of its list of index entries, -1: empty
        "oldest": np.int64,
        "entries": np.int64,  # their number
    }
)

#: One entry of the prefix index: a hash that a replica is thought to hold.
ENTRY = record_dtype(
    {
        "key": np.uint64,
        "older": np.int32,  # neighbours in the replica's list by last use, -1: none
        "newer": np.int32,
        "replica": np.int32,
        "unused": np.int32,
    }
)


class Arrivals(Struct):
    """What is still to be routed; the field names are those of ``state.Queues``, whose helpers serve it."""

    order: I32  # requests with a known arrival, sorted by (arrival, index)
    arrival_heap: I32  # (R,) released requests, a heap by (arrival, index)


class PrefixIndex(Struct):
    """Which replica has been sent which prefix: lists by last use, and two hash tables (open addressing)."""

    capacity: int  # entries a replica
    words: int  # 64-bit words of a set of replicas
    entries: Record  # ENTRY[N * capacity], those of a replica together
    holders: U64  # (slots, 1 + words) a hash (0: empty), then the set of replicas
    places: U64  # (slots, 2) hash mixed with the replica (0: empty), then the entry
    units: U64  # (H,) hashes of the prompt that is being routed
    mult: U64  # (unit,) odd multipliers of the content sum


class Fleet(Struct):
    """Everything that the fleet's loop reads or changes; ``requests``, ``queues`` and ``ctl`` are named as in
    ``state.State``.
    """

    params: Record  # FLEET_PARAMS
    ctl: Record  # FLEET_CTL
    first: State  # one of the replicas, for its type
    replicas: Record  # REPLICA[N]
    requests: Record  # REQUEST[R + 2 N], shared; first_child and next_sibling are not used there
    queues: Arrivals
    index: PrefixIndex
    replica_of: I32  # (R,) the replica of a request, -1: not routed
    first_child: I32  # (R,) requests that this one's end releases
    next_sibling: I32
    session: I32  # (R,) session of a request, dense
    session_replica: I32  # (D,) where the session's first request went, -1: nowhere yet
    seg_ptr: I64  # (R + 1,) pieces of a prompt
    pieces: Record  # PIECE[M]
    tokens: I32  # (K,) pool of explicit token ids
