"""Every numbered invariant of the core, recomputed naively from the arrays.

INV-1 to INV-17 are those of the plain-Python reference under the same numbers; the others are about what
only the core has: incremental gauges, slots, the remembered look-up, arrivals, the ring of batches, the logs.
All of them hold between any two phases of the engine, and while a run is stopped. A violation is a defect of
the code, never of the input. Plain Python and numpy, for checks and tests: a small state takes a millisecond.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from sim.core import codes as c
from sim.core.state import State
from sim.core.verify_engine import ENGINE_INVARIANTS
from sim.core.verify_pool import POOL_INVARIANTS
from sim.core.verify_tables import TABLE_INVARIANTS, Check, Tokens, View, encoder_tokens


def verify(state: State, tokens: Tokens | None = None) -> list[str]:
    """Check every invariant; returns one line "INV-n: ..." for each violation, none when all is well.

    Args:
        state: an engine between two phases, with or without jitted code.
        tokens: the workload that the state was made of; the hashes' contents are checked only with it.
    """
    found = [f"{name}: {text}" for name, check in POOL_INVARIANTS.items() for text in check(state.kv.pool)]
    waiting = list(_waiting(state))
    running = state.queues.lists["running"][: state.ctl.num_running].tolist()
    view = View(state, running, waiting, tokens)
    found += [f"{name}: {text}" for name, check in TABLE_INVARIANTS.items() for text in check(view)]
    found += [f"{name}: {text}" for name, check in SCHEDULER_INVARIANTS.items() for text in check(view)]
    found += [f"{name}: {text}" for name, check in ENGINE_INVARIANTS.items() for text in check(state)]
    return found


def _waiting(st: State) -> Iterator[int]:
    """Waiting requests as far as they can be walked; INV-16 says whether the queue is sound."""
    capacity = int(st.queues.wait_heap.size)
    if st.params.policy == c.POLICY_PRIORITY:
        yield from st.queues.wait_heap[: st.ctl.num_waiting].tolist()
        return
    r = int(st.requests.wait_next[capacity])
    for _ in range(st.ctl.num_waiting):
        if not 0 <= r < capacity:
            return
        yield r
        r = int(st.requests.wait_next[r])


def inv_10(v: View) -> Iterator[str]:
    """INV-10: every unfinished request either runs or waits, once, and its status says which."""
    st = v.st
    status = st.requests["status"][: st.ctl.num_requests]
    expected = {c.S_RUNNING: v.running, c.S_WAITING: v.waiting, c.S_PREEMPTED: v.waiting}
    queued = Counter([*v.running, *v.waiting])
    live = np.flatnonzero(np.isin(status, list(expected))).tolist()
    if queued != Counter(live):
        yield f"running {v.running} and waiting {v.waiting} are not the unfinished requests {live}"
    for r in live:
        if r not in expected[int(status[r])]:
            yield f"request {r} has status {c.Status(int(status[r])).name}"
    for r in v.waiting:
        if status[r] != (c.S_PREEMPTED if st.requests.preemptions[r] else c.S_WAITING):
            yield f"request {r} waits after {st.requests.preemptions[r]} preemptions"
    if len(v.running) > st.params.max_num_active_seqs:
        yield f"{len(v.running)} requests run"


def inv_12(v: View) -> Iterator[str]:
    """INV-12: what is in flight is what the batches under way hold; placeholders are their tokens to come.

    A draft to be verified counts as a token to come. What waits has no drafts.
    """
    st, rq = v.st, v.st.requests
    tokens: Counter[int] = Counter()
    sampling: Counter[int] = Counter()
    for k in v.batches():
        for e in st.queues.entries[k, : st.queues.batches.entries[k]].tolist():
            tokens[e[0]] += e[1]
            sampling[e[0]] += e[2] * (1 + (e[3] if st.params.num_drafts else 0))
    for r in v.waiting if st.params.num_drafts else []:
        if st.drafts.proposed[r] and not st.params.keeps_drafts:
            yield f"request {r} waits with {st.drafts.proposed[r]} drafts"
    for r in [*v.running, *v.waiting]:
        in_flight, stale, waits_for = (int(rq[f][r]) for f in ("in_flight", "stale", "placeholders"))
        if in_flight != tokens[r]:
            yield f"request {r} has {in_flight} tokens in flight, batches hold {tokens[r]}"
        if not 0 <= stale <= tokens[r]:
            yield f"request {r} has {stale} stale tokens of {tokens[r]}"
        expected = sampling[r] if st.params.async_scheduling and not stale else 0
        if waits_for != expected:
            yield f"request {r} has {waits_for} placeholders, batches sample {expected}"


def inv_13(v: View) -> Iterator[str]:
    """INV-13: an unfinished request is within its limits, and has delivered a beginning of its output."""
    rq = v.st.requests
    drafts: Counter[int] = Counter()
    if v.st.params.num_drafts:
        for k in v.batches():
            for e in v.st.queues.entries[k, : v.st.queues.batches.entries[k]].tolist():
                drafts[e[0]] = max(drafts[e[0]], e[3])
    for r in [*v.running, *v.waiting]:
        known = int(rq.num_tokens[r])
        generated = known - int(rq.prompt_len[r])
        if rq.num_computed[r] > known + rq.placeholders[r] + drafts[r]:
            yield f"request {r} has computed {rq.num_computed[r]} of {known} tokens"
        if known >= v.st.params.max_model_len:
            yield f"request {r} has {known} tokens and goes on"
        if not 0 <= generated < rq.output_len[r]:
            yield f"request {r} has {generated} of {rq.output_len[r]} output tokens"


def inv_15(v: View) -> Iterator[str]:
    """INV-15: counters fit each other: hits end where hits may, and are fewer than the tokens looked up.

    What the engine counts is the sum of what its requests count.
    """
    st, n = v.st, v.st.count
    size = int(st.kv.hash_mult.size if st.params.fine_grained else st.kv.groups.block_size.min())
    first = (n.prefix_requests, n.prefix_queries, n.prefix_hits)
    resumed = (n.preempted_requests, n.preempted_queries, n.preempted_hits)
    for requests, queries, hits in (first, resumed):
        if not 0 <= hits <= queries - requests or hits % size:
            yield f"{hits} tokens hit of {queries} in {requests} look-ups"
    if n.preempted_requests > n.preemptions:
        yield f"{n.preempted_requests} resumed of {n.preemptions} preempted"
    if n.scheduled_tokens != n.prefill_tokens + n.decode_tokens:
        yield f"{n.prefill_tokens} prefill and {n.decode_tokens} decode tokens, {n.scheduled_tokens} in all"
    for counter, field in (
        ("prefix_hits", "hit_tokens"),
        ("preempted_hits", "resumed_hits"),
        ("preemptions", "preemptions"),
        ("recomputed_tokens", "recomputed"),
    ):
        total = int(st.requests[field].sum(dtype=np.int64))
        if n[counter] != total:
            yield f"{counter} is {n[counter]}, the requests' {field} add up to {total}"


def inv_16(v: View) -> Iterator[str]:
    """INV-16: by priority, the waiting queue is a heap by (priority, arrival time, id), with its positions.

    First come first served, it is a list linked both ways between its two sentinels.
    """
    st, rq = v.st, v.st.requests
    capacity = int(st.queues.wait_heap.size)
    if st.params.policy == c.POLICY_PRIORITY:
        keys = [(int(rq.priority[r]), int(rq.order_time[r]), int(rq.id_rank[r])) for r in v.waiting]
        for i in range(1, len(keys)):
            if keys[i] < keys[(i - 1) // 2]:
                yield f"waiting request {v.waiting[i]} stands behind one that is served later"
        positions = np.full(rq.size, -1)
        positions[v.waiting] = range(len(v.waiting))
        for r in np.flatnonzero(positions != rq["heap_pos"])[:capacity]:
            yield f"request {r} has heap position {rq.heap_pos[r]}, stands at {positions[r]}"
        return
    walk = [capacity, *v.waiting, capacity + 1]
    for a, b in pairwise(walk):
        if rq.wait_next[a] != b or rq.wait_prev[b] != a:
            yield f"waiting queue: {a} and {b} are not linked"


def inv_17(v: View) -> Iterator[str]:
    """INV-17: no batch exceeds the step's token budgets or names a request twice or with no token."""
    st = v.st
    limit = min(int(st.params.max_num_scheduled_tokens), int(st.params.max_num_batched_tokens))
    for k in v.batches():
        batch = st.queues.batches[k]
        entries = st.queues.entries[k, : batch.entries]
        if entries["tokens"].sum() != batch.tokens or batch.tokens > limit:
            yield f"{entries['tokens'].sum()} tokens in a batch of {batch.tokens}, budget {limit}"
        if (entries["tokens"] <= 0).any() or np.unique(entries["req"]).size != entries.size:
            yield f"a batch holds {entries.tolist()}"


def inv_31(v: View) -> Iterator[str]:
    """INV-31: a batch runs no more encoder tokens than the step's budget, and leaves the rest of it.

    The encoder cache lacks at most the inputs of running requests with a batch in flight. A slot knows the
    encoder tokens of its owner.
    """
    st = v.st
    budget, left = int(st.params.encoder_budget), int(st.ctl.encoder_budget)
    batches = v.batches()
    spent = int(st.queues.batches.encoder_tokens[batches[-1]]) if batches else budget - left
    if not 0 <= left == budget - spent <= budget:
        yield f"a step has {left} encoder tokens left of {budget}, its batch has {spent}"
    owned = {r: encoder_tokens(st, r) if budget else 0 for r in v.running}
    taken = sum(n for r, n in owned.items() if st.requests.in_flight[r])
    if st.ctl.encoder_free < budget - taken:
        yield f"the encoder cache has {st.ctl.encoder_free} free slots of {budget}, at most {taken} are taken"
    for r, n in owned.items():
        if st.kv.slots.encoder_tokens[v.slot(r)] != n:
            yield f"slot {v.slot(r)} of request {r} has {st.kv.slots.encoder_tokens[v.slot(r)]}, not {n}"


SCHEDULER_INVARIANTS: dict[str, Check] = {
    "INV-10": inv_10,
    "INV-12": inv_12,
    "INV-13": inv_13,
    "INV-15": inv_15,
    "INV-16": inv_16,
    "INV-17": inv_17,
    "INV-31": inv_31,
}

#: Number -> check, whose docstring is the invariant.
INVARIANTS = dict(
    sorted(
        {**POOL_INVARIANTS, **TABLE_INVARIANTS, **SCHEDULER_INVARIANTS, **ENGINE_INVARIANTS}.items(),
        key=lambda item: int(item[0].removeprefix("INV-")),
    )
)
