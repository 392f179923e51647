"""What differs between vLLM releases where the recorder touches them: constructors, moved and missing names.

Everything else in `validation` is written once, for all releases. vllm is imported inside functions only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from sim.engine_settings import EngineSettings
from sim.errors import InputError

#: The oldest release whose control plane the recorder knows to drive; newer ones are tried as they come.
OLDEST = (0, 13)
#: Releases that take the retention interval from the environment instead of the configuration.
_RETENTION_VARIABLE = "VLLM_PREFIX_CACHE_RETENTION_INTERVAL"


def installed() -> str:
    """Version of the vLLM that is imported here, without a local part: "0.25.1"."""
    import vllm

    return str(vllm.__version__).split("+", maxsplit=1)[0]


def minor_of(version: str) -> tuple[int, int]:
    """(0, 25) of "0.25.1"; InputError for what is no version."""
    parts = version.split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (ValueError, IndexError):
        raise InputError(f"'{version}' is no vLLM release") from None


def known_fields(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that a configuration class of this release has a field for.

    What is left out is what the release does not have: its absence means what 0, None or false means later,
    and `sim.profiles` says for each release which of them that are.
    """
    names = {f.name for f in fields(cls)}
    return {name: value for name, value in values.items() if name in names}


def let_model_be_inspected() -> None:
    """Take the stand-in model's class as it is, where the release fails to look at it in another process.

    0.17 asks PyTorch whether the processor has AVX-512 by a private function that later versions do not have.
    """
    if minor_of(installed()) != (0, 17):
        return
    import torch

    cpu = torch._C._cpu
    if hasattr(cpu, "_is_avx512_supported"):
        return
    cpu._is_avx512_supported = lambda: False
    from vllm import ModelRegistry
    from vllm.model_executor.models.llama import LlamaForCausalLM

    ModelRegistry.register_model("LlamaForCausalLM", LlamaForCausalLM)


def cache_config_values(settings: EngineSettings) -> dict[str, Any]:
    """Keyword arguments of CacheConfig; sets the retention variable for releases that read it instead."""
    interval = settings.prefix_cache_retention_interval
    # those releases refuse an interval where no group has a use for it; 0 has no effect there
    states = minor_of(installed()) >= (0, 24)
    retaining = ("sliding_window", "mamba") if states else ("sliding_window",)
    retains = any(group.type in retaining for group in settings.kv_cache_groups)
    if interval is None or (interval == 0 and not retains):
        os.environ.pop(_RETENTION_VARIABLE, None)
    else:
        os.environ[_RETENTION_VARIABLE] = str(interval)
    values: dict[str, Any] = {
        "block_size": settings.block_size,
        "enable_prefix_caching": settings.enable_prefix_caching,
        "prefix_cache_retention_interval": interval,
        "prefix_match_unit": settings.prefix_match_unit,
    }
    return values


def block_sizes(groups: Any, config: Any) -> tuple[int, int]:
    """(block size of the scheduler, tokens a hash) as the release resolves them."""
    from vllm.v1.core import kv_cache_utils

    resolve = getattr(kv_cache_utils, "resolve_kv_cache_block_sizes", None)
    if resolve is not None:
        first, second = resolve(groups, config)
        return int(first), int(second)
    size = int(config.cache_config.block_size)
    return size, size


def hash_lookahead(config: Any) -> dict[str, int]:
    """Argument of the hasher: tokens behind a block that its hash covers too (0.33, eagle and mtp)."""
    tokens = getattr(config, "num_hash_lookahead_tokens", 0)
    return {"num_hash_lookahead_tokens": int(tokens)} if tokens else {}


def reserve_draft_inputs(config: Any) -> None:
    """Take a draft model's own inputs off the step's tokens, as 0.17 to 0.27 do when a configuration is made.

    Raises ValueError where that leaves none, or fewer than the configuration asks for.
    """
    if (0, 17) <= minor_of(installed()) < (0, 28):
        config._set_max_num_scheduled_tokens()


def make_scheduler(config: Any, groups: Any, block_size: int, hash_block_size: int) -> Any:
    """The scheduler that the configuration asks for, with statistics."""
    import inspect

    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.structured_output import StructuredOutputManager

    cls = config.scheduler_config.get_scheduler_cls()
    values: dict[str, Any] = {
        "vllm_config": config,
        "kv_cache_config": groups,
        "structured_output_manager": StructuredOutputManager(config),
        "block_size": block_size,
        "hash_block_size": hash_block_size,
        "log_stats": True,
    }
    accepted = inspect.signature(Scheduler.__init__).parameters
    return cls(**{name: value for name, value in values.items() if name in accepted})


def make_request(**values: Any) -> Any:
    """A Request; releases before 0.16 want the end token as an argument."""
    import inspect

    from vllm.v1.request import Request

    if "eos_token_id" in inspect.signature(Request.__init__).parameters:
        values["eos_token_id"] = None
    return Request(**values)


def set_end_token(live: Any, token: int) -> None:
    """Make a token the end token of a live request, wherever the release keeps it."""
    is_own = not isinstance(getattr(type(live), "eos_token_id", None), property)  # 0.17: read-only
    if is_own and hasattr(live, "eos_token_id"):
        live.eos_token_id = token
    else:
        live.sampling_params._eos_token_id = token


def runner_output(ids: Sequence[str], sampled: list[list[int]]) -> Any:
    """The model runner's output for a batch: ids in its order, and the tokens sampled for each."""
    from vllm.v1.outputs import ModelRunnerOutput

    optional: dict[str, Any] = {"logprobs": None, "prompt_logprobs_dict": {}, "pooler_output": []}
    names = {f.name for f in fields(ModelRunnerOutput)}
    return ModelRunnerOutput(
        req_ids=list(ids),
        req_id_to_index={r: i for i, r in enumerate(ids)},
        sampled_token_ids=sampled,
        **{name: value for name, value in optional.items() if name in names},
    )


def placeholders(requests: Iterable[Any]) -> dict[str, int]:
    """Output placeholders by request id: to be asked before a schedule call, for `samples`."""
    return {r.request_id: r.num_output_placeholders for r in requests}


def samples(live: Any, before: Mapping[str, int]) -> bool:
    """Whether a scheduled request reaches its last known token in this batch, so that a token is sampled."""
    return bool(live.num_computed_tokens >= live.num_tokens + before[live.request_id])


def waiting_requests(scheduler: Any) -> list[Any]:
    """All waiting requests, those that are served first in front."""
    return [
        *getattr(scheduler, "kv_holding_waiting", ()),  # 0.31 and later
        *getattr(scheduler, "skipped_waiting", ()),  # 0.18 to 0.30
        *scheduler.waiting,
    ]


def queues_empty_batch() -> bool:
    """Whether EngineCore.step_with_batch_queue lets a batch without tokens wait in its queue (0.23)."""
    return minor_of(installed()) >= (0, 23)
