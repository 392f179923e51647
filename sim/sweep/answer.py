"""What the points say: means over seeds with intervals, the best point of each metric, the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sim.advice.metrics import ALIASES
from sim.advice.pairs import Paired, paired
from sim.report.confidence import LEVEL, Spread, spread, t_quantile
from sim.sweep.metrics import Named, find_metric
from sim.sweep.plan import Point
from sim.sweep.point import Failure, Result

Outcome = Result | Failure
#: What the Pareto front weighs against each other.
PARETO = ("waste", "hit_rate", "preemptions")


@dataclass(frozen=True)
class Row:
    """One point with one seed, as it ended."""

    point: Point
    seed: int
    content_id: str
    outcome: Outcome

    def value(self, metric: Named) -> float | None:
        """A metric; None if the point failed or has none."""
        return metric.of(self.outcome.summary) if isinstance(self.outcome, Result) else None


@dataclass(frozen=True)
class Cell:
    """A metric at a point, over its seeds.

    Attributes:
        values: by seed.
        spread: mean, standard deviation, least and most.
        half: half width of the 95 % interval of the mean (Student's t); None with one seed.
    """

    values: Mapping[int, float]
    spread: Spread
    half: float | None

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return self.spread.mean


@dataclass(frozen=True)
class Best:
    """The best point of a metric.

    Attributes:
        metric: which.
        point: of the best mean; the first, where several have it.
        cell: its values.
        equal: other points with the very same mean.
        rivals: other points whose difference to it is within noise, nearest first.
        next: the best of the points that are clearly worse, with the difference; None: there is none.
        level: confidence of the differences all together.
        comparisons: how many they are.
    """

    metric: Named
    point: Point
    cell: Cell
    equal: tuple[Point, ...]
    rivals: tuple[Point, ...]
    next: tuple[Point, Paired] | None
    level: float
    comparisons: int


class Grid:
    """All rows by point.

    Args:
        rows: in the order of points, then seeds.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.by_point: dict[int, list[Row]] = {}
        for row in rows:
            self.by_point.setdefault(row.point.index, []).append(row)
        self._cells: dict[tuple[str, int], Cell | None] = {}

    @property
    def points(self) -> list[Point]:
        """In order."""
        return [rows[0].point for rows in self.by_point.values()]

    @property
    def seeds(self) -> list[int]:
        """All seeds that a point has, in order of appearance."""
        return list(dict.fromkeys(r.seed for r in self.rows))

    def failed(self) -> list[Row]:
        """Rows without a result."""
        return [r for r in self.rows if isinstance(r.outcome, Failure)]

    def cell(self, metric: Named, point: Point) -> Cell | None:
        """A metric at a point; None if none of its runs has it."""
        where = (metric.name, point.index)
        if where not in self._cells:
            found = {r.seed: v for r in self.by_point[point.index] if (v := r.value(metric)) is not None}
            self._cells[where] = _cell(found) if found else None
        return self._cells[where]

    def has(self, metric: Named) -> bool:
        """Whether any point has the metric."""
        return any(self.cell(metric, p) is not None for p in self.points)

    def best(self, metric: Named, among: Sequence[Point] | None = None) -> Best | None:
        """The best point, `among` some or of all; None if none has the metric or neither way is better.

        Points are compared with the best one over the seeds that both have, pair by pair; the intervals are
        corrected for the number of comparisons (Bonferroni).
        """
        if not metric.better:
            return None
        points = {p.index: p for p in (self.points if among is None else among)}
        cells = {i: c for i, p in points.items() if (c := self.cell(metric, p)) is not None}
        if not cells:
            return None
        order = sorted(cells, key=lambda i: (-metric.better * cells[i].mean, i))
        top = order[0]
        equal = [i for i in order[1:] if cells[i].mean == cells[top].mean]
        others = [i for i in order[1:] if i not in equal]
        rivals: list[int] = []
        worse: tuple[int, Paired] | None = None
        for i in others:
            seeds = [s for s in cells[top].values if s in cells[i].values]
            if not seeds:
                continue
            a, b = ([cells[k].values[s] for s in seeds] for k in (top, i))
            pair = paired(a, b, LEVEL, max(1, len(others)))
            if _clear(pair, metric.better):
                worse = worse or (i, pair)
            elif pair.n > 1:
                rivals.append(i)
            else:
                worse = worse or (i, pair)
        return Best(
            metric,
            points[top],
            cells[top],
            tuple(points[i] for i in sorted(equal)),
            tuple(points[i] for i in rivals),
            None if worse is None else (points[worse[0]], worse[1]),
            LEVEL,
            max(1, len(others)),
        )

    def pareto(self) -> tuple[list[Named], list[Point]]:
        """The metrics weighed (those of `PARETO` that differ between points) and the points on the front.

        A point is on it if no other one is at least as good in every mean and better in one.
        """
        weighed = []
        for name in PARETO:
            metric = find_metric(ALIASES.get(name, name))
            means = {c.mean for p in self.points if (c := self.cell(metric, p)) is not None}
            if len(means) > 1:
                weighed.append(metric)
        placed = {}
        for p in self.points:
            cells = [self.cell(m, p) for m in weighed]
            if weighed and all(c is not None for c in cells):
                placed[p.index] = tuple(m.better * c.mean for m, c in zip(weighed, cells, strict=True) if c)
        front = [
            p
            for p in self.points
            if p.index in placed and not any(_dominates(other, placed[p.index]) for other in placed.values())
        ]
        return weighed, front


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


def _clear(pair: Paired, better: int) -> bool:
    if pair.low is None or pair.high is None:
        return False
    return pair.high < 0 if better > 0 else pair.low > 0


def _cell(values: dict[int, float]) -> Cell:
    s = spread(list(values.values()))
    half = None if s.sd is None else t_quantile(s.n - 1) * s.sd / math.sqrt(s.n)
    return Cell(values, s, half)
