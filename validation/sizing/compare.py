"""Both planners on the same questions, and what differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sim.models import find_model
from sim.profiles import rules_of
from sim.sizing.budget import weight_bytes
from validation.releases import Worker
from validation.sizing.answer import Answer
from validation.sizing.ours import our_drafter, our_engine, our_plan, planned
from validation.sizing.questions import memories, questions, random_mix
from validation.sizing.real_layers import Question

#: Largest relative distance of the weights; norms and padded vocabularies are what differs.
WEIGHT_TOLERANCE = 0.01
#: Mixes in one message.
_BATCH = 200


@dataclass
class Tally:
    """What was compared, and what differed.

    Attributes:
        compared: number of plans.
        refused: of them, those that both planners refuse.
        not_built: questions whose layers are ours, because the release's classes can't be built here.
        weights: model and GPUs -> (real bytes, ours).
        differences: sentences.
    """

    compared: int = 0
    refused: int = 0
    not_built: list[str] = field(default_factory=list)
    weights: dict[str, tuple[int, int]] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)

    @property
    def worst_weights(self) -> float:
        """The largest relative distance of a weights estimate."""
        return max((abs(b - a) / a for a, b in self.weights.values()), default=0.0)

    def add(self, what: str, ours: dict[str, Any], real: dict[str, Any]) -> None:
        """One pair of plans."""
        self.compared += 1
        self.refused += "refused" in real
        difference = both(ours, real)
        if difference:
            self.differences.append(f"{what}: {difference}")


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


def compare_model(worker: Worker, model: str, tally: Tally, every: int = 1) -> None:
    """Every so many-th question about one model."""
    for i, q in enumerate(questions(model, worker.release)):
        if i % every == 0:
            compare_question(worker, q, tally)


def compare_question(worker: Worker, q: Question, tally: Tally) -> None:
    """One question, with all sizes of memory."""
    shape = find_model(q.model)
    assert shape is not None
    rules = rules_of(worker.release)
    asked = list(memories(q))
    answer = worker.ask("sizing", q, asked)
    assert isinstance(answer, Answer)
    where = f"{worker.version} {_where(q)}"
    if answer.not_built is not None:
        tally.not_built.append(f"{where}: {answer.not_built}")
    if answer.engine and (ours := our_engine(q, shape, rules)) != answer.engine:
        tally.differences.append(f"{where}: vLLM has {answer.engine}, ours {ours}")
    _compare_weights(q, answer, tally)
    if not answer.plans:
        return
    for m, real in zip(asked, answer.plans, strict=True):
        tally.add(f"{where}, {m.available_bytes} bytes", our_plan(m, shape, rules), real)


def _compare_weights(q: Question, answer: Answer, tally: Tally) -> None:
    shape = find_model(q.model)
    assert shape is not None
    if answer.parameter_bytes:
        both_weights = (answer.parameter_bytes, _our_parameter_bytes(q, q.model))
        tally.weights[f"{q.model} x{q.tensor_parallel_size}"] = both_weights
    drafter = our_drafter(q, shape)
    if (
        answer.drafter_bytes
        and drafter is not None
        and (drafter is shape.mtp or drafter.vocab == shape.vocab)
    ):
        plain = replace(drafter, quantization=None, params=replace(drafter.params, absorbed=0, tower=0))
        ours = weight_bytes(plain, q.tensor_parallel_size, None)
        name = f"{q.model} x{q.tensor_parallel_size} {q.speculative_method} {q.speculative_model}"
        tally.weights[name] = (answer.drafter_bytes, ours)


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


def compare_mixes(
    worker: Worker, first: int, count: int, tally: Tally, say: Callable[[str], None] | None = None
) -> None:
    """Made-up mixes of layers."""
    for begin in range(first, first + count, _BATCH):
        seeds = range(begin, min(begin + _BATCH, first + count))
        mixes = [random_mix(seed, worker.release) for seed in seeds]
        answers = worker.ask("mixes", mixes)
        assert isinstance(answers, list)
        for seed, mix, real in zip(seeds, mixes, answers, strict=True):
            tally.add(f"{worker.version} mix {seed}", planned(*mix), real)
        if say:
            say(f"{seeds[-1] + 1 - first} mixes, {len(tally.differences)} differences")
