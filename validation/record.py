"""`python -m validation record`: the same workload on any of the targets, into the same step log.

Targets: `sim` (the simulator's kernel), `scheduler` (a real vLLM's control plane with no model), `engine` (a
whole real vLLM), and `reference` (the simulator's plain-Python twin, for those who work on the simulator).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sim.errors import InputError
from validation.cli import TARGETS
from validation.logical import LogicalRequest, read_requests
from validation.steplog import COLUMNS, Recording

if TYPE_CHECKING:
    from sim.engine_settings import EngineSettings
    from sim.reference.settings import Settings
    from workloads.requests import Workload


def load_settings(path: Path, target: str) -> EngineSettings:
    """Read an engine configuration for a target.

    A real vLLM and the twin judge by themselves what they can do; what the kernel can't do yet is an error
    only there.
    """
    from sim.config_engine import EngineJson, load_engine_json
    from sim.config_yaml import read_json, to_input_errors, validate_model
    from sim.errors import raise_all

    if target == "sim":
        return load_engine_json(path)
    document = read_json(path)
    parsed, problems = validate_model(EngineJson, document)
    raise_all(to_input_errors(problems, document))
    assert parsed is not None
    return parsed.settings()


def record_file(target: str, engine: Path, workload: Path, device: str = "cpu") -> Recording:
    """Record the workload of a file on a target. Raises InputError for anything that can't be used."""
    return record(target, load_settings(engine, target), read_requests(workload), device)


def record(
    target: str, settings: EngineSettings, requests: Sequence[LogicalRequest], device: str = "cpu"
) -> Recording:
    """Record requests that are in memory on a target; device ("cpu" or "cuda") is for `engine`."""
    if target == "sim":
        return _on_simulator(settings, requests)
    if target == "reference":
        return _on_reference(settings, requests)
    if target == "scheduler":
        from validation.vllm_scheduler import record as on_scheduler

        return on_scheduler(settings, requests)
    if target == "engine":
        from validation.vllm_engine import record as on_engine

        return on_engine(settings, requests, device)
    raise InputError(f"unknown target {target!r}", hint=f"one of {', '.join(TARGETS)}")


def _on_simulator(settings: EngineSettings, requests: Sequence[LogicalRequest]) -> Recording:
    from sim.steplog import record as on_simulator

    log = on_simulator(settings, to_workload(requests))
    stuck = "the request at the head of the queue can never be admitted" if log.stuck else None
    return Recording(log.columns, stuck)


def reference_settings(settings: EngineSettings) -> Settings:
    """The settings as the plain-Python twin takes them."""
    from sim.reference.settings import Settings

    values = asdict(settings)
    # of runs in time: in logical time, what is right is data of the requests
    del values["draft_acceptance"]
    return Settings.from_dict(values)


def _on_reference(settings: EngineSettings, requests: Sequence[LogicalRequest]) -> Recording:
    from sim.reference.engine import Engine, EngineStuck
    from sim.reference.steplog import StepLog

    log = StepLog()
    engine = Engine(reference_settings(settings), [r.to_json() for r in requests], observer=log)
    stuck = None
    try:
        engine.run()
    except EngineStuck as exc:
        stuck = str(exc)
    recorded = [name for name in COLUMNS if name in log.rows[0]] if log.rows else list(COLUMNS)
    return Recording({name: [row[name] for row in log.rows] for name in recorded}, stuck)


def to_workload(requests: Sequence[LogicalRequest]) -> Workload:
    """The simulator's workload of these requests, in logical time; every token id is explicit."""
    from workloads.builder import WorkloadBuilder

    salts: dict[str, int] = {}
    vocab_size = 1 + max(max(*r.prompt_token_ids, *r.output_token_ids) for r in requests)
    builder = WorkloadBuilder(vocab_size=vocab_size, clock="logical")
    for r in requests:
        salt = 0 if r.cache_salt is None else salts.setdefault(r.cache_salt, len(salts) + 1)
        builder.add(
            [builder.add_tokens(r.prompt_token_ids)],
            [len(r.prompt_token_ids)],
            output_len=len(r.output_token_ids),
            out_seg=builder.add_tokens(r.output_token_ids),
            arrival=r.arrival_step,
            max_tokens=max(len(r.output_token_ids), r.max_tokens or 0),
            priority=r.priority,
            salt=salt,
            request_id=r.request_id,
            accepted_drafts=r.accepted_drafts,
            encoder_tokens=r.encoder_tokens,
        )
    return builder.build({"kind": "logical"})
