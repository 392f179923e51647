"""Student's t distribution and paired differences, without scipy (its import costs more than a run).

The cumulative distribution is the regularised incomplete beta function by its continued fraction (Lentz's
method); quantiles are found by bisection. Accurate to about 1e-10 in the range that intervals use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_TINY = 1e-300


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function; converges fast for x < (a + 1) / (a + b + 2)."""
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > _TINY else _TINY)
    h = d
    for m in range(1, 500):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 + numerator * d
            d = 1.0 / (d if abs(d) > _TINY else _TINY)
            c = 1.0 + numerator / c
            c = c if abs(c) > _TINY else _TINY
            h *= d * c
        if abs(d * c - 1.0) < 1e-14:
            break
    return h


def _beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b), 0 <= x <= 1."""
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    if x < (a + 1.0) / (a + b + 2.0):
        return math.exp(log_front) * _beta_fraction(a, b, x) / a
    return 1.0 - math.exp(log_front) * _beta_fraction(b, a, 1.0 - x) / b


def t_cdf(t: float, df: int) -> float:
    """P(T <= t) with ``df`` >= 1 degrees of freedom."""
    tail = 0.5 * _beta(df / 2.0, 0.5, df / (df + t * t))
    return 1.0 - tail if t > 0 else tail


def t_quantile(p: float, df: int) -> float:
    """The t with P(T <= t) = p, for 0.5 <= p < 1."""
    if not 0.5 <= p < 1.0:
        raise ValueError(f"p must be in [0.5, 1), got {p}")
    high = 1.0
    while t_cdf(high, df) < p:
        high *= 2.0
    low = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        if t_cdf(middle, df) < p:
            low = middle
        else:
            high = middle
        if high - low <= 1e-12 * high:
            break
    return high


@dataclass(frozen=True)
class Paired:
    """Differences of two settings over the same seeds.

    Attributes:
        n: seeds.
        base, new: means of the two.
        difference: mean of new - base over the pairs.
        low, high: two-sided interval of that mean at ``level``; both None if n < 2.
        level: confidence of the interval, after the correction.
        comparisons: by how many the error probability was divided (Bonferroni).
    """

    n: int
    base: float
    new: float
    difference: float
    low: float | None
    high: float | None
    level: float
    comparisons: int

    @property
    def relative(self) -> float | None:
        """Difference / base, None if the base is 0."""
        return self.difference / abs(self.base) if self.base else None


def paired(base: Sequence[float], new: Sequence[float], level: float, comparisons: int = 1) -> Paired:
    """Paired t interval of new - base, Bonferroni-corrected for ``comparisons``.

    Args:
        base, new: values by seed, in the same order.
        level: confidence wanted for all comparisons together, such as 0.95.
        comparisons: intervals that are looked at.

    If all differences are equal the interval has no width.
    """
    if len(base) != len(new) or not base:
        raise ValueError("pairs need two equally long, non-empty lists")
    n = len(base)
    differences = [b - a for a, b in zip(base, new, strict=True)]
    mean = math.fsum(differences) / n
    corrected = 1.0 - (1.0 - level) / comparisons
    low = high = None
    if n > 1:
        variance = math.fsum((d - mean) ** 2 for d in differences) / (n - 1)
        half = t_quantile(0.5 + corrected / 2, n - 1) * math.sqrt(variance / n) if variance > 0 else 0.0
        low, high = mean - half, mean + half
    return Paired(n, math.fsum(base) / n, math.fsum(new) / n, mean, low, high, corrected, comparisons)
