"""Target `engine`: a whole real vLLM engine in this process, made to produce given tokens.

The engine core of vLLM 0.32.0 with its executor, worker, model runner and sampler, and a tiny Llama with
random weights. Requests are handed to it by step; the step log is written from its live scheduler. vllm is
imported inside functions only.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sim.engine_settings import EngineSettings
from sim.errors import InputError
from validation.engine_loop import EngineLoop
from validation.logical import LogicalRequest
from validation.steplog import Recording
from validation.vllm_scheduler import arm_end_token, sampling_params
from validation.vllm_setup import TINY_VOCABULARY, refusals, require_vllm, vllm_config

#: vLLM's CPU attention wants block sizes that are multiples of this.
CPU_BLOCK_MULTIPLE = 32
_FORCED_OUTPUT = "validation.vllm_forced_output:ForcedOutput"


def refuse_what_an_engine_cannot_do(settings: EngineSettings, device: str) -> None:
    """Raise InputError for settings that a whole engine with the tiny model can't have on this device."""
    if any(group.type != "full" for group in settings.kv_cache_groups) or len(settings.kv_cache_groups) > 1:
        raise InputError("kv_cache_groups: the tiny model of target engine has one full-attention group")
    if device == "cpu" and settings.async_scheduling:
        raise InputError(
            "async_scheduling: vLLM has none on a CPU", hint="use --target scheduler, or --device cuda"
        )
    if device == "cpu" and settings.block_size % CPU_BLOCK_MULTIPLE:
        raise InputError(
            f"block_size {settings.block_size}: vLLM's CPU attention wants a multiple of {CPU_BLOCK_MULTIPLE}"
        )
    if settings.idle_steps != "skip":
        raise InputError('idle_steps: an engine makes no schedule call when it is idle; use "skip"')


def make_engine(settings: EngineSettings, device: str, folder: Path) -> Any:
    """An EngineCore with the tiny model. `folder` is the model and must exist while the engine is made."""
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor import Executor

    config = vllm_config(settings, folder, device)
    config.model_config.logits_processors = [_FORCED_OUTPUT]
    config.load_config.load_format = "dummy"
    config.cache_config.num_gpu_blocks = None
    config.cache_config.num_gpu_blocks_override = settings.num_gpu_blocks
    with refusals("this engine"):
        return EngineCore(config, Executor.get_class(config), log_stats=True)


class WholeEngineLoop(EngineLoop):
    """The engine loop around an EngineCore."""

    def __init__(self, settings: EngineSettings, requests: Sequence[LogicalRequest], engine: Any) -> None:
        super().__init__(settings, requests, engine.scheduler)
        self.engine = engine
        self.produced: dict[str, int] = {}
        update = self.scheduler.update_from_output

        def update_with_end_tokens(batch: Any, output: Any) -> Any:
            for request_id in batch.num_scheduled_tokens:
                live = self.scheduler.requests.get(request_id)
                if live is not None:
                    arm_end_token(live, self.requests[request_id])
            return update(batch, output)

        self.scheduler.update_from_output = update_with_end_tokens

    def batches_in_flight(self) -> list[Any]:
        """Scheduler outputs in the engine core's batch queue."""
        return [entry[1] for entry in self.engine.batch_queue or ()]

    def add(self, request: LogicalRequest, arrival_time: float) -> None:
        """Hand a request to the engine core as its client does."""
        from vllm.v1.engine import EngineCoreRequest

        from validation.vllm_forced_output import OUTPUT_KEY

        params = sampling_params(request)
        params.temperature = 0.0
        params.extra_args = {OUTPUT_KEY: list(request.output_token_ids)}
        with refusals(f"request {request.request_id!r}"):
            if max(*request.prompt_token_ids, *request.output_token_ids) >= TINY_VOCABULARY:
                raise ValueError(f"token ids go up to {TINY_VOCABULARY - 1}")
            if len(request.prompt_token_ids) >= self.settings.max_model_len:
                raise ValueError(f"its {len(request.prompt_token_ids)} tokens reach max_model_len")
            core_request = EngineCoreRequest(
                request_id=request.request_id,
                prompt_token_ids=list(request.prompt_token_ids),
                mm_features=None,
                sampling_params=params,
                pooling_params=None,
                arrival_time=arrival_time,
                lora_request=None,
                cache_salt=request.cache_salt,
                data_parallel_rank=None,
                priority=request.priority,
            )
            self.engine.add_request(*self.engine.preprocess_add_request(core_request))

    def step(self) -> bool:
        """One step as the engine core's own loop makes it."""
        outputs, executed = self.engine.step_fn()
        self.engine.post_step(executed)
        any_token = False
        for core in (outputs or {}).values():
            for out in core.outputs:
                any_token |= bool(out.new_token_ids)
                self.check_tokens(out.request_id, out.new_token_ids)
        return any_token

    def check_tokens(self, request_id: str, new: list[int]) -> None:
        """Raise RuntimeError unless the engine produced the tokens that it was made to produce."""
        given = self.requests[request_id].output_token_ids
        start = self.produced.get(request_id, 0)
        self.produced[request_id] = start + len(new)
        if tuple(new) != given[start : start + len(new)]:
            raise RuntimeError(
                f"request {request_id!r}: output {start} is {new}, not {given[start : start + len(new)]}"
            )


def record(settings: EngineSettings, requests: Sequence[LogicalRequest], device: str = "cpu") -> Recording:
    """Record a workload on a whole real engine.

    Raises InputError for what an engine on this device can't do, what vLLM refuses, or when it is missing.
    """
    refuse_what_an_engine_cannot_do(settings, device)
    numba_loaded = "llvmlite.binding.ffi" in sys.modules
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if device == "cpu":
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    else:
        # The logits processor is written for the V1 model runner, which a CPU always has.
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    require_vllm()
    if numba_loaded:
        # vLLM's CPU worker looks at every attribute of every loaded module, and fails on llvmlite's.
        raise InputError("no engine starts in a process that has loaded Numba: record it first, or alone")
    with tempfile.TemporaryDirectory(prefix="kvpool-model-") as folder:
        engine = make_engine(settings, device, Path(folder))
        try:
            recording = WholeEngineLoop(settings, requests, engine).run()
        finally:
            engine.shutdown()
    return recording
