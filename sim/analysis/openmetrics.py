"""Metrics of a run as OpenMetrics text, under vLLM's own names, one sample a scrape.

Prometheus imports it with `promtool tsdb create-blocks-from openmetrics`, so that a simulated run and a real
server lie over each other in one dashboard. Names, labels and bucket bounds: vLLM 0.32.0,
v1/metrics/loggers.py and buckets.py. What vLLM does not have carries the prefix ``kvpool_``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analysis.rerun import Rerun
from sim.analysis.tracker import curves_of
from sim.groups import layout_of

I64 = NDArray[np.int64]

_LATENCY = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0)
LATENCY_BOUNDS = (*_LATENCY, 480.0, 960.0, 1920.0, 7680.0)
_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0)
TTFT_BOUNDS = (*_TTFT, 40.0, 80.0, 160.0, 640.0, 2560.0)

FINISHED_REASONS = ("stop", "length", "abort", "error", "repetition")

RESIDENCY_FAMILIES = (
    ("vllm:kv_block_lifetime_seconds", "KV-cache blocks, from allocation to re-allocation."),
    ("vllm:kv_block_idle_before_evict_seconds", "KV-cache blocks, from their last hit to re-allocation."),
    ("vllm:kv_block_reuse_gap_seconds", "Between successive hits of a KV-cache block, the last four."),
)


@dataclass(frozen=True)
class Family:
    """A metric family that is not a histogram.

    Attributes:
        name: without the suffix of counters.
        kind: "gauge" or "counter".
        text: help.
        values: one for each scrape; NaN: nothing to tell then, no sample.
    """

    name: str
    kind: str
    text: str
    values: NDArray[np.float64] | I64


@dataclass(frozen=True)
class Histogram:
    """A histogram at every scrape.

    Attributes:
        name, text: as in Family.
        bounds: b upper bounds, seconds.
        counts: int64[scrapes, b + 1], not cumulative over the buckets.
        sums: float64[scrapes], seconds.
    """

    name: str
    text: str
    bounds: tuple[float, ...]
    counts: I64
    sums: NDArray[np.float64]


def openmetrics(rerun: Rerun, points: int = 500, start_s: float = 0.0) -> Iterator[str]:
    """Lines of the exposition, each with its line break.

    Args:
        rerun: the run; it is simulated again for the residency histograms.
        points: scrapes at the most; they are rows of the run's step log, the last row always among them.
        start_s: Unix time of the run's beginning.

    Raises:
        InputError: as ``Rerun.state_at``.
    """
    steps = rerun.steps
    rows = scrape_rows(len(steps["time_ns"]), points)
    times = steps["time_ns"][rows]
    model = rerun.resolved.model.name if rerun.resolved.model else rerun.name
    labels = {"model_name": model, "engine": str(rerun.replica or 0)}
    stamps = [_number(start_s + int(t) / 1e9) for t in times]
    engine = rerun.resolved.engine
    sizes = layout_of(engine).slot_sizes
    for family in _families({name: column[rows] for name, column in steps.items()}, sizes):
        yield from family_lines(family, labels, stamps)
    requests = rerun.requests
    # a row shows what happened before its time; only the last one shows the end itself
    until = times + (times == rerun.end_ns)
    yield from _success(rerun, requests, until, labels, stamps)
    for histogram in [*_residency(rerun, times), *_latencies(requests, until)]:
        yield from histogram_lines(histogram, labels, stamps)
    yield "# EOF\n"


def scrape_rows(rows: int, points: int) -> NDArray[np.intp]:
    """Indices of every k-th of so many rows and the last one, with the least k that gives ``points`` or less
    (and one more for the last).
    """
    stride = max(1, -(-rows // points))
    return np.unique(np.append(np.arange(stride - 1, rows, stride), rows - 1)) if rows else np.arange(0)


def _families(steps: Mapping[str, I64], block_sizes: Sequence[int]) -> list[Family]:
    curves = curves_of(dict(steps), block_sizes)
    used = curves["usage"]
    queries, hits, preempted = steps["prefix_queries"], steps["prefix_hits"], steps["preemptions"]
    return [
        Family("vllm:num_requests_running", "gauge", "Running requests.", steps["num_running"]),
        Family("vllm:num_requests_waiting", "gauge", "Waiting requests.", steps["num_waiting"]),
        Family("vllm:kv_cache_usage_perc", "gauge", "Used blocks / usable blocks, 1 is all.", used),
        Family("vllm:prefix_cache_queries", "counter", "Tokens looked up in the prefix cache.", queries),
        Family("vllm:prefix_cache_hits", "counter", "Tokens found in the prefix cache.", hits),
        Family("vllm:num_preemptions", "counter", "Preemptions.", preempted),
        *layout_families(steps, curves),
        Family("kvpool_kv_cache_evictions", "counter", "Cached blocks evicted.", steps["evictions"]),
    ]


def layout_families(
    steps: Mapping[str, NDArray[Any]], curves: Mapping[str, NDArray[np.float64]]
) -> list[Family]:
    """Waste and fragmentation, which vLLM has no metrics for.

    Args:
        steps: rows with wasted_slots and free_runs.
        curves: of these rows, `sim.analysis.tracker.curves_of`.
    """
    texts = {
        "wasted_slots": ("Allocated slots without a token.", steps["wasted_slots"]),
        "internal_fragmentation": ("Allocated slots without a token / allocated slots.", None),
        "free_runs": ("Runs of consecutive free block ids.", steps["free_runs"]),
        "external_fragmentation": ("1 - largest free run / free blocks.", None),
        "table_contiguity": ("Neighbours in block tables with consecutive ids / all neighbours.", None),
    }
    found = [
        Family(f"kvpool_kv_cache_{name}", "gauge", text, curves[name] if values is None else values)
        for name, (text, values) in texts.items()
    ]
    held = curves["token_usage"]
    if not np.isnan(held).all():
        name = "kvpool_kv_cache_token_usage_perc"
        found.insert(0, Family(name, "gauge", "Slots with a token / usable slots.", held))
    return found


def _residency(rerun: Rerun, times: I64) -> list[Histogram]:
    """Read off the engine at each scrape; the collector's numbers with a sample rate of 1."""
    bounds: tuple[float, ...] = ()
    counts, sums = [], []
    for time in times:
        pool = rerun.state_at(int(time)).kv.pool
        bounds = tuple(float(b) / 1e9 for b in pool.residency_bounds)
        counts.append(pool.residency_buckets.copy())
        sums.append(pool.residency["seconds"] + pool.residency["nanos"] / 1e9)
    if not counts:
        return []
    by_kind = np.stack(counts, axis=1)
    total = np.stack(sums, axis=1)
    return [
        Histogram(name, text, bounds, by_kind[k], total[k])
        for k, (name, text) in enumerate(RESIDENCY_FAMILIES)
    ]


def _latencies(requests: Mapping[str, I64], times: I64) -> list[Histogram]:
    """vLLM observes a first token when it comes, the other two when the request has finished."""
    arrival, first, finish = requests["arrival_ns"], requests["first_token_ns"], requests["finish_ns"]
    began = first >= 0
    done = requests["status"] == 3
    waited = requests["first_scheduled_ns"][done] - arrival[done]
    took = finish[done] - arrival[done]
    ttft, e2e = "vllm:time_to_first_token_seconds", "vllm:e2e_request_latency_seconds"
    queue = "vllm:request_queue_time_seconds"
    first_after = first[began] - arrival[began]
    return [
        observed(ttft, "From arrival to the first token.", TTFT_BOUNDS, first[began], first_after, times),
        observed(e2e, "From arrival to the end.", LATENCY_BOUNDS, finish[done], took, times),
        observed(queue, "From arrival to the first batch.", LATENCY_BOUNDS, finish[done], waited, times),
    ]


def observed(
    name: str, text: str, bounds: tuple[float, ...], when: I64, duration_ns: I64, times: I64
) -> Histogram:
    """Histogram at each of ``times`` of what was observed before it: durations, observed at ``when``, ns."""
    counts = np.zeros((len(times) + 1, len(bounds) + 1), dtype=np.int64)
    scrape = np.searchsorted(times, when, side="right")
    bucket = np.searchsorted(np.array([round(b * 1e9) for b in bounds]), duration_ns, side="left")
    np.add.at(counts, (scrape, bucket), 1)
    sums = np.bincount(scrape, weights=duration_ns, minlength=len(times) + 1) / 1e9
    return Histogram(name, text, bounds, np.cumsum(counts[:-1], axis=0), np.cumsum(sums[:-1]))


def _success(
    rerun: Rerun, requests: Mapping[str, I64], times: I64, labels: Mapping[str, str], stamps: Sequence[str]
) -> Iterator[str]:
    done = requests["status"] == 3
    index, generated = requests["index"][done], requests["output_tokens"][done]
    # the others that end before their own end reach max_model_len
    by_length = (rerun.workload.max_tokens[index] == generated) | (
        rerun.workload.output_len[index] > generated
    )
    yield "# HELP vllm:request_success Finished requests.\n# TYPE vllm:request_success counter\n"
    none = np.zeros_like(by_length)
    chosen = {"stop": ~by_length, "length": by_length}
    for reason in FINISHED_REASONS:
        ends = np.sort(requests["finish_ns"][done][chosen.get(reason, none)])
        counts = np.searchsorted(ends, times, side="left")
        text = labels_text({**labels, "finished_reason": reason})
        for n, stamp in zip(counts.tolist(), stamps, strict=True):
            yield f"vllm:request_success_total{text} {n} {stamp}\n"


def family_lines(family: Family, labels: Mapping[str, str], stamps: Sequence[str]) -> Iterator[str]:
    """A family's text; `stamps` are the scrapes' Unix times."""
    yield f"# HELP {family.name} {family.text}\n# TYPE {family.name} {family.kind}\n"
    name = family.name + ("_total" if family.kind == "counter" else "") + labels_text(labels)
    for value, stamp in zip(family.values.tolist(), stamps, strict=True):
        if not math.isnan(value):
            yield f"{name} {_number(value)} {stamp}\n"


def histogram_lines(h: Histogram, labels: Mapping[str, str], stamps: Sequence[str]) -> Iterator[str]:
    """A histogram's text; `stamps` as in `family_lines`."""
    yield f"# HELP {h.name} {h.text}\n# TYPE {h.name} histogram\n"
    bounds = [labels_text({**labels, "le": str(float(b))}) for b in h.bounds]
    bounds.append(labels_text({**labels, "le": "+Inf"}))
    plain = labels_text(labels)
    for counts, total, stamp in zip(np.cumsum(h.counts, axis=1).tolist(), h.sums, stamps, strict=True):
        for bound, n in zip(bounds, counts, strict=True):
            yield f"{h.name}_bucket{bound} {n} {stamp}\n"
        yield f"{h.name}_count{plain} {counts[-1]} {stamp}\n"
        yield f"{h.name}_sum{plain} {_number(float(total))} {stamp}\n"


def labels_text(labels: Mapping[str, str]) -> str:
    """Labels in braces, escaped."""

    def escape(text: str) -> str:
        return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')

    return "{" + ",".join(f'{name}="{escape(value)}"' for name, value in labels.items()) + "}"


def _number(value: float) -> str:
    """Shortest text that reads back as the same number."""
    return repr(value)


def last_scrape(text: str) -> str:
    """The last scrape of an OpenMetrics text, in the classic text format of a server's /metrics.

    There a counter's family carries the suffix `_total`, and samples have no time stamps.
    """
    out: list[str] = []
    samples: dict[str, str] = {}

    def flush() -> None:
        out.extend(f"{series} {value}" for series, value in samples.items())
        samples.clear()

    head = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            flush()
            head = line
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            family = f"{name}_total" if kind == "counter" else name
            out += [head.replace(f" {name} ", f" {family} ", 1), f"# TYPE {family} {kind}"]
        elif not line.startswith("#"):
            series, value, _ = line.rsplit(" ", 2)
            samples[series] = value
    flush()
    return "\n".join(out) + "\n"
