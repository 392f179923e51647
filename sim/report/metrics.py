"""The metrics that runs are compared by: where they stand in summary.json, and how they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sim.fleet.summary import DEFINITIONS as FLEET_DEFINITIONS
from sim.report.units import count, seconds, share, size
from sim.summary import DEFINITIONS as RUN_DEFINITIONS


def _ratio(x: float | None) -> str:
    return "-" if x is None else f"{x:.3g}"


@dataclass(frozen=True)
class Metric:
    """One number of a summary.

    Attributes:
        label: as shown.
        path: keys in summary.json.
        unit: "fraction", "s", "bytes" or a plural noun.
        better: 1 more is better, -1 less is, 0 neither.
        headline: worth a word in the answer.
        meaning: its definition.
    """

    label: str
    path: tuple[str, ...]
    unit: str
    better: int
    headline: bool
    meaning: str

    def of(self, summary: Mapping[str, Any]) -> float | None:
        """The number in a summary, or None."""
        value: Any = summary
        for key in self.path:
            if not isinstance(value, Mapping) or value.get(key) is None:
                return None
            value = value[key]
        return float(value)

    @property
    def show(self) -> Callable[[float], str]:
        """How the number is written."""
        return {"fraction": share, "s": seconds, "bytes": size, "ratio": _ratio}.get(self.unit, count)

    def _points(self, d: float) -> str:
        p = 100 * abs(d)
        return f"{p:.3g}" if p < 0.01 else f"{p:.2f}" if p < 10 else f"{p:.1f}"

    def bare(self, d: float) -> str:
        """As `signed`, without the word that the end of an interval carries."""
        return self.signed(d).removesuffix(" points")

    def signed(self, d: float) -> str:
        """A difference: with its sign; of fractions in percentage points."""
        if d == 0:
            return "0"
        sign = "+" if d > 0 else "-"
        if self.unit == "fraction":
            return f"{sign}{self._points(d)} points"
        return sign + self.show(abs(d))


DEFINITIONS = RUN_DEFINITIONS | FLEET_DEFINITIONS


def _metric(
    label: str, path: str, unit: str, better: int, headline: bool = False, meaning: str | None = None
) -> Metric:
    keys = tuple(path.split("."))
    text = meaning or next((DEFINITIONS[k] for k in reversed(keys) if k in DEFINITIONS), None)
    if text is None:
        raise AssertionError(f"no definition of {path}")
    return Metric(label, keys, unit, better, headline, text[0].upper() + text[1:] + ".")


_COUNTED = "over the whole run"

METRICS: tuple[Metric, ...] = (
    _metric("KV usage, mean", "usage.mean", "fraction", 0, True),
    _metric("KV usage, p99", "usage.p99", "fraction", 0),
    _metric("internal fragmentation, mean", "internal_fragmentation.mean", "fraction", -1, True),
    _metric("wasted slots, mean", "waste.mean_wasted_slots", "slots", -1),
    _metric(
        "wasted memory, mean",
        "waste.mean_wasted_bytes",
        "bytes",
        -1,
        True,
        "mean of wasted slots over the rows of steps.parquet, weighted by time, times the bytes of a slot",
    ),
    _metric("waste at finish", "waste.waste_at_finish", "fraction", -1),
    _metric("external fragmentation, mean", "external_fragmentation.mean", "fraction", -1, True),
    _metric("free runs, mean", "free_runs.mean", "runs", 0),
    _metric("table contiguity", "table_contiguity", "fraction", 1, True),
    _metric("hit rate at first lookup", "prefix_cache.first_lookup_token_hit_rate", "fraction", 1, True),
    _metric("hit rate when resumed", "prefix_cache.resumed_token_hit_rate", "fraction", 1),
    _metric(
        "evicted blocks",
        "prefix_cache.evicted_blocks",
        "blocks",
        0,
        False,
        f"cached blocks that lost their content, {_COUNTED}",
    ),
    _metric("evicted without a hit", "prefix_cache.evicted_unused_blocks", "blocks", 0),
    _metric(
        "preemptions",
        "preemptions.preemptions",
        "preemptions",
        -1,
        True,
        f"times that a running request lost its blocks, {_COUNTED}",
    ),
    _metric("recomputed tokens", "preemptions.recomputed_tokens", "tokens", -1),
    _metric(
        "refused: full-sequence reserve",
        "admissions_refused.by_full_sequence_reserve",
        "times",
        -1,
        False,
        "times that the head of the waiting queue was not admitted since its whole known text did not fit",
    ),
    _metric(
        "refused: watermark",
        "admissions_refused.by_watermark",
        "times",
        -1,
        False,
        "times that the head of the waiting queue was not admitted because of the watermark",
    ),
    _metric(
        "refused: pool",
        "admissions_refused.by_pool",
        "times",
        -1,
        False,
        "times that the head of the waiting queue was not admitted since its next chunk found too few blocks",
    ),
    _metric(
        "encoder tokens",
        "encoder.tokens",
        "tokens",
        0,
        False,
        f"tokens that went through the encoder (models with cross attention), {_COUNTED}",
    ),
    _metric(
        "refused: encoder budget",
        "encoder.refused",
        "times",
        -1,
        False,
        "times that the head of the waiting queue found no room in a step's budget of encoder tokens",
    ),
    _metric(
        "running requests, mean", "num_running.mean", "requests", 0, False, "running requests; time-weighted"
    ),
    _metric(
        "waiting requests, mean", "num_waiting.mean", "requests", -1, False, "waiting requests; time-weighted"
    ),
    _metric("time to first token, p50", "latency.ttft_s.p50", "s", -1, True),
    _metric("time to first token, p99", "latency.ttft_s.p99", "s", -1, True),
    _metric("time per output token, p50", "latency.tpot_s.p50", "s", -1),
    _metric("time per output token, p99", "latency.tpot_s.p99", "s", -1),
    _metric("whole request, p50", "latency.e2e_s.p50", "s", -1),
    _metric("whole request, p99", "latency.e2e_s.p99", "s", -1),
    _metric("requests per second", "throughput.requests_per_s", "requests/s", 1, True),
    _metric("output tokens per second", "throughput.output_tokens_per_s", "tokens/s", 1),
    _metric("fleet: imbalance of requests", "fleet.imbalance.requests", "ratio", -1),
    _metric("fleet: imbalance of computed tokens", "fleet.imbalance.computed_tokens", "ratio", -1, True),
    _metric("fleet: spread of the load", "fleet.load_spread", "fraction", -1),
    _metric("fleet: copies of a cached block", "fleet.copies_per_cached_block", "ratio", -1),
    _metric("fleet: conversations on one replica", "fleet.stayed", "fraction", 0),
    _metric(
        "length of the run", "simulated_s", "s", 0, False, "from its start to its end, simulated or recorded"
    ),
    _metric("engine steps", "steps", "steps", 0, False, "engine steps with at least one token"),
)
