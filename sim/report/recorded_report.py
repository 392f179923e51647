"""The report of a recording of a live vLLM as a document: what the recording knows, and what it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim import __version__
from sim.analysis.recorded import Recorded
from sim.analysis.recording_file import Recording
from sim.report import curves, style
from sim.report.curve_specs import fragmentation_curves, hit_rate_curve, load_curve, preemption_curve
from sim.report.curves import CurveSpec, Marked
from sim.report.definitions import DEFINITIONS, used_definitions
from sim.report.document import (
    Card,
    Cards,
    Document,
    Inline,
    Items,
    Paragraph,
    Part,
    Section,
    as_count,
    as_plural,
    as_share,
)
from sim.report.group_table import GroupName, group_parts, kind_name
from sim.report.moments import Moment, find_moments, moments_table
from sim.report.pool_parts import pool_charts
from sim.report.pool_view import FilmMaker, film_times
from sim.report.recorded_answer import answer, usable_rows
from sim.report.recorded_requests import recorded_requests
from sim.report.recorded_run import external_fragmentation, free_in_state, ratio, summary_of
from sim.report.series import MAX_POINTS
from sim.report.units import clock_time, count, plural, seconds

if TYPE_CHECKING:
    from sim.analysis.layout import LayoutReport

Steps = dict[str, NDArray[Any]]

#: States that the layout analysis looks at.
_MOST_LOOKED_AT = 100
_RECORDED_DEFINITIONS = {
    "usage": (
        "KV usage",
        "Used blocks / usable blocks (all but the null block), vLLM's kv_cache_usage. Weighted by time: a row"
        " stands up to the next one.",
    ),
    "internal_fragmentation": (
        "Internal fragmentation",
        "Slots allocated to running requests that hold no computed token / allocated slots, summed over their"
        " block tables (a block in two tables counts twice). Weighted by time over the recorded states.",
    ),
    "wasted_slots": (
        "Wasted slots",
        "Slots allocated to running requests that hold no computed token; mean over time, by the recorded"
        " states.",
    ),
    "external_fragmentation": (
        "External fragmentation",
        "1 - longest run of consecutive free block ids / free blocks; 0 when none is free. Weighted by time"
        " over the recorded states. Paged allocation does not need adjacent blocks; transfers and larger"
        " pages do.",
    ),
    "table_contiguity": (
        "Table contiguity",
        "Adjacent pairs in running requests' block tables whose ids are consecutive / all such pairs, over"
        " the recorded states: pairs that one transfer descriptor could cover.",
    ),
    "full_time": (
        "Time under pressure",
        "Time in which more than 95 % of the usable blocks were used, by the recorded rows.",
    ),
    "e2e": ("Whole request", "From add_request() to the end of a request that ended by itself."),
    "throughput": (
        "Throughput",
        "Requests that ended by themselves, and their output tokens, per second of the recording.",
    ),
    "run_length": (
        "Run lengths",
        "Free runs by their length in powers of two, mean over equally spaced instants of the recording.",
    ),
    "in_states": (
        "In the states",
        "The most blocks, wasted slots and runs of consecutive ids in its tables that any recorded state"
        " shows of a request; between two states it may have been more. States: how many show it.",
    ),
}


def build_recorded_report(recorded: Recorded) -> Document:
    """The whole report.

    Raises:
        InputError: a state of the recording is damaged.
    """
    summary = summary_of(recorded)
    states = state_table(recorded)
    moments = find_moments(states, recorded.usable_blocks) if recorded.num_states else []
    layout = _look(recorded, moments) if recorded.num_states else None
    sections = [
        Section("answer", "The answer", tuple(answer(recorded, summary))),
        Section("time", "Over time", tuple(_over_time(recorded, summary, moments))),
        Section(
            "moments",
            "Worst moments",
            tuple(moments_table(states, moments, layout, recorded.started_unix_ns)),
        ),
        Section("pool", "The pool", tuple(_pool(recorded, moments))),
    ]
    if layout is not None:
        from sim.report.findings import layout_parts

        over = plural(len(layout.times_ns), "recorded state")
        groups = group_parts(layout.groups, group_names(recorded), over)
        sections.append(Section("groups", "KV-cache groups", tuple(groups)))
        sections.append(Section("layout", "What splits the pool", tuple(layout_parts(layout))))
    sections.append(Section("cache", "Cache and block lifetimes", tuple(_cache(recorded, summary))))
    sections.append(Section("requests", "Requests", tuple(recorded_requests(recorded))))
    missing = tuple((f"{what[0].upper()}{what[1:]}.",) for what in recorded.missing)
    sections.append(Section("missing", "Not recorded", (Items(missing),) if missing else ()))
    sections = [s for s in sections if s.parts]
    return Document(
        "report",
        f"{recorded.path.name}: where the KV memory goes",
        _subtitle(recorded),
        tuple(sections),
        used_definitions(sections, DEFINITIONS | _RECORDED_DEFINITIONS),
        _provenance(recorded),
    )


def _subtitle(recorded: Recorded) -> str:
    size = max(recorded.block_sizes, default=0)
    parts = [
        "Recorded from a live vLLM" + (f" {recorded.vllm}" if recorded.vllm else ""),
        f"{count(recorded.usable_blocks)} blocks of {size} tokens",
    ]
    if recorded.requests is not None:
        parts.append(plural(len(recorded.requests["request_id"]), "request"))
    parts.append(seconds(recorded.end_ns / 1e9))
    if recorded.started_unix_ns is not None:
        parts.append(f"from {clock_time(recorded.started_unix_ns)}")
    return ", ".join(parts)


def _provenance(recorded: Recorded) -> dict[str, str]:
    out = {"recording": recorded.path.name, "sha256": recorded.sha256}
    if recorded.vllm:
        out["vLLM"] = recorded.vllm
    if recorded.options:
        out["recorder"] = ", ".join(f"{k}={v}" for k, v in recorded.options.items())
    if recorded.settings:
        known = {k: v for k, v in recorded.settings.items() if v is not None}
        out["engine"] = ", ".join(f"{k}={v}" for k, v in known.items())
    return out | {"kvpool": __version__}


def state_table(recorded: Recorded) -> dict[str, NDArray[Any]]:
    """The rows that hold a state, with the columns of both."""
    at = recorded.state_rows
    return {name: column[at] for name, column in recorded.rows.items()} | recorded.state_columns


_SPECS = {
    "FullAttentionSpec": "full",
    "SlidingWindowSpec": "sliding_window",
    "ChunkedLocalAttentionSpec": "chunked_local",
    "MambaSpec": "mamba",
}


def group_names(recorded: Recorded) -> tuple[GroupName, ...]:
    """By the classes of vLLM's specs; "not noted" in old tables of states."""
    raw = recorded.raw
    if isinstance(raw, Recording):
        groups = raw.header["groups"]
        found = [(g["spec"], g.get("sliding_window"), g.get("attention_chunk_size")) for g in groups]
    else:
        found = [(spec, None, None) for spec in raw.specs]
    found += [("not noted", None, None)] * (len(recorded.block_sizes) - len(found))
    return tuple(GroupName(kind_name(_SPECS.get(spec, spec), *shape)) for spec, *shape in found)


# ---- over time ----


def _over_time(recorded: Recorded, s: dict[str, Any], moments: Sequence[Moment]) -> list[Part]:
    if not usable_rows(recorded):
        return [Paragraph(("The recording is too short for curves.",), "note")]
    rows = recorded.rows
    steps = _at_equal_times(recorded)
    specs = [_usage_spec(recorded, steps, s)]
    if recorded.num_states:
        specs += _state_specs(steps, s)
    specs += _row_specs(steps, s)
    preempted = rows.get("preemptions", np.zeros(len(rows["time_ns"]), dtype=np.int64))
    grown = np.flatnonzero(np.diff(preempted, prepend=0) > 0)
    marks = [Marked(m.time_ns, m.label) for m in moments]
    charts = curves.curve_charts(steps, specs, marks, rows["time_ns"][grown], "time")
    return [curves.bars_note(steps), *charts]


def _at_equal_times(recorded: Recorded, points: int = MAX_POINTS) -> Steps:
    """The step function read at equally spaced instants: rows come at any time, and lines join them."""
    steps = dict(recorded.steps)
    steps["external_fragmentation"] = external_fragmentation(steps, free_in_state(recorded))
    times = np.linspace(0, recorded.end_ns, points).astype(np.int64)
    at = np.maximum(np.searchsorted(steps["time_ns"], times, side="right") - 1, 0)
    return {name: column[at] for name, column in steps.items()} | {"time_ns": times}


def _usage_spec(recorded: Recorded, steps: Steps, s: dict[str, Any]) -> CurveSpec:
    usable = max(recorded.usable_blocks, 1)
    used = steps["used_blocks"] / usable
    evictable = np.minimum(steps["cached_free_blocks"] / usable, 1 - used)
    mean = as_share(s["usage"]["mean"])
    if not recorded.num_states:
        draw = curves.draw_line(used, style.BLUE, "share", bound=1.0)
        return CurveSpec("usage", "KV cache usage", ("Mean ", mean, "."), draw, {"usage": used}, "usage")
    look = "Light: free blocks whose content can still be hit, in the last state."
    data = {"usage": used, "evictable": evictable}
    says = ("Mean ", mean, ".")
    return CurveSpec("usage", "KV cache usage", says, curves.draw_usage(usable), data, "usage", look=look)


def _state_specs(steps: Steps, s: dict[str, Any]) -> list[CurveSpec]:
    inside = ratio(steps["wasted_slots"], steps["allocated_slots"])
    return fragmentation_curves(steps, s, inside, steps["external_fragmentation"])


def _row_specs(steps: Steps, s: dict[str, Any]) -> list[CurveSpec]:
    specs = [hit_rate_curve(steps, s)] if s["prefix_cache"]["first_lookup_tokens"] else []
    specs.append(load_curve(steps, s))
    if s["preemptions"]["preemptions"]:
        specs.append(preemption_curve(steps))
    return specs


# ---- the pool ----


def _look(recorded: Recorded, moments: Sequence[Moment]) -> LayoutReport:
    """Patterns over states that are spread evenly, and the requests behind the worst moments."""
    from sim.analysis.findings import WorstMoment
    from sim.analysis.layout import BlockLayoutAnalyzer, causes_of

    stride = max(1, -(-recorded.num_states // _MOST_LOOKED_AT))
    chosen = set(range(0, recorded.num_states, stride))
    of_state = {m.row: [x for x in moments if x.row == m.row] for m in moments}
    wanted = sorted(chosen | set(of_state))
    analyzer, found = BlockLayoutAnalyzer(), []
    for i, snapshot in zip(wanted, recorded.snapshots(wanted), strict=True):
        if i in chosen:
            analyzer.add(snapshot)
        for m in of_state.get(i, ()):
            found.append(WorstMoment(m.metric, m.time_ns, m.value, causes_of(snapshot, m.metric)))
    return analyzer.report(worst=found)


def _pool(recorded: Recorded, moments: Sequence[Moment]) -> list[Part]:
    if not recorded.num_states or recorded.end_ns <= 0:
        return []
    times = film_times(recorded.end_ns)
    film = FilmMaker(recorded.num_blocks, len(times))
    shown, codes = -1, None
    for time in times.tolist():
        i = recorded.state_before(time)
        if codes is None or i != shown:
            shown, codes = i, recorded.codes(i)
        # without a request every block is free, whatever the last state before shows
        film.take(time, (codes & 1).astype(np.uint8) if recorded.is_idle(time) else codes)
    return pool_charts(
        film.film(), moments, recorded.end_ns, "time to the right, each instant as the last state"
    )


# ---- cache ----


def _cache(recorded: Recorded, s: dict[str, Any]) -> list[Part]:
    c = s["prefix_cache"]
    parts: list[Part] = []
    cards = []
    for key, label, term in (
        ("first_lookup", "Hit rate at first lookup", "first_lookup_hit_rate"),
        ("resumed", "Hit rate when resumed", "resumed_hit_rate"),
    ):
        tokens = c["first_lookup_tokens" if key == "first_lookup" else "resumed_lookup_tokens"]
        if tokens is not None:
            note: Inline = (as_count(c[f"{key}_hit_tokens"], "tokens"), " of ", as_plural(tokens, "token"))
            cards.append(Card(label, as_share(c[f"{key}_token_hit_rate"]), note, term))
    history = recorded.history()
    if history is not None:
        history.advance()
        rate = history.evicted_unused / history.evicted if history.evicted else None
        note = (as_count(history.evicted_unused, "blocks"), " of ", as_plural(history.evicted, "block"))
        cards.append(Card("Evicted without a hit", as_share(rate), note, "pollution"))
        note = ("blocks handed out by get_new_blocks()",)
        cards.append(Card("Allocated blocks", as_count(history.allocations, "blocks"), note))
    if cards:
        parts.append(Cards(tuple(cards)))
    if history is not None:
        from sim.report.findings import residency_parts

        parts += residency_parts(history.residency())
    return parts
