"""The head of a report on a recording: the answer in a few sentences, what was recorded, the key numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sim.analysis.recorded import Recorded
from sim.report.document import (
    Card,
    Cards,
    Inline,
    Items,
    Paragraph,
    Part,
    Piece,
    Value,
    as_count,
    as_plural,
    as_seconds,
    as_share,
)
from sim.report.recorded_run import weighted, weights_of
from sim.report.sentences import PRESSURE, cache_hits, fragmentation, headline, peak
from sim.report.units import clock_time, count, plural

_NONE = Value(None, "not recorded")


def pressure_seconds(recorded: Recorded) -> float:
    """Seconds for which more than 95 % of the blocks were used."""
    steps = recorded.steps
    usage = steps["used_blocks"] / max(recorded.usable_blocks, 1)
    if recorded.end_ns <= 0:
        return 0.0
    return float(weights_of(steps["time_ns"], recorded.end_ns)[usage > PRESSURE].sum()) / 1e9


def starved_seconds(recorded: Recorded) -> float:
    """Seconds for which a request waited for blocks: a schedule() left it in the queue though neither
    max_num_seqs nor the budget of tokens was used up; 0 where these are not recorded.
    """
    steps, settings = recorded.steps, recorded.settings
    seats = settings.get("max_num_active_seqs") or settings.get("max_num_seqs")
    budget = settings.get("max_num_scheduled_tokens") or settings.get("max_num_batched_tokens")
    if recorded.end_ns <= 0 or not seats or not budget or "num_scheduled_tokens" not in steps:
        return 0.0
    waits = (steps["num_waiting"] > 0) & (steps["num_running"] < seats)
    waits &= steps["num_scheduled_tokens"] < budget
    # an update() ends requests, and nobody could take their seats yet: the schedule() before it tells
    scheduled = np.maximum.accumulate(np.where(steps["updated"] == 0, np.arange(len(waits)), -1))
    waits = waits[np.maximum(scheduled, 0)] & (scheduled >= 0)
    return float(weights_of(steps["time_ns"], recorded.end_ns)[waits].sum()) / 1e9


def what_was_recorded(recorded: Recorded) -> str:
    """Rows and states, and what lies between them."""
    rows, states = len(recorded.rows["time_ns"]), recorded.num_states
    if recorded.kind == "states":
        held = f"A table of {plural(states, 'state')} of the pool."
    else:
        every = int(recorded.options.get("row_every", 1))
        which = "each call" if recorded.every_call else f"the calls of every {count(every)} steps"
        if not recorded.every_call and every == 1:
            which = "calls"
        held = (
            f"{plural(rows, 'row')} of counters ({which} of schedule() and update_from_output()),"
            f" {plural(states, 'state')} of the whole pool."
        )
    if recorded.every_call and states == rows:
        return held
    return f"{held} What lies between is not recorded: a row or a state stands for the time up to the next."


def _memory(s: Mapping[str, Any], recorded: Recorded) -> Inline:
    pieces: list[Piece] = [
        "on average ",
        as_share(s["usage"]["mean"]),
        " of the pool (",
        as_plural(recorded.usable_blocks, "block"),
        ") is used, at its peak ",
        as_share(s["usage"]["max"]),
        ".",
    ]
    inside = s["internal_fragmentation"]
    if inside is None:
        return (*pieces, " Waste is not recorded.")
    pieces += [
        " Of what requests hold, ",
        as_share(inside["mean"]),
        " is wasted (",
        as_plural(round(s["waste"]["mean_wasted_slots"] or 0), "slot"),
        ")",
    ]
    evictable = weighted(recorded.steps["cached_free_blocks"], recorded.steps["time_ns"], recorded.end_ns)
    if evictable is not None and evictable["mean"] is not None and recorded.usable_blocks:
        pieces += [
            "; ",
            as_share(evictable["mean"] / recorded.usable_blocks),
            " of the pool is free but keeps cached content",
        ]
    return (*pieces, ".")


def _fragmentation(s: Mapping[str, Any]) -> Inline:
    if s["free_runs"] is None:
        return ("not recorded: there is no state of the pool.",)
    return fragmentation(s)


def _cache(s: Mapping[str, Any], recorded: Recorded) -> Inline:
    c = s["prefix_cache"]
    if recorded.settings.get("enable_prefix_caching") is False:
        return ("prefix caching is off.",)
    if c["first_lookup_tokens"] is None:
        return ("hits are not recorded.",)
    if not c["first_lookup_tokens"]:
        return ("the prefix cache was not asked once.",)
    return cache_hits(c)


def _pressure(s: Mapping[str, Any], recorded: Recorded) -> Inline:
    full = pressure_seconds(recorded)
    pieces: list[Piece] = []
    if full > 0:
        pieces += ["above 95 % usage for ", as_seconds(full), " ("]
        pieces += [as_share(full / (recorded.end_ns / 1e9)), " of the time). "]
    preempted = s["preemptions"]["preemptions"]
    if preempted is None:
        pieces.append("Preemptions are not recorded.")
    elif not preempted:
        pieces.append("Nothing was preempted." if pieces else "nothing was preempted.")
    else:
        pieces.append(as_plural(preempted, "preemption"))
        if recorded.requests is not None:
            whom = int((recorded.requests["preemptions"] > 0).sum())
            pieces += [" of ", as_plural(whom, "request")]
        pieces.append(".")
    starved = starved_seconds(recorded)
    if starved > 0:
        pieces += [" For ", as_seconds(starved), " (", as_share(starved / (recorded.end_ns / 1e9))]
        pieces.append(
            " of the time) a request waited although neither max_num_seqs nor the budget of tokens was used"
            " up: it found too few free blocks."
        )
    return tuple(pieces)


def _mean(metric: Mapping[str, Any] | None, show: Callable[[float | None], Value]) -> Value:
    return _NONE if metric is None else show(metric["mean"])


def _cards(s: Mapping[str, Any], recorded: Recorded) -> Cards:
    waste, cache, p = s["waste"]["mean_wasted_slots"], s["prefix_cache"], s["preemptions"]["preemptions"]
    e2e, rate, requests = s["latency"]["e2e_s"], s["throughput"], s["requests"]
    looked = cache["first_lookup_tokens"]
    cards = [
        Card("KV usage, mean", as_share(s["usage"]["mean"]), peak(s["usage"], as_share), "usage"),
        Card(
            "Wasted slots, mean",
            _NONE if waste is None else as_count(round(waste), "slots"),
            ("of ", as_plural(recorded.usable_blocks * max(recorded.block_sizes, default=0), "slot"))
            if waste is not None
            else (),
            "wasted_slots",
        ),
        Card(
            "Internal fragmentation",
            _mean(s["internal_fragmentation"], as_share),
            peak(s["internal_fragmentation"], as_share),
            "internal_fragmentation",
        ),
        Card(
            "External fragmentation",
            _mean(s["external_fragmentation"], as_share),
            peak(s["external_fragmentation"], as_share),
            "external_fragmentation",
        ),
        Card("Free runs, mean", _mean(s["free_runs"], as_count), peak(s["free_runs"], as_count), "free_runs"),
        Card(
            "Table contiguity",
            _NONE if s["table_contiguity"] is None else as_share(s["table_contiguity"]),
            ("of neighbouring pairs",),
            "table_contiguity",
        ),
        Card(
            "Hit rate at first lookup",
            _NONE if looked is None else as_share(cache["first_lookup_token_hit_rate"]),
            () if looked is None else ("of ", as_count(looked, "tokens"), " tokens"),
            "first_lookup_hit_rate",
        ),
        Card(
            "Preemptions",
            _NONE if p is None else as_count(p, "preemptions"),
            (as_count(s["num_waiting"]["mean"], "requests"), " requests waiting on average"),
            "preemptions",
        ),
        Card(
            "Time under pressure",
            as_seconds(pressure_seconds(recorded)),
            ("more than 95 % of blocks used",),
            "full_time",
        ),
        Card(
            "Whole request, p50",
            _NONE if e2e["p50"] is None else as_seconds(e2e["p50"]),
            () if e2e["p50"] is None else ("p99 ", as_seconds(e2e["p99"]), ", max ", as_seconds(e2e["max"])),
            "e2e",
        ),
        Card(
            "Requests per second",
            _NONE if rate["requests_per_s"] is None else as_count(rate["requests_per_s"]),
            ()
            if rate["requests_per_s"] is None
            else (as_count(rate["output_tokens_per_s"]), " output tokens/s"),
            "throughput",
        ),
        Card(
            "Requests",
            _NONE if requests["arrived"] is None else as_count(requests["arrived"], "requests"),
            () if requests["arrived"] is None else _fates(requests),
        ),
    ]
    return Cards(tuple(cards))


def _fates(requests: Mapping[str, int]) -> Inline:
    pieces: list[Piece] = [as_count(requests["finished"], "requests"), " finished"]
    for key, text in (("ended_otherwise", "ended otherwise"), ("unfinished", "had not ended")):
        if requests[key]:
            pieces += [", ", as_count(requests[key], "requests"), f" {text}"]
    return tuple(pieces)


def answer(recorded: Recorded, summary: Mapping[str, Any]) -> list[Part]:
    """Warnings, the answer, the key numbers, what was recorded."""
    warnings: list[Part] = [
        Paragraph((f"This recording is not whole: {p}.",), "warn") for p in recorded.problems
    ]
    if summary["usage"] is None:
        return [*warnings, Paragraph(("The recording holds no row: there is nothing to tell.",), "lead")]
    findings = (
        ("Memory: ", *_memory(summary, recorded)),
        ("Fragmentation: ", *_fragmentation(summary)),
        ("Cache: ", *_cache(summary, recorded)),
        ("Pressure: ", *_pressure(summary, recorded)),
    )
    seconds = recorded.end_ns / 1e9
    full = pressure_seconds(recorded) / seconds if seconds else 0.0
    starved = starved_seconds(recorded) / seconds if seconds else 0.0
    waits: Inline = ("for ", as_share(starved), " of the time a request waits for blocks")
    began = recorded.started_unix_ns
    zero = "" if began is None else f" Times count from {clock_time(began)}."
    note = Paragraph((what_was_recorded(recorded) + zero,), "note")
    return [
        *warnings,
        Paragraph(headline(summary, full, starved, waits), "lead"),
        Items(findings, labelled=True),
        note,
        _cards(summary, recorded),
    ]


def usable_rows(recorded: Recorded) -> bool:
    """Whether there is enough for curves: two rows at different times."""
    return len(np.unique(recorded.steps["time_ns"])) > 1
