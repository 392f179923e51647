"""What the process of a release answers about sizes (`validation.vllm_worker`, message "sizing")."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from sim.models import FOLDER, find_model
from sim.models.drafters import HEADS
from sim.profiles import Rules, rules_of
from sim.sizing.layers import backend_of
from sim.sizing.specs import CannotGroup
from validation.sizing import release
from validation.sizing.ours import limits, our_hybrid_manager, our_layout
from validation.sizing.questions import Mix
from validation.sizing.real_layers import NotBuilt, Question, RealLayers, Refused, real_layers
from validation.sizing.real_plan import plan_specs, real_plan


@dataclass
class Answer:
    """What a release makes of a question.

    Attributes:
        plans: for each memory asked about, as `real_plan`; [] where there are no layers to plan with.
        engine: as `engine_facts`; {} where the model could not be built.
        layers: number of layers with a KV cache.
        not_built: why the release's classes could not be built, so that the layers are ours; None: they
            could.
        parameter_bytes, drafter_bytes: as `RealLayers`.
    """

    plans: list[dict[str, Any]]
    engine: dict[str, Any] = field(default_factory=dict)
    layers: int = 0
    not_built: str | None = None
    parameter_bytes: int = 0
    drafter_bytes: int = 0


def answer(q: Question, memories: list[Question]) -> Answer:
    """The release's plan for each memory."""
    logging.disable(logging.ERROR)
    try:
        made = _layers(q)
    except Refused as why:
        return Answer([{"refused": str(why)}] * len(memories))
    except NotBuilt as why:
        return _with_our_layers(q, memories, str(why))
    plans = []
    for m in memories:
        made.config.cache_config.num_gpu_blocks_override = m.num_gpu_blocks_override
        plans.append(real_plan(made.config, made.specs, m.available_bytes))
    return Answer(plans, made.engine, len(made.specs), None, made.parameter_bytes, made.drafter_bytes)


def answer_mixes(mixes: list[Mix]) -> list[dict[str, Any]]:
    """The release's plan for layers of models that do not exist."""
    logging.disable(logging.ERROR)
    return [plan_specs(_any_config(), *mix) for mix in mixes]


def _layers(q: Question) -> RealLayers:
    shape = find_model(q.model)
    assert shape is not None
    drafter = None
    if q.speculative_model is not None:
        folder = FOLDER if q.speculative_method == "draft_model" else HEADS
        drafter = folder / f"{q.speculative_model}.json"
    with tempfile.TemporaryDirectory() as folder_name:
        return real_layers(
            q,
            FOLDER / f"{q.model}.json",
            Path(folder_name),
            backend_of(shape, q.capability, q.kv_cache_dtype, rules=_rules()),
            drafter,
        )


def _with_our_layers(q: Question, memories: list[Question], why: str) -> Answer:
    shape = find_model(q.model)
    assert shape is not None
    rules = _rules()
    try:
        layout = our_layout(q, shape, rules)
    except CannotGroup:
        return Answer([], not_built=why)
    hybrid = our_hybrid_manager(q, shape, rules)
    plans = [
        plan_specs(
            _any_config(),
            list(layout.specs),
            m.available_bytes,
            limits(m, shape, rules),
            hybrid,
            m.num_gpu_blocks_override,
        )
        for m in memories
    ]
    return Answer(plans, layers=len(layout.specs), not_built=why)


def _rules() -> Rules:
    return rules_of(".".join(map(str, release.version())))


@cache
def _any_config() -> Any:
    return _layers(Question("llama-3.2-1b", max_model_len=4096)).config
