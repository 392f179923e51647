"""A recording of a live vLLM in the formats of other tools: tables, OpenMetrics, Chrome trace."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analysis.block_history import BlockHistory
from sim.analysis.chrome_trace import counter_events, track_name
from sim.analysis.export import RESIDENCY_COLUMNS, residency_table, to_csv
from sim.analysis.openmetrics import (
    FINISHED_REASONS,
    LATENCY_BOUNDS,
    RESIDENCY_FAMILIES,
    Family,
    Histogram,
    family_lines,
    histogram_lines,
    labels_text,
    layout_families,
    observed,
    scrape_rows,
)
from sim.analysis.recorded import STATE_COLUMNS, Recorded
from sim.analysis.tracker import curves_of
from sim.columns import STEPS
from sim.results import to_parquet

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
_REQUESTS = 1

_ROWS: dict[str, tuple[str, str]] = {
    "time_ns": ("ns", "since the first thing that was recorded"),
    "unix_ns": ("ns", "Unix time"),
    "updated": ("", "0: after schedule(), 1: after update_from_output()"),
    "call": ("", "schedule and update calls so far"),
    "duration_ns": ("ns", "of the call"),
    **{name: STEPS[name] for name in STEPS if name not in ("time_ns", "evictions", "step_duration_ns")},
    "step": ("", "index of the engine's step"),
}
_REQUEST_COLUMNS = {
    "request_id": ("", "its name"),
    "arrival_ns": ("ns", "added to the scheduler; -1: before the recording"),
    "finish_ns": ("ns", "end; -1: not seen"),
    "prompt_tokens": ("tokens", "length of the prompt; -1: not known"),
    "output_tokens": ("tokens", "tokens generated; -1: not known"),
    "preemptions": ("", "times it was preempted"),
    "status": ("", "how it ended: stop, length, aborted ..."),
    "most_blocks": ("blocks", "most that a recorded state shows; -1: no state shows the request"),
    "most_wasted_slots": ("tokens", "the same, allocated slots without a token"),
    "most_runs": ("runs", "the same, runs of consecutive ids in its tables"),
}


def export_tables(recorded: Recorded, style: str) -> dict[str, bytes]:
    """The files of the formats "parquet" and "csv": name -> content."""
    tables: dict[str, tuple[Mapping[str, Any], Mapping[str, tuple[str, str]]]] = {
        "rows": (_with_clock(recorded, recorded.rows), _ROWS),
        "states": (_with_clock(recorded, _state_rows(recorded)), _ROWS),
    }
    if recorded.requests is not None:
        tables["requests"] = (_requests(recorded), _REQUEST_COLUMNS)
    history = recorded.history()
    if history is not None:
        history.advance()
        r = history.residency()
        kinds = {"lifetime": r.lifetime, "idle": r.idle, "reuse_gap": r.reuse_gap}
        tables["residency"] = (residency_table(kinds), RESIDENCY_COLUMNS)
    files = {}
    for name, (columns, known) in tables.items():
        meta = {"table": name, "recording": recorded.path.name, "sha256": recorded.sha256}
        data = to_parquet(columns, known, meta) if style == "parquet" else to_csv(columns, known)
        files[f"{name}.{style}"] = data
    return files


def _with_clock(recorded: Recorded, columns: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(columns)
    if recorded.started_unix_ns is not None:
        out["unix_ns"] = columns["time_ns"] + recorded.started_unix_ns
    return out


def _state_rows(recorded: Recorded) -> dict[str, Any]:
    at = recorded.state_rows
    return {name: column[at] for name, column in recorded.rows.items()} | recorded.state_columns


def _requests(recorded: Recorded) -> dict[str, Any]:
    assert recorded.requests is not None
    seen = recorded.seen_in_states
    most = [seen.get(str(name), [-1, -1, -1]) for name in recorded.requests["request_id"]]
    columns = np.array([m[:3] for m in most], dtype=np.int64).reshape(-1, 3)
    names = ("most_blocks", "most_wasted_slots", "most_runs")
    return recorded.requests | {name: columns[:, i] for i, name in enumerate(names)}


# ---- OpenMetrics ----


def export_prometheus(recorded: Recorded, points: int, start_s: float | None) -> bytes:
    """OpenMetrics text of what the recording knows.

    Args:
        recorded: the recording.
        points: scrapes at the most, rows of the recording.
        start_s: Unix time of its beginning, None: the time at which it was recorded.
    """
    return "".join(_openmetrics(recorded, points, start_s)).encode()


def _openmetrics(recorded: Recorded, points: int, start_s: float | None) -> Iterator[str]:
    rows = scrape_rows(len(recorded.steps["time_ns"]), points)
    steps = {name: column[rows] for name, column in recorded.steps.items()}
    times = steps["time_ns"]
    began = (recorded.started_unix_ns or 0) / 1e9 if start_s is None else start_s
    stamps = [repr(began + int(t) / 1e9) for t in times]
    labels = {"model_name": recorded.path.name, "engine": str(_rank(recorded))}
    curves = {name: values[rows] for name, values in _curves(recorded).items()}
    for family in _families(recorded, steps, curves):
        yield from family_lines(family, labels, stamps)
    until = times + (times == recorded.end_ns)
    if recorded.requests is not None:
        yield from _ends(recorded.requests, until, labels, stamps)
    history = recorded.history()
    if history is not None:
        for histogram in _residency(history, steps["call"]):
            yield from histogram_lines(histogram, labels, stamps)
    yield "# EOF\n"


def _rank(recorded: Recorded) -> int:
    return int(getattr(recorded.raw, "header", {}).get("data_parallel_rank") or 0)


def _curves(recorded: Recorded) -> dict[str, F64]:
    """Ratios of the last state, by row of `steps`: 0 while the engine is idle, NaN where nothing is known."""
    steps, at_states = recorded.steps, recorded.state_rows
    columns = {name: recorded.rows[name][at_states] for name in ("num_running", "num_free_blocks")}
    columns["used_blocks"] = recorded.usable_blocks - columns["num_free_blocks"]
    columns |= recorded.state_columns | dict.fromkeys(("prefix_queries", "prefix_hits"), 0 * at_states)
    last = np.searchsorted(recorded.state_times, steps["time_ns"], side="right") - 1
    last = np.where(last < 0, len(at_states), last)
    # the engine is idle where the longest free run is the whole pool
    idle = steps["largest_free_run"] == recorded.usable_blocks
    found = {}
    for name, values in curves_of(columns, recorded.block_sizes).items():
        by_row = np.append(values, np.nan)[last]
        if name != "table_contiguity" and not np.isnan(values).all():
            by_row[idle] = 0.0
        found[name] = by_row
    return found


def _families(
    recorded: Recorded, steps: Mapping[str, NDArray[Any]], curves: Mapping[str, F64]
) -> list[Family]:
    used = steps["used_blocks"] / max(recorded.usable_blocks, 1)
    known = [
        Family("vllm:num_requests_running", "gauge", "Running requests.", steps["num_running"]),
        Family("vllm:num_requests_waiting", "gauge", "Waiting requests.", steps["num_waiting"]),
        Family("vllm:kv_cache_usage_perc", "gauge", "Used blocks / usable blocks, 1 is all.", used),
    ]
    for column, name, text in (
        ("prefix_queries", "vllm:prefix_cache_queries", "Tokens looked up in the prefix cache."),
        ("prefix_hits", "vllm:prefix_cache_hits", "Tokens found in the prefix cache."),
        ("preemptions", "vllm:num_preemptions", "Preemptions."),
    ):
        if column in steps:
            known.append(Family(name, "counter", text, steps[column]))
    if recorded.num_states:
        known += layout_families(steps, curves)
    return known


def _ends(
    requests: Mapping[str, NDArray[Any]], until: I64, labels: Mapping[str, str], stamps: list[str]
) -> Iterator[str]:
    finish = requests["finish_ns"]
    yield "# HELP vllm:request_success Finished requests.\n# TYPE vllm:request_success counter\n"
    for reason in FINISHED_REASONS:
        ended = requests["status"] == ("aborted" if reason == "abort" else reason)
        counts = np.searchsorted(np.sort(finish[ended]), until, side="left")
        text = labels_text({**labels, "finished_reason": reason})
        for n, stamp in zip(counts.tolist(), stamps, strict=True):
            yield f"vllm:request_success_total{text} {n} {stamp}\n"
    own = np.isin(requests["status"], ("stop", "length")) & (requests["arrival_ns"] >= 0)
    took = (finish - requests["arrival_ns"])[own]
    name = "vllm:e2e_request_latency_seconds"
    histogram = observed(name, "From arrival to the end.", LATENCY_BOUNDS, finish[own], took, until)
    yield from histogram_lines(histogram, labels, stamps)


def _residency(history: BlockHistory, calls: I64) -> list[Histogram]:
    counts, sums = [], []
    bounds: tuple[float, ...] = ()
    for call in calls.tolist():
        history.advance(call)
        r = history.residency()
        kinds = (r.lifetime, r.idle, r.reuse_gap)
        bounds = tuple(float(b) for b in r.lifetime.bounds_s)
        counts.append([k.counts for k in kinds])
        sums.append([k.total_s for k in kinds])
    if not counts:
        return []
    by_kind, total = np.array(counts, dtype=np.int64), np.array(sums)
    return [
        Histogram(name, text, bounds, by_kind[:, k], total[:, k])
        for k, (name, text) in enumerate(RESIDENCY_FAMILIES)
    ]


# ---- Chrome trace ----


def export_chrome_trace(recorded: Recorded) -> bytes:
    """Chrome trace JSON: a track a request, from its arrival to its end, its preemptions, and the pool."""
    events = list(_events(recorded))
    lines = [json.dumps(e, ensure_ascii=False, separators=(",", ":")) for e in events]
    return ('{"displayTimeUnit":"ms","traceEvents":[\n' + ",\n".join(lines) + "\n]}\n").encode()


def _events(recorded: Recorded) -> Iterator[dict[str, object]]:
    yield track_name("process_name", _REQUESTS, 0, "requests")
    yield track_name("process_name", 2, 0, "block pool")
    r = recorded.requests
    if r is not None:
        place = {str(name): i for i, name in enumerate(r["request_id"].tolist())}
        columns = (r[name].tolist() for name in r)
        for i, values in enumerate(zip(*columns, strict=True)):
            one = dict(zip(r, values, strict=True))
            yield track_name("thread_name", _REQUESTS, i + 1, str(one["request_id"]))
            begin = max(int(one["arrival_ns"]), 0)
            end = int(one["finish_ns"]) if one["finish_ns"] >= 0 else recorded.end_ns
            keys = ("prompt_tokens", "output_tokens", "preemptions", "status")
            if end > begin:
                slice_ = {"ph": "X", "name": "request", "pid": _REQUESTS, "tid": i + 1, "ts": begin / 1000}
                yield slice_ | {"dur": (end - begin) / 1000, "args": {k: one[k] for k in keys}}
        times = recorded.rows["time_ns"].tolist()
        for time, row in zip(times, getattr(recorded.raw, "rows", ()), strict=True):
            for name in row["preempted"]:
                at = {"pid": _REQUESTS, "tid": place[name] + 1, "ts": time / 1000}
                yield {"ph": "i", "s": "t", "name": "preempted", **at, "args": {"request": name}}
    steps = recorded.steps
    known = {k: v for k, v in steps.items() if k not in STATE_COLUMNS or recorded.num_states}
    yield from counter_events(known)
