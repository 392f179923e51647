"""Two sets of curves, curve by curve, within tolerances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.config_baseline import BaselineSection
from sim.regression.curves import BY_KEY, CURVES, Curve, FloatArray

#: Defaults of `baseline`: absolute, relative, area; of shares and of counts.
SHARE_DEFAULTS = (0.005, 0.0, 0.01)
COUNT_DEFAULTS = (1.0, 0.02, 0.02)

SAME, WITHIN, MOVED = "same", "within", "moved"


@dataclass(frozen=True)
class Tolerance:
    """What a curve may differ by; ``exact``: by nothing."""

    exact: bool
    absolute: float
    relative: float
    area: float

    def text(self, is_share: bool) -> str:
        """For people."""
        if self.exact:
            return "exact"
        plus = f" + {100 * self.relative:g} %" if self.relative else ""
        absolute = f"{100 * self.absolute:g} points" if is_share else f"{self.absolute:g}"
        return f"{absolute}{plus}, area {100 * self.area:g} %"


def tolerance_of(curve: Curve, section: BaselineSection) -> Tolerance:
    """The tolerance of a curve: its own, else the section's, else the default of its kind."""
    own = None if section.curves is None else getattr(section.curves, curve.key)
    defaults = SHARE_DEFAULTS if curve.is_share else COUNT_DEFAULTS
    bounds = []
    for name, default in zip(("absolute", "relative", "area"), defaults, strict=True):
        value = getattr(own, name) if own is not None else None
        value = getattr(section, name) if value is None else value
        bounds.append(default if value is None else value)
    exact = section.exact if own is None or own.exact is None else own.exact
    return Tolerance(exact, *bounds)


@dataclass(frozen=True, eq=False)
class CurveDifference:
    """One curve against its baseline.

    Attributes:
        curve: which.
        verdict: SAME (digit by digit), WITHIN (the tolerance) or MOVED.
        tolerance: what was allowed.
        old, new: float64, rows of the baseline and of now.
        rows_outside: rows that are farther apart than allowed.
        first: the first of them, -1: none.
        worst: row of the largest difference, -1: none differs.
        area: area between the curves / area under the baseline's, over the rows that both have; 1 where the
            baseline's is zero and they differ.
    """

    curve: Curve
    verdict: str
    tolerance: Tolerance
    old: FloatArray
    new: FloatArray
    rows_outside: int
    first: int
    worst: int
    area: float

    @property
    def differs(self) -> int:
        """Rows that are not the same, digit by digit."""
        n = min(len(self.old), len(self.new))
        a, b = self.old[:n], self.new[:n]
        return int(np.count_nonzero((a != b) & ~(np.isnan(a) & np.isnan(b))))


def compare_curve(curve: Curve, old: FloatArray, new: FloatArray, tolerance: Tolerance) -> CurveDifference:
    """Compare the rows that both have."""
    n = min(len(old), len(new))
    a, b = old[:n], new[:n]
    one_missing = np.isnan(a) != np.isnan(b)
    away = np.abs(np.nan_to_num(b) - np.nan_to_num(a))
    # half of the last stored digit forgives the arithmetic of the comparison itself
    slack = 0.5 * 10.0**-curve.digits
    if tolerance.exact:
        outside = one_missing | (away > slack)
    else:
        outside = one_missing | (
            away > tolerance.absolute + tolerance.relative * np.abs(np.nan_to_num(a)) + slack
        )
    different = one_missing | (away > slack)
    between, under = float(away.sum()), float(np.abs(np.nan_to_num(a)).sum())
    area = between / under if under > 0 else float(between > 0)
    # where the baseline is next to nothing, its area is no measure: the rows' own bound decides
    small = not tolerance.exact and between <= tolerance.absolute * n * 0.1
    moved = bool(outside.any()) or (not tolerance.exact and area > tolerance.area and not small)
    ranked = np.where(one_missing, np.inf, away)
    return CurveDifference(
        curve=curve,
        verdict=MOVED if moved else WITHIN if different.any() else SAME,
        tolerance=tolerance,
        old=old,
        new=new,
        rows_outside=int(outside.sum()),
        first=int(np.argmax(outside)) if outside.any() else -1,
        worst=int(np.argmax(ranked)) if different.any() else -1,
        area=area,
    )


@dataclass(frozen=True, eq=False)
class Comparison:
    """All curves of a baseline, and their number of rows.

    Attributes:
        curves: in the order of the baseline.
        old_rows, new_rows: how long the two runs are.
        length_moved: whether that difference is more than allowed.
        not_in_baseline: curves that this version makes and the baseline does not hold.
    """

    curves: tuple[CurveDifference, ...]
    old_rows: int
    new_rows: int
    length_moved: bool
    not_in_baseline: tuple[str, ...]

    @property
    def moved(self) -> tuple[CurveDifference, ...]:
        """Curves that have moved."""
        return tuple(c for c in self.curves if c.verdict == MOVED)

    @property
    def verdict(self) -> str:
        """SAME, WITHIN or MOVED."""
        if self.moved or self.length_moved:
            return MOVED
        same = all(c.verdict == SAME for c in self.curves) and self.old_rows == self.new_rows
        return SAME if same else WITHIN


def compare(old: dict[str, FloatArray], new: dict[str, FloatArray], section: BaselineSection) -> Comparison:
    """Compare curves by key; `old` may hold fewer of them."""
    found = tuple(
        compare_curve(BY_KEY[key], values, new[key], tolerance_of(BY_KEY[key], section))
        for key, values in old.items()
    )
    rows = [len(next(iter(curves.values()))) for curves in (old, new)]
    area = SHARE_DEFAULTS[2] if section.area is None else section.area
    allowed = 0 if section.exact else max(1, round(area * rows[0]))
    return Comparison(
        curves=found,
        old_rows=rows[0],
        new_rows=rows[1],
        length_moved=abs(rows[1] - rows[0]) > allowed,
        not_in_baseline=tuple(c.key for c in CURVES if c.key not in old),
    )
