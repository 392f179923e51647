"""The search: one setting at a time with few seeds, then combinations of what helped, then fresh seeds.

Every candidate meets the same seeds as the config itself (common random numbers), so differences are taken
pair by pair. The winner of the search is the best of many and its screened gain therefore flattering; what is
reported is its gain over seeds that the search has not seen. Nothing here knows of a rule of thumb: a setting
enters the advice because runs with it were better, and for no other reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sim.advice.evaluate import Job, Outcome
from sim.advice.metrics import METRICS, Constraint, Metric
from sim.advice.settings import SETTINGS, Candidate, Space, Value, further

BASE = Candidate()

#: Requests that a candidate may leave unfinished beyond what the config does, as a share of the finished.
FINISHED_TOLERANCE = 0.01


@dataclass(frozen=True)
class Plan:
    """What is wanted, and how much is spent on it.

    Attributes:
        objective: the metric to improve.
        constraints: bounds on means over seeds that a recommended config must keep.
        screen: seeds of the search.
        confirm: seeds of the confirmation, none of them in ``screen``; () if a seed changes nothing.
        level: confidence of the intervals.
        min_gain: smaller relative gains are not worth a change.
        max_runs: simulations of the search; the confirmation comes on top.
    """

    objective: Metric
    constraints: tuple[Constraint, ...]
    screen: tuple[int, ...]
    confirm: tuple[int, ...]
    level: float = 0.95
    min_gain: float = 0.01
    max_runs: int = 200


@dataclass
class Found:
    """What the search has found so far; complete when ``stage`` is "done".

    Attributes:
        done: every simulation's metrics, or why the candidate can't run, by (candidate, seed).
        tried: candidates in the order in which they were screened, the config itself first.
        winner: the best candidate of the search; the config itself if nothing was better.
        without: the winner without each one of its changes, when it has several.
        stage: "screening", "combining", "confirming" or "done".
        out_of_runs: candidates that were left out because ``max_runs`` was reached.
        interrupted: Ctrl-C came.
    """

    done: dict[Job, Outcome]
    tried: list[Candidate] = field(default_factory=list)
    winner: Candidate = BASE
    without: dict[str, Candidate] = field(default_factory=dict)
    stage: str = "screening"
    out_of_runs: int = 0
    interrupted: bool = False

    def values(self, candidate: Candidate, metric: str, seeds: Sequence[int]) -> list[float] | None:
        """The metric by seed, None if one is missing."""
        out = []
        for seed in seeds:
            outcome = self.done.get((candidate, seed))
            if not isinstance(outcome, Mapping) or metric not in outcome:
                return None
            out.append(outcome[metric])
        return out

    def mean(self, candidate: Candidate, metric: str, seeds: Sequence[int]) -> float | None:
        """Mean of the metric over seeds, None if one is missing."""
        values = self.values(candidate, metric, seeds)
        return math.fsum(values) / len(values) if values else None

    def refusal(self, candidate: Candidate) -> str | None:
        """Why the candidate can't run, or None."""
        return next((o for (c, _), o in self.done.items() if c == candidate and isinstance(o, str)), None)


class Search:
    """See ``search``."""

    def __init__(self, space: Space, plan: Plan, run: Callable[[Sequence[Job]], None], found: Found) -> None:
        self.space, self.plan, self.run, self.found = space, plan, run, found

    def score(self, candidate: Candidate) -> tuple[float, float]:
        """(how far constraints are broken, objective with the smaller the better) over the search's seeds."""
        seeds, sign = self.plan.screen, 1.0 if self.plan.objective.lower_is_better else -1.0
        value = self.found.mean(candidate, self.plan.objective.name, seeds)
        if value is None:
            return math.inf, math.inf
        return broken(self.found, self.plan, candidate, seeds), sign * value

    def better(self, new: Candidate, old: Candidate) -> bool:
        """Whether ``new`` is better than ``old`` by at least the smallest gain that counts."""
        (broken_new, value_new), (broken_old, value_old) = self.score(new), self.score(old)
        if broken_new != broken_old:
            return broken_new < broken_old
        gain = value_old - value_new
        return gain > 0 and gain >= self.plan.min_gain * abs(value_old)

    def screen(self, candidates: Sequence[Candidate]) -> None:
        """Run candidates over the search's seeds, as far as the budget goes."""
        new = [c for c in dict.fromkeys(candidates) if c not in self.found.tried]
        left = self.plan.max_runs // len(self.plan.screen) - len(self.found.tried)
        self.found.out_of_runs += max(0, len(new) - left)
        new = new[: max(0, left)]
        self.found.tried += new
        self.run([(c, seed) for c in new for seed in self.plan.screen])

    def search(self) -> None:
        """Find the winner and confirm it; everything known is in ``found`` at any time."""
        found, space = self.found, self.space
        names = [n for n in SETTINGS if space.tried.get(n)]
        rounds = max((len(space.tried[n]) for n in names), default=0)
        singles = [
            BASE.having(n, space.tried[n][i]) for i in range(rounds) for n in names if i < len(space.tried[n])
        ]
        self.screen([BASE, *singles])
        bests = [b for b in (self._best_of(n) for n in names) if b is not None]
        found.stage = "combining"
        bests.sort(key=lambda c: (self.score(c), str(c)))
        if bests:
            found.winner = bests[0]
            self._combine(bests[1:])
            self._refine()
            self._prune()
            found.stage = "confirming"
            self._confirm()
        found.stage = "done"

    def _best_of(self, name: str) -> Candidate | None:
        """The best value of one setting, followed beyond the tried range while it pays."""
        tried = [BASE.having(name, v) for v in self.space.tried[name]]
        known = [c for c in tried if c in self.found.tried]
        if not known:
            return None
        best = min(known, key=lambda c: (self.score(c), str(c)))
        if not self.better(best, BASE):
            return None
        value: Value | None = best.changes[0][1]
        if value in (self.space.tried[name][0], self.space.tried[name][-1]):
            while value is not None and (value := further(self.space, name, value)) is not None:
                beyond = BASE.having(name, value)
                self.screen([beyond])
                if beyond not in self.found.tried or not self.better(beyond, best):
                    break
                best = beyond
        return best

    def _combine(self, others: Sequence[Candidate]) -> None:
        """Add what helped alone to the winner, where it still helps there."""
        for single in others:
            name, value = single.changes[0]
            together = self.found.winner.having(name, value)
            self.screen([together])
            if self.better(together, self.found.winner):
                self.found.winner = together

    def _refine(self) -> None:
        """With several changes: one round through the other values of each, in the company of the rest."""
        if len(self.found.winner.changes) < 2:
            return
        for name, _ in self.found.winner.changes:
            others = [self.found.winner.having(name, v) for v in self.space.tried[name]]
            self.screen(others)
            best = min((c for c in others if c in self.found.tried), key=self.score, default=None)
            if best is not None and self.better(best, self.found.winner):
                self.found.winner = best

    def _prune(self) -> None:
        """Take back changes without which the winner is as good."""
        for name, _ in self.found.winner.changes:
            if len(self.found.winner.changes) < 2:
                return
            less = self.found.winner.having(name, None)
            self.screen([less])
            if less in self.found.tried and not self.better(self.found.winner, less):
                self.found.winner = less

    def _confirm(self) -> None:
        winner = self.found.winner
        if len(winner.changes) > 1:
            self.found.without = {name: winner.having(name, None) for name, _ in winner.changes}
        if not self.plan.confirm:
            self.screen(list(self.found.without.values()))
            return
        candidates = [BASE, winner, *self.found.without.values()]
        # seed by seed, so that an interruption leaves whole pairs
        self.run([(c, seed) for seed in self.plan.confirm for c in candidates])


def broken(found: Found, plan: Plan, candidate: Candidate, seeds: Sequence[int]) -> float:
    """How far the candidate breaks the constraints, and the standing one that as many requests finish."""
    total = math.fsum(c.broken_by(found.mean(candidate, c.metric.name, seeds)) for c in plan.constraints)
    finished, of_base = (found.mean(c, "finished", seeds) for c in (candidate, BASE))
    if finished is not None and of_base:
        total += max(0.0, (1 - FINISHED_TOLERANCE) - finished / of_base)
    return total


def search(space: Space, plan: Plan, run: Callable[[Sequence[Job]], None], found: Found) -> Found:
    """Search for better settings; ``run`` fills ``found.done``. Ctrl-C keeps what is known."""
    try:
        Search(space, plan, run, found).search()
    except KeyboardInterrupt:
        found.interrupted = True
        if found.stage in ("screening", "combining"):
            found.winner = BASE
    return found


__all__ = ["BASE", "METRICS", "Found", "Plan", "Search", "broken", "search"]
