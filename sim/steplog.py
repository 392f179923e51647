"""The exact step log of a logical-time run: one row after each schedule and each update call.

The columns are those of the step-log format (docs/fidelity.md), the same that a recorder of a real vLLM
writes, so that two logs can be compared row by row.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.capacity import LogOptions, allocate
from sim.core import codes as c
from sim.core.engine import advance
from sim.core.inspect import free_queue_order, largest_run, waiting_order
from sim.core.state import State
from sim.engine_settings import EngineSettings
from sim.step_time import StepTime
from workloads.requests import Workload

_FOREVER = 1 << 62
_NO_TIME = StepTime(0, np.zeros(12), np.zeros(1), np.zeros(1), np.zeros(1))


@dataclass(frozen=True)
class StepLog:
    """A recorded run.

    Attributes:
        columns: equally long lists of ints, strings or lists, one entry a row.
        stuck: True when the run ended because a request at the head of the queue can never be admitted.
    """

    columns: dict[str, list[Any]]
    stuck: bool


def _crc(values: np.ndarray, dtype: type) -> int:
    return zlib.crc32(np.ascontiguousarray(values, dtype=dtype).tobytes())


class RowRecorder:
    """Computes the columns of one row from the arrays as they stand."""

    def __init__(self, state: State, workload: Workload) -> None:
        self.state = state
        self.ids = [workload.request_id(i) for i in range(len(workload))]
        self._order = np.zeros(max(len(workload), int(state.params.num_blocks)), dtype=np.int32)

    def _names(self, requests: np.ndarray) -> list[str]:
        return [self.ids[r] for r in requests.tolist()]

    def _waiting(self) -> np.ndarray:
        n = waiting_order(self.state, self._order)
        waiting = self._order[:n].copy()
        if self.state.params.policy == c.POLICY_PRIORITY:
            rq = self.state.requests
            keys = (rq.id_rank[waiting], rq.order_time[waiting], rq.priority[waiting])
            waiting = waiting[np.lexsort(keys)]
        return waiting

    def row(self, updated: bool) -> dict[str, Any]:
        """The row after the call that was made last."""
        st = self.state
        kv, meta, count, ctl = st.kv, st.kv.pool.meta, st.count, st.ctl
        batch = st.queues.batches[ctl.last_batch]
        entries = st.queues.entries[ctl.last_batch, : batch.entries]
        running = st.queues.lists.running[: ctl.num_running]
        blocks = kv.pool.blocks[: st.params.num_blocks]
        free = self._order[: free_queue_order(kv.pool, self._order)].copy()
        tables = [
            [kv.table_blocks[g, slot, : kv.tables.length[g, slot]] for slot in st.requests.slot[running]]
            for g in range(len(kv.groups))
        ]
        empty = np.zeros(0, dtype=np.int32)
        by_request = [group[i] for i in range(len(running)) for group in tables]
        allocated = kv.groups.allocated * kv.groups.block_size * (kv.groups.token_slots != c.SLOTS_NONE)
        held = kv.groups.held.copy()
        for g in np.flatnonzero(kv.groups.token_slots == c.SLOTS_ENCODER_TOKENS):
            # the format counts a request's computed tokens in every kind of table
            slots = kv.tables.length[g, st.requests.slot[running]] * kv.groups.block_size[g]
            held[g] = np.minimum(st.requests.num_computed[running], slots).sum()
        if st.params.short_windows:
            for g in np.flatnonzero(kv.groups.token_slots == c.SLOTS_TOKENS):
                given = kv.tables.nulls[g, st.requests.slot[running]] * kv.groups.block_size[g]
                held[g] += np.maximum(given - st.requests.num_computed[running], 0).sum()
        wasted = allocated - held
        ref_cnt = blocks.ref_cnt.copy()
        ref_cnt[0] = 0
        sched = ",".join(f"{self.ids[e.req]}:{e.tokens}" for e in entries)
        return {
            "step": int(ctl.step) - 1 if updated else int(batch.loop_step),
            "phase": "updated" if updated else "scheduled",
            "batch_step": int(batch.loop_step),
            "num_running": int(ctl.num_running),
            "num_waiting": int(ctl.num_waiting),
            "num_free_blocks": int(meta.num_free),
            "used_blocks": int(st.params.num_blocks - 1 - meta.num_free),
            "num_cached_hashes": int(meta.num_keys + meta.num_partial_keys),
            "num_cached_blocks": int(meta.num_cached),
            "num_scheduled_tokens": int(batch.tokens),
            "num_scheduled_reqs": int(batch.entries),
            "preempted": [] if updated else self._names(st.queues.lists.preempted[: ctl.num_preempted]),
            "finished": self._names(st.queues.lists.finished[: ctl.num_finished]) if updated else [],
            "prefix_requests": int(count.prefix_requests),
            "prefix_queries": int(count.prefix_queries),
            "prefix_hits": int(count.prefix_hits),
            "preempted_requests": int(count.preempted_requests),
            "preempted_queries": int(count.preempted_queries),
            "preempted_hits": int(count.preempted_hits),
            "allocated_slots": int(allocated.sum()),
            "held_tokens": int(held.sum()),
            "wasted_slots": int(wasted.sum()),
            "wasted_by_group": wasted.tolist(),
            "free_runs": int(kv.pool.runs.number),
            "largest_free_run": largest_run(kv.pool),
            "free_queue_crc": _crc(free, np.int32),
            "tables_crc": _crc(np.concatenate([empty, *by_request]), np.int32),
            "tables_crc_by_group": [_crc(np.concatenate([empty, *group]), np.int32) for group in tables],
            "refcnt_crc": _crc(blocks.ref_cnt, np.int32),
            "refcnt_crc_nonull": _crc(ref_cnt, np.int32),
            "cached_crc": _crc(blocks.block_hash != 0, np.uint8),
            "computed_crc": _crc(st.requests.num_computed[running], np.int32),
            "running_ids_crc": zlib.crc32("\n".join(self._names(running)).encode()),
            "waiting_ids_crc": zlib.crc32("\n".join(self._names(self._waiting())).encode()),
            "sched_crc": zlib.crc32(sched.encode()),
        }


def record(engine: EngineSettings, workload: Workload) -> StepLog:
    """Run a logical-time workload to its end and log every schedule and update call.

    Raises:
        ValueError: the workload's clock is not logical.
    """
    if workload.clock != "logical":
        raise ValueError("a step log needs a workload on the logical clock")
    state = allocate(engine, workload, _NO_TIME, LogOptions(sample_period_ns=0))
    recorder = RowRecorder(state, workload)
    rows: list[dict[str, Any]] = []
    while True:
        reason = advance(state, _FOREVER)
        if reason not in (c.X_SCHEDULED, c.X_UPDATED):
            break
        rows.append(recorder.row(reason == c.X_UPDATED))
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    return StepLog(columns, reason == c.X_STUCK)
