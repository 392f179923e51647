"""Recorded answers of vLLM's planners, which `make test` compares with ours where there is no vLLM."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from sim.models import find_model
from sim.profiles import DEFAULT_RELEASE, Rules, rules_of
from sim.results import write_bytes
from sim.sizing.plan import Limits
from sim.switches import release_key
from validation.releases import Worker
from validation.sizing.answer import Answer
from validation.sizing.ours import our_engine, our_plan, planned
from validation.sizing.questions import memories, questions, random_mix, short_list
from validation.sizing.real_layers import Question

#: Of a model's questions every n-th is kept, all with drafters, and of each the memories with these places
#: in `memories`.
KEEP_QUESTION, KEEP_MEMORY = 3, (0, 2, 5)
#: The same of the short list of other releases.
KEEP_OF_RELEASES = (1, 3, 5)


def record_answers(path: Path, models: list[str], mixes: int, seed: int) -> int:
    """Write the answers of the release that is the default; returns their number."""
    answers: list[dict[str, Any]] = []
    with Worker(DEFAULT_RELEASE) as worker:
        for model in models:
            for i, q in enumerate(questions(model)):
                if i % KEEP_QUESTION and q.speculative_method is None:
                    continue
                kept = [m for j, m in enumerate(memories(q)) if j in KEEP_MEMORY]
                plans = _ask(worker, q, kept).plans
                answers += [
                    {"question": _said(m), "vllm": _compact(p)} for m, p in zip(kept, plans, strict=True)
                ]
        seeds = range(seed, seed + mixes)
        found = worker.ask("mixes", [random_mix(s) for s in seeds])
        assert isinstance(found, list)
        answers += [{"mix": s, "vllm": _compact(p)} for s, p in zip(seeds, found, strict=True)]
        version = worker.version
    _write(path, {"vllm": version}, answers)
    return len(answers)


def record_releases(path: Path, releases: Sequence[str], folder: Path | None, seeds: range) -> int:
    """Write the answers of several releases to the short list and to mixes; returns their number.

    An answer stands once, with the first of the releases that gives it; null: it is not asked there.
    """
    found: dict[str, dict[str, Any]] = {}
    for release in releases:
        with Worker(release, folder) as worker:
            for key, answer in _answers_of(worker, seeds):
                found.setdefault(key, {})[release] = answer
    answers: list[dict[str, Any]] = []
    for key, by_release in found.items():
        since: list[list[Any]] = []
        for release in releases:
            known = by_release.get(release)
            if not since or since[-1][1] != known:
                since.append([release, known])
        answers.append(json.loads(key) | {"since": since})
    _write(path, {"releases": list(releases)}, answers)
    return len(answers)


def _answers_of(worker: Worker, seeds: range) -> Iterator[tuple[str, dict[str, Any]]]:
    for q in short_list(worker.release):
        kept = [m for j, m in enumerate(memories(q)) if j in KEEP_OF_RELEASES]
        answer = _ask(worker, q, kept)
        if answer.not_built is None:
            for m, plan in zip(kept, answer.plans, strict=True):
                yield _key(question=_said(m)), _compact(plan) | _facts(answer.engine, plan)
    mixes = worker.ask("mixes", [random_mix(s, worker.release) for s in seeds])
    assert isinstance(mixes, list)
    for seed, plan in zip(seeds, mixes, strict=True):
        yield _key(mix=seed), _compact(plan)


def _ask(worker: Worker, q: Question, kept: list[Question]) -> Answer:
    answer = worker.ask("sizing", q, kept)
    assert isinstance(answer, Answer)
    return answer


def _facts(engine: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    """Prefix caching and mode belong to an answer that is no refusal."""
    return {} if "refused" in plan else {"engine": engine}


def _key(**what: Any) -> str:
    return json.dumps(what, separators=(",", ":"))


def _write(path: Path, head: dict[str, Any], answers: list[dict[str, Any]]) -> None:
    lines = ",\n".join(json.dumps(a, separators=(",", ":")) for a in answers)
    write_bytes(path, f'{json.dumps(head)[:-1]}, "answers": [\n{lines}\n]}}\n'.encode())


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


class RecordedReleases:
    """The file of `record_releases`."""

    def __init__(self, path: Path) -> None:
        data = json.loads(path.read_text(encoding="utf-8"))
        self.releases: list[str] = data["releases"]
        self._answers: list[dict[str, Any]] = data["answers"]

    def answers(
        self, release: str, rules: Rules | None = None
    ) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """(what was asked, the release's answer, ours) of each answer of a release.

        rules: others than the release's.
        """
        rules = rules or rules_of(release)
        for item in self._answers:
            passed = [a for r, a in item["since"] if release_key(r) <= release_key(release)]
            real = passed[-1] if passed else None
            if real is None:
                continue
            if "mix" in item:
                specs, available, limits, hybrid, override = random_mix(item["mix"], release)
                ours = planned(specs, available, _under(limits, rules), hybrid, override)
                yield f"{release} mix {item['mix']}", real, _compact(ours)
                continue
            q = Question(**item["question"])
            shape = find_model(q.model)
            assert shape is not None
            plan = our_plan(q, shape, rules)
            yield (
                f"{release} {item['question']}",
                real,
                _compact(plan) | _facts(our_engine(q, shape, rules), plan),
            )


def _under(limits: Limits, rules: Rules) -> Limits:
    return replace(limits, rules=rules)


__all__ = ["RecordedReleases", "answers", "record_answers", "record_releases"]
