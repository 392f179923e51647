"""The engine loop in logical time: arrivals by step, steps until all is done, a watch for being stuck."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any

from sim.engine_settings import EngineSettings
from validation.live_state import SchedulerRecorder
from validation.logical import LogicalRequest
from validation.steplog import Recording
from validation.vllm_release import waiting_requests

#: Rows without any scheduled request after which the steps are all empty.
_LAST_ROWS = 50


class EngineLoop(ABC):
    """Runs a workload on something that has a real vLLM scheduler, and records that scheduler.

    A subclass says how a request is added and what one step of the loop does.
    """

    def __init__(self, settings: EngineSettings, requests: Sequence[LogicalRequest], scheduler: Any) -> None:
        self.settings = settings
        self.requests = {r.request_id: r for r in requests}
        # Requests of one step are added in file order; the file itself need not be sorted by step.
        self.arrivals = deque(sorted(enumerate(requests), key=lambda item: item[1].arrival_step))
        self.scheduler = scheduler
        self.recorder = SchedulerRecorder(scheduler)

    @abstractmethod
    def add(self, request: LogicalRequest, arrival_time: float) -> None:
        """Add one request to the engine. Raises InputError if vLLM refuses it."""

    @abstractmethod
    def step(self) -> bool:
        """One step of vLLM's engine loop. Whether any token came out of it."""

    @abstractmethod
    def batches_in_flight(self) -> list[Any]:
        """Scheduler outputs whose update is still to come."""

    def run(self) -> Recording:
        """Run to the end of the workload, or until nothing can ever happen again."""
        known = self.requests.values()
        patience = 1000 + sum(len(r.prompt_token_ids) + len(r.output_token_ids) for r in known)
        step = steps_without_token = 0
        stuck = None
        while stuck is None and (self.arrivals or self._busy()):
            self.recorder.step = step
            while self.arrivals and self.arrivals[0][1].arrival_step <= step:
                index, request = self.arrivals.popleft()
                by_file = self.settings.arrival_time == "seq"
                self.add(request, float(index if by_file else request.arrival_step))
            steps_without_token = 0 if self.step() else steps_without_token + 1
            step += 1
            if not self.arrivals:
                stuck = self._stuck(steps_without_token > patience)
            elif (
                self.settings.idle_steps == "skip" and not self._busy() and not self.scheduler.has_requests()
            ):
                step = max(step, self.arrivals[0][1].arrival_step)
        return Recording(self.recorder.log, stuck)

    def _busy(self) -> bool:
        return bool(self.scheduler.has_unfinished_requests() or self.batches_in_flight())

    def has_work(self) -> bool:
        """Whether this step makes a schedule call; with `idle_steps` "run" an idle one does too."""
        if self.settings.idle_steps == "run" and self.arrivals and not self.batches_in_flight():
            return True
        return bool(self.scheduler.has_requests())

    def _stuck(self, out_of_patience: bool) -> str | None:
        """Why nothing can ever happen again, or None. Asked when no arrivals are left."""
        scheduler, log = self.scheduler, self.recorder.log
        waiting = waiting_requests(scheduler)
        in_flight = any(batch.total_num_scheduled_tokens for batch in self.batches_in_flight())
        if in_flight and not out_of_patience:
            return None
        left = [*waiting, *scheduler.running]
        if not left:
            return None
        head = left[0]
        pool = f"pool of {self.settings.num_gpu_blocks} blocks"
        what = f"request {head.request_id!r} ({head.num_tokens} tokens, {pool})"
        # a step with nothing but preemptions makes room; its update's row no longer says so
        preempted = any(log["preempted"][-2:])
        if not scheduler.running and log["num_scheduled_reqs"][-1] == 0 and not preempted:
            return f"{what} at the head of the queue is never admitted; {len(waiting)} requests wait for ever"
        if out_of_patience and not any(log["num_scheduled_reqs"][-_LAST_ROWS:]):
            return f"{what}: nobody is ever given a token"
        if out_of_patience:
            return f"{what} is admitted and preempted for ever without yielding a token"
        return None
