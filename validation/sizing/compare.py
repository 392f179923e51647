"""Both planners on the same questions, and what differs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sim.models import FOLDER, find_model
from sim.models.drafters import HEADS
from sim.sizing.budget import weight_bytes
from sim.sizing.layers import backend_of
from sim.sizing.plan import Limits
from validation.sizing.ours import our_drafter, our_layout, our_plan, planned
from validation.sizing.questions import memories, questions, random_mix
from validation.sizing.real_layers import Question, RealLayers, real_layers, supported_sizes
from validation.sizing.real_plan import real_plan, to_vllm

#: Largest relative distance of the weights; norms and padded vocabularies are what differs.
WEIGHT_TOLERANCE = 0.01


@dataclass
class Tally:
    """What was compared, and what differed.

    Attributes:
        compared: number of plans.
        refused: of them, those that both planners refuse.
        weights: model and GPUs -> (real bytes, ours).
        differences: sentences.
    """

    compared: int = 0
    refused: int = 0
    weights: dict[str, tuple[int, int]] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)

    @property
    def worst_weights(self) -> float:
        """The largest relative distance of a weights estimate."""
        return max((abs(b - a) / a for a, b in self.weights.values()), default=0.0)


def both(ours: dict[str, Any], real: dict[str, Any]) -> str | None:
    """How two plans differ, or None; the wording of a refusal does not count."""
    if "refused" in ours or "refused" in real:
        return (
            None if "refused" in ours and "refused" in real else f"vLLM: {_short(real)}; ours: {_short(ours)}"
        )
    for key, value in real.items():
        if ours.get(key) != value:
            return f"{key}: vLLM {_short(value)}, ours {_short(ours.get(key))}"
    return None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 300 else text[:300] + " ..."


def ask_vllm(q: Question) -> RealLayers:
    """vLLM's layers for one question."""
    shape = find_model(q.model)
    assert shape is not None
    backend = backend_of(shape, q.capability, q.kv_cache_dtype)
    with tempfile.TemporaryDirectory() as folder:
        return real_layers(
            q,
            FOLDER / f"{q.model}.json",
            Path(folder),
            supported_sizes(backend.sizes, backend.multiples),
            _drafter_file(q),
        )


def _drafter_file(q: Question) -> Path | None:
    if q.speculative_model is None:
        return None
    return (FOLDER if q.speculative_method == "draft_model" else HEADS) / f"{q.speculative_model}.json"


def plans(q: Question, layers: RealLayers) -> Iterator[tuple[Question, dict[str, Any]]]:
    """vLLM's plan for each size of memory."""
    for m in memories(q):
        layers.config.cache_config.num_gpu_blocks_override = m.num_gpu_blocks_override
        yield m, real_plan(layers.config, layers.specs, m.available_bytes)


def compare_model(model: str, tally: Tally, quick: bool = False) -> None:
    """All questions about one model."""
    shape = find_model(model)
    assert shape is not None
    for i, q in enumerate(questions(model)):
        if quick and i % 5:
            continue
        layers = ask_vllm(q)
        where = _where(q)
        if len(layers.specs) != len(our_layout(q, shape).specs):
            tally.differences.append(f"{where}: vLLM has {len(layers.specs)} layers with a KV cache")
            continue
        if layers.parameter_bytes:
            both_weights = (layers.parameter_bytes, _our_parameter_bytes(q, model))
            tally.weights[f"{model} x{q.tensor_parallel_size}"] = both_weights
        drafter = our_drafter(q, shape)
        if drafter is not None and (drafter is shape.mtp or drafter.vocab == shape.vocab):
            plain = replace(drafter, quantization=None, params=replace(drafter.params, absorbed=0, tower=0))
            ours_too = weight_bytes(plain, q.tensor_parallel_size, None)
            name = f"{model} x{q.tensor_parallel_size} {q.speculative_method} {q.speculative_model}"
            tally.weights[name] = (layers.drafter_bytes, ours_too)
        for m, real in plans(q, layers):
            ours = our_plan(m, shape)
            tally.compared += 1
            tally.refused += "refused" in real
            difference = both(ours, real)
            if difference:
                tally.differences.append(f"{where}, {m.available_bytes} bytes: {difference}")


def _our_parameter_bytes(q: Question, model: str) -> int:
    """Our weights without what vLLM was not asked to build: the image encoder, quantization, MLA's copies."""
    shape = find_model(model)
    assert shape is not None
    tower = shape.params.tower if shape.is_encoder_decoder else 0
    plain = replace(shape, quantization=None, params=replace(shape.params, tower=tower, absorbed=0))
    return weight_bytes(plain, q.tensor_parallel_size, None)


def _where(q: Question) -> str:
    default = asdict(Question(q.model))
    said = [f"{k}={v}" for k, v in asdict(q).items() if v != default[k]]
    return f"{q.model} ({', '.join(said)})"


def compare_mixes(first: int, count: int, tally: Tally, say: Callable[[str], None] | None = None) -> None:
    """Made-up mixes of layers."""
    config = mix_config()
    for seed in range(first, first + count):
        specs, available, limits, hybrid, override = random_mix(seed)
        ours = planned(specs, available, limits, hybrid, override)
        real = plan_mix(config, specs, available, limits, hybrid, override)
        tally.compared += 1
        tally.refused += "refused" in real
        difference = both(ours, real)
        if difference:
            tally.differences.append(f"mix {seed}: {difference}")
        if say and (seed - first) % 500 == 499:
            say(f"{seed - first + 1} mixes, {len(tally.differences)} differences")


def mix_config() -> Any:
    """A configuration of vLLM to which the layers do not belong."""
    q = Question("llama-3.2-1b", max_model_len=4096)
    return ask_vllm(q).config


def plan_mix(
    config: Any, specs: list[Any], available: int, limits: Limits, hybrid: bool, override: int | None
) -> dict[str, Any]:
    """vLLM's plan for made-up layers."""
    config.model_config.max_model_len = limits.max_model_len
    batches = max(1, limits.in_flight_tokens // limits.encoder_tokens)
    config.scheduler_config.max_num_batched_tokens = limits.encoder_tokens
    config.scheduler_config.max_num_encoder_input_tokens = limits.encoder_tokens
    config.scheduler_config.async_scheduling = batches == 2
    config.scheduler_config.disable_hybrid_kv_cache_manager = not hybrid
    config.cache_config.num_gpu_blocks_override = override
    modes = {s.mamba_cache_mode for s in specs if s.kind == "mamba"}
    config.cache_config.mamba_cache_mode = next(iter(modes), "none")
    return real_plan(config, {f"layer.{i}": to_vllm(s) for i, s in enumerate(specs)}, available)
