"""Arrival processes: endless, non-decreasing times, and the SimPy process that lives by them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import numpy as np
import simpy
from numpy.typing import NDArray
from typing_extensions import assert_never

from workloads.spec.arrivals import (
    BurstArrivals,
    ConstantArrivals,
    DiurnalArrivals,
    GammaArrivals,
    PoissonArrivals,
)
from workloads.streams import CHUNK
from workloads.units import NS_PER_SECOND

OpenLoopModel = PoissonArrivals | GammaArrivals | ConstantArrivals | BurstArrivals | DiurnalArrivals
Process = Generator[simpy.Event, None, None]


def arrival_times(model: OpenLoopModel, rng: np.random.Generator, factor: float = 1.0) -> Iterator[int]:
    """Times of arrival in ns, from 0 on.

    Args:
        model: which process.
        rng: its stream.
        factor: multiplies the rate (or rates).
    """
    if isinstance(model, ConstantArrivals):
        return _constant(model, factor)
    if isinstance(model, PoissonArrivals):
        rate = model.rate * factor
        return _renewal(lambda n: rng.exponential(1.0 / rate, n))
    if isinstance(model, GammaArrivals):
        shape = model.cv**-2
        scale = 1.0 / (model.rate * factor * shape)
        return _renewal(lambda n: rng.gamma(shape, scale, n))
    if isinstance(model, BurstArrivals):
        return _bursts(model, rng, factor)
    if isinstance(model, DiurnalArrivals):
        return _diurnal(model, rng, factor)
    assert_never(model)


def mean_rate(model: OpenLoopModel) -> float:
    """Arrivals per second in the long run."""
    if isinstance(model, BurstArrivals):
        busy = model.mean_on / (model.mean_on + model.mean_off)
        return model.rate_on * busy + model.rate_off * (1 - busy)
    return model.rate


def _renewal(gaps: Callable[[int], NDArray[np.float64]]) -> Iterator[int]:
    """Independent gaps, given in seconds."""
    now = 0.0
    while True:
        times = now + np.cumsum(gaps(CHUNK))
        now = float(times[-1])
        yield from np.rint(times * NS_PER_SECOND).astype(np.int64).tolist()


def _constant(model: ConstantArrivals, factor: float) -> Iterator[int]:
    gap = NS_PER_SECOND / (model.rate * factor)
    k = 0
    while True:
        yield round(k * gap)
        k += 1


def _bursts(model: BurstArrivals, rng: np.random.Generator, factor: float) -> Iterator[int]:
    """State by state: its length, then that many uniform arrivals in it as Poisson gives."""
    start = 0.0
    on = bool(rng.random() < model.mean_on / (model.mean_on + model.mean_off))
    while True:
        length = float(rng.exponential(model.mean_on if on else model.mean_off))
        rate = (model.rate_on if on else model.rate_off) * factor / NS_PER_SECOND
        count = int(rng.poisson(rate * length))
        yield from np.rint(start + np.sort(rng.random(count)) * length).astype(np.int64).tolist()
        start += length
        on = not on


def _diurnal(model: DiurnalArrivals, rng: np.random.Generator, factor: float) -> Iterator[int]:
    """Thinning: candidates at the peak rate, each kept with the probability rate(t) / peak rate."""
    peak_rate = model.rate * factor * (1.0 + model.amplitude)
    now = 0.0
    while True:
        times = now + np.cumsum(rng.exponential(1.0 / peak_rate, CHUNK))
        now = float(times[-1])
        phase = 2.0 * np.pi * (times * NS_PER_SECOND - model.peak) / model.period
        keep = rng.random(CHUNK) * (1.0 + model.amplitude) < 1.0 + model.amplitude * np.cos(phase)
        yield from np.rint(times[keep] * NS_PER_SECOND).astype(np.int64).tolist()


def open_loop(
    env: simpy.Environment,
    times: Iterator[int],
    begin: Callable[[int], None],
    *,
    start_ns: int = 0,
    duration_ns: int | None = None,
    limit: int | None = None,
) -> Process:
    """SimPy process: calls `begin(k)` at the k-th arrival.

    Args:
        env: its environment, whose clock is in ns.
        times: as `arrival_times` gives them.
        begin: starts the k-th request or session, k from 0.
        start_ns: when the process's time begins.
        duration_ns: no arrival at or after this (process) time; None: no such limit.
        limit: at most so many arrivals; None: no such limit.
    """
    for k, time in enumerate(times):
        if limit is not None and k >= limit:
            return
        if duration_ns is not None and time >= duration_ns:
            return
        delay = start_ns + time - int(env.now)
        if delay > 0:
            yield env.timeout(delay)
        begin(k)
