"""The head of a report: the answer in a few sentences, and the key numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

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
    as_size,
)
from sim.report.folder import RunFolder, read_rows
from sim.report.sentences import PRESSURE, cache_hits, fragmentation, headline, peak

if TYPE_CHECKING:
    from sim.analysis.tracker import Tracked

_NONE = Value(None, "-")
#: Terms that mean nothing where blocks hold states.
_OF_SLOTS = ("wasted_memory", "internal_fragmentation")
_REFUSALS = ("full-sequence reserve", "watermark", "pool")


def time_weights(run: RunFolder, times: np.ndarray | None = None) -> np.ndarray:
    """float64: nanoseconds after the warm-up for which each row stands; `times` are those of steps."""
    times = run.steps["time_ns"] if times is None else times
    if len(times) == 0:
        return np.zeros(0)
    edges = np.clip(np.append(times, max(run.end_ns, int(times[-1]))), run.warmup_ns, None)
    return np.diff(edges).astype(np.float64)


def pressure_seconds(run: RunFolder) -> float:
    """Simulated seconds after the warm-up in which more than 95 % of the blocks were used.

    Of a fleet the mean over its replicas: one that is full is not helped by another that is not.
    """
    fleet = run.summary.get("fleet")
    if fleet is None:
        usage = run.steps["used_blocks"] / run.summary["engine"]["usable_blocks"]
        return float(time_weights(run)[usage > PRESSURE].sum()) / 1e9
    rows = read_rows(run.path / "replica_steps.parquet")
    full = rows["used_blocks"] / fleet["usable_blocks_per_replica"] > PRESSURE
    total = 0.0
    for replica in range(fleet["replicas"]):
        own = rows["replica"] == replica
        total += float(time_weights(run, rows["time_ns"][own])[full[own]].sum())
    return total / fleet["replicas"] / 1e9


def of_states(s: Mapping[str, Any]) -> bool:
    """Whether the pool of this summary holds states alone, which leave no slot empty."""
    return s["engine"]["pool_tokens"] is None


def _part(whole: float, part: float) -> float:
    return part / whole if whole else 0.0


def _memory(run: RunFolder) -> Inline:
    s = run.summary
    usage, waste, inside = s["usage"], s["waste"], s["internal_fragmentation"]
    e = s["engine"]
    pool: Value = (
        as_size(e["pool_bytes"]) if e["pool_bytes"] is not None else as_plural(e["usable_blocks"], "block")
    )
    pieces: list[Piece] = [
        "on average ",
        as_share(usage["mean"]),
        " of the pool (",
        pool,
        ") is used, at its peak ",
        as_share(usage["max"]),
        ". ",
    ]
    if waste["mean_wasted_bytes"] is not None:
        wasted: Value = as_size(waste["mean_wasted_bytes"])
    else:
        wasted = as_plural(round(waste["mean_wasted_slots"] or 0), "slot")
    if of_states(s):
        pieces.append("Each block holds one state of a request, whatever its length")
    else:
        pieces += [
            "Of what requests hold, ",
            as_share(inside["mean"]),
            " is wasted (",
            wasted,
            "), mostly in last blocks that are not full",
        ]
    evictable = float(np.average(run.steps["cached_free_blocks"], weights=_weights(run)))
    pieces += [
        "; ",
        as_share(_part(e["usable_blocks"], evictable)),
        " of the pool is free but keeps cached content.",
    ]
    return tuple(pieces)


def _weights(run: RunFolder) -> np.ndarray | None:
    weights = time_weights(run)
    return weights if weights.sum() > 0 else None


def _cache(run: RunFolder) -> Inline:
    c = run.summary["prefix_cache"]
    if not c["first_lookup_tokens"]:
        on = run.config["engine"].get("enable_prefix_caching", True)
        return ("the prefix cache was not asked once.",) if on else ("prefix caching is off.",)
    return cache_hits(c)


def refusals(run: RunFolder, tracked: Tracked | None) -> int:
    """Times that the next request in the queue found too few free blocks: at most once a schedule call.

    Waits for a state (of a recurrent layer) are none; without `tracked` they can't be told apart.
    """
    if tracked is not None:
        return sum(f.attempts for f in tracked.failures if f.cause in _REFUSALS)
    return sum(run.summary["admissions_refused"].values())


def _starved(run: RunFolder, refused: int) -> float:
    """Share of the steps in which a request was refused blocks.

    An asynchronous engine may refuse in a schedule call without any token, which is no step.
    """
    return min(1.0, _part(run.summary["steps"], refused))


def _pressure(run: RunFolder, refused: int) -> Inline:
    s = run.summary
    p = s["preemptions"]
    full = pressure_seconds(run)
    pieces: list[Piece] = []
    if full > 0:
        pieces += [
            "above 95 % usage for ",
            as_seconds(full),
            " (",
            as_share(_part(s["simulated_s"] - s["warmup_s"], full)),
            " of the time). ",
        ]
    if p["preemptions"]:
        computed = s["requests"]["prompt_tokens"] + s["requests"]["output_tokens"] + p["recomputed_tokens"]
        pieces += [
            as_plural(p["preemptions"], "preemption"),
            " of ",
            as_plural(p["requests_preempted"], "request"),
            " made the engine compute ",
            as_count(p["recomputed_tokens"], "tokens"),
            " tokens again (",
            as_share(_part(computed, p["recomputed_tokens"])),
            " of all tokens).",
        ]
    else:
        pieces.append("Nothing was preempted" if pieces else "nothing was preempted")
        pieces.append("." if refused else ", and no request had to wait for blocks.")
    if refused:
        pieces += [
            " The next request in the queue found too few free blocks ",
            as_plural(refused, "time"),
            " (in ",
            as_share(_starved(run, refused)),
            " of the steps) and had to wait.",
        ]
    return tuple(pieces)


def _warnings(run: RunFolder) -> list[Part]:
    s = run.summary
    out: list[Part] = []
    r = s["requests"]
    if s["exit_reason"] == "interrupted":
        out.append(Paragraph(("The run was interrupted: all numbers are of its part up to then.",), "warn"))
    if r["unservable"]:
        out.append(
            Paragraph(
                (
                    as_plural(r["unservable"], "request"),
                    " could never fit the pool: dropped (status 5 in requests.parquet).",
                ),
                "warn",
            )
        )
    if r["rejected"]:
        out.append(
            Paragraph(
                (
                    as_plural(r["rejected"], "request"),
                    " had a prompt that is not shorter than max_model_len (status 4 in requests.parquet).",
                ),
                "warn",
            )
        )
    if r["unfinished"]:
        out.append(
            Paragraph(
                (as_plural(r["unfinished"], "request"), " had not finished when the run ended."), "note"
            )
        )
    return out


def _cards(run: RunFolder) -> Cards:
    s = run.summary
    waste, cache, p = s["waste"], s["prefix_cache"], s["preemptions"]
    ttft, rate = s["latency"]["ttft_s"], s["throughput"]
    by_bytes = waste["mean_wasted_bytes"] is not None
    cards = [
        Card("KV usage, mean", as_share(s["usage"]["mean"]), peak(s["usage"], as_share), "usage"),
        Card(
            "Wasted memory, mean" if by_bytes else "Wasted slots, mean",
            as_size(waste["mean_wasted_bytes"])
            if by_bytes
            else as_count(round(waste["mean_wasted_slots"] or 0)),
            ("at finish ", as_share(waste["waste_at_finish"]), " of a request's slots"),
            "wasted_memory",
        ),
        Card(
            "Internal fragmentation",
            as_share(s["internal_fragmentation"]["mean"]),
            peak(s["internal_fragmentation"], as_share),
            "internal_fragmentation",
        ),
        Card(
            "External fragmentation",
            as_share(s["external_fragmentation"]["mean"]),
            peak(s["external_fragmentation"], as_share),
            "external_fragmentation",
        ),
        Card(
            "Free runs, mean",
            as_count(s["free_runs"]["mean"], "runs"),
            peak(s["free_runs"], as_count),
            "free_runs",
        ),
        Card(
            "Table contiguity",
            as_share(s["table_contiguity"]),
            ("of neighbouring pairs",),
            "table_contiguity",
        ),
        Card(
            "Hit rate at first lookup",
            as_share(cache["first_lookup_token_hit_rate"]),
            ("of ", as_count(cache["first_lookup_tokens"], "tokens"), " tokens"),
            "first_lookup_hit_rate",
        ),
        Card(
            "Pollution",
            as_share(cache["evicted_unused_blocks"] / cache["evicted_blocks"])
            if cache["evicted_blocks"]
            else _NONE,
            ("of ", as_plural(cache["evicted_blocks"], "evicted block")),
            "pollution",
        ),
        Card(
            "Preemptions",
            as_count(p["preemptions"]),
            (as_plural(p["recomputed_tokens"], "token"), " recomputed"),
            "preemptions",
        ),
        Card(
            "Time under pressure",
            as_seconds(pressure_seconds(run)),
            ("more than 95 % of blocks used",),
            "full_time",
        ),
        Card(
            "Time to first token, p50",
            as_seconds(ttft["p50"]),
            ("p99 ", as_seconds(ttft["p99"]), ", max ", as_seconds(ttft["max"])),
            "ttft",
        ),
        Card(
            "Requests per second",
            as_count(rate["requests_per_s"]),
            (as_count(rate["output_tokens_per_s"]), " output tokens/s"),
            "throughput",
        ),
    ]
    if of_states(s):
        cards = [card for card in cards if card.term not in _OF_SLOTS]
    return Cards(tuple(cards))


def answer(run: RunFolder, tracked: Tracked | None = None) -> list[Part]:
    """Warnings, the answer, the key numbers; `tracked` if the run was simulated again."""
    s = run.summary
    if s["usage"] is None or s["internal_fragmentation"] is None or len(run.steps["time_ns"]) == 0:
        return [
            *_warnings(run),
            Paragraph(("The run holds no engine step: there is nothing to tell.",), "lead"),
        ]
    refused = refusals(run, tracked)
    starved = _starved(run, refused)
    waits: Inline = (
        "in ",
        as_share(starved),
        " of the steps the next request in the queue finds too few free blocks",
    )
    findings = (
        ("Memory: ", *_memory(run)),
        ("Fragmentation: ", *fragmentation(s)),
        ("Cache: ", *_cache(run)),
        ("Pressure: ", *_pressure(run, refused)),
    )
    full = _part(s["simulated_s"] - s["warmup_s"], pressure_seconds(run))
    return [
        *_warnings(run),
        Paragraph(headline(s, full, starved, waits, of_states(s)), "lead"),
        Items(findings, labelled=True),
        _cards(run),
    ]
