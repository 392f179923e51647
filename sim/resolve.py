"""From a checked config to what a run needs: numbers for every `auto`, the step-time model, found files."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sim.config import Loaded, RunConfig
from sim.config_step_time import (
    AffineStep,
    ConstantStep,
    RooflineStep,
    TableStep,
)
from sim.config_workload import AnyClient
from sim.config_yaml import Problem, to_input_errors
from sim.engine_checks import check_settings
from sim.engine_settings import EngineSettings
from sim.errors import did_you_mean, raise_all
from sim.fleet.config import FleetSettings, RoundRobin
from sim.gpus import Gpu, find_gpu
from sim.memory import memory_problems
from sim.models import ModelShape, find_model, is_path, known_name, load_model, locate, model_names
from sim.models.drafters import OWN_CONFIG, find_drafter, head_names, known_head
from sim.models.quantization import FP8
from sim.resolve_engine import batch_limits, engine_settings, pool_problems
from sim.sizing import PoolSize, element_bytes
from sim.step_time import StepTime, affine, constant, roofline


@dataclass(frozen=True)
class Resolved:
    """A run, ready to start.

    Attributes:
        name: of the run.
        seed: of the workload.
        engine: the core's settings.
        step_time: the core's latency model.
        until_ns, warmup_ns: simulated nanoseconds; `until_ns` None: to the end of the workload.
        sample_period_ns: None: choose it from the workload (`auto`).
        every_step, events, plots: what to record and to draw.
        model, gpu: as given, or None.
        pool: where the number of blocks comes from.
        config: the resolved config as plain data: running it gives the same run.
        folder: where relative paths of the workload are looked for first.
        spec: the workload section.
        fleet: replicas and router; None: one engine.
    """

    name: str
    seed: int
    engine: EngineSettings
    step_time: StepTime
    until_ns: int | None
    warmup_ns: int
    sample_period_ns: int | None
    every_step: bool
    events: bool
    plots: bool
    model: ModelShape | None
    gpu: Gpu | None
    pool: PoolSize
    config: dict[str, Any]
    folder: Path
    spec: AnyClient
    fleet: FleetSettings | None = None

    @property
    def block_bytes_total(self) -> int | None:
        """Bytes of one block over all GPUs of the engine, or None if the model is unknown."""
        if self.pool.page_bytes is None:
            return None
        return int(self.pool.page_bytes * self.config["engine"]["tensor_parallel_size"])


def resolve(loaded: Loaded) -> Resolved:
    """Resolve every `auto` and check what can only be checked then.

    Raises:
        InputError: impossible combinations, a model that does not fit the GPU, missing files; all those
            that can be found at once, with their places in the config.
    """
    config, document = loaded.config, loaded.document
    problems: list[Problem] = []
    model = load_shape(loaded)
    gpu = find_gpu(config.gpu) if isinstance(config.gpu, str) else config.gpu
    # what is not given takes the release's own default
    hybrid = model is not None and model.is_hybrid
    engine = config.engine.model_copy(update=config.engine.release_defaults(hybrid))
    drafter = load_drafter(loaded, model)
    settings, pool = engine_settings(engine, model, gpu, problems, drafter)
    if settings is None or pool is None:
        raise_all(to_input_errors(problems, document))
        raise AssertionError("an engine that can't be resolved has problems")
    problems += config.engine.later_key_problems(("engine",)) + config.engine.draft_problems(("engine",))
    problems += check_settings(settings, ("engine",))
    budget = settings.max_num_scheduled_tokens
    if budget is not None and budget > settings.max_num_batched_tokens:
        problems.append(
            Problem(
                ("engine", "max_num_scheduled_tokens"),
                f"max_num_scheduled_tokens ({budget}) is greater than max_num_batched_tokens"
                f" ({settings.max_num_batched_tokens})",
                "the scheduler can't give out more tokens than a batch holds",
            )
        )
    problems += pool_problems(settings, pool) + memory_problems(settings, config.replicas)
    if config.output.sample_period == 0:
        hint = "1ms, say, or auto; output.every_step has a row for every step"
        problems.append(
            Problem(("output", "sample_period"), "'output.sample_period' must be greater than 0", hint)
        )
    step_time = _step_time(loaded, model, gpu, problems)
    raise_all(to_input_errors(problems, document))
    if step_time is None:
        raise AssertionError("a step time that can't be resolved has problems")
    period = config.output.sample_period
    return Resolved(
        name=loaded.name,
        seed=config.seed,
        engine=settings,
        step_time=step_time,
        until_ns=config.run.until,
        warmup_ns=config.run.warmup,
        sample_period_ns=None if period == "auto" else int(period),
        every_step=config.output.every_step,
        events=config.output.events,
        plots=config.output.plots,
        model=model,
        gpu=gpu,
        pool=pool,
        config=_resolved_config(loaded, settings),
        folder=loaded.folder,
        spec=config.workload,
        fleet=_fleet(config),
    )


def _fleet(config: RunConfig) -> FleetSettings | None:
    if config.replicas == 1:
        return None
    return FleetSettings(config.replicas, config.router or RoundRobin())


def find_file(path: str, folder: Path) -> Path:
    """A relative path beside the config if there is such a file, else in the working folder."""
    beside = folder / path
    return beside if beside.exists() else Path(path)


def portable_path(path: str, folder: Path) -> str:
    """The path to write into a resolved config: found again from the same working folder."""
    beside = folder / path
    if os.path.isabs(path) or not beside.exists():
        return path
    return os.path.relpath(beside)


def content_id(config: dict[str, Any], workload_sha256: str) -> str:
    """Hex SHA-256 of everything that determines the results: the resolved config and the requests."""
    kept = {k: v for k, v in config.items() if k not in ("name", "description", "baseline")}
    kept["output"] = {k: v for k, v in config["output"].items() if k != "plots"}
    text = json.dumps([kept, workload_sha256], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def load_shape(loaded: Loaded) -> ModelShape | None:
    """The config's model, or None if it names none."""
    name = loaded.config.model
    if name is None:
        return None
    dtype = loaded.config.engine.dtype
    found = locate(name, find=lambda path: find_file(path, loaded.folder))
    if found is None:
        near = did_you_mean(name.rsplit("/", 1)[-1].lower(), model_names())
        hint = f"{_LOOKED}; {near}" if near else _LOOKED
        problem = Problem(("model",), f"no such model file '{name}'", hint)
        raise_all(to_input_errors([problem], loaded.document))
        return None
    if is_path(found) and Path(found).is_dir():
        message, hint = (
            f"the folder '{name}' has no config.json",
            "name the config.json itself, or its folder",
        )
        raise_all(to_input_errors([Problem(("model",), message, hint)], loaded.document))
    model = load_model(found) if is_path(found) else find_model(found)
    return model if model is None or dtype == "auto" else replace(model, dtype=dtype)


_LOOKED = "it was looked for beside the config and in the working folder"


def load_drafter(loaded: Loaded, model: ModelShape | None) -> ModelShape | None:
    """The config's drafter, if it is known and has layers.

    Raises:
        InputError: a `speculative_model` that is not found, is of no known family, or means nothing.
    """
    e, here = loaded.config.engine, ("engine", "speculative_model")
    name, method = e.speculative_model, e.speculative_method
    problem: Problem | None = None
    drafter: ModelShape | None = None
    if name is None:
        drafter = model.mtp if model is not None and method == "mtp" else None
    elif method not in OWN_CONFIG:
        hint = f"it belongs to {', '.join(OWN_CONFIG)}: leave it out"
        problem = Problem(here, f"speculative_model means nothing with speculative_method {method}", hint)
    elif model is None:
        problem = Problem(here, "speculative_model needs a model", "give `model`, or leave it out")
    else:
        known = known_name if method == "draft_model" else known_head
        found = locate(name, known, lambda path: find_file(path, loaded.folder))
        if found is None:
            problem = Problem(here, f"no such file '{name}'", _LOOKED)
        else:
            drafter = find_drafter(found, method, model, e.num_speculative_tokens)
            if drafter is None:
                names = {"draft_model": model_names(), "medusa": []}.get(method, head_names())
                hint = did_you_mean(name, names) or (f"known: {', '.join(names)}" if names else "")
                hint = (
                    f"{hint}; or give a path to its config.json" if hint else "give a path to its config.json"
                )
                problem = Problem(here, f"unknown drafter '{name}'", hint)
    raise_all(to_input_errors([problem] if problem else [], loaded.document))
    return drafter


def _step_time(
    loaded: Loaded, model: ModelShape | None, gpu: Gpu | None, problems: list[Problem]
) -> StepTime | None:
    section = loaded.config.step_time
    e = loaded.config.engine
    if section is None or isinstance(section, RooflineStep):
        if model is None or gpu is None:
            missing = " and ".join(k for k, v in (("model", model), ("gpu", gpu)) if v is None)
            message = (
                f"step_time is missing, and the roofline needs {missing}"
                if section is None
                else f"the roofline needs {missing}"
            )
            hint = "give model and gpu, or a step_time of kind constant, affine or table"
            problems.append(Problem(("step_time", "kind"), message, hint))
            return None
        r = section or RooflineStep()
        return roofline(
            model,
            gpu,
            tensor_parallel=e.tensor_parallel_size,
            kv_dtype_bytes=element_bytes(e.kv_cache_dtype, model.dtype),
            quantization=FP8 if e.quantization else model.quantization,
            typical_context=r.typical_context,
            mfu=r.mfu,
            mbu=r.mbu,
            overhead_ns=r.overhead,
            allreduce_latency_ns=r.allreduce_latency,
            link_utilization=r.link_utilization,
        )
    if isinstance(section, ConstantStep):
        return constant(section.step)
    if isinstance(section, AffineStep):
        return affine(
            section.overhead,
            section.prefill_token,
            section.decode_sequence,
            section.context_token,
            section.encoder_token,
        )
    return _table(section, loaded, problems)


def _table(section: TableStep, loaded: Loaded, problems: list[Problem]) -> StepTime | None:
    from sim.step_table import load_table

    file = find_file(section.path, loaded.folder)
    if not file.exists():
        message = f"no such step-time file '{section.path}'"
        problems.append(Problem(("step_time", "path"), message, _LOOKED))
        return None
    return load_table(file, section.token_bins, section.context_bins)


def _resolved_config(loaded: Loaded, s: EngineSettings) -> dict[str, Any]:
    """The config with every number filled in, in the order of the docs; running it gives the same run."""
    config = loaded.config
    out: dict[str, Any] = config.model_dump(mode="json")
    out["name"] = loaded.name
    engine = out["engine"]
    engine |= config.engine.release_defaults()
    engine["prefix_cache_retention_interval"] = s.prefix_cache_retention_interval
    engine["switches"] = dict(s.switches)
    for name in (
        "block_size",
        "num_gpu_blocks",
        "max_num_seqs",
        "max_num_batched_tokens",
        "max_model_len",
        "enable_prefix_caching",
        "enable_chunked_prefill",
        "long_prefill_token_threshold",
    ):
        engine[name] = getattr(s, name)
    engine["kv_cache_memory_bytes"] = None
    if config.replicas == 1:
        # one engine is the same run with and without these keys
        del out["replicas"], out["router"]
    elif out["router"] is None:
        out["router"] = RoundRobin().model_dump(mode="json")
    if out["step_time"] is None:
        out["step_time"] = RooflineStep().model_dump(mode="json")
    if config.model is not None and is_path(config.model):
        out["model"] = portable_path(config.model, loaded.folder)
    drafter = config.engine.speculative_model
    if drafter is not None and is_path(drafter):
        engine["speculative_model"] = portable_path(drafter, loaded.folder)
    if isinstance(config.gpu, str):
        known = find_gpu(config.gpu)
        out["gpu"] = known.name if known else config.gpu
    for section in ("workload", "step_time"):
        _portable(out[section], loaded.folder)
    return out


def _portable(node: Any, folder: Path) -> None:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "path" and isinstance(value, str):
                node[name] = portable_path(value, folder)
            else:
                _portable(value, folder)
    elif isinstance(node, list):
        for item in node:
            _portable(item, folder)


__all__ = ["Resolved", "batch_limits", "content_id", "find_file", "resolve"]
