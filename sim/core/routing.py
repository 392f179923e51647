"""Which replica gets a request: the rules of the routers that stand in front of vLLM.

``sim.reference.routing`` has the same rules in plain Python, with the sources that they follow.
"""

from __future__ import annotations

import numpy as np

from sim.core import fleet_state as fs
from sim.core.block_hash import mix64
from sim.core.fleet_state import Fleet
from sim.core.jit import inner, leaf
from sim.core.native import struct_at
from sim.core.prefix_index import hash_prompt, match_prefix, note_prompt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_32 = np.uint64(32)


@leaf
def _below(f: Fleet, n: int) -> int:
    """A random number from 0 to n - 1: SplitMix64 of the seed and a counter, its high half scaled."""
    f.ctl.draws += np.uint64(1)
    x = mix64(f.params.seed + f.ctl.draws * _GOLDEN)
    return np.int64(((x >> _32) * np.uint64(n)) >> _32)


@inner
def refresh_view(f: Fleet) -> None:
    """The router looks at every replica: its queue, its running requests, its KV cache usage."""
    for k in range(f.params.num_replicas):
        st = struct_at(f.first, f.replicas.address[k])
        f.replicas.waiting[k] = st.ctl.num_waiting
        f.replicas.running[k] = st.ctl.num_running
        f.replicas.usage[k] = 1.0 - st.kv.pool.meta.num_free / (st.params.num_blocks - 1)


@inner
def _least_loaded(f: Fleet) -> int:
    """The least score, the first one from ``ctl.start`` on among equals."""
    n = f.params.num_replicas
    best = 0
    least = 0.0
    for i in range(n):
        k = f.ctl.start + i
        if k >= n:
            k -= n
        waiting = f.replicas.waiting[k]
        if f.params.score == fs.SCORE_WAITING_X4:
            score = float(4 * waiting + f.replicas.running[k])
        else:
            in_flight = f.replicas.routed[k] - f.replicas.ended[k]
            score = float(max(in_flight, waiting + f.replicas.running[k]))
            if waiting > 0:
                score += waiting * 6.0 * max(0.0, f.replicas.usage[k] - 0.5)
        if i == 0 or score < least:
            least = score
            best = k
    f.replicas.waiting[best] += 1
    if f.params.score == fs.SCORE_IN_FLIGHT:
        f.ctl.start = (f.ctl.start + 1) % n
    return best


@inner
def _by_session(f: Fleet, r: int) -> int:
    """Where the session's first request went; the first one by its hash or to the least loaded."""
    s = f.session[r]
    k = f.session_replica[s]
    if k >= 0:
        return k
    if f.params.first_by_load:
        k = _least_loaded(f)
    else:
        x = mix64(f.params.seed + np.uint64(s + 1) * _GOLDEN)
        k = np.int64(((x >> _32) * np.uint64(f.params.num_replicas)) >> _32)
    f.session_replica[s] = k
    return k


@inner
def _by_prefix(f: Fleet, r: int) -> int:
    """The highest weighted sum of three scores from 0 to 1; a random one among equals."""
    n = f.params.num_replicas
    units = hash_prompt(f, r)
    match_prefix(f, units)
    shortest = f.replicas.waiting[0]
    longest = shortest
    for k in range(1, n):
        shortest = min(shortest, f.replicas.waiting[k])
        longest = max(longest, f.replicas.waiting[k])
    best = -1.0
    equal = 0
    for k in range(n):
        queue = 1.0
        if longest > shortest:
            queue = float(longest - f.replicas.waiting[k]) / float(longest - shortest)
        prefix = f.replicas.matched[k] / units if units > 0 else 0.0
        total = f.params.weight_queue * queue
        total += f.params.weight_usage * (1.0 - f.replicas.usage[k])
        total += f.params.weight_prefix * prefix
        if total > best:
            best = total
            equal = 0
        if total == best:
            # the replicas of the best score so far, in order
            f.replicas.matched[equal] = k
            equal += 1
    k = f.replicas.matched[_below(f, equal) if equal > 1 else 0]
    note_prompt(f, k, units)
    return k


@inner
def choose(f: Fleet, r: int) -> int:
    """The replica for request r, by the fleet's rule; changes what the rule remembers."""
    if f.params.rule == fs.ROUTE_ROUND_ROBIN:
        return f.ctl.num_routed % f.params.num_replicas
    if f.params.rule == fs.ROUTE_RANDOM:
        return _below(f, f.params.num_replicas)
    if f.params.rule == fs.ROUTE_LEAST_LOADED:
        return _least_loaded(f)
    if f.params.rule == fs.ROUTE_SESSION:
        return _by_session(f, r)
    return _by_prefix(f, r)
