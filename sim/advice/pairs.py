"""Paired differences of two settings over the same seeds, with intervals corrected for many comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sim.report.confidence import t_quantile


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
        half = t_quantile(n - 1, corrected) * math.sqrt(variance / n) if variance > 0 else 0.0
        low, high = mean - half, mean + half
    return Paired(n, math.fsum(base) / n, math.fsum(new) / n, mean, low, high, corrected, comparisons)
