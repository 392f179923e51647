"""Means, spreads and 95 % intervals of differences between few runs (Student's t)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """Several runs' values of one metric: mean, standard deviation (None of one value), least, most, n."""

    mean: float
    sd: float | None
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """Of two means, second minus first.

    Attributes:
        mean: the difference.
        low, high: 95 % interval; None with one run a side.
        method: "paired t", "Welch's t" or "none".
    """

    mean: float
    low: float | None
    high: float | None
    method: str

    @property
    def clear(self) -> bool | None:
        """Whether the interval excludes 0; None: no interval."""
        if self.low is None or self.high is None:
            return None
        return self.low > 0 or self.high < 0


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    n = len(values)
    mean = math.fsum(values) / n
    sd = None
    if n > 1:
        sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    return Spread(mean, sd, min(values), max(values), n)


def difference(a: Sequence[float], b: Sequence[float], paired: bool) -> Difference:
    """Second minus first, with its interval.

    Args:
        a, b: at least one value each.
        paired: the values at one position come from the same workload, in equal numbers.
    """
    if paired and len(a) > 1:
        d = spread([y - x for x, y in zip(a, b, strict=True)])
        half = t_quantile(d.n - 1) * (d.sd or 0.0) / math.sqrt(d.n)
        return Difference(d.mean, d.mean - half, d.mean + half, "paired t")
    first, second = spread(a), spread(b)
    mean = second.mean - first.mean
    if first.sd is None or second.sd is None:
        return Difference(mean, None, None, "none")
    u, v = first.sd**2 / first.n, second.sd**2 / second.n
    if u + v == 0:
        return Difference(mean, mean, mean, "Welch's t")
    freedom = (u + v) ** 2 / (u**2 / (first.n - 1) + v**2 / (second.n - 1))
    half = t_quantile(freedom) * math.sqrt(u + v)
    return Difference(mean, mean - half, mean + half, "Welch's t")


def t_quantile(freedom: float, level: float = LEVEL) -> float:
    """Half width, in standard errors, of the interval that holds `level` of Student's t distribution.

    Args:
        freedom: degrees of freedom, > 0, need not be whole.
        level: in (0, 1).
    """
    # P(|T| > t) is the regularised incomplete beta function of x = f / (f + t^2), which falls as t grows.
    low, high = 0.0, 1.0
    while _beta(freedom / (freedom + high * high), freedom / 2, 0.5) > 1 - level:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if _beta(freedom / (freedom + middle * middle), freedom / 2, 0.5) > 1 - level:
            low = middle
        else:
            high = middle
        if high - low <= 1e-13 * high:
            break
    return (low + high) / 2


def _beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function, by Lentz's continued fraction."""
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    log = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    if x > (a + 1) / (a + b + 2):
        return 1.0 - math.exp(log) * _fraction(1 - x, b, a) / b
    return math.exp(log) * _fraction(x, a, b) / a


def _fraction(x: float, a: float, b: float) -> float:
    tiny = 1e-300
    c = 1.0
    d = 1.0 / (1.0 - (a + b) * x / (a + 1) or tiny)
    h = d
    for m in range(1, 1000):
        up = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / (1.0 + up * d or tiny)
        c = 1.0 + up / c or tiny
        h *= c * d
        down = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1.0 / (1.0 + down * d or tiny)
        c = 1.0 + down / c or tiny
        h *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return h
