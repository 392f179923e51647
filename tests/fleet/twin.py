"""The fleet's loop in plain Python: one event after the other in the order of (time, kind, sequence).

No window, no lookahead: the least event of all comes next. Kinds at one instant: the router looks at the
replicas, it routes what has arrived, the replicas make one phase each in order of their number. The replicas
are engines of the core, driven phase by phase; the rules are those of ``sim.reference.routing``.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from sim.core import codes as c
from sim.core.engine import run_until, settle
from sim.core.lifecycle import NEVER
from sim.core.state import State
from sim.fleet import config
from sim.fleet.capacity import FleetState, allocate_fleet, sessions
from sim.fleet.config import FleetSettings
from sim.reference import routing
from tests.core.cases import Case


def twin_router(settings: FleetSettings, case: Case, seed: int) -> routing.AnyRouter:
    """The plain router of a section."""
    router = settings.router
    if isinstance(router, config.RoundRobin):
        return routing.RoundRobin()
    if isinstance(router, config.Random):
        return routing.Random(routing.Draws(seed))
    if isinstance(router, config.LeastLoaded):
        return routing.LeastLoaded(router.score)
    if isinstance(router, config.SessionAffinity):
        return routing.SessionAffinity(
            seed, routing.LeastLoaded() if router.first == "least_loaded" else None
        )
    unit = max(64, case.engine.block_size) if router.unit_tokens == "auto" else router.unit_tokens
    capacity = case.engine.num_gpu_blocks if router.index_capacity == "auto" else router.index_capacity
    max_units = max(1, router.max_prefix_tokens // unit)
    longest = int(case.workload.prompt_len.max())
    return routing.PrefixAffinity(
        routing.Draws(seed),
        max(capacity, min(max_units, -(-longest // unit))),
        unit,
        max_units,
        router.prefix_weight,
        router.queue_weight,
        router.usage_weight,
    )


@dataclass
class TwinFleet:
    """A fleet that is run event by event; `run` fills `replica_of` and leaves the replicas' states."""

    case: Case
    settings: FleetSettings
    seed: int
    replica_of: dict[int, int] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.arrays: FleetState = allocate_fleet(*self.case, self.settings, self.seed)
        self.states = self.arrays.states
        self.requests = self.arrays.fleet.requests
        self.router = twin_router(self.settings, self.case, self.seed)
        w = self.case.workload
        self.session, _ = sessions(w)
        self.seen = [routing.Seen() for _ in self.states]
        self.sent = [0] * len(self.states)
        self.coming = {int(i) for i in np.flatnonzero(w.arrival >= 0)}
        self.children: dict[int, list[int]] = defaultdict(list)
        for i in np.flatnonzero(w.parent >= 0).tolist():
            self.children[int(w.parent[i])].append(i)
        pool = np.flatnonzero((w.arrival < 0) & (w.parent < 0)) if w.closed_loop else []
        self.pool = [int(i) for i in pool]
        self.rows: list[list[list[int]]] = [[] for _ in self.states]
        self.interval = getattr(self.settings.router, "stats_interval", 0)
        self.looked = -1

    def _phase_time(self, st: State) -> int:
        """When the replica's next phase comes: found by trying."""
        if st.ctl.phase == c.P_UPDATE:
            return max(int(st.ctl.now), int(st.queues.batches.done[st.ctl.ring_head]))
        busy = st.ctl.num_in_flight + st.ctl.num_running + st.ctl.num_waiting + st.ctl.finished_pending
        if busy:
            return int(st.ctl.now)
        heap = st.queues.arrival_heap[: st.ctl.heap_len].tolist()
        first = min((int(self.requests.arrival[r]) for r in heap), default=NEVER)
        return max(int(st.ctl.now), first)

    def _released(self, r: int, end: int) -> None:
        for child in sorted(self.children[r]):
            self._come(child, end)
        if self.pool:
            self._come(self.pool.pop(0), end)

    def _come(self, r: int, end: int) -> None:
        self.requests.arrival[r] = end + self.requests.think_ns[r]
        self.coming.add(r)

    def _look(self) -> None:
        for s, st in zip(self.seen, self.states, strict=True):
            s.waiting, s.running = int(st.ctl.num_waiting), int(st.ctl.num_running)
            s.usage = 1.0 - int(st.kv.pool.meta.num_free) / (int(st.params.num_blocks) - 1)

    def _route(self, r: int) -> None:
        w = self.case.workload
        for s, st, sent in zip(self.seen, self.states, self.sent, strict=True):
            s.in_flight = sent - int(st.ctl.num_ended)
        prompt = routing.Prompt(int(self.session[r]), w.prompt_tokens(r).tolist(), int(w.salt[r]))
        k = self.router.choose(prompt, self.seen)
        self.replica_of[r] = k
        self.order.append(r)
        self.sent[k] += 1
        st = self.states[k]
        # a sorted list is a heap
        heap = [*st.queues.arrival_heap[: st.ctl.heap_len].tolist(), r]
        heap.sort(key=lambda i: (int(self.requests.arrival[i]), i))
        st.queues.arrival_heap[: len(heap)] = heap
        st.ctl.heap_len = len(heap)
        if w.prompt_len[r] >= self.case.engine.max_model_len:
            self._released(r, int(self.requests.arrival[r]))

    def _phase(self, k: int, time: int) -> None:
        st = self.states[k]
        while run_until(st, time + 1, 1) in (c.X_LOG_FULL, c.X_EVENTS_FULL):
            self._drain(k)
        ended = st.queues.ended_watched[: st.ctl.num_ended_watched].tolist()
        st.ctl.num_ended_watched = 0
        for r in ended:
            self._released(r, int(self.requests.finish[r]))
        self._drain(k)

    def _drain(self, k: int) -> None:
        st = self.states[k]
        self.rows[k] += st.logs.steps[: st.ctl.log_len].tolist()
        st.ctl.log_len = st.ctl.num_events = 0

    def run(self) -> None:
        """Every event in order, to the end; then all states last to the last one."""
        end = 0
        while True:
            phase = min((self._phase_time(st), k) for k, st in enumerate(self.states))
            arrival = min(((int(self.requests.arrival[r]), r) for r in self.coming), default=(NEVER, -1))
            time = min(phase[0], arrival[0])
            if time == NEVER:
                break
            end = max(end, time)
            if self.interval and time // self.interval > self.looked:
                self.looked = time // self.interval
                self._look()
            if arrival[0] <= phase[0]:
                if not self.interval:
                    self._look()
                self.coming.discard(arrival[1])
                self._route(arrival[1])
            else:
                self._phase(phase[1], time)
        for k, st in enumerate(self.states):
            while settle(st, max(end, int(st.ctl.now))) == c.X_LOG_FULL:
                self._drain(k)
            self._drain(k)
