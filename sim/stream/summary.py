"""The part of a summary that is about requests, from records that come in chunks and lie in a file.

Counts and sums are kept as the chunks come. Percentiles are exact: the order statistics that they lie between
are found digit by digit in four passes over the file. A mean is that of a summary in memory up to the
rounding of its sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.columns import STATUS_NAMES
from sim.simulate import Columns
from sim.summary import NS, latencies

Rows = Mapping[str, NDArray[Any]]
_PERCENTS = (50, 90, 99)
_NAMED = 5
_SUMMED = ("prompt_tokens", "output_tokens", "preemptions", "recomputed_tokens")
_KINDS = ("ttft_s", "tpot_s", "e2e_s", "queue_s")
LATENCY_COLUMNS = (
    "arrival_ns",
    "first_token_ns",
    "finish_ns",
    "first_scheduled_ns",
    "output_tokens",
    "status",
)


class RequestTotals:
    """Counts and sums over the requests of a run; call it with each chunk."""

    def __init__(self, warmup_ns: int) -> None:
        self._warmup = warmup_ns
        self.statuses = dict.fromkeys(STATUS_NAMES, 0)
        self.sums = dict.fromkeys(_SUMMED, 0)
        self.preempted = self.wasted = self.allocated = 0
        self.done = {"requests": 0, "prompt_tokens": 0, "output_tokens": 0}
        self.named: dict[int, list[dict[str, int]]] = {4: [], 5: []}

    def __call__(self, rows: Columns) -> None:
        status = rows["status"]
        for k in self.statuses:
            self.statuses[k] += int((status == k).sum())
        for name in _SUMMED:
            self.sums[name] += int(rows[name].sum())
        self.preempted += int((rows["preemptions"] > 0).sum())
        finished = status == 3
        self.wasted += int(rows["wasted_slots"][finished].sum())
        self.allocated += int(rows["allocated_slots"][finished].sum())
        late = finished & (rows["finish_ns"] >= self._warmup)
        self.done["requests"] += int(late.sum())
        for name in ("prompt_tokens", "output_tokens"):
            self.done[name] += int(rows[name][late].sum())
        for k, found in self.named.items():
            for i in np.flatnonzero(status == k)[: _NAMED - len(found)]:
                found.append({"index": int(rows["index"][i]), "prompt_tokens": int(rows["prompt_tokens"][i])})

    def fill(self, out: dict[str, Any], total: int) -> None:
        """Replace what a summary without requests says of them, latencies apart.

        Args:
            out: the summary.
            total: requests of the workload.
        """
        counts = self.statuses
        arrived = sum(counts.values()) - counts[-1]
        out["requests"] = {
            "total": total,
            "arrived": arrived,
            "finished": counts[3],
            "rejected": counts[4],
            "unservable": counts[5],
            "unfinished": counts[0] + counts[1] + counts[2],
            "prompt_tokens": self.sums["prompt_tokens"],
            "output_tokens": self.sums["output_tokens"],
        }
        out["waste"] |= {
            "waste_at_finish": self.wasted / self.allocated if self.allocated else None,
            "wasted_slots_at_finish": self.wasted,
            "allocated_slots_at_finish": self.allocated,
        }
        out["preemptions"] = {
            "preemptions": self.sums["preemptions"],
            "requests_preempted": self.preempted,
            "recomputed_tokens": self.sums["recomputed_tokens"],
        }
        seconds = max(0.0, round(out["simulated_s"] * NS) - self._warmup) / NS
        out["throughput"] = {
            f"{name}_per_s": self.done[name] / seconds if seconds else None for name in self.done
        }
        out["unservable"], out["rejected"] = self.named[5], self.named[4]


def latency_summary(chunks: Callable[[], Iterator[Rows]], warmup_ns: int) -> dict[str, Any]:
    """Count, mean, percentiles and maximum of each latency.

    Args:
        chunks: gives LATENCY_COLUMNS of the requests, part by part, each time it is called.
        warmup_ns: requests that arrived before are left out.
    """

    def values() -> Iterator[dict[str, NDArray[np.float64]]]:
        for rows in chunks():
            yield latencies(rows, rows["arrival_ns"] >= warmup_ns)

    counts = dict.fromkeys(_KINDS, 0)
    sums: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    most = dict.fromkeys(_KINDS, 0.0)
    for part in values():
        for kind, array in part.items():
            counts[kind] += len(array)
            sums[kind].append(math.fsum(array))
            most[kind] = max(most[kind], float(array.max(initial=0.0)))
    ranks = {kind: _ranks(n) for kind, n in counts.items()}
    found = _select(values, {kind: sorted({r for pair in p for r in pair[:2]}) for kind, p in ranks.items()})
    out: dict[str, Any] = {}
    for kind in _KINDS:
        n = counts[kind]
        if n == 0:
            out[kind] = {"count": 0, **dict.fromkeys(("mean", "p50", "p90", "p99", "max"))}
            continue
        between = [_between(found[kind][low], found[kind][high], part) for low, high, part in ranks[kind]]
        out[kind] = {
            "count": n,
            "mean": math.fsum(sums[kind]) / n,
            **{f"p{p}": value for p, value in zip(_PERCENTS, between, strict=True)},
            "max": most[kind],
        }
    return out


def _ranks(n: int) -> list[tuple[int, int, float]]:
    """For each percentile the two order statistics that it lies between, and how far (numpy's `linear`)."""
    out = []
    for p in _PERCENTS if n else ():
        at = (n - 1) * (p / 100)
        low = math.floor(at)
        out.append((low, min(low + 1, n - 1), at - low))
    return out


def _between(a: float, b: float, t: float) -> float:
    """As numpy interpolates."""
    return b - (b - a) * (1 - t) if t >= 0.5 else a + (b - a) * t


def _select(
    values: Callable[[], Iterator[dict[str, NDArray[np.float64]]]], ranks: dict[str, list[int]]
) -> dict[str, dict[int, float]]:
    """The order statistics of these ranks (from 0), by 16 bits of the numbers in each of four passes.

    The bits of doubles that are not negative are ordered like the doubles.
    """
    prefixes = {kind: dict.fromkeys(wanted, 0) for kind, wanted in ranks.items()}
    below = {kind: dict.fromkeys(wanted, 0) for kind, wanted in ranks.items()}
    for shift in (48, 32, 16, 0):
        counts: dict[str, dict[int, NDArray[np.int64]]] = {
            kind: {p: np.zeros(1 << 16, dtype=np.int64) for p in set(found.values())}
            for kind, found in prefixes.items()
        }
        for part in values():
            for kind, array in part.items():
                bits = np.ascontiguousarray(array + 0.0).view(np.uint64)
                digits = ((bits >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64)
                for prefix in counts[kind]:
                    same = digits
                    if shift < 48:
                        same = digits[(bits >> np.uint64(shift + 16)) == np.uint64(prefix)]
                    counts[kind][prefix] += np.bincount(same, minlength=1 << 16)
        for kind, found in prefixes.items():
            for rank, prefix in found.items():
                ends = np.cumsum(counts[kind][prefix])
                digit = int(np.searchsorted(ends, rank - below[kind][rank], side="right"))
                below[kind][rank] += int(ends[digit - 1]) if digit else 0
                found[rank] = (prefix << 16) | digit
    return {
        kind: {rank: float(np.array([p], dtype=np.uint64).view(np.float64)[0]) for rank, p in found.items()}
        for kind, found in prefixes.items()
    }
