"""Scheduling a batch before the output of the one before is known.

Mirrors vLLM 0.32.0, ``AsyncScheduler`` (``vllm/v1/core/sched/async_scheduler.py``).
"""

from __future__ import annotations

from sim.reference.metrics import KVCacheMetricsCollector
from sim.reference.request import Request, RequestStatus
from sim.reference.scheduler import Scheduler
from sim.reference.scheduler_output import SchedulerOutput
from sim.reference.settings import Settings


class AsyncScheduler(Scheduler):
    """Schedules a batch before the output of the one before is known.

    A sampled token that is not known yet is a placeholder: it counts for scheduling, not for caching.
    """

    def _update_after_schedule(self, out: SchedulerOutput) -> None:
        super()._update_after_schedule(out)
        for request_id in out.num_scheduled_tokens:
            if request_id in out.sampling:
                request = self.requests[request_id]
                request.num_output_placeholders += 1 + out.num_draft_tokens.get(request_id, 0)
                request.num_draft_tokens = self.settings.num_speculative_tokens

    def _deliver(self, request: Request, num_generated: int, is_stale: bool) -> bool:
        was_running = request.status == RequestStatus.RUNNING
        before = request.num_tokens
        stopped = super()._deliver(request, num_generated, is_stale)
        if not is_stale:
            request.num_output_placeholders -= request.num_tokens - before
            assert request.num_output_placeholders >= 0
        if was_running:
            known = request.num_computed_tokens - request.num_output_placeholders
            self.kv_cache_manager.cache_blocks(request, known)
        return stopped


def create_scheduler(
    settings: Settings,
    enable_kv_cache_events: bool = False,
    metrics_collector: KVCacheMetricsCollector | None = None,
) -> Scheduler:
    """The scheduler that ``settings.async_scheduling`` asks for."""
    cls = AsyncScheduler if settings.async_scheduling else Scheduler
    return cls(settings, enable_kv_cache_events, metrics_collector)
