"""Target `scheduler`: the real Scheduler, KVCacheManager and BlockPool of a vLLM release with no model.

Output tokens are known beforehand, and calls are made in the order of vLLM's engine core: EngineCore.step
(schedule, update) or, with async scheduling, EngineCore.step_with_batch_queue with a queue of two. Up to 0.22
the latter asks whether a batch that has just been started is done already, which depends on its luck; here,
as on a GPU, it never is. vllm is imported inside functions only.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sim.engine_settings import EngineSettings
from validation import vllm_release
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
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

    with tempfile.TemporaryDirectory(prefix="kvpool-model-") as folder:
        config = vllm_config(settings, Path(folder))
    groups = kv_cache_config(settings)
    with refusals("these KV-cache groups"):
        block_size, hash_block_size = vllm_release.block_sizes(groups, config)
        scheduler = vllm_release.make_scheduler(config, groups, block_size, hash_block_size)
    if settings.encoder_tokens:
        _add_encoder(scheduler, settings)
    if not settings.enable_prefix_caching:
        return scheduler, None
    hash_function = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
    init_none_hash(hash_function)
    lookahead = vllm_release.hash_lookahead(config)
    return scheduler, get_request_block_hasher(hash_block_size, hash_function, **lookahead)


def _add_encoder(scheduler: Any, settings: EngineSettings) -> None:
    """Make a decoder's scheduler that of an encoder-decoder model.

    A real one asks the model's processor for its largest input, which it can't have without the model.
    """
    from vllm.v1.core.encoder_cache_manager import EncoderDecoderCacheManager

    budget = settings.encoder_budget
    scheduler.is_encoder_decoder = True
    scheduler.max_num_encoder_input_tokens = budget
    scheduler._num_encoder_max_input_tokens = settings.encoder_tokens  # 0.14 to 0.16
    scheduler.encoder_cache_manager = EncoderDecoderCacheManager(budget)


def _encoder_inputs(settings: EngineSettings, request: LogicalRequest) -> dict[str, Any]:
    """The argument of a Request for its encoder's input, if it has one."""
    tokens = settings.encoder_tokens if request.encoder_tokens is None else request.encoder_tokens
    if not tokens:
        return {}
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

    where = PlaceholderRange(offset=0, length=tokens)
    return {"mm_features": [MultiModalFeatureSpec(None, "audio", request.request_id, where)]}


def sampling_params(request: LogicalRequest) -> Any:
    """vLLM's SamplingParams of a request whose output is known."""
    from vllm.sampling_params import SamplingParams

    limit = max(len(request.output_token_ids), request.max_tokens or 0)
    return SamplingParams(max_tokens=limit, ignore_eos=not request.stops_by_end_token)


def arm_end_token(live: Any, request: LogicalRequest) -> None:
    """Make the next token of a live request its end token, if it is the last of an output that ends by one.

    The end token is an ordinary id of the vocabulary and may occur earlier in the output too. If it does not,
    it may be one of several that a step yields.
    """
    output = request.output_token_ids
    if request.stops_by_end_token and (
        live.num_output_tokens == len(output) - 1 or output.index(output[-1]) == len(output) - 1
    ):
        vllm_release.set_end_token(live, output[-1])


class SchedulerLoop(EngineLoop):
    """The engine loop around a scheduler that has no engine."""

    def __init__(self, settings: EngineSettings, requests: Sequence[LogicalRequest]) -> None:
        scheduler, self.hasher = make_scheduler(settings)
        super().__init__(settings, requests, scheduler)
        self.queue: deque[tuple[Any, frozenset[str]]] = deque()
        self.queues_empty_batch = vllm_release.queues_empty_batch()
        self.verifications: dict[str, int] = {}

    def step(self) -> bool:
        """One step in the order of EngineCore.step_fn."""
        return self._step_with_batch_queue() if self.settings.async_scheduling else self._step()

    def batches_in_flight(self) -> list[Any]:
        """Scheduler outputs in the batch queue."""
        return [batch for batch, _ in self.queue]

    def add(self, request: LogicalRequest, arrival_time: float) -> None:
        """Add a request as EngineCore.add_request does."""
        with refusals(f"request {request.request_id!r}"):
            if len(request.prompt_token_ids) >= self.settings.max_model_len:
                raise ValueError(f"its {len(request.prompt_token_ids)} tokens reach max_model_len")
            self.scheduler.add_request(
                vllm_release.make_request(
                    request_id=request.request_id,
                    prompt_token_ids=list(request.prompt_token_ids),
                    sampling_params=sampling_params(request),
                    pooling_params=None,
                    arrival_time=arrival_time,
                    cache_salt=request.cache_salt,
                    priority=request.priority,
                    block_hasher=self.hasher,
                    **_encoder_inputs(self.settings, request),
                )
            )

    def _schedule(self) -> tuple[Any, frozenset[str]]:
        live = self.scheduler.requests
        before = vllm_release.placeholders(live.values())
        batch = self.scheduler.schedule()
        sampling = (r for r in batch.num_scheduled_tokens if vllm_release.samples(live[r], before))
        return batch, frozenset(sampling)

    def _step(self) -> bool:
        return self._update(*self._schedule()) if self.has_work() else False

    def _step_with_batch_queue(self) -> bool:
        if self.has_work():
            entry = self._schedule()
            executed = entry[0].total_num_scheduled_tokens > 0
            self.queue.append(entry)
            waits = executed or (self.queues_empty_batch and self.scheduler.has_requests())
            if len(self.queue) < BATCH_QUEUE_SIZE and waits:
                return False
        elif not self.queue:
            return False
        return self._update(*self.queue.popleft())

    def _update(self, batch: Any, sampling: frozenset[str]) -> bool:
        ids = list(batch.num_scheduled_tokens)
        drafts = batch.scheduled_spec_decode_tokens
        sampled = [self._next_tokens(r, len(drafts.get(r, ()))) if r in sampling else [] for r in ids]
        output = vllm_release.runner_output(ids, sampled)
        any_token = any(sampled)
        self.scheduler.update_from_output(batch, output)
        if self.settings.num_speculative_tokens and not self.settings.async_scheduling:
            self._propose([r for r in ids if r in sampling])
        return any_token

    def _next_tokens(self, request_id: str, num_drafts: int) -> list[int]:
        """The tokens that a finished step yields; updates come in order, so they are the next ones."""
        live = self.scheduler.requests.get(request_id)
        if live is None:
            return [0]  # finished while this batch was in flight: vLLM ignores the token
        request = self.requests[request_id]
        arm_end_token(live, request)
        accepted = 0
        if num_drafts:
            turn = self.verifications.get(request_id, 0)
            self.verifications[request_id] = turn + 1
            pattern = request.accepted_drafts or (0,)
            accepted = min(pattern[turn % len(pattern)], num_drafts)
        # Tokens behind the end are never looked at, but their number is.
        tokens = (*request.output_token_ids, *[0] * (accepted + 1))
        return list(tokens[live.num_output_tokens : live.num_output_tokens + accepted + 1])

    def _propose(self, request_ids: list[str]) -> None:
        from vllm.v1.outputs import DraftTokenIds

        drafts = [[0] * self.settings.num_speculative_tokens for _ in request_ids]
        self.scheduler.update_draft_token_ids(DraftTokenIds(request_ids, drafts))


def record(settings: EngineSettings, requests: Sequence[LogicalRequest]) -> Recording:
    """Record a workload on the real scheduler.

    Raises InputError for what vLLM refuses, or when it is not installed.
    """
    require_vllm(exactly=False)
    return SchedulerLoop(settings, requests).run()
