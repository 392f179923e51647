"""Metrics that an objective or a constraint may name: their place in a summary, and which way is better."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sim.errors import InputError, did_you_mean
from sim.report.units import count, seconds, share, size


@dataclass(frozen=True)
class Metric:
    """One number of a run.

    Attributes:
        name: as the user writes it.
        label: as advice calls it.
        path: keys in the summary.
        lower_is_better: which way is better.
        unit: "s", "share", "bytes" or "" (a plain number).
        cost: listed among the costs when it gets worse.
    """

    name: str
    label: str
    path: tuple[str, ...]
    lower_is_better: bool
    unit: str = ""
    cost: bool = True

    def show(self, value: float | None) -> str:
        """The value as people read it."""
        if value is None:
            return "-"
        sign = "-" if value < 0 else ""
        how = {"s": seconds, "share": share, "bytes": size}.get(self.unit, count)
        return sign + how(abs(value))


def _latency(name: str, label: str) -> list[Metric]:
    return [
        Metric(f"{name}.{q}", f"{text} {label}", ("latency", name, q), True, "s", q in ("mean", "p99"))
        for q, text in (
            ("mean", "mean"),
            ("p50", "median"),
            ("p90", "p90"),
            ("p99", "p99"),
            ("max", "largest"),
        )
    ]


METRICS: dict[str, Metric] = {
    m.name: m
    for m in [
        *_latency("ttft_s", "time to first token"),
        *_latency("tpot_s", "time per output token"),
        *_latency("e2e_s", "end-to-end latency"),
        *_latency("queue_s", "queueing time"),
        Metric("output_tokens_per_s", "output throughput", ("throughput", "output_tokens_per_s"), False),
        Metric("requests_per_s", "request throughput", ("throughput", "requests_per_s"), False, "", False),
        Metric("simulated_s", "time until the workload is served", ("simulated_s",), True, "s", False),
        Metric("finished", "finished requests", ("requests", "finished"), False),
        Metric("preemptions", "preemptions", ("preemptions", "preemptions"), True),
        Metric("recomputed_tokens", "recomputed tokens", ("preemptions", "recomputed_tokens"), True),
        Metric(
            "first_lookup_token_hit_rate",
            "prefix-cache token hit rate at first lookup",
            ("prefix_cache", "first_lookup_token_hit_rate"),
            False,
            "share",
        ),
        Metric("waste_at_finish", "slots wasted at finish", ("waste", "waste_at_finish"), True, "share"),
        Metric(
            "internal_fragmentation",
            "internal fragmentation",
            ("internal_fragmentation", "mean"),
            True,
            "share",
        ),
        Metric(
            "external_fragmentation",
            "external fragmentation",
            ("external_fragmentation", "mean"),
            True,
            "share",
        ),
        Metric("table_contiguity", "contiguity of block tables", ("table_contiguity",), False, "share"),
        Metric("pool_bytes", "memory of the pool", ("engine", "pool_bytes"), True, "bytes", False),
    ]
}

ALIASES = {
    "latency": "e2e_s.mean",
    "ttft": "ttft_s.p99",
    "tpot": "tpot_s.p99",
    "throughput": "output_tokens_per_s",
    "waste": "waste_at_finish",
    "hit_rate": "first_lookup_token_hit_rate",
    "makespan": "simulated_s",
}

DEFAULT_OBJECTIVE = "e2e_s.mean"


def find_metric(name: str, option: str) -> Metric:
    """The metric of a name or alias.

    Raises:
        InputError: no such metric; the hint names the nearest, or all.
    """
    wanted = ALIASES.get(name, name)
    if wanted not in METRICS:
        known = [*ALIASES, *METRICS]
        near = did_you_mean(name, known)
        raise InputError(f"no metric '{name}'", option, hint=near or f"known: {', '.join(known)}")
    return METRICS[wanted]


@dataclass(frozen=True)
class Constraint:
    """A bound on the mean of a metric over seeds."""

    metric: Metric
    at_most: bool
    bound: float

    def broken_by(self, value: float | None) -> float:
        """By how much, as a share of the bound (or in the metric's unit if that is 0); 0 if it is met."""
        if value is None:
            return float("inf")
        excess = value - self.bound if self.at_most else self.bound - value
        return max(0.0, excess) / (abs(self.bound) or 1.0)

    def __str__(self) -> str:
        return f"{self.metric.name} {'<=' if self.at_most else '>='} {self.bound:g}"


def parse_constraint(text: str) -> Constraint:
    """A constraint such as `ttft_s.p99<=2`; numbers in the metric's unit (seconds, shares from 0 to 1).

    Raises:
        InputError: another form, an unknown metric or not a number.
    """
    found = re.fullmatch(r"\s*([\w.]+)\s*(<=|>=)\s*(\S+)\s*", text)
    example = "as in --constraint 'ttft_s.p99<=2'"
    if not found:
        raise InputError(
            f"expected METRIC<=NUMBER or METRIC>=NUMBER, got '{text}'", "--constraint", hint=example
        )
    metric = find_metric(found[1], "--constraint")
    try:
        bound = float(found[3])
    except ValueError:
        raise InputError(f"'{found[3]}' is not a number", "--constraint", hint=example) from None
    if not math.isfinite(bound):
        raise InputError(f"'{found[3]}' is no bound", "--constraint", hint=example)
    return Constraint(metric, found[2] == "<=", bound)


def values_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """All metrics that this run has, by name."""
    out: dict[str, float] = {}
    for metric in METRICS.values():
        node: Any = summary
        for part in metric.path:
            node = node.get(part) if isinstance(node, Mapping) else None
        if isinstance(node, int | float):
            out[metric.name] = float(node)
    return out
