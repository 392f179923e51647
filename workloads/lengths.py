"""Draws of token counts and of times, many at once, from the models of `workloads.spec.lengths`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_never

from workloads.files import read
from workloads.readers.rows import whole_table
from workloads.requests import Int64Array
from workloads.spec.lengths import (
    ConstantLength,
    ConstantTime,
    EmpiricalLength,
    ExponentialTime,
    GammaLength,
    GammaTime,
    JointLengths,
    LognormalLength,
    LognormalTime,
    UniformLength,
    UniformTime,
)
from workloads.streams import one_by_one

LengthModel = ConstantLength | UniformLength | LognormalLength | GammaLength | EmpiricalLength
TimeModel = ConstantTime | UniformTime | ExponentialTime | LognormalTime | GammaTime

#: Standard normal quantiles.
Z90 = 1.2815515655446004
Z99 = 2.3263478740408408

MAX_LENGTH = 2**31 - 1
MAX_TIME_NS = 2**62


class LengthSampler:
    """Draws of one length distribution; a file it needs is read once, here.

    Raises (on construction):
        WorkloadError: the file of an empirical distribution cannot be used.
    """

    def __init__(
        self, model: LengthModel, rng: np.random.Generator, base_dir: str | Path | None = None
    ) -> None:
        self.model = model
        self.rng = rng
        self._values: Int64Array | None = None
        if isinstance(model, EmpiricalLength):
            self._values = empirical(model.path, [model.column], base_dir)[0]

    def draw(self, n: int) -> Int64Array:
        """n lengths in tokens, int64[n]."""
        model, rng = self.model, self.rng
        if isinstance(model, ConstantLength):
            return np.full(n, model.value, dtype=np.int64)
        if isinstance(model, UniformLength):
            low, high = uniform_range(model)
            drawn: NDArray[np.float64] | Int64Array = rng.integers(low, high, n, endpoint=True)
        elif isinstance(model, LognormalLength):
            mu, sigma = lognormal_parameters(model)
            drawn = rng.lognormal(mu, sigma, n)
        elif isinstance(model, GammaLength):
            shape = model.cv**-2
            drawn = rng.gamma(shape, model.mean / shape, n)
        elif isinstance(model, EmpiricalLength):
            assert self._values is not None
            drawn = self._values[rng.integers(0, len(self._values), n)]
        else:
            assert_never(model)
        most = MAX_LENGTH if model.max is None else model.max
        return np.clip(np.rint(drawn), model.min, most).astype(np.int64)

    def __iter__(self) -> Iterator[int]:
        """An endless stream of lengths."""
        return one_by_one(self.draw)


class JointSampler:
    """Prompt and output lengths drawn together, row by row with replacement."""

    def __init__(
        self, model: JointLengths, rng: np.random.Generator, base_dir: str | Path | None = None
    ) -> None:
        self.rng = rng
        self.prompts, self.outputs = empirical(
            model.path, [model.prompt_column, model.output_column], base_dir
        )

    def draw(self, n: int) -> tuple[Int64Array, Int64Array]:
        """n pairs (prompt, output), int64[n] each."""
        rows = self.rng.integers(0, len(self.prompts), n)
        return self.prompts[rows], self.outputs[rows]


def empirical(path: str, columns: list[str], base_dir: str | Path | None = None) -> list[Int64Array]:
    """Columns of lengths (each at least 1) of a CSV file with a header.

    Raises:
        WorkloadError: the file is missing or broken.
    """
    content = read(path, base_dir)
    table = whole_table(content.path, content.lines(), columns, "the distribution")
    return [table.integers(name, low=1) for name in columns]


def uniform_range(model: UniformLength) -> tuple[int, int]:
    """Smallest and largest value, both included (vLLM 0.32.0, `get_sampling_params`, for mean and ratio)."""
    if model.mean is not None and model.range_ratio is not None:
        low = math.floor(model.mean * (1 - model.range_ratio))
        return low, max(low, math.ceil(model.mean * (1 + model.range_ratio)))
    assert model.low is not None
    assert model.high is not None
    return model.low, model.high


def lognormal_parameters(model: LognormalLength) -> tuple[float, float]:
    """mu and sigma of the logarithm."""
    if model.mean is not None and model.cv is not None:
        return _lognormal_of_mean(model.mean, model.cv)
    assert model.p50 is not None
    upper, z = (model.p90, Z90) if model.p90 is not None else (model.p99, Z99)
    assert upper is not None
    return math.log(model.p50), math.log(upper / model.p50) / z


def _lognormal_of_mean(mean: float, cv: float) -> tuple[float, float]:
    variance = math.log1p(cv * cv)
    return math.log(mean) - variance / 2, math.sqrt(variance)


class TimeSampler:
    """Draws of one distribution of times."""

    def __init__(self, model: TimeModel, rng: np.random.Generator) -> None:
        self.model = model
        self.rng = rng

    def draw(self, n: int) -> Int64Array:
        """n times in ns, int64[n], >= 0."""
        model, rng = self.model, self.rng
        most = MAX_TIME_NS
        if isinstance(model, ConstantTime):
            return np.full(n, model.value, dtype=np.int64)
        if isinstance(model, UniformTime):
            return rng.integers(model.low, model.high, n, endpoint=True)
        if model.max is not None:
            most = model.max
        if model.mean == 0:
            return np.zeros(n, dtype=np.int64)
        if isinstance(model, ExponentialTime):
            drawn = rng.exponential(model.mean, n)
        elif isinstance(model, LognormalTime):
            drawn = rng.lognormal(*_lognormal_of_mean(model.mean, model.cv), n)
        elif isinstance(model, GammaTime):
            shape = model.cv**-2
            drawn = rng.gamma(shape, model.mean / shape, n)
        else:
            assert_never(model)
        return np.minimum(np.rint(np.minimum(drawn, 2.0**62)).astype(np.int64), most)

    def __iter__(self) -> Iterator[int]:
        """An endless stream of times."""
        return one_by_one(self.draw)
