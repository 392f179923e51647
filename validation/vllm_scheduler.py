"""Target `scheduler`: the real Scheduler, KVCacheManager and BlockPool of vLLM 0.32.0 with no model.

Output tokens are known beforehand, and calls are made in the order of vLLM's engine core: EngineCore.step
(schedule, update) or, with async scheduling, EngineCore.step_with_batch_queue with a queue of two. vllm is
imported inside functions only.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sim.config_engine import EngineSettings
from validation.engine_loop import EngineLoop
from validation.logical import LogicalRequest
from validation.steplog import Recording
from validation.vllm_setup import kv_cache_config, refusals, require_vllm, vllm_config

BATCH_QUEUE_SIZE = 2


def make_scheduler(settings: EngineSettings) -> tuple[Any, Callable[..., Any] | None]:
    """A real scheduler with its KV-cache manager, and the function that hashes a request's blocks.

    The function is None without prefix caching. Raises InputError for what vLLM refuses.
    """
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_utils import (
        get_request_block_hasher,
        init_none_hash,
        resolve_kv_cache_block_sizes,
    )
    from vllm.v1.structured_output import StructuredOutputManager

    with tempfile.TemporaryDirectory(prefix="kvpool-model-") as folder:
        config = vllm_config(settings, Path(folder))
    groups = kv_cache_config(settings)
    with refusals("these KV-cache groups"):
        block_size, hash_block_size = resolve_kv_cache_block_sizes(groups, config)
        scheduler = config.scheduler_config.get_scheduler_cls()(
            vllm_config=config,
            kv_cache_config=groups,
            structured_output_manager=StructuredOutputManager(config),
            block_size=block_size,
            hash_block_size=hash_block_size,
            log_stats=True,
        )
    if not settings.enable_prefix_caching:
        return scheduler, None
    hash_function = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
    init_none_hash(hash_function)
    return scheduler, get_request_block_hasher(hash_block_size, hash_function)


def sampling_params(request: LogicalRequest) -> Any:
    """vLLM's SamplingParams of a request whose output is known."""
    from vllm.sampling_params import SamplingParams

    limit = max(len(request.output_token_ids), request.max_tokens or 0)
    return SamplingParams(max_tokens=limit, ignore_eos=not request.stops_by_end_token)


def arm_end_token(live: Any, request: LogicalRequest) -> None:
    """Make the next token of a live request its end token, if it is the last of an output that ends by one.

    The end token is an ordinary id of the vocabulary and may occur earlier in the output too.
    """
    if request.stops_by_end_token and live.num_output_tokens == len(request.output_token_ids) - 1:
        live.sampling_params._eos_token_id = request.output_token_ids[-1]


class SchedulerLoop(EngineLoop):
    """The engine loop around a scheduler that has no engine."""

    def __init__(self, settings: EngineSettings, requests: Sequence[LogicalRequest]) -> None:
        scheduler, self.hasher = make_scheduler(settings)
        super().__init__(settings, requests, scheduler)
        self.queue: deque[tuple[Any, frozenset[str]]] = deque()

    def step(self) -> bool:
        """One step in the order of EngineCore.step_fn."""
        return self._step_with_batch_queue() if self.settings.async_scheduling else self._step()

    def batches_in_flight(self) -> list[Any]:
        """Scheduler outputs in the batch queue."""
        return [batch for batch, _ in self.queue]

    def add(self, request: LogicalRequest, arrival_time: float) -> None:
        """Add a request as EngineCore.add_request does."""
        from vllm.v1.request import Request

        with refusals(f"request {request.request_id!r}"):
            if len(request.prompt_token_ids) >= self.settings.max_model_len:
                raise ValueError(f"its {len(request.prompt_token_ids)} tokens reach max_model_len")
            self.scheduler.add_request(
                Request(
                    request_id=request.request_id,
                    prompt_token_ids=list(request.prompt_token_ids),
                    sampling_params=sampling_params(request),
                    pooling_params=None,
                    arrival_time=arrival_time,
                    cache_salt=request.cache_salt,
                    priority=request.priority,
                    block_hasher=self.hasher,
                )
            )

    def _schedule(self) -> tuple[Any, frozenset[str]]:
        batch = self.scheduler.schedule()
        live = self.scheduler.requests
        return batch, frozenset(r for r in batch.num_scheduled_tokens if not live[r].is_prefill_chunk)

    def _step(self) -> bool:
        return self._update(*self._schedule()) if self.has_work() else False

    def _step_with_batch_queue(self) -> bool:
        if self.has_work():
            entry = self._schedule()
            executed = entry[0].total_num_scheduled_tokens > 0
            self.queue.append(entry)
            if len(self.queue) < BATCH_QUEUE_SIZE and (executed or self.scheduler.has_requests()):
                return False
        elif not self.queue:
            return False
        return self._update(*self.queue.popleft())

    def _update(self, batch: Any, sampling: frozenset[str]) -> bool:
        from vllm.v1.outputs import ModelRunnerOutput

        ids = list(batch.num_scheduled_tokens)
        sampled = [[self._next_token(r)] if r in sampling else [] for r in ids]
        output = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={r: i for i, r in enumerate(ids)},
            sampled_token_ids=sampled,
        )
        any_token = any(sampled)
        self.scheduler.update_from_output(batch, output)
        return any_token

    def _next_token(self, request_id: str) -> int:
        """The token that a request's finished step yields; updates come in order, so it is the next one."""
        live = self.scheduler.requests.get(request_id)
        if live is None:
            return 0  # finished while this batch was in flight: vLLM ignores the token
        arm_end_token(live, self.requests[request_id])
        return self.requests[request_id].output_token_ids[live.num_output_tokens]


def record(settings: EngineSettings, requests: Sequence[LogicalRequest]) -> Recording:
    """Record a workload on the real scheduler.

    Raises InputError for what vLLM refuses, or when it is not installed.
    """
    require_vllm()
    return SchedulerLoop(settings, requests).run()
