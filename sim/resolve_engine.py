"""The engine's settings and the size of its pool, from a checked config, a model and a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sim.config_engine import EngineConfig
from sim.config_yaml import Problem
from sim.engine_checks import check_pool
from sim.engine_settings import EngineSettings, KVCacheGroup
from sim.gpus import GIB, Gpu
from sim.models import ModelShape
from sim.models.reader import BY_HAND
from sim.sizing.budget import estimated_parts, left_over
from sim.sizing.layers import (
    DEFAULT_BLOCK_SIZE,
    WIDE_HEAD,
    CacheArgs,
    CacheLayout,
    backend_names,
    cache_layout,
    hybrid_manager,
)
from sim.sizing.plan import Limits, PoolPlan, plan_pool
from sim.sizing.pool import PoolSize, core_groups
from sim.sizing.specs import FULL_KINDS, CannotGroup, Refusal
from sim.sizing.states import mamba_cache_mode, prefix_caching

BIG_GPU = 70 * GIB
HUGE_GPU = 160 * GIB
DEFAULT_LENGTH = 4096


def engine_settings(
    e: EngineConfig,
    model: ModelShape | None,
    gpu: Gpu | None,
    problems: list[Problem],
    drafter: ModelShape | None = None,
) -> tuple[EngineSettings | None, PoolSize | None]:
    """Every `auto` of the `engine:` section; None where `problems` say why there is no pool."""
    fit = e.max_model_len == "fit"
    if isinstance(e.max_model_len, str):
        max_model_len = model.max_position if model else DEFAULT_LENGTH
    else:
        max_model_len = e.max_model_len
    e = with_model_defaults(e, model)
    seqs, tokens = batch_limits(e, gpu, max_model_len)
    if model is not None:
        check_parallel(e, model, problems)
        if not isinstance(e.max_model_len, str):
            problems += length_problems(e.max_model_len, model)
        problems += backend_problems(e, model, gpu)
        problems += drafter_problems(e, model, drafter) + mode_problems(e, model)
        if problems:
            return None, None
    pool = pool_size(e, model, gpu, max_model_len, tokens, seqs, problems, drafter)
    if pool is None:
        return None, None
    if fit and pool.plan is not None and pool.plan.longest:
        # As _auto_fit_max_model_len: after the batch limits, which follow from the model's own length.
        max_model_len = pool.plan.longest
        pool = replace(pool, plan=pool.plan.with_length(max_model_len))
    block_size = pool.layout.block_size if pool.layout else _given_block_size(e)
    values: dict[str, Any] = e.values() | {
        "block_size": block_size,
        "max_model_len": max_model_len,
        "max_num_seqs": seqs,
        "max_num_batched_tokens": tokens,
        "num_gpu_blocks": pool.num_gpu_blocks,
        "kv_cache_groups": _groups(e, pool, block_size, model.encoder_tokens if model else 0),
    }
    return EngineSettings(**values), pool


def _given_block_size(e: EngineConfig) -> int:
    return DEFAULT_BLOCK_SIZE if e.block_size == "auto" else e.block_size


def _groups(
    e: EngineConfig, pool: PoolSize, block_size: int, encoder_tokens: int
) -> tuple[KVCacheGroup, ...]:
    given = e.groups()
    if given is not None:
        return given
    return core_groups(pool.plan, block_size, encoder_tokens) if pool.plan else (KVCacheGroup(),)


def with_model_defaults(e: EngineConfig, model: ModelShape | None) -> EngineConfig:
    """What vLLM turns off for a model.

    Prefix caching as `sim.sizing.states.prefix_caching` says. Chunked prefill and the long-prefill threshold
    for encoder-decoder models, whatever the user says (SchedulerConfig.__post_init__).
    """
    crossing = any(g.type == "cross_attention" for g in e.groups() or ())
    crossing = crossing or (model is not None and model.is_encoder_decoder)
    changed: dict[str, Any] = {}
    if crossing:
        changed |= {"enable_chunked_prefill": False, "long_prefill_token_threshold": 0}
    asked = e.enable_prefix_caching if "enable_prefix_caching" in e.model_fields_set else None
    if model is not None:
        changed["enable_prefix_caching"] = prefix_caching(model, asked, e.rules())
    elif crossing and asked is None:
        changed["enable_prefix_caching"] = False
    return e.model_copy(update=changed) if changed else e


def batch_limits(e: EngineConfig, gpu: Gpu | None, max_model_len: int) -> tuple[int, int]:
    """max_num_seqs and max_num_batched_tokens, by the release's defaults where they are `auto`.

    As EngineArgs.get_batch_defaults and _set_default_max_num_seqs_and_batched_tokens_args: by the GPU's
    memory and name, capped by max_num_seqs * max_model_len; a default max_num_seqs is at most the tokens.
    """
    offline = e.usage_context == "offline"
    if gpu is None:
        seqs_default, tokens_default = 64, 2048
    elif gpu.memory_bytes >= HUGE_GPU and e.rules().huge_gpu == "on":
        seqs_default, tokens_default = 1024, 16384
    elif gpu.memory_bytes >= BIG_GPU and "a100" not in gpu.name.lower():
        seqs_default, tokens_default = 1024, 16384 if offline else 8192
    else:
        seqs_default, tokens_default = 256, 8192 if offline else 2048
    if e.performance_mode == "throughput":
        seqs_default, tokens_default = 2 * seqs_default, 2 * tokens_default
    seqs = seqs_default if e.max_num_seqs == "auto" else e.max_num_seqs
    if e.max_num_batched_tokens == "auto":
        tokens = tokens_default
        if not e.enable_chunked_prefill:
            tokens = max(tokens, max_model_len)
        tokens = min(tokens, seqs * max_model_len)
    else:
        tokens = e.max_num_batched_tokens
    if e.max_num_seqs == "auto":
        seqs = min(seqs, tokens)
    return seqs, tokens


def check_parallel(e: EngineConfig, model: ModelShape, problems: list[Problem]) -> None:
    """Heads and states must divide over the GPUs."""
    tp = e.tensor_parallel_size
    if not model.heads:
        uneven = any(part.split % tp for c in model.cache_layers for part in c.state)
        what = "the model's states"
    else:
        kv = model.kv_heads
        uneven = bool(model.heads % tp or (kv % tp if kv >= tp else tp % kv))
        uneven = uneven or any(part.split % tp for c in model.cache_layers for part in c.state)
        what = f"{model.heads} heads and {kv} key-value heads"
    if uneven:
        problems.append(
            Problem(
                ("engine", "tensor_parallel_size"),
                f"{model.name} has {what}: they can't be split over {tp} GPUs",
                "use a divisor of both",
            )
        )


def length_problems(max_model_len: int, model: ModelShape) -> list[Problem]:
    """vLLM refuses sequences that are longer than the model's own (ModelConfig)."""
    limit = model.length_limit
    if limit is None or max_model_len <= limit:
        return []
    message = f"max_model_len {max_model_len} is longer than {model.name} allows ({limit}): vLLM refuses it"
    hint = (
        "lower it; or, as with VLLM_ALLOW_LONG_MAX_MODEL_LEN or a scaled rope, name a config.json with more"
        " max_position_embeddings as the model"
    )
    return [Problem(("engine", "max_model_len"), message, hint)]


def backend_problems(e: EngineConfig, model: ModelShape, gpu: Gpu | None) -> list[Problem]:
    """An attention backend that can't do the model's attention, or whose block sizes are not covered."""
    names, here = backend_names(model.is_mla), ("engine", "attention_backend")
    blackwell = gpu is not None and gpu.capability // 10 == 10
    wide = any(c.head_size == WIDE_HEAD for c in model.cache_layers)
    if e.attention_backend == "FLASH_ATTN" and blackwell and wide:
        # 128 tokens, or 16 where scores are capped, the cache is FP8, images are attended to both ways, ...
        message = f"block sizes of FLASH_ATTN for heads of {WIDE_HEAD} on Blackwell are not covered"
        return [Problem(here, message, "use another backend, or auto")]
    if e.attention_backend in ("auto", *names):
        return []
    kind = "multi-head latent attention" if model.is_mla else "attention with keys and values of its own"
    message = f"{e.attention_backend} can't be used for {model.name}, which has {kind}"
    return [Problem(here, message, f"one of {', '.join(names)}, or auto")]


def drafter_problems(e: EngineConfig, model: ModelShape, drafter: ModelShape | None) -> list[Problem]:
    """A drafter that is not known although the pool depends on it, and drafters that vLLM refuses."""
    method, at = e.speculative_method, ("engine", "speculative_method")
    if not e.num_speculative_tokens or method in (None, "ngram"):
        return []
    if drafter is None and method == "mtp":
        message = f"{model.name} has no layers for multi-token prediction that are known here"
        return [Problem(at, message, f"use another speculative_method, or {BY_HAND}")]
    if drafter is None:
        return _unknown_drafter(e, model, at)
    if method == "mtp" and min(drafter.layers, e.num_speculative_tokens) > 1:
        message = f"{drafter.layers} modules for multi-token prediction in turn are not simulated"
        return [Problem(at, message, "use num_speculative_tokens 1")]
    found: list[Problem] = []
    here = ("engine", "speculative_model")
    if method == "draft_model":
        others = {c.kind for c in drafter.cache_layers} - {"full", "mla", "sliding_window"}
        if others:
            kinds = ", ".join(sorted(others))
            found.append(Problem(here, f"{drafter.name} as a drafter: its layers ({kinds}) are not covered"))
        if drafter.vocab != model.vocab:
            sizes = f"{drafter.vocab} tokens, {model.name} has {model.vocab}"
            message = f"{drafter.name} has a vocabulary of {sizes}: vLLM refuses this drafter"
            found.append(Problem(here, message, "use a draft model of the same family"))
    if drafter is not model.mtp:
        check_parallel(e, drafter, found)
    return found


def _unknown_drafter(e: EngineConfig, model: ModelShape, at: tuple[str, ...]) -> list[Problem]:
    """A drafter without a config matters where it changes the groups, or what is left of an estimate."""
    sized, given = e.num_gpu_blocks != "auto", "give engine.num_gpu_blocks as vLLM's log prints it"
    what = f"the layers of the drafter ({e.speculative_method}) of {model.name} are not known"
    if e.speculative_method == "medusa":
        # it has no layers
        sized |= e.kv_cache_memory_bytes is not None
        what = f"the size of the drafter (medusa) of {model.name} is not known"
    elif not all(c.kind in FULL_KINDS for c in model.cache_layers):
        sized, given = sized and e.groups() is not None, BY_HAND
    if sized:
        return []
    return [Problem(at, what, f"name its config.json with engine.speculative_model, or {given}")]


def mode_problems(e: EngineConfig, model: ModelShape) -> list[Problem]:
    """A mode of caching states that the release does not have, or not for this model."""
    asked = e.mamba_cache_mode
    if asked in (None, "none") or e.groups() is not None:
        return []
    mode = mamba_cache_mode(model, e.enable_prefix_caching, e.rules(), asked, e.num_speculative_tokens > 0)
    tables = e.rules().state_tables
    if mode == asked and tables in ("chosen", asked):
        return []
    here, used = ("engine", "mamba_cache_mode"), tables if mode == asked else mode
    why = "without prefix caching" if not e.enable_prefix_caching else f"for {model.name} in vLLM {e.vllm}"
    message = f"there is no mamba_cache_mode {asked} {why}"
    hint = "leave it out, or turn enable_prefix_caching on"
    return [Problem(here, message, hint if used == "none" else f"leave it out: vLLM uses {used} then")]


def cache_args(e: EngineConfig, model: ModelShape, gpu: Gpu | None, max_model_len: int) -> CacheArgs:
    """The arguments that shape the layers' caches."""
    return CacheArgs(
        block_size=None if e.block_size == "auto" else e.block_size,
        tensor_parallel=e.tensor_parallel_size,
        kv_cache_dtype=e.kv_cache_dtype,
        dtype=model.dtype,
        enable_prefix_caching=e.enable_prefix_caching,
        max_model_len=max_model_len,
        capability=gpu.capability if gpu else 90,
        attention_backend=e.attention_backend,
        mamba_block_size=e.mamba_block_size,
        mamba_cache_mode=e.mamba_cache_mode,
        mamba_cache_dtype=e.mamba_cache_dtype,
        mamba_ssm_cache_dtype=e.mamba_ssm_cache_dtype,
        num_speculative_tokens=e.num_speculative_tokens,
        rules=e.rules(),
    )


def limits_of(e: EngineConfig, model: ModelShape, max_model_len: int, tokens: int) -> Limits:
    """What decides the blocks of one request."""
    rules = e.rules()
    batches = 2 if e.async_scheduling and rules.admission_cap == "in_flight" else 1
    encoder = tokens if model.is_encoder_decoder else 0
    return Limits(max_model_len, tokens * batches, encoder, rules)


def pool_size(
    e: EngineConfig,
    model: ModelShape | None,
    gpu: Gpu | None,
    max_model_len: int,
    tokens: int,
    seqs: int,
    problems: list[Problem],
    drafter: ModelShape | None = None,
) -> PoolSize | None:
    """The pool: of the given size, from the given memory, or estimated."""
    if model is None:
        return _without_model(e, gpu, problems)
    if e.num_gpu_blocks == "auto" and e.kv_cache_memory_bytes is None and gpu is None:
        _missing(model, gpu, problems)
        return None
    limits, rules = limits_of(e, model, max_model_len, tokens), e.rules()
    hybrid = hybrid_manager(model, e.disable_hybrid_kv_cache_manager, e.speculative_method, rules)
    marking = rules.draft_hits == "drop" and rules.mtp_group == "marked"

    def planned(available: int | None, override: int | None = None) -> PoolPlan:
        return plan_pool(
            layout.specs,
            available,
            limits,
            hybrid_manager=hybrid,
            num_gpu_blocks_override=override,
            mark_last=marking and e.speculative_method == "mtp",
        )

    try:
        layout = cache_layout(model, cache_args(e, model, gpu, max_model_len), drafter)
        if e.num_gpu_blocks != "auto":
            plan = planned(e.kv_cache_memory_bytes, e.num_gpu_blocks)
            return _sized(plan, layout, "given", {})
        if e.kv_cache_memory_bytes is not None:
            return _sized(planned(e.kv_cache_memory_bytes), layout, "kv_cache_memory_bytes", {})
        assert gpu is not None
        parts = estimated_parts(
            model,
            gpu,
            tensor_parallel=e.tensor_parallel_size,
            utilization=e.gpu_memory_utilization,
            quantization=e.quantization,
            max_num_batched_tokens=tokens,
            max_num_seqs=seqs,
            cuda_graphs=rules.graph_estimate == "on" and not e.enforce_eager,
            drafter=drafter,
        )
        plan = planned(left_over(parts))
    except Refusal as why:
        problems.append(Problem(("model",), f"{model.name}: vLLM {e.vllm} {why}", None))
        return None
    except CannotGroup as why:
        problems.append(
            Problem(("model",), f"{model.name}: vLLM can't put its layers into one pool: {why}", None)
        )
        return None
    if plan.num_blocks < 2 and plan.groups:
        if plan.available_bytes > GIB:
            problems.append(
                Problem(
                    ("engine", "block_size"),
                    f"{model.name} leaves {plan.available_bytes / GIB:.1f} GiB for the KV cache on"
                    f" {gpu.name}, and one block takes {plan.block_bytes / GIB:.1f} GiB",
                    "a pool has two blocks at least: lower engine.block_size",
                )
            )
            return None
        shown = ", ".join(f"{k} {v / GIB:.1f} GiB" for k, v in parts.items() if v)
        problems.append(
            Problem(
                ("model",),
                f"{model.name} leaves no room for a KV cache on {gpu.name} with tensor_parallel_size"
                f" {e.tensor_parallel_size}",
                f"{shown}: use more or larger GPUs" + ("" if model.quantization else ", or quantization fp8"),
            )
        )
        return None
    return _sized(plan, layout, "estimated", parts)


def _sized(plan: PoolPlan, layout: CacheLayout, how: str, parts: dict[str, int]) -> PoolSize:
    return PoolSize(plan.num_blocks, plan.available_bytes, plan.block_bytes, how, parts, plan, layout)


def _without_model(e: EngineConfig, gpu: Gpu | None, problems: list[Problem]) -> PoolSize | None:
    if e.num_gpu_blocks != "auto":
        return PoolSize(e.num_gpu_blocks, None, None, "given", {})
    if e.kv_cache_memory_bytes is not None:
        message, hint = "kv_cache_memory_bytes needs a model", "give `model`, or engine.num_gpu_blocks"
        problems.append(Problem(("engine", "kv_cache_memory_bytes"), message, hint))
    else:
        _missing(None, gpu, problems)
    return None


def _missing(model: ModelShape | None, gpu: Gpu | None, problems: list[Problem]) -> None:
    missing = " and ".join(k for k, v in (("model", model), ("gpu", gpu)) if v is None)
    verb = "is" if " and " not in missing else "are"
    message = f"engine.num_gpu_blocks is auto, but {missing} {verb} not given"
    hint = f"give engine.num_gpu_blocks, or {missing} (also as --model and --gpu) to estimate it from"
    problems.append(Problem(("engine", "num_gpu_blocks"), message, hint))


def pool_problems(settings: EngineSettings, pool: PoolSize) -> list[Problem]:
    """vLLM's start-up check: a request of max_model_len must fit beside the null block."""
    key = {"given": "num_gpu_blocks", "estimated": "max_model_len"}.get(pool.how, pool.how)
    return check_pool(settings, ("engine",), key)


__all__ = [
    "batch_limits",
    "cache_args",
    "engine_settings",
    "limits_of",
    "pool_problems",
    "pool_size",
    "with_model_defaults",
]
