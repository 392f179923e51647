"""The report of a run as a document: the answer first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.report import curves, style
from sim.report.answer import answer, of_states
from sim.report.curve_specs import fragmentation_curves, hit_rate_curve, load_curve, preemption_curve
from sim.report.curves import CurveSpec, Marked
from sim.report.definitions import DEFINITIONS, used_definitions
from sim.report.document import (
    Document,
    Paragraph,
    Part,
    Section,
    as_plural,
    as_share,
)
from sim.report.fleet import DEFINITIONS as FLEET_DEFINITIONS
from sim.report.fleet import fleet_parts, sums_note
from sim.report.folder import RunFolder
from sim.report.moments import Moment, external, find_moments, moments_table
from sim.report.pool_parts import pool_charts
from sim.report.request_tables import waste_histogram, worst_requests
from sim.report.series import windows
from sim.report.units import plural, pool_text, rules_name, seconds

if TYPE_CHECKING:
    from sim.analysis.layout import LayoutReport
    from sim.analysis.tracker import Tracked
    from sim.report.group_table import GroupName
    from sim.report.pool_view import Film


@dataclass(frozen=True)
class Analysis:
    """What simulating the run again has shown; None: not done, and `note` says why.

    Attributes:
        film: the pool over time.
        tracked: failures, cache, residency.
        layout: causes and patterns.
        groups: names of the KV-cache groups.
        note: why something is missing.
    """

    film: Film | None = None
    tracked: Tracked | None = None
    layout: LayoutReport | None = None
    groups: tuple[GroupName, ...] = ()
    note: str = ""


def build_report(run: RunFolder, analysis: Analysis | None = None) -> Document:
    """The whole report."""
    a = analysis or Analysis(note="the run was not simulated again")
    moments = find_moments(run.steps, run.summary["engine"]["usable_blocks"], run.warmup_ns)
    sections = [
        Section("answer", "The answer", tuple(answer(run, a.tracked))),
        Section("fleet", "The fleet", tuple(fleet_parts(run))),
        Section("time", "Over time", tuple(_over_time(run, moments))),
        Section("moments", "Worst moments", tuple(moments_table(run.steps, moments, a.layout))),
        Section("pool", "The pool", tuple(_pool(run, a, moments))),
    ]
    if a.layout is not None:
        from sim.report.findings import layout_parts
        from sim.report.group_table import group_parts

        over = plural(len(a.layout.times_ns), "instant")
        groups = group_parts(a.layout.groups, a.groups, over)
        sections.append(Section("groups", "KV-cache groups", tuple(groups)))
        sections.append(Section("layout", "What splits the pool", tuple(layout_parts(a.layout))))
    if a.tracked is not None:
        from sim.report.findings import cache_parts, failure_parts

        sections.append(Section("cache", "Cache and block lifetimes", tuple(cache_parts(a.tracked))))
        sections.append(Section("failures", "Allocation failures", tuple(failure_parts(a.tracked))))
    sections.append(Section("requests", "Requests", tuple(_requests(run, a))))
    sections = [s for s in sections if s.parts]
    return Document(
        "report",
        f"{run.summary['name']}: where the KV memory goes",
        _subtitle(run),
        tuple(sections),
        used_definitions(sections, DEFINITIONS | FLEET_DEFINITIONS),
        provenance(run),
    )


def _subtitle(run: RunFolder) -> str:
    s = run.summary
    e = s["engine"]
    gpu = e["gpu"] and (f"{e['gpus']} x {e['gpu']}" if e["gpus"] > 1 else e["gpu"])
    where = " on ".join(x for x in (e["model"], gpu) if x)
    requests = plural(s["requests"]["arrived"], "request")
    parts = (
        pool_text(e),
        where,
        rules_name(e),
        f"{requests} in {seconds(s['simulated_s'])} of simulated time",
    )
    description = run.config.get("description")
    return (f"{description}. " if description else "") + ", ".join(x for x in parts if x)


def provenance(run: RunFolder) -> dict[str, str]:
    """Where the numbers come from."""
    p = run.provenance
    config = p["config_file"]
    return {
        "run": run.path.resolve().name,
        "content id": p["content_id"],
        "config": f"{config}, seed {p['seed']}",
        "workload": f"{p['workload']['requests']:,} requests, sha256 {p['workload']['sha256']}",
        "engine rules": f"{rules_name(run.summary['engine'])}, core {p['core_digest']}",
        "kvpool": p["version"],
    }


#: Curves that are left out when this column says that nothing of the kind has happened.
_ONLY_IF_ANY = {"preemptions": "preemptions", "evictions": "evictions", "hit_rate": "prefix_queries"}


def _over_time(run: RunFolder, moments: Sequence[Moment]) -> list[Part]:
    steps, s = run.steps, run.summary
    if len(steps["time_ns"]) < 2 or steps["time_ns"][-1] <= 0:
        return [Paragraph(("The run is too short for curves.",), "note")]
    usable = s["engine"]["usable_blocks"]
    inside = steps["wasted_slots"] / np.maximum(steps["allocated_slots"], 1)
    specs = [
        CurveSpec(
            "usage",
            "KV cache usage",
            ("Mean ", as_share(s["usage"]["mean"]), "."),
            curves.draw_usage(usable),
            {"usage": steps["used_blocks"] / usable, "evictable": steps["cached_free_blocks"] / usable},
            "usage",
            look="Light: free blocks whose content can still be hit.",
        ),
        *fragmentation_curves(steps, s, inside, external(steps)),
        hit_rate_curve(steps, s),
        load_curve(steps, s),
        preemption_curve(steps),
        CurveSpec(
            "evictions",
            f"Cached blocks evicted in each {curves.window(steps['time_ns'])}",
            (as_plural(int(steps["evictions"][-1]), "block"), " in all."),
            curves.draw_windows("evictions", style.GREY),
            {"evictions_since_start": steps["evictions"]},
            "pollution",
            windows(steps["time_ns"], steps["evictions"])[1],
            unit="blocks",
        ),
    ]
    if of_states(s):
        specs = [x for x in specs if x.key != "internal_fragmentation"]
    specs = [x for x in specs if x.key not in _ONLY_IF_ANY or steps[_ONLY_IF_ANY[x.key]][-1] > 0]
    grown = np.flatnonzero(np.diff(steps["preemptions"], prepend=0) > 0)
    marks = [Marked(m.time_ns, m.label) for m in moments]
    charts: list[Part] = list(curves.curve_charts(steps, specs, marks, steps["time_ns"][grown]))
    return [*sums_note(run), curves.bars_note(steps), *charts]


def _pool(run: RunFolder, a: Analysis, moments: Sequence[Moment]) -> list[Part]:
    parts: list[Part] = []
    if a.note:
        parts.append(Paragraph((f"Heat map, causes, lifetimes and failures are missing: {a.note}.",), "warn"))
    if a.film is not None:
        parts += pool_charts(a.film, moments, run.end_ns, "simulated time to the right")
    return parts


def _requests(run: RunFolder, a: Analysis) -> list[Part]:
    names = a.tracked.request_ids if a.tracked else ()
    parts: list[Part] = []
    histogram = None if of_states(run.summary) else waste_histogram(run)
    if histogram is not None:
        parts.append(histogram)
    return [*parts, *worst_requests(run, lambda i: names[i] if i < len(names) else f"r{i}")]
