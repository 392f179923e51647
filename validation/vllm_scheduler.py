"""Target `scheduler`: the real Scheduler, KVCacheManager and BlockPool of vLLM 0.32.0 with no model.

Requests arrive by step, their output tokens are known beforehand, and calls are made in the order of vLLM's
engine core: EngineCore.step (schedule, update) or, with async scheduling, EngineCore.step_with_batch_queue
with a queue of two. vllm is imported inside functions only.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sim.config_engine import EngineSettings, KVCacheGroup
from sim.errors import InputError
from validation.live_state import SchedulerRecorder
from validation.logical import LogicalRequest
from validation.steplog import Recording

VLLM_VERSION = "0.32.0"
BATCH_QUEUE_SIZE = 2


def require_vllm() -> None:
    """Raise InputError, with what to do, unless the vLLM that this is written for can be imported."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        import vllm
    except ImportError as exc:
        raise InputError(
            f"vLLM can't be imported here: {exc}",
            hint="`make validate` builds an environment that has it; run this command with its Python",
        ) from exc
    import logging

    logging.getLogger("vllm").setLevel(logging.ERROR)
    found = str(vllm.__version__).split("+", maxsplit=1)[0]
    if found != VLLM_VERSION:
        raise InputError(f"this recorder is written for vLLM {VLLM_VERSION}, found {found}")


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """vLLM's own refusal of a configuration as an InputError."""
    try:
        yield
    except (ValueError, AssertionError) as exc:
        text = " ".join(str(exc).split())[:500] or type(exc).__name__
        raise InputError(f"vLLM {VLLM_VERSION} refuses {what}: {text}") from exc


def tiny_llama_config(max_model_len: int) -> dict[str, Any]:
    """config.json of the model that stands in for a real one: 2 layers, hidden 128, 4 heads, 2 KV heads."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 4096,
        "max_position_embeddings": max_model_len,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def vllm_config(settings: EngineSettings) -> Any:
    """vLLM's configuration object for these settings; the model is a folder with a config.json."""
    from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig

    with tempfile.TemporaryDirectory(prefix="kvpool-model-") as folder, _refusals("this configuration"):
        (Path(folder) / "config.json").write_text(json.dumps(tiny_llama_config(settings.max_model_len)))
        model = ModelConfig(
            model=folder,
            tokenizer=folder,
            skip_tokenizer_init=True,
            max_model_len=settings.max_model_len,
            dtype="float32",
            enforce_eager=True,
        )
        scheduler = SchedulerConfig(
            max_model_len=settings.max_model_len,
            is_encoder_decoder=False,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            max_num_scheduled_tokens=settings.max_num_scheduled_tokens,
            max_num_active_seqs=settings.max_num_active_seqs,
            enable_chunked_prefill=settings.enable_chunked_prefill,
            long_prefill_token_threshold=settings.long_prefill_token_threshold,
            long_prefill_token_threshold_adaptive=settings.long_prefill_token_threshold_adaptive,
            policy=settings.policy,
            scheduler_reserve_full_isl=settings.scheduler_reserve_full_isl,
            watermark=settings.watermark,
            async_scheduling=settings.async_scheduling,
        )
        cache = CacheConfig(
            block_size=settings.block_size,
            enable_prefix_caching=settings.enable_prefix_caching,
            prefix_cache_retention_interval=settings.prefix_cache_retention_interval,
            prefix_match_unit=settings.prefix_match_unit,
        )
        config = VllmConfig(
            model_config=model,
            scheduler_config=scheduler,
            cache_config=cache,
            device_config=DeviceConfig("cpu"),
        )
    # The CPU platform turns async scheduling off and may choose another block size: neither concerns the
    # control plane, which runs here without a device.
    config.scheduler_config.async_scheduling = settings.async_scheduling
    config.scheduler_config.max_num_scheduled_tokens = settings.max_num_scheduled_tokens
    config.scheduler_config.max_num_batched_tokens = settings.max_num_batched_tokens
    config.cache_config.block_size = settings.block_size
    config.cache_config.enable_prefix_caching = settings.enable_prefix_caching
    config.cache_config.num_gpu_blocks = settings.num_gpu_blocks
    if any(group.type == "mamba" for group in settings.kv_cache_groups):
        config.cache_config.mamba_cache_mode = _mamba_mode(settings)
        config.cache_config.mamba_block_size = settings.block_size
    return config


def _mamba_mode(settings: EngineSettings) -> str:
    chosen = next((g.mamba_cache_mode for g in settings.kv_cache_groups if g.mamba_cache_mode), None)
    return chosen or ("align" if settings.enable_prefix_caching else "none")


def kv_cache_config(settings: EngineSettings) -> Any:
    """vLLM's KVCacheConfig for the groups of these settings, one made-up layer a group."""
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec

    groups = [
        KVCacheGroupSpec([f"layer.{i}"], _group_spec(group, settings))
        for i, group in enumerate(settings.kv_cache_groups)
    ]
    return KVCacheConfig(
        num_blocks=settings.num_gpu_blocks,
        kv_cache_tensors=[],
        kv_cache_groups=groups,
        prefix_cache_retention_interval=settings.prefix_cache_retention_interval,
    )


def _group_spec(group: KVCacheGroup, settings: EngineSettings) -> Any:
    import torch
    from vllm.v1.kv_cache_interface import (
        ChunkedLocalAttentionSpec,
        FullAttentionSpec,
        MambaSpec,
        SlidingWindowSpec,
    )

    block_size = group.block_size or settings.block_size
    attention = {"block_size": block_size, "num_kv_heads": 2, "head_size": 32, "dtype": torch.float32}
    if group.type == "full":
        return FullAttentionSpec(**attention)
    if group.type == "sliding_window":
        return SlidingWindowSpec(**attention, sliding_window=group.sliding_window)
    if group.type == "chunked_local":
        return ChunkedLocalAttentionSpec(**attention, attention_chunk_size=group.attention_chunk_size)
    if group.type == "mamba":
        page = 2 * block_size * 2 * 32
        return MambaSpec(
            block_size=block_size,
            shapes=((page,),),
            dtypes=(torch.float32,),
            mamba_cache_mode=group.mamba_cache_mode or _mamba_mode(settings),
        )
    raise InputError(f"kv_cache_groups: type {group.type!r} is unknown to this recorder")


class SchedulerDriver:
    """One real scheduler, its waiting arrivals, and the engine loop around it."""

    def __init__(self, settings: EngineSettings, requests: Sequence[LogicalRequest]) -> None:
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core.kv_cache_utils import (
            get_request_block_hasher,
            init_none_hash,
            resolve_kv_cache_block_sizes,
        )
        from vllm.v1.structured_output import StructuredOutputManager

        self.settings = settings
        self.requests = {r.request_id: r for r in requests}
        # Requests of one step are added in file order; the file itself need not be sorted by step.
        self.arrivals = deque(sorted(enumerate(requests), key=lambda item: item[1].arrival_step))
        config = vllm_config(settings)
        groups = kv_cache_config(settings)
        with _refusals("these KV-cache groups"):
            block_size, hash_block_size = resolve_kv_cache_block_sizes(groups, config)
            scheduler_class = config.scheduler_config.get_scheduler_cls()
            self.scheduler = scheduler_class(
                vllm_config=config,
                kv_cache_config=groups,
                structured_output_manager=StructuredOutputManager(config),
                block_size=block_size,
                hash_block_size=hash_block_size,
                log_stats=True,
            )
        self.hasher = None
        if settings.enable_prefix_caching:
            hash_function = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
            init_none_hash(hash_function)
            self.hasher = get_request_block_hasher(hash_block_size, hash_function)
        self.recorder = SchedulerRecorder(self.scheduler)
        self.queue: deque[tuple[Any, frozenset[str]]] = deque()
        self.steps_without_token = 0  # since the last update that yielded one

    def run(self) -> Recording:
        """Run to the end of the workload, or until nothing can ever happen again."""
        patience = 1000 + sum(
            len(r.prompt_token_ids) + len(r.output_token_ids) for r in self.requests.values()
        )
        step = 0
        stuck = None
        while stuck is None and (self.arrivals or self.scheduler.has_unfinished_requests() or self.queue):
            self.recorder.step = step
            while self.arrivals and self.arrivals[0][1].arrival_step <= step:
                self._add(*self.arrivals.popleft())
            self.steps_without_token += 1
            if self.settings.async_scheduling:
                self._step_with_batch_queue()
            else:
                self._step()
            step += 1
            if not self.arrivals:
                stuck = self._stuck(patience)
            elif not (self.scheduler.has_requests() or self.queue) and self.settings.idle_steps == "skip":
                step = max(step, self.arrivals[0][1].arrival_step)
        return Recording(self.recorder.log, stuck)

    def _add(self, index: int, request: LogicalRequest) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        limit = max(len(request.output_token_ids), request.max_tokens or 0)
        params = SamplingParams(max_tokens=limit, ignore_eos=not request.stops_by_end_token)
        with _refusals(f"request {request.request_id!r}"):
            if len(request.prompt_token_ids) >= self.settings.max_model_len:
                raise ValueError(f"its {len(request.prompt_token_ids)} tokens reach max_model_len")
            self.scheduler.add_request(
                Request(
                    request_id=request.request_id,
                    prompt_token_ids=list(request.prompt_token_ids),
                    sampling_params=params,
                    pooling_params=None,
                    arrival_time=float(
                        index if self.settings.arrival_time == "seq" else request.arrival_step
                    ),
                    cache_salt=request.cache_salt,
                    priority=request.priority,
                    block_hasher=self.hasher,
                )
            )

    def _has_work(self) -> bool:
        idle_too = self.settings.idle_steps == "run" and bool(self.arrivals)
        return self.scheduler.has_requests() or idle_too

    def _schedule(self) -> tuple[Any, frozenset[str]]:
        batch = self.scheduler.schedule()
        live = self.scheduler.requests
        return batch, frozenset(r for r in batch.num_scheduled_tokens if not live[r].is_prefill_chunk)

    def _step(self) -> None:
        if self._has_work():
            self._update(*self._schedule())

    def _step_with_batch_queue(self) -> None:
        if self._has_work():
            entry = self._schedule()
            executed = entry[0].total_num_scheduled_tokens > 0
            self.queue.append(entry)
            if len(self.queue) < BATCH_QUEUE_SIZE and (executed or self.scheduler.has_requests()):
                return
        elif not self.queue:
            return
        self._update(*self.queue.popleft())

    def _update(self, batch: Any, sampling: frozenset[str]) -> None:
        from vllm.v1.outputs import ModelRunnerOutput

        ids = list(batch.num_scheduled_tokens)
        sampled = [[self._next_token(r)] if r in sampling else [] for r in ids]
        output = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={r: i for i, r in enumerate(ids)},
            sampled_token_ids=sampled,
        )
        self.scheduler.update_from_output(batch, output)
        if any(sampled):
            self.steps_without_token = 0

    def _next_token(self, request_id: str) -> int:
        """The token that a request's finished step yields; updates come in order, so it is the next one."""
        request = self.scheduler.requests.get(request_id)
        if request is None:
            return 0  # finished while this batch was in flight: vLLM ignores the token
        known = self.requests[request_id]
        position = request.num_output_tokens
        token = known.output_token_ids[position]
        if known.stops_by_end_token and position == len(known.output_token_ids) - 1:
            # The end token is an ordinary id of the vocabulary, which may occur earlier in the output too.
            request.sampling_params._eos_token_id = token
        return token

    def _stuck(self, patience: int) -> str | None:
        """Why nothing can ever happen again, or None. Called when no arrivals are left."""
        scheduler = self.scheduler
        waiting = [*scheduler.kv_holding_waiting, *scheduler.waiting]
        in_flight = any(batch.total_num_scheduled_tokens for batch, _ in self.queue)
        log = self.recorder.log
        if not waiting or in_flight:
            return None
        head = waiting[0]
        pool = f"pool of {self.settings.num_gpu_blocks} blocks"
        what = f"request {head.request_id!r} ({head.num_tokens} tokens, {pool})"
        if not scheduler.running and log["num_scheduled_reqs"][-1] == 0 and not log["preempted"][-1]:
            return f"{what} at the head of the queue is never admitted; {len(waiting)} requests wait for ever"
        if self.steps_without_token > patience:
            return f"no token in {patience} steps: {what} is admitted and preempted for ever"
        return None


def record(settings: EngineSettings, requests: Sequence[LogicalRequest]) -> Recording:
    """Record a workload on the real scheduler.

    Raises InputError for what vLLM refuses, or when it is not installed.
    """
    require_vllm()
    return SchedulerDriver(settings, requests).run()
