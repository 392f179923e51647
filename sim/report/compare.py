"""Runs side by side: differences with intervals, overlaid curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sim.errors import InputError
from sim.report.compare_curves import overlay_charts, overlay_picture
from sim.report.confidence import Difference, difference, spread
from sim.report.definitions import DEFINITIONS, used_definitions
from sim.report.document import (
    Column,
    Document,
    Inline,
    Paragraph,
    Part,
    Piece,
    Section,
    Table,
    Value,
    plain_text,
)
from sim.report.metrics import METRICS, Metric
from sim.report.recorded_run import read_any
from sim.report.render import html_text, json_text, markdown_text
from sim.report.rules_table import rules_table
from sim.report.run_groups import Group, group_runs, paired_by_seed
from sim.report.units import plural, seconds

_BAND = "A line is the mean over a side's seeds, its band reaches from the least to the most."


def _values(group: Group, metric: Metric) -> list[float] | None:
    values = [metric.of(r.summary) for r in group.runs]
    return None if any(v is None for v in values) else [float(v) for v in values if v is not None]


def _mean(metric: Metric, values: list[float] | None) -> Value | Inline:
    if values is None:
        return Value(None, "-", metric.unit)
    s = spread(values)
    mean = Value(s.mean, metric.show(s.mean), metric.unit)
    if s.sd is None:
        return mean
    return (mean, " ± ", Value(s.sd, metric.show(s.sd), metric.unit))


def _interval(metric: Metric, d: Difference) -> Value | Inline:
    if d.low is None or d.high is None:
        return Value(None, "-", metric.unit)
    low = Value(d.low, metric.bare(d.low), metric.unit)
    return (low, " to ", Value(d.high, metric.signed(d.high), metric.unit))


def _verdict(metric: Metric, d: Difference) -> str:
    if d.mean == 0 and not (d.low or d.high):
        return "same"
    if d.clear is None:
        return "no confidence"
    if not d.clear:
        return "within noise"
    if not metric.better:
        return "clear"
    return "clear, better" if d.mean * metric.better > 0 else "clear, worse"


def _relative(d: float, a: float) -> Value:
    if d == 0:
        return Value(0.0, "0 %", "fraction")
    if a == 0:
        return Value(None, "-", "fraction")
    return Value(d / abs(a), f"{100 * d / abs(a):+,.3g} %", "fraction")


def _against(base: Group, other: Group) -> tuple[Table, list[tuple[Metric, Difference, float]]]:
    paired = paired_by_seed(base, other)
    rows, found = [], []
    for metric in METRICS:
        a, b = _values(base, metric), _values(other, metric)
        if a is None and b is None:
            continue
        cells: list[str | Value | Inline] = [metric.label, _mean(metric, a), _mean(metric, b)]
        if a is None or b is None:
            cells += [Value(None, "-", metric.unit)] * 3 + [""]
        else:
            d = difference(a, b, paired)
            mean = spread(a).mean
            found.append((metric, d, mean))
            cells += [
                Value(d.mean, metric.signed(d.mean), metric.unit),
                _relative(d.mean, mean),
                _interval(metric, d),
                _verdict(metric, d),
            ]
        rows.append(tuple(cells))
    columns = [
        Column("metric", words=True),
        Column(base.letter),
        Column(other.letter),
        Column(f"{other.letter} - {base.letter}"),
        Column("relative"),
    ]
    confidence = [Column("95 % interval", "interval", words=True), Column("verdict", "verdict", words=True)]
    if any(d.clear is not None for _, d, _ in found):
        columns += confidence
    else:
        rows = [row[: len(columns)] for row in rows]
    return Table(f"difference_{other.letter}", tuple(columns), tuple(rows)), found


def _headline(base: Group, other: Group, found: Sequence[tuple[Metric, Difference, float]]) -> Inline:
    """The differences that matter most, in words."""
    pieces: list[Piece] = [f"{other.letter} against {base.letter}: "]
    changed = [
        (metric, d, a)
        for metric, d, a in found
        if metric.headline and d.clear is not False and metric.show(a) != metric.show(a + d.mean)
    ]
    if not changed:
        if not any(metric.headline for metric, _, _ in found):
            pieces.append("they have no key number in common.")
        elif all(d.mean == 0 for _, d, _ in found):
            pieces.append("every number is the same.")
        elif all(d.clear is None for _, d, _ in found):
            pieces.append("none of the numbers that matter most differs.")
        else:
            pieces.append("no difference is clear of the noise.")
        return tuple(pieces)
    for i, (metric, d, a) in enumerate(changed):
        b = a + d.mean
        pieces += [
            "; " if i else "",
            f"{metric.label} ",
            Value(a, metric.show(a), metric.unit),
            " to ",
            Value(b, metric.show(b), metric.unit),
        ]
    return (*pieces, ".")


def _cut_short(groups: Sequence[Group]) -> list[str]:
    """What has to be said about runs that did not come to their end, and recordings that are not whole."""
    out = []
    for g in groups:
        for r in g.runs:
            s = r.summary
            who = g.letter if len(g.runs) == 1 else f"{g.letter}, seed {s['seed']}"
            if s["exit_reason"] == "interrupted":
                out.append(f"{who} was interrupted at {seconds(s['simulated_s'])}: it counts up to then.")
            out += [f"{who} is not whole: {p}." for p in r.problems]
    return out


def _confidence_note(groups: Sequence[Group]) -> str:
    base = groups[0]
    if any(g.recorded for g in groups):
        return (
            "A recording is one run on one machine: nothing says how far another would differ. What it does"
            " not hold has no number here (python -m sim report names it)."
        )
    if any(len(g.runs) == 1 for g in groups):
        return (
            "A side with one run gives no confidence: its differences are exact for these workloads, and"
            " nothing is known about others. Run each config with several seeds (--seed) and give them all."
        )
    how = [
        f"{base.letter} {len(base.runs)} and {g.letter} {len(g.runs)} runs,"
        f" {'paired by seed' if paired_by_seed(base, g) else 'not paired'}"
        for g in groups[1:]
    ]
    return (
        "An interval holds the difference of the means over workloads of other seeds with 95 %"
        f" confidence (Student's t; {'; '.join(how)})."
        " Each stands for itself: of twenty true zeros one would look clear."
    )


def _config_table(groups: Sequence[Group]) -> list[Part]:
    keys: list[str] = []
    for g in groups:
        keys += [k for k in g.config if k not in keys]
    rows = []
    for key in keys:
        values = [
            json.dumps(g.config[key]) if key in g.config else "(not recorded)" if g.recorded else "(not set)"
            for g in groups
        ]
        if len(set(values) - {"(not recorded)"}) > 1:
            rows.append((key, *values))
    if not rows:
        known = "What is recorded of them" if any(g.recorded for g in groups) else "The configs"
        verb = "is" if known.startswith("What") else "are"
        return [Paragraph((f"{known} {verb} the same.",))]
    columns = (Column("key", words=True), *(Column(g.letter, words=True) for g in groups))
    return [Table("configs", columns, tuple(rows))]


def _runs_table(groups: Sequence[Group], within: Path | None) -> Table:
    rows = tuple(
        (
            g.letter,
            str(r.path.relative_to(within) if within else r.path),
            Value(r.summary["seed"], "-" if r.summary["seed"] is None else str(r.summary["seed"])),
            r.summary["exit_reason"],
            Value(r.summary["simulated_s"], seconds(r.summary["simulated_s"]), "s"),
            str(r.summary["content_id"])[:16],
        )
        for g in groups
        for r in g.runs
    )
    columns = (
        Column("side", words=True),
        Column("run", words=True),
        Column("seed"),
        Column("ended", words=True),
        Column("length"),
        Column("content id", words=True),
    )
    return Table("runs", columns, rows)


def compare_runs(
    folders: Sequence[str], pictures: bool, within: Path | None = None
) -> tuple[Document, dict[str, bytes]]:
    """The comparison, and the files of `--out` (empty without `pictures`).

    Args:
        folders: of the runs, or files of recordings.
        pictures: whether there are curves.
        within: a folder that holds all of them and will be gone: they are named by their place in it.

    Raises:
        InputError: fewer than two, or one that is no run folder and no recording.
    """
    if len(folders) < 2:
        raise InputError("there is nothing to compare: give two runs or more", "compare")
    runs = [read_any(f) for f in folders]
    groups, notes = group_runs(runs)
    base = groups[0]
    tables: list[Part] = []
    leads: list[Part] = []
    for other in groups[1:]:
        table, found = _against(base, other)
        leads.append(Paragraph(_headline(base, other, found), "lead"))
        tables.append(table)
    sides = "; ".join(f"{g.letter}: {g.name}" for g in groups)
    answer: list[Part] = [*leads, *(Paragraph((n,), "warn") for n in _cut_short(groups))]
    answer += [Paragraph((n,), "note") for n in notes]
    answer.append(Paragraph((_confidence_note(groups),), "note"))
    charts: list[Part] = []
    if pictures:
        if any(len(g.runs) > 1 for g in groups):
            charts.append(Paragraph((_BAND,), "note"))
        charts += overlay_charts([(g.letter, g.runs) for g in groups])
    sections = [
        Section("answer", "The answer", tuple(answer)),
        Section("configs", "What differs in the configs", tuple(_config_table(groups))),
        Section("rules", "What differs in vLLM's rules", tuple(rules_table(groups))),
        Section("metrics", "Metrics", tuple(tables)),
        Section("curves", "Over time", tuple(charts)),
        Section("runs", "Runs", (_runs_table(groups, within),)),
    ]
    sections = [s for s in sections if s.parts]
    shown = {row[0] for table in tables if isinstance(table, Table) for row in table.rows}
    definitions = {m.label: (m.label, m.meaning) for m in METRICS if m.label in shown}
    definitions |= used_definitions(sections, DEFINITIONS)
    names = ", ".join(dict.fromkeys(str(r.summary["name"]) for r in runs))
    document = Document(
        "compare",
        f"{', '.join(g.letter for g in groups[1:-1])}{' and ' if len(groups) > 2 else ''}{groups[-1].letter}"
        f" against {base.letter}: {names}",
        sides,
        tuple(sections),
        definitions,
        {"kvpool": str(runs[0].provenance["version"]), "runs": plural(len(runs), "run")},
    )
    if not pictures:
        return document, {}
    files = {
        "compare.html": html_text(document).encode(),
        "compare.md": markdown_text(document).encode(),
        "compare.json": json_text(document).encode(),
        **overlay_picture([(f"{g.letter}: {g.name}", g.runs) for g in groups], plain_text((sides,))),
    }
    return document, files
