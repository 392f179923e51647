"""A run in Chrome's trace format, for Perfetto: one track a request, and counters of the pool.

Times are microseconds of simulated time. A request's slices: queued, prefill (admission to first token),
decode, preempted, and resumed (what follows a preemption: the lost tokens are computed again, then decoding
goes on).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sim.analysis.failures import CAUSES
from sim.core import codes as c

I64 = NDArray[np.int64]

_REQUESTS, _POOL = 1, 2
_COUNTERS = {
    "blocks": {"used": "used_blocks", "free and cached": "cached_free_blocks", "free": "num_free_blocks"},
    "requests": {"running": "num_running", "waiting": "num_waiting"},
    "wasted slots": {"slots": "wasted_slots"},
    "free runs": {"runs": "free_runs"},
    "largest free run": {"blocks": "largest_free_run"},
}


def chrome_trace(
    requests: Mapping[str, I64],
    events: Mapping[str, I64],
    steps: Mapping[str, I64],
    names: Sequence[str],
    end_ns: int,
) -> Iterator[str]:
    """Pieces of the JSON text.

    Args:
        requests: columns of requests.parquet.
        events: event log with at least the events about requests.
        steps: step log.
        names: request ids by position in the workload.
        end_ns: where slices end that are open at the end of the run.
    """
    yield '{"displayTimeUnit":"ms","traceEvents":[\n'
    first = True
    for event in _events(requests, events, steps, names, end_ns):
        yield ("" if first else ",\n") + json.dumps(event, ensure_ascii=False, separators=(",", ":"))
        first = False
    yield "\n]}\n"


def _events(
    requests: Mapping[str, I64],
    events: Mapping[str, I64],
    steps: Mapping[str, I64],
    names: Sequence[str],
    end_ns: int,
) -> Iterator[dict[str, object]]:
    yield track_name("process_name", _REQUESTS, 0, "requests")
    yield track_name("process_name", _POOL, 0, "block pool")
    for r in requests["index"].tolist():
        yield track_name("thread_name", _REQUESTS, r + 1, names[r])
    yield from _slices(requests, events, end_ns)
    yield from _instants(events, names)
    yield from counter_events(steps)


def track_name(kind: str, process: int, thread: int, text: str) -> dict[str, object]:
    """Names a process or a thread; `kind` is "process_name" or "thread_name"."""
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": text}}


def _us(ns: int) -> float:
    return ns / 1000


def _slices(
    requests: Mapping[str, I64], events: Mapping[str, I64], end_ns: int
) -> Iterator[dict[str, object]]:
    """Cut each request's life at its admissions and preemptions, and at its first token."""
    turns: dict[int, list[tuple[int, int]]] = {}
    keep = np.flatnonzero(np.isin(events["type"], (c.EV_ADMITTED, c.EV_PREEMPTED)))
    columns = (events[name][keep].tolist() for name in ("time_ns", "type", "request"))
    for time, kind, request in zip(*columns, strict=True):
        turns.setdefault(request, []).append((time, kind))
    times = [requests[name].tolist() for name in ("index", "arrival_ns", "first_token_ns", "finish_ns")]
    tokens = [requests[name].tolist() for name in ("prompt_tokens", "output_tokens", "hit_tokens")]
    for r, arrival, first, finish, prompt, output, hits in zip(*times, *tokens, strict=True):
        end = finish if finish >= 0 else end_ns
        cuts = [(arrival, "queued")]
        preempted = False
        for time, kind in turns.get(r, ()):
            if kind == c.EV_PREEMPTED:
                preempted = True
                cuts.append((time, "preempted"))
            else:
                cuts.append((time, "resumed" if preempted else "prefill"))
        if first >= 0 and not (preempted and first >= cuts[2][0]):
            cuts.append((first, "decode"))
            cuts.sort(key=lambda cut: cut[0])
        args = {"prompt_tokens": prompt, "output_tokens": output, "hit_tokens": hits}
        for (begin, what), (until, _) in zip(cuts, [*cuts[1:], (end, "")], strict=True):
            if until > begin:
                yield {
                    "ph": "X",
                    "name": what,
                    "pid": _REQUESTS,
                    "tid": r + 1,
                    "ts": _us(begin),
                    "dur": _us(until - begin),
                    "args": args,
                }


def _instants(events: Mapping[str, I64], names: Sequence[str]) -> Iterator[dict[str, object]]:
    """Preemptions, and the running requests that found no block."""
    keep = np.flatnonzero(np.isin(events["type"], (c.EV_PREEMPTED, c.EV_ALLOCATION_FAILED)))
    columns = (events[name][keep].tolist() for name in ("time_ns", "type", "request", "block", "a", "b"))
    last = (-1, -1)
    for time, kind, request, free, a, b in zip(*columns, strict=True):
        args: dict[str, object]
        if kind == c.EV_PREEMPTED:
            what, args = "preempted", {"computed_tokens": a, "blocks": b}
        elif last == (request, a):
            continue  # the same request is refused in step after step
        else:
            what = "allocation failed"
            args = {"cause": CAUSES[a], "wanted_blocks": b, "free_blocks": free}
            last = (request, a)
        args["request"] = names[request]
        place = {"pid": _REQUESTS, "tid": request + 1, "ts": _us(time)}
        yield {"ph": "i", "s": "t", "name": what, **place, "args": args}


def counter_events(steps: Mapping[str, I64]) -> Iterator[dict[str, object]]:
    """Counters of the pool over the rows of a step log; those whose columns it lacks are left out, and rows
    in which one is not known (NaN).
    """
    known = {counter: kinds for counter, kinds in _COUNTERS.items() if set(kinds.values()) <= set(steps)}
    columns = {name: steps[name] for kinds in known.values() for name in kinds.values()}
    if "cached_free_blocks" in columns:
        # the three kinds of blocks are stacked: each block in one of them
        columns["cached_free_blocks"] = np.minimum(steps["cached_free_blocks"], steps["num_free_blocks"])
        columns["num_free_blocks"] = steps["num_free_blocks"] - columns["cached_free_blocks"]
    values = {name: column.tolist() for name, column in columns.items()}
    for i, time in enumerate(steps["time_ns"].tolist()):
        for counter, kinds in known.items():
            found = {kind: values[name][i] for kind, name in kinds.items()}
            if any(math.isnan(v) for v in found.values()):
                continue
            args = {kind: int(v) for kind, v in found.items()}
            yield {"ph": "C", "name": counter, "pid": _POOL, "tid": 0, "ts": _us(time), "args": args}
