"""Advice as text for a terminal and as JSON."""

from __future__ import annotations

import re
import shlex
import textwrap
from typing import Any

from sim.advice.search import BASE, Found, Plan
from sim.advice.settings import Space, as_json
from sim.advice.verdict import Verdict, compare, judged_seeds
from sim.report.units import plural

WIDTH = 100

NOT_SIMULATED = (
    "The simulation knows block tables, scheduling and the step-time model. It does not know how fast an"
    " attention kernel is at another block size, nor memory that another process takes."
)

NO_CONFIDENCE = (
    "A seed changes nothing in this workload (a trace as it stands), so each setting was simulated once: the"
    " differences are exact for this trace, and no confidence can be given for other traffic."
)


def _goal(plan: Plan) -> str:
    m = plan.objective
    text = f"{'lowest' if m.lower_is_better else 'highest'} {m.label} ({m.name})"
    bounds = [str(c) for c in plan.constraints]
    return text + (f", with {' and '.join(bounds)}" if bounds else "")


def _method(found: Found, plan: Plan) -> str:
    searched = plural(len(found.tried), "setting") + f" on {plural(len(plan.screen), 'seed')}"
    runs = plural(len(found.done), "simulation")
    if not plan.confirm:
        return f"searched {searched}, {runs}"
    if found.winner == BASE:
        return f"searched {searched} (the same for all), {runs}"
    judged = plural(len(judged_seeds(found, plan)), "fresh seed")
    return f"searched {searched} (the same for all), best one judged on {judged}, {runs}"


def text(
    name: str, config: str, found: Found, plan: Plan, space: Space, verdict: Verdict, fleet: str = ""
) -> str:
    """The advice first, then what was tried; `fleet`: replicas and router, "" for one engine."""
    out = [f"{name}: {'CHANGE' if verdict.change else 'KEEP WHAT YOU HAVE'}"]
    out += _wrap(f"wanted: {_goal(plan)}", "  ")
    if fleet:
        out += _wrap(f"simulated: {fleet}; settings and flags are those of every replica", "  ")
    out += _wrap(f"{_method(found, plan)}; gains under {100 * plan.min_gain:g} % do not count", "  ")
    out.append("")
    for sentence in verdict.sentences:
        out += _wrap(sentence.text, "  ", "- ")
    if verdict.change:
        out += ["", "  vllm serve ... " + shlex.join(verdict.flags(space))]
    if not plan.confirm:
        out += ["", *_wrap(NO_CONFIDENCE, "  ")]
    out += ["", *_table(found, plan)]
    if found.out_of_runs:
        out += ["", *_wrap(f"{plural(found.out_of_runs, 'candidate')} left out: --runs was reached.", "  ")]
    if found.interrupted:
        out += ["", f"  INTERRUPTED while {found.stage}: this is what was known."]
    out += ["", *_wrap(NOT_SIMULATED, "  ")]
    return "\n".join(out) + "\n"


def _wrap(line: str, indent: str, bullet: str = "") -> list[str]:
    lines = textwrap.wrap(
        re.sub(r"(\d) (?=[a-zA-Z%]+ ?->|%)", "\\1\xa0", line).replace(" -> ", "\xa0->\xa0"),
        WIDTH,
        initial_indent=indent + bullet,
        subsequent_indent=indent + " " * len(bullet),
        break_on_hyphens=False,
        break_long_words=False,
    )
    return [part.replace("\xa0", " ") for part in lines]


def _table(found: Found, plan: Plan) -> list[str]:
    """What was tried, best first; intervals are corrected for the number of candidates."""
    m = plan.objective
    rows: list[tuple[float, str, str, str, str]] = []
    others = max(1, len(found.tried) - 1)
    for candidate in found.tried:
        e = compare(found, m, BASE, candidate, plan.screen, plan.level, others)
        if e is None:
            why = found.refusal(candidate)
            rows.append((float("inf"), str(candidate), "-", why or "not run", ""))
            continue
        n = e.numbers
        change, interval = "", ""
        if candidate != BASE:
            change = _relative(n.difference, n.base)
            if n.low is not None and n.high is not None:
                interval = f"{_relative(n.low, n.base)} .. {_relative(n.high, n.base)}"
        breaks = [
            f"breaks {c}"
            for c in plan.constraints
            if c.broken_by(found.mean(candidate, c.metric.name, plan.screen)) > 0
        ]
        rows.append((-e.gain, str(candidate), m.show(n.new), change, "  ".join([interval, *breaks])))
    rows.sort(key=lambda r: r[0])
    level = f" ({100 * plan.level:g} % for all together)" if len(plan.screen) > 1 else ""
    head = ("tried", m.name, "difference", f"interval{level}" if len(plan.screen) > 1 else "")
    wide = max(len(head[0]), *(len(r[1]) for r in rows), 0)
    high = max(len(head[1]), *(len(r[2]) for r in rows), 0)
    lines = [f"  {head[0]:<{wide}}  {head[1]:>{high}}  {head[2]:>10}  {head[3]}"]
    lines += [f"  {r[1]:<{wide}}  {r[2]:>{high}}  {r[3]:>10}  {r[4]}" for r in rows]
    return [line.rstrip() for line in lines]


def _relative(x: float, base: float) -> str:
    return f"{100 * x / abs(base):+.1f} %" if base else f"{x:+.4g}"


def data(name: str, config: str, found: Found, plan: Plan, space: Space, verdict: Verdict) -> dict[str, Any]:
    """Everything that the text says, with the numbers behind each sentence and every simulation."""
    return {
        "name": name,
        "config": config,
        "verdict": "change" if verdict.change else "keep",
        "changes": as_json(verdict.candidate, space.base) if verdict.change else {},
        "vllm_serve": verdict.flags(space),
        "advice": [
            {"kind": s.kind, "text": s.text, "evidence": [e.as_json(space) for e in s.evidence]}
            for s in verdict.sentences
        ],
        "plan": {
            "objective": plan.objective.name,
            "constraints": [str(c) for c in plan.constraints],
            "screening_seeds": list(plan.screen),
            "confirmation_seeds": list(plan.confirm),
            "seeds_matter": bool(plan.confirm),
            "level": plan.level,
            "min_gain": plan.min_gain,
            "max_runs": plan.max_runs,
        },
        "stage": found.stage,
        "interrupted": found.interrupted,
        "candidates_left_out": found.out_of_runs,
        "best_of_search": as_json(found.winner, space.base),
        "settings": {n: {"configured": space.base[n], "tried": list(space.tried[n])} for n in space.tried},
        "simulations": [
            {
                "changes": dict(candidate.changes),
                "seed": seed,
                **({"refused": o} if isinstance(o, str) else {"metrics": o}),
            }
            for (candidate, seed), o in found.done.items()
        ],
        "not_simulated": NOT_SIMULATED,
    }
