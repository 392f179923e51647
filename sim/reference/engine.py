"""The engine loop in logical time: arrivals by step index, one or two batches under way.

Mirrors vLLM 0.32.0, ``EngineCore.step`` and ``EngineCore.step_with_batch_queue``
(``vllm/v1/engine/core.py``). The "model" samples each request's given output tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from sim.reference.async_scheduler import create_scheduler
from sim.reference.block_hash import BlockHasher
from sim.reference.metrics import KVCacheMetricsCollector
from sim.reference.request import Request
from sim.reference.scheduler_output import SchedulerOutput
from sim.reference.settings import Settings
from sim.reference.standstill import Standstill

BATCH_QUEUE_SIZE = 2
"""Batches that async scheduling keeps under way."""

WORKLOAD_KEYS = frozenset(
    {
        "request_id",
        "arrival_step",
        "prompt_token_ids",
        "output_token_ids",
        "priority",
        "cache_salt",
        "max_tokens",
        "accepted_drafts",
        "encoder_tokens",
    }
)
"""Keys of a workload line; the last three are additions to the format (see ``Request``)."""

Phase = Literal["scheduled", "updated"]
Observer = Callable[["Engine", Phase, int, SchedulerOutput, list[str]], None]
"""Called after each schedule and update: engine, phase, the batch's step, the batch, and the ids that ended
since the call before (finished in this one, or aborted in between)."""


class EngineStuck(RuntimeError):
    """Requests are left, no other will come, and the engine would repeat its last steps for ever.

    See `Standstill` for the reasons.
    """


class Engine:
    """One engine and its workload.

    Args:
        settings: engine settings.
        workload: lines of a logical-time workload, in file order.
        observer: called after each call to the scheduler.
        aborts: request ids to abort just before the schedule of a step, by step index (after that step's
            arrivals).
        enable_kv_cache_events: whether the pool collects events.
        metrics_collector: optional residency metrics.

    Attributes:
        step_index: the current step of the loop.
        rejected: ids of requests whose prompt leaves no room for a token (``max_model_len``); never queued.

    Raises:
        ValueError: a line with an unknown key, a duplicate id, an empty prompt or output.
    """

    def __init__(
        self,
        settings: Settings,
        workload: Iterable[Mapping[str, Any]],
        observer: Observer | None = None,
        aborts: Mapping[int, Sequence[str]] | None = None,
        enable_kv_cache_events: bool = False,
        metrics_collector: KVCacheMetricsCollector | None = None,
    ) -> None:
        self.settings = settings
        self.scheduler = create_scheduler(settings, enable_kv_cache_events, metrics_collector)
        self.step_index = 0
        self.rejected: list[str] = []
        self.batch_queue: deque[tuple[int, SchedulerOutput]] = deque()
        self._observer = observer
        self._aborts = deque(sorted((step, list(ids)) for step, ids in (aborts or {}).items()))
        self._aborted: list[str] = []
        self._hasher: BlockHasher | None = None
        if settings.enable_prefix_caching:
            unit = self.scheduler.kv_cache_manager.hash_block_size
            self._hasher = BlockHasher(unit, settings.hash_lookahead)
        lines = list(workload)
        self._pending = self._arrivals(lines)
        self._standstill = Standstill(settings, self.scheduler)

    def run(self, max_steps: int | None = None) -> None:
        """Step until everything is done, or ``max_steps`` times.

        Raises:
            EngineStuck: the rest of the workload can never be served.
        """
        done = 0
        while self._goes_on() and (max_steps is None or done < max_steps):
            if self._is_idle() and self.settings.idle_steps == "skip" and self._pending:
                self.step_index = max(self.step_index, self._pending[0][0])
            self._admit_arrivals()
            while self._aborts and self._aborts[0][0] <= self.step_index:
                self._aborted += self.scheduler.finish_requests(self._aborts.popleft()[1])
                self._standstill.reason = None
            if self._standstill.reason and not self._pending and not self._aborts:
                raise EngineStuck(self._standstill.reason)
            self.step()
            self.step_index += 1
            done += 1

    def step(self) -> None:
        """One pass of the loop."""
        if self.settings.async_scheduling:
            self._step_with_batch_queue()
        elif self._has_step():
            batch = self._schedule()
            self._update(self.step_index, batch)

    def _step_with_batch_queue(self) -> None:
        # Filling the queue goes before waiting for a result; the oldest batch is processed when the queue is
        # full or there is nothing to add.
        if self._has_step():
            batch = self._schedule()
            self.batch_queue.append((self.step_index, batch))
            waits = batch.total_num_scheduled_tokens > 0
            if self.settings.rules.empty_batch == "queued":  # 0.23 and later
                waits = waits or self.scheduler.has_requests()
            if len(self.batch_queue) < BATCH_QUEUE_SIZE and waits:
                return
        elif not self.batch_queue:
            return
        step, batch = self.batch_queue.popleft()
        self._update(step, batch)

    def _schedule(self) -> SchedulerOutput:
        flushed = bool(self.scheduler.finished_req_ids)
        batch = self.scheduler.schedule()
        in_flight = any(b.total_num_scheduled_tokens for _, b in self.batch_queue)
        self._standstill.note(batch, in_flight, flushed)
        self._report("scheduled", self.step_index, batch, [])
        return batch

    def _update(self, step: int, batch: SchedulerOutput) -> None:
        self._report("updated", step, batch, self.scheduler.update_from_output(batch))
        if not self.settings.async_scheduling:
            self.scheduler.update_draft_tokens(batch)

    def _report(self, phase: Phase, step: int, batch: SchedulerOutput, finished: list[str]) -> None:
        ended, self._aborted = self._aborted + finished, []
        if self._observer is not None:
            self._observer(self, phase, step, batch, ended)

    def _has_step(self) -> bool:
        if self.scheduler.has_requests():
            return True
        return self.settings.idle_steps == "run" and bool(self._pending) and not self.batch_queue

    def _is_idle(self) -> bool:
        return not self.scheduler.has_requests() and not self.batch_queue

    def _goes_on(self) -> bool:
        return bool(self._pending) or bool(self.batch_queue) or self.scheduler.has_unfinished_requests()

    def _admit_arrivals(self) -> None:
        while self._pending and self._pending[0][0] <= self.step_index:
            request = self._pending.popleft()[1]
            self._standstill.reason = None
            if request.num_prompt_tokens >= self.settings.max_model_len:
                self.rejected.append(request.request_id)
            else:
                self.scheduler.add_request(request)

    def _arrivals(self, lines: list[Mapping[str, Any]]) -> deque[tuple[int, Request]]:
        seen: set[str] = set()
        arrivals: list[tuple[int, Request]] = []
        for position, line in enumerate(lines):
            unknown = set(line) - WORKLOAD_KEYS
            if unknown:
                raise ValueError(f"workload line {position + 1}: unknown key {sorted(unknown)[0]!r}")
            request_id = line["request_id"]
            if request_id in seen:
                raise ValueError(f"workload line {position + 1}: request id {request_id!r} occurs twice")
            seen.add(request_id)
            arrivals.append((line["arrival_step"], self._request(position, line)))
        return deque(sorted(arrivals, key=lambda pair: pair[0]))

    def _request(self, position: int, line: Mapping[str, Any]) -> Request:
        encoder_tokens = line.get("encoder_tokens", self.settings.encoder_tokens)
        if not 0 <= encoder_tokens <= self.settings.encoder_tokens:
            raise ValueError(
                f"workload line {position + 1}: {encoder_tokens} encoder tokens, the model takes at most "
                f"{self.settings.encoder_tokens}"
            )
        return Request(
            line["request_id"],
            line["prompt_token_ids"],
            line["output_token_ids"],
            max_tokens=line.get("max_tokens"),
            priority=line.get("priority", 0),
            arrival_time=position if self.settings.arrival_time == "seq" else line["arrival_step"],
            cache_salt=line.get("cache_salt"),
            block_hasher=self._hasher,
            accepted_drafts=line.get("accepted_drafts", ()),
            encoder_tokens=encoder_tokens,
        )
