"""Sentences that the answer on a run and the one on a recording have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.report.document import Inline, Piece, as_count, as_plural, as_seconds, as_share

#: From which share of used blocks on the pool is under pressure; the share of time from which on memory
#: is short; the share of waste up to which it is little.
PRESSURE, SHORT, LITTLE_WASTE = 0.95, 0.05, 0.02


def headline(
    s: Mapping[str, Any], under_pressure: float, starved: float, waits: Inline, of_states: bool = False
) -> Inline:
    """Whether memory ran short, and whether it is waste that makes it so.

    Args:
        s: the summary; its preemptions and its internal fragmentation may be None: not recorded.
        under_pressure: share of the time in which more than `PRESSURE` of the blocks were used.
        starved: share of the steps, or of the time, in which a request waited for blocks.
        waits: says that.
        of_states: the pool holds nothing but states.
    """
    inside = s["internal_fragmentation"]
    pieces = _short_or_not(s, under_pressure, starved, waits)
    if inside is None:
        return (*pieces, "What of it is wasted is not recorded.")
    if of_states:
        return (*pieces, "Nothing of what requests hold is wasted: a block is filled by one state.")
    if inside["mean"] < LITTLE_WASTE:
        return (*pieces, "Little of what requests hold is wasted: ", as_share(inside["mean"]), ".")
    return (*pieces, as_share(inside["mean"]), " of what requests hold is wasted.")


def _short_or_not(s: Mapping[str, Any], under_pressure: float, starved: float, waits: Inline) -> Inline:
    preempted = s["preemptions"]["preemptions"]
    share, highest = as_share(under_pressure), as_share(s["usage"]["max"])
    pieces: list[Piece]
    if preempted or under_pressure > SHORT:
        pieces = ["KV memory runs short: for ", share, " of the time more than 95 % of it is used"]
        pieces += [", with ", as_plural(preempted, "preemption")] if preempted is not None else []
        pieces += [", and ", *waits] if starved > SHORT else []
    elif starved > SHORT:
        pieces = ["KV memory runs short although at most ", highest, " of it is used: ", *waits]
    elif under_pressure > 0:
        pieces = ["KV memory is just enough: for ", share, " of the time more than 95 % is used"]
    elif starved > 0:
        pieces = ["KV memory is seldom short: at most ", highest, " is used, and ", *waits]
    else:
        pieces = ["KV memory is never short: at most ", highest, " is used"]
    return (*pieces, ". ")


def fragmentation(s: Mapping[str, Any]) -> Inline:
    """Free runs, external fragmentation, and what they mean."""
    pieces: list[Piece] = [
        "the free blocks lie in ",
        as_count(s["free_runs"]["mean"], "runs"),
        " runs on average" + (" in a replica" if "fleet" in s else "") + ": external fragmentation ",
        as_share(s["external_fragmentation"]["mean"]),
        ". Paged attention does not mind",
    ]
    contiguity = s["table_contiguity"]
    if contiguity is not None:
        pieces += [
            "; a transfer of KV would: only " if contiguity < 0.5 else "; for a transfer of KV, ",
            as_share(contiguity),
            " of neighbouring blocks of a request are adjacent in memory",
        ]
    return (*pieces, ".")


def cache_hits(cache: Mapping[str, Any]) -> Inline:
    """Hits at first lookup, and evicted blocks that were never hit (None: not recorded)."""
    pieces: list[Piece] = [
        "the prefix cache gives ",
        as_share(cache["first_lookup_token_hit_rate"]),
        " of the prompt tokens at first lookup",
    ]
    if cache["evicted_blocks"]:
        pieces += [
            "; ",
            as_share(cache["evicted_unused_blocks"] / cache["evicted_blocks"]),
            " of the ",
            as_count(cache["evicted_blocks"], "blocks"),
            " blocks that were evicted had never been hit",
        ]
    elif cache["evicted_blocks"] == 0:
        pieces.append("; nothing cached was evicted")
    return (*pieces, ".")


def peak(metric: Mapping[str, Any] | None, show: Any) -> Inline:
    """The 99th percentile, the maximum and when it was; nothing for what is not recorded."""
    if metric is None:
        return ()
    at = as_seconds(metric["max_at_s"])
    return ("p99 ", show(metric["p99"]), ", max ", show(metric["max"]), " at ", at)
