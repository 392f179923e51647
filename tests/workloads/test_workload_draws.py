"""Distributions and arrival processes: moments against theory, at fixed seeds and five standard errors."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simpy
from pydantic import TypeAdapter

from workloads.arrivals import arrival_times, open_loop
from workloads.errors import WorkloadError
from workloads.lengths import JointSampler, LengthSampler, TimeSampler
from workloads.spec.arrivals import Arrivals
from workloads.spec.lengths import JointLengths, Length, Time
from workloads.streams import generator, geometric_counts, uniforms, zipf_ranks

N = 200_000


def length(data: Any, name: str = "x") -> LengthSampler:
    return LengthSampler(TypeAdapter(Length).validate_python(data), generator(1, name))


def close(got: float, expected: float, error: float) -> bool:
    """Within five standard errors."""
    return abs(got - expected) <= 5 * error


@pytest.mark.parametrize(
    ("data", "mean", "deviation"),
    [
        (7, 7.0, 0.0),
        ({"kind": "constant", "value": 0}, 0.0, 0.0),
        ({"kind": "uniform", "low": 10, "high": 30}, 20.0, math.sqrt((21**2 - 1) / 12)),
        ({"kind": "uniform", "mean": 1000, "range_ratio": 0.2}, 1000.0, math.sqrt((401**2 - 1) / 12)),
        ({"kind": "lognormal", "mean": 500, "cv": 0.8}, 500.0, 400.0),
        ({"kind": "lognormal", "mean": 50, "cv": 0.0}, 50.0, 0.0),
        ({"kind": "gamma", "mean": 300, "cv": 0.5}, 300.0, 150.0),
        ({"kind": "gamma", "mean": 200, "cv": 1.5, "min": 0}, 200.0, 300.0),
    ],
)
def test_length_moments(data: Any, mean: float, deviation: float) -> None:
    drawn = length(data).draw(N)
    assert drawn.dtype == np.int64
    assert close(drawn.mean(), mean, deviation / math.sqrt(N))
    assert drawn.std() == pytest.approx(deviation, rel=0.03, abs=1e-9)


@pytest.mark.parametrize(("upper", "value"), [("p90", 2000.0), ("p99", 9000.0)])
def test_lognormal_by_quantiles(upper: str, value: float) -> None:
    drawn = length({"kind": "lognormal", "p50": 300.0, upper: value}).draw(N)
    assert np.percentile(drawn, 50) == pytest.approx(300, rel=0.02)
    assert np.percentile(drawn, float(upper[1:])) == pytest.approx(value, rel=0.04)


def test_range_ratio_is_the_range_of_vllm() -> None:
    drawn = length({"kind": "uniform", "mean": 11, "range_ratio": 0.15}).draw(10_000)
    assert (drawn.min(), drawn.max()) == (9, 13)  # floor(9.35), ceil(12.65)


def test_clamps() -> None:
    drawn = length({"kind": "lognormal", "mean": 100, "cv": 2.0, "min": 40, "max": 90}).draw(5000)
    assert (drawn.min(), drawn.max()) == (40, 90)
    huge = length({"kind": "lognormal", "mean": 1e9, "cv": 50.0}).draw(5000)
    assert huge.max() <= 2**31 - 1


def test_empirical(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("prompt,output\n10,1\n20,2\n40,4\n")
    data = {"kind": "empirical", "path": str(tmp_path / "l.csv"), "column": "prompt", "max": 30}
    drawn = length(data).draw(30_000)
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == [10, 20, 30]
    assert np.all(np.abs(counts - 10_000) < 5 * math.sqrt(30_000 * 2 / 9))


def test_joint_lengths_stay_together(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("prompt,output\n10,1\n20,2\n40,4\n")
    model = JointLengths(path="l.csv", prompt_column="prompt", output_column="output")
    prompts, outputs = JointSampler(model, generator(1, "x"), tmp_path).draw(1000)
    assert np.array_equal(prompts, outputs * 10)
    assert len(np.unique(prompts)) == 3


def test_broken_empirical_files(tmp_path: Path) -> None:
    data = {"kind": "empirical", "path": str(tmp_path / "l.csv"), "column": "output"}
    with pytest.raises(WorkloadError, match="no such file"):
        length(data)
    (tmp_path / "l.csv").write_text("prompt,output\n10,0\n")
    with pytest.raises(WorkloadError, match=r"l\.csv:2:4: output must be at least 1, got 0"):
        length(data)
    (tmp_path / "l.csv").write_text("prompt\n10\n")
    with pytest.raises(WorkloadError, match=r"l\.csv:1:1: the header has no column 'output'"):
        length(data)


@pytest.mark.parametrize(
    ("data", "mean", "deviation"),
    [
        ("3s", 3.0, 0.0),
        ({"kind": "uniform", "low": "1s", "high": "3s"}, 2.0, 2 / math.sqrt(12)),
        ({"kind": "exponential", "mean": "5s"}, 5.0, 5.0),
        ({"kind": "lognormal", "mean": "20s", "cv": 1.0}, 20.0, 20.0),
        ({"kind": "gamma", "mean": "4s", "cv": 0.5}, 4.0, 2.0),
        ({"kind": "exponential", "mean": 0}, 0.0, 0.0),
    ],
)
def test_time_moments(data: Any, mean: float, deviation: float) -> None:
    drawn = TimeSampler(TypeAdapter(Time).validate_python(data), generator(1, "x")).draw(N) / 1e9
    assert close(drawn.mean(), mean, deviation / math.sqrt(N))
    assert drawn.std() == pytest.approx(deviation, rel=0.05, abs=1e-9)


def test_time_cap() -> None:
    model = TypeAdapter(Time).validate_python({"kind": "exponential", "mean": "5s", "max": "2s"})
    assert TimeSampler(model, generator(1, "x")).draw(1000).max() == 2_000_000_000


def arrivals(data: dict[str, Any], n: int, factor: float = 1.0, seed: int = 1) -> np.ndarray[Any, Any]:
    """The first n times, in seconds."""
    model = TypeAdapter(Arrivals).validate_python(data)
    times = list(itertools.islice(arrival_times(model, generator(seed, "x"), factor), n))
    assert all(type(t) is int for t in times[:3])
    array = np.array(times) / 1e9
    assert np.all(np.diff(array) >= 0)
    assert array[0] >= 0
    return array


@pytest.mark.parametrize(
    ("data", "cv"),
    [
        ({"kind": "poisson", "rate": 8}, 1.0),
        ({"kind": "gamma", "rate": 8, "cv": 2.5}, 2.5),
        ({"kind": "gamma", "rate": 8, "cv": 0.4}, 0.4),
        ({"kind": "constant", "rate": 8}, 0.0),
    ],
)
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_renewal_processes(data: dict[str, Any], cv: float, factor: float) -> None:
    gaps = np.diff(arrivals(data, N, factor))
    expected = 1 / (8 * factor)
    assert close(gaps.mean(), expected, expected * cv / math.sqrt(N) + 1e-9)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03, abs=1e-6)


def test_constant_arrivals_do_not_drift() -> None:
    times = arrivals({"kind": "constant", "rate": 3}, 30_001)
    assert times[0] == 0
    assert times[30_000] == 10_000.0


def test_bursts() -> None:
    data = {"kind": "bursts", "rate_on": 20, "rate_off": 2, "mean_on": "5s", "mean_off": "15s"}
    times = arrivals(data, 400_000)
    rate = len(times) / times[-1]
    assert rate == pytest.approx((20 * 5 + 2 * 15) / 20, rel=0.05)
    counts = np.bincount(times.astype(int))
    assert counts.var() / counts.mean() > 5  # a Poisson process has 1


def test_silence_between_bursts() -> None:
    data = {"kind": "bursts", "rate_on": 50, "mean_on": "2s", "mean_off": "20s"}
    gaps = np.diff(arrivals(data, 50_000))
    assert np.mean(gaps > 1.0) == pytest.approx(1 / 100, rel=0.25)  # one pause in about 100 arrivals
    assert gaps.max() > 40


def test_diurnal() -> None:
    data = {"kind": "diurnal", "rate": 50, "amplitude": 0.8, "period": "100s", "peak": "30s"}
    times = arrivals(data, N)
    cycles = math.floor(times[-1] / 100)
    phase = times[times < cycles * 100] % 100
    counts = np.histogram(phase, bins=20, range=(0, 100))[0] / cycles / 5
    centres = np.arange(2.5, 100, 5)
    expected = 50 * (1 + 0.8 * np.cos(2 * np.pi * (centres - 30) / 100))
    assert np.allclose(counts, expected, rtol=0.06, atol=0.6)


def test_open_loop_stops_at_duration_or_limit_and_starts_late() -> None:
    def run(**limits: Any) -> list[tuple[int, int]]:
        env = simpy.Environment()
        seen: list[tuple[int, int]] = []
        times = iter(range(0, 10_000, 10))
        env.process(open_loop(env, times, lambda k: seen.append((k, int(env.now))), **limits))
        env.run()
        return seen

    assert run(duration_ns=30) == [(0, 0), (1, 10), (2, 20)]
    assert run(limit=2, start_ns=7) == [(0, 7), (1, 17)]
    assert run(duration_ns=25, limit=50, start_ns=100) == [(0, 100), (1, 110), (2, 120)]


def test_streams_depend_on_seed_and_name_only() -> None:
    first = generator(7, "chat/user_len").random(4)
    assert np.array_equal(first, generator(7, "chat/user_len").random(4))
    assert not np.array_equal(first, generator(8, "chat/user_len").random(4))
    assert not np.array_equal(first, generator(7, "chat/output_len").random(4))


def test_zipf() -> None:
    ranks = np.array(list(itertools.islice(zipf_ranks(generator(1, "z"), 50, 1.2), N)))
    weights = np.arange(1, 51) ** -1.2
    assert np.allclose(np.bincount(ranks, minlength=50) / N, weights / weights.sum(), atol=0.004)
    flat = np.array(list(itertools.islice(zipf_ranks(generator(1, "z"), 4, 0.0), 40_000)))
    assert np.allclose(np.bincount(flat) / 40_000, 0.25, atol=0.015)


@pytest.mark.parametrize(("mean", "least"), [(4.0, 1), (1.0, 1), (6.0, 0), (0.0, 0)])
def test_geometric(mean: float, least: int) -> None:
    counts = np.array(list(itertools.islice(geometric_counts(generator(1, "g"), mean, least, 10**6), N)))
    assert counts.min() == least
    assert close(counts.mean(), mean, math.sqrt((mean - least) * (mean - least + 1) / N) + 1e-12)
    cut = list(itertools.islice(geometric_counts(generator(1, "g"), mean, least, 3), 100))
    assert max(cut) <= 3


def test_uniforms() -> None:
    drawn = np.array(list(itertools.islice(uniforms(generator(1, "u")), 3000)))
    assert drawn.min() >= 0
    assert drawn.max() < 1
