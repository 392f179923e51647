"""From simulated numbers to sentences: each sentence carries the numbers that it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sim.advice.metrics import METRICS, Metric
from sim.advice.pairs import Paired, paired
from sim.advice.search import BASE, Found, Plan, broken
from sim.advice.settings import Candidate, Space, as_json, serve_flags, show
from sim.report.units import plural


@dataclass(frozen=True)
class Evidence:
    """A comparison of two settings in one metric over the same seeds."""

    metric: Metric
    before: Candidate
    after: Candidate
    seeds: tuple[int, ...]
    numbers: Paired

    @property
    def gain(self) -> float:
        """Relative gain, positive when better; the plain difference where the first mean is 0."""
        n = self.numbers
        change = n.difference if n.relative is None else n.relative
        return -change if self.metric.lower_is_better else change

    @property
    def sure_better(self) -> bool:
        """The whole interval is on the better side; without an interval, the difference is."""
        n = self.numbers
        low, high = (n.difference, n.difference) if n.low is None or n.high is None else (n.low, n.high)
        return high < 0 if self.metric.lower_is_better else low > 0

    @property
    def sure_worse(self) -> bool:
        """The whole interval is on the worse side; without an interval, the difference is."""
        n = self.numbers
        low, high = (n.difference, n.difference) if n.low is None or n.high is None else (n.low, n.high)
        return low > 0 if self.metric.lower_is_better else high < 0

    def text(self) -> str:
        """`4.2 s -> 3.1 s (-26.2 %; 95 % interval -30.1 % .. -22.3 %; 8 seeds)`."""
        n, show_value = self.numbers, self.metric.show
        parts = [_percent(n.difference, n.base, show_value)]
        if n.low is not None and n.high is not None:
            low, high = (_percent(x, n.base, show_value) for x in (n.low, n.high))
            level = f"{100 * n.level:.4g} % interval {low} .. {high}"
            parts.append(
                level + (f", corrected for {n.comparisons} comparisons" if n.comparisons > 1 else "")
            )
            parts.append(plural(n.n, "seed"))
        else:
            parts.append(plural(n.n, "run") + " each, no interval")
        return f"{show_value(n.base)} -> {show_value(n.new)} ({'; '.join(parts)})"

    def as_json(self, space: Space) -> dict[str, Any]:
        """All numbers of the comparison."""
        n = self.numbers
        return {
            "metric": self.metric.name,
            "lower_is_better": self.metric.lower_is_better,
            "before": as_json(self.before, space.base),
            "after": as_json(self.after, space.base),
            "seeds": list(self.seeds),
            "mean_before": n.base,
            "mean_after": n.new,
            "difference": n.difference,
            "relative": n.relative,
            "interval": None if n.low is None else [n.low, n.high],
            "level": None if n.low is None else n.level,
            "comparisons": n.comparisons,
        }


def _percent(difference: float, base: float, show_value: Any) -> str:
    if base:
        return f"{100 * difference / abs(base):+.1f} %"
    sign = "+" if difference >= 0 else ""
    return f"{sign}{show_value(difference)}"


@dataclass(frozen=True)
class Sentence:
    """A sentence of advice and what it rests on; `kind` is verdict, gain, share, constraint, cost or note."""

    kind: str
    text: str
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """`change` or `keep`, with the reasons."""

    change: bool
    candidate: Candidate
    sentences: tuple[Sentence, ...]

    def flags(self, space: Space) -> list[str]:
        """Changed settings as `vllm serve` takes them."""
        return serve_flags(self.candidate, space) if self.change else []


def compare(
    found: Found,
    metric: Metric,
    before: Candidate,
    after: Candidate,
    seeds: Sequence[int],
    level: float,
    comparisons: int = 1,
) -> Evidence | None:
    """Paired comparison, None if the metric is missing in one of the runs."""
    a, b = found.values(before, metric.name, seeds), found.values(after, metric.name, seeds)
    if not a or not b:
        return None
    return Evidence(metric, before, after, tuple(seeds), paired(a, b, level, comparisons))


def judged_seeds(found: Found, plan: Plan) -> tuple[int, ...]:
    """Seeds on which the winner is judged: the confirmation's that have whole pairs, or the one run."""
    if not plan.confirm:
        return plan.screen
    wanted = [BASE, found.winner]
    return tuple(s for s in plan.confirm if all((c, s) in found.done for c in wanted))


def judge(found: Found, plan: Plan, space: Space) -> Verdict:
    """The advice that the simulations give."""
    verdict = _judge(found, plan, space)
    if verdict.change:
        return verdict
    return Verdict(False, verdict.candidate, (*verdict.sentences, *_as_configured(found, plan)))


def _as_configured(found: Found, plan: Plan) -> list[Sentence]:
    """Whether the config that is kept meets the constraints."""
    out = []
    for constraint in plan.constraints:
        e = compare(found, constraint.metric, BASE, BASE, plan.screen, plan.level)
        if e is not None:
            met = "meets" if constraint.broken_by(e.numbers.base) == 0 else "breaks"
            text = f"As configured it {met} {constraint}: {e.metric.label} {e.metric.show(e.numbers.base)}"
            text += f" (mean of {plural(e.numbers.n, 'seed')})."
            out.append(Sentence("constraint", text, (e,)))
    return out


def _judge(found: Found, plan: Plan, space: Space) -> Verdict:
    if found.winner == BASE:
        return _nothing_better(found, plan)
    seeds = judged_seeds(found, plan)
    if found.interrupted and (not seeds or (plan.confirm and len(seeds) < 2)):
        text = f"Not confirmed: interrupted before fresh seeds could try {found.winner}. Keep what you have."
        return Verdict(
            False, found.winner, (Sentence("verdict", text, _screened(found, plan, found.winner)),)
        )
    target = _target(found, plan, seeds)
    gain = compare(found, target, BASE, found.winner, seeds, plan.level)
    left = broken(found, plan, found.winner, seeds)
    base_broken = broken(found, plan, BASE, seeds)
    if gain is None or not _worth(gain, plan, left, base_broken):
        return _not_confirmed(found, plan, gain, left, base_broken)
    return _change(found, plan, space, seeds, gain, left)


def _worth(gain: Evidence, plan: Plan, left: float, base_broken: float) -> bool:
    if not gain.sure_better:
        return False
    return left < base_broken if base_broken > 0 else left == 0 and gain.gain >= plan.min_gain


def _target(found: Found, plan: Plan, seeds: Sequence[int]) -> Metric:
    """The objective, or the first constraint's metric that the config itself breaks."""
    for constraint in plan.constraints:
        if constraint.broken_by(found.mean(BASE, constraint.metric.name, seeds)) > 0:
            return constraint.metric
    return plan.objective


def _screened(found: Found, plan: Plan, candidate: Candidate) -> tuple[Evidence, ...]:
    evidence = compare(
        found, plan.objective, BASE, candidate, plan.screen, plan.level, max(1, len(found.tried) - 1)
    )
    return (evidence,) if evidence else ()


def _nothing_better(found: Found, plan: Plan) -> Verdict:
    ran = [c for c in found.tried if c != BASE and found.values(c, plan.objective.name, plan.screen)]
    name = plan.objective.label
    if not ran:
        why = "interrupted before a candidate was tried" if found.interrupted else "no candidate could be run"
        return Verdict(False, BASE, (Sentence("verdict", f"Keep what you have: {why}."),))
    evidence = [e for c in ran for e in _screened(found, plan, c)]
    best = max(evidence, key=lambda e: e.gain)
    if found.interrupted:
        text = (
            f"Undecided, so keep what you have: interrupted after {len(ran)} of"
            f" {plural(len(found.tried) - 1, 'change')} to try; the best so far, {best.after}, has a"
            f" {name} of {best.text()} in the search, not confirmed on fresh seeds."
        )
    elif all(e.numbers.difference == 0 for e in evidence):
        text = f"Keep what you have: none of {plural(len(ran), 'tried change')} changes the {name}."
    else:
        text = f"Keep what you have: of {plural(len(ran), 'tried change')} none improves the {name}"
        if best.gain <= 0:
            text += f"; the nearest is {best.after}: {best.text()}."
        elif best.gain < plan.min_gain:
            text += f" by {100 * plan.min_gain:g} % or more; the most gives {best.after}: {best.text()}."
        else:
            return _barred(found, plan, best, text)
    return Verdict(False, BASE, (Sentence("verdict", text, (best,)),))


def _barred(found: Found, plan: Plan, best: Evidence, text: str) -> Verdict:
    """What would gain most breaks a constraint."""
    limits = [c.metric for c in plan.constraints] or [METRICS["finished"]]
    pairs = [
        compare(found, m, BASE, best.after, plan.screen, plan.level, best.numbers.comparisons) for m in limits
    ]
    broken_by = [e for e in pairs if e is not None]
    bounds = " and ".join(str(c) for c in plan.constraints) or "as many finished requests"
    shown = "; ".join(f"{e.metric.label} {e.text()}" for e in broken_by)
    text += f" within the constraints ({bounds}). {best.after} would give {best.text()},"
    text += f" but breaks them: {shown}."
    return Verdict(False, BASE, (Sentence("verdict", text, (best, *broken_by)),))


def _not_confirmed(
    found: Found, plan: Plan, gain: Evidence | None, left: float, base_broken: float
) -> Verdict:
    searched = _screened(found, plan, found.winner)
    if gain is None:
        text = f"Keep what you have: {found.winner} could not be run on fresh seeds."
        return Verdict(False, found.winner, (Sentence("verdict", text, searched),))
    if not gain.sure_better:
        why = "its gain is not confirmed on fresh seeds"
    elif left > 0 and left >= base_broken:
        why = "it breaks a constraint, or leaves requests unfinished, on fresh seeds"
    else:
        why = f"its gain is smaller than the {100 * plan.min_gain:g} % that a change is worth"
    text = (
        f"Keep what you have: {found.winner} looked best in the search, but {why}:"
        f" {gain.metric.label} {gain.text()}."
    )
    return Verdict(False, found.winner, (Sentence("verdict", text, (gain, *searched)),))


def _change(
    found: Found, plan: Plan, space: Space, seeds: tuple[int, ...], gain: Evidence, left: float
) -> Verdict:
    winner = found.winner
    what = "; ".join(f"{_verb(n, v, space)}" for n, v in winner.changes)
    sentences = [
        Sentence("verdict", f"{what[0].upper()}{what[1:]}.", (gain,)),
        Sentence("gain", f"The gain, in {gain.metric.label}: {gain.text()}.", (gain,)),
    ]
    if gain.metric != plan.objective:
        objective = compare(found, plan.objective, BASE, winner, seeds, plan.level)
        if objective:
            text = f"And in {plan.objective.label}: {objective.text()}."
            sentences.append(Sentence("gain", text, (objective,)))
    sentences += _shares(found, plan, space, seeds, gain.metric)
    for constraint in plan.constraints:
        e = compare(found, constraint.metric, BASE, winner, seeds, plan.level)
        if e:
            met = "met" if constraint.broken_by(e.numbers.new) == 0 else "still broken"
            text = f"Constraint {constraint} is {met}: {constraint.metric.label} {e.text()}."
            sentences.append(Sentence("constraint", text, (e,)))
    sentences += _costs(found, plan, space, seeds, gain.metric)
    if found.interrupted:
        note = f"Interrupted: confirmed on {len(seeds)} of {plural(len(plan.confirm), 'fresh seed')}."
        sentences.append(Sentence("note", note, (gain,)))
    if left > 0:
        text = "No tried setting keeps all constraints; this one comes nearest."
        sentences.append(Sentence("constraint", text, (gain,)))
    return Verdict(True, winner, tuple(sentences))


def _verb(name: str, value: Any, space: Space) -> str:
    before = space.base[name]
    if isinstance(value, bool):
        return f"turn {name} {'on' if value else 'off'}"
    return f"{'raise' if value > before else 'lower'} {name} from {show(before)} to {show(value)}"


def _shares(found: Found, plan: Plan, space: Space, seeds: tuple[int, ...], metric: Metric) -> list[Sentence]:
    """What each of several changes is worth in the company of the others."""
    out = []
    for name, less in found.without.items():
        e = compare(found, metric, less, found.winner, seeds, plan.level, len(found.without))
        if e is None:
            continue
        value = show(dict(found.winner.changes)[name])
        surely = "" if e.sure_better else "; not measurable on its own"
        text = f"Of this, {name}={value} (with against without it, the rest in place): {e.text()}{surely}."
        out.append(Sentence("share", text, (e,)))
    return out


def _costs(found: Found, plan: Plan, space: Space, seeds: tuple[int, ...], target: Metric) -> list[Sentence]:
    """The metrics that get worse, and the memory that is taken."""
    asked = [m for m in METRICS.values() if m.cost and m not in (target, plan.objective)]
    pairs = [compare(found, m, BASE, found.winner, seeds, plan.level, len(asked)) for m in asked]
    compared = [e for e in pairs if e is not None]
    worse = [e for e in compared if e.sure_worse]
    out = [Sentence("cost", f"It costs: {e.metric.label} {e.text()}.", (e,)) for e in worse]
    if "gpu_memory_utilization" in dict(found.winner.changes):
        e = compare(found, METRICS["pool_bytes"], BASE, found.winner, seeds, plan.level)
        if e:
            text = f"It takes GPU memory that was free: {e.metric.label} {e.metric.show(e.numbers.base)} ->"
            out.append(Sentence("cost", f"{text} {e.metric.show(e.numbers.new)} on all GPUs.", (e,)))
    if not worse:
        text = f"None of {plural(len(compared), 'other metric')} gets measurably worse."
        out.append(Sentence("cost", text, tuple(compared)))
    return out


__all__ = ["Evidence", "Sentence", "Verdict", "compare", "judge", "judged_seeds"]
