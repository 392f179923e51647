"""Recorded answers of vLLM's planner, which `make test` compares with ours where there is no vLLM."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from sim.models import find_model
from sim.results import write_bytes
from validation.sizing.ours import our_plan, planned
from validation.sizing.questions import memories, questions, random_mix
from validation.sizing.real_layers import Question

#: Of a model's questions every n-th is kept, all with drafters, and of each the memories with these places
#: in `memories`.
KEEP_QUESTION, KEEP_MEMORY = 3, (0, 2, 5)


def record_answers(path: Path, models: list[str], mixes: int, seed: int) -> int:
    """Write vLLM's answers; returns their number."""
    from validation.sizing.compare import ask_vllm, mix_config, plan_mix, plans

    answers: list[dict[str, Any]] = []
    for model in models:
        for i, q in enumerate(questions(model)):
            if i % KEEP_QUESTION and q.speculative_method is None:
                continue
            kept = [pair for j, pair in enumerate(plans(q, ask_vllm(q))) if j in KEEP_MEMORY]
            answers += [{"question": _said(m), "vllm": _compact(real)} for m, real in kept]
    config = mix_config()
    for s in range(seed, seed + mixes):
        answers.append({"mix": s, "vllm": _compact(plan_mix(config, *random_mix(s)))})
    lines = ",\n".join(json.dumps(a, separators=(",", ":")) for a in answers)
    write_bytes(path, f'{{"vllm": "0.32.0", "answers": [\n{lines}\n]}}\n'.encode())
    return len(answers)


def _said(q: Question) -> dict[str, Any]:
    default = asdict(Question(q.model))
    return {k: v for k, v in asdict(q).items() if k == "model" or v != default[k]}


def _compact(plan: dict[str, Any]) -> dict[str, Any]:
    """A refusal without its words; groups with the layers as ranges where they are evenly spaced."""
    if "refused" in plan:
        return {"refused": True}
    return {**plan, "groups": [{**g, "layers": _ranges(g["layers"])} for g in plan["groups"]]}


def _ranges(layers: list[int]) -> list[int] | list[list[int]]:
    if len(layers) < 3:
        return layers
    step = layers[1] - layers[0]
    even = all(b - a == step for a, b in pairwise(layers))
    return [[layers[0], layers[-1], step]] if even else layers


def answers(path: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(what was asked, vLLM's answer, ours) of each recorded answer."""
    for item in json.loads(path.read_text(encoding="utf-8"))["answers"]:
        if "mix" in item:
            ours = planned(*random_mix(item["mix"]))
            yield f"mix {item['mix']}", item["vllm"], _compact(ours)
            continue
        q = Question(**item["question"])
        shape = find_model(q.model)
        assert shape is not None
        yield str(item["question"]), item["vllm"], _compact(our_plan(q, shape))


__all__ = ["answers", "memories", "record_answers"]
