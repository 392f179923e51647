"""Metrics by name: those of `sim recommend` and `sim compare`, which are numbers of a run's summary.

Nothing is defined here. A metric that `recommend` knows has the name that it has there; one that only
`compare` shows has the dotted path of its number in summary.json.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sim.advice import metrics as advice
from sim.errors import InputError, did_you_mean
from sim.report.document import Value
from sim.report.metrics import METRICS as COMPARED
from sim.report.metrics import Metric as Compared
from sim.summary import DEFINITIONS

DEFAULT_METRICS = ("waste", "hit_rate", "preemptions", "latency")

_UNITS = {"share": "fraction", "s": "s", "bytes": "bytes"}
_PLAIN_UNITS = {
    "output_tokens_per_s": "tokens/s",
    "requests_per_s": "requests/s",
    "finished": "requests",
    "preemptions": "preemptions",
    "recomputed_tokens": "tokens",
}


@dataclass(frozen=True)
class Named:
    """One number of a run.

    Attributes:
        name: as a sweep file writes it, and its column in points.parquet.
        number: path, label, unit, direction and meaning.
    """

    name: str
    number: Compared

    @property
    def label(self) -> str:
        """As people call it."""
        return self.number.label

    @property
    def better(self) -> int:
        """1: more is better, -1: less is, 0: neither."""
        return self.number.better

    @property
    def unit(self) -> str:
        """Of the column: "fraction", "s", "bytes" or a plural noun."""
        return self.number.unit

    def of(self, summary: Mapping[str, Any]) -> float | None:
        """The number in a summary; None where the run has none."""
        return self.number.of(summary)

    def show(self, value: float | None) -> str:
        """The number as people read it, with its unit where the text does not tell it."""
        if value is None or not math.isfinite(value):
            return "-"
        return self.number.show(value)

    def half(self, value: float) -> Value:
        """Half of an interval, for a document: two digits where the number itself is small."""
        small = self.unit == "fraction" and value < 0.01
        return Value(value, f"{100 * value:.2g} %" if small else self.show(value), self.unit)

    def value(self, value: float | None) -> Value:
        """For a document."""
        return Value(value, self.show(value), self.unit)


def _from_advice(m: advice.Metric) -> Compared:
    """A metric that `compare` does not show, with the definition of its part of the summary."""
    meaning = next((DEFINITIONS[k] for k in reversed(m.path) if k in DEFINITIONS), m.label)
    unit = _UNITS.get(m.unit) or _PLAIN_UNITS[m.name]
    better = -1 if m.lower_is_better else 1
    return Compared(m.label, m.path, unit, better, False, meaning[0].upper() + meaning[1:] + ".")


@functools.cache
def named_metrics() -> dict[str, Named]:
    """All metrics by name: those of `recommend`, then the others of `compare`."""
    by_path = {m.path: m for m in COMPARED}
    out = {}
    for name, known in advice.METRICS.items():
        shown = by_path.pop(known.path) if known.path in by_path else _from_advice(known)
        out[name] = Named(name, shown)
    for path, other in by_path.items():
        name = ".".join(path)
        out[name] = Named(name, other)
    return out


def find_metric(name: str) -> Named:
    """The metric of a name, an alias of `recommend` or a dotted path of summary.json.

    Raises:
        InputError: there is none; the hint names the nearest, or all.
    """
    known = named_metrics()
    wanted = advice.ALIASES.get(name, name)
    if wanted in known:
        return known[wanted]
    for metric in known.values():
        if ".".join(metric.number.path) == wanted:
            return metric
    words = [*advice.ALIASES, *known]
    near = did_you_mean(name, words)
    raise InputError(f"no metric '{name}'", hint=near or f"known: {', '.join(words)}")
