"""The outcome as one page: what moved, and the curves laid over each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.regression.check import (
    FAILED,
    SKIPPED,
    Outcome,
    change_text,
    length_text,
    summary_text,
    value_text,
    when,
)
from sim.regression.compare import MOVED, SAME, CurveDifference
from sim.report import style, svg
from sim.report.curves import count_axis, legend, percent_axis
from sim.report.document import Chart, Column, Document, Items, Paragraph, Part, Section, Table, Value
from sim.report.render import html_text
from sim.report.series import time_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STATUS = {
    SAME: "same",
    "within": "within tolerance",
    MOVED: "moved",
    SKIPPED: "skipped",
    FAILED: "could not run",
}
_DEFINITIONS = {
    "tolerance": (
        "Tolerance",
        "What a row may differ by (absolute, plus a share of the baseline's value), and the area between the"
        " two curves / the area under the baseline's that is allowed. Exact: no digit may differ.",
    ),
    "row": (
        "Row",
        "One period of simulated time: the mean of its samples, or the value at its end for what counts since"
        " the start.",
    ),
}


def page(outcomes: Sequence[Outcome]) -> str:
    """One self-contained HTML page."""
    return html_text(document(outcomes))


def document(outcomes: Sequence[Outcome]) -> Document:
    """The page as data; baselines that moved or failed come first."""
    order = {MOVED: 0, FAILED: 1, "within": 2, SKIPPED: 3, SAME: 4}
    ranked = sorted(outcomes, key=lambda o: order[o.status])
    moved = [o for o in outcomes if o.status == MOVED]
    failed = [o for o in outcomes if o.status == FAILED]
    title = "Baselines: "
    if moved:
        title += f"{', '.join(o.name for o in moved)} moved"
    elif failed:
        title += "not all could run"
    else:
        title += "nothing moved"
    sections = [Section("answer", "The answer", tuple(_answer(outcomes)))]
    sections += [Section(f"b-{o.name}", o.name, tuple(_parts(o))) for o in ranked]
    definitions = {
        d.curve.key: (d.curve.title, d.curve.meaning)
        for o in outcomes
        if o.comparison is not None
        for d in o.comparison.curves
    }
    now = next((o.after.provenance for o in outcomes if o.after is not None), None)
    provenance = {} if now is None else {"kvpool": now.kvpool, "core": now.core}
    return Document(
        "check", title, summary_text(outcomes), tuple(sections), {**_DEFINITIONS, **definitions}, provenance
    )


def _answer(outcomes: Sequence[Outcome]) -> list[Part]:
    lead = []
    for o in outcomes:
        if o.status == MOVED and o.comparison is not None:
            names = ", ".join(d.curve.key for d in o.comparison.moved) or "the length of the run"
            lead.append(f"{o.name}: {names}")
    text = f"These curves have moved. {'; '.join(lead)}." if lead else f"{summary_text(outcomes)}."
    rows = []
    for o in outcomes:
        c = o.comparison
        if c is None:
            rows.append((o.name, _STATUS[o.status], "-", "-", o.reason.split("\n")[0]))
            continue
        worst = max(c.curves, key=lambda d: (d.verdict == MOVED, d.rows_outside, d.area))
        said = ""
        if worst.worst >= 0:
            said = f"{worst.curve.key} at {when(o, worst.worst)}: {change_text(worst, worst.worst)}"
        rows.append((o.name, _STATUS[o.status], f"{len(c.moved)} of {len(c.curves)}", str(c.old_rows), said))
    columns = (
        Column("baseline", words=True),
        Column("outcome", words=True),
        Column("curves moved"),
        Column("rows", "row"),
        Column("largest difference", words=True),
    )
    return [Paragraph((text,), "lead"), Table("baselines", columns, tuple(rows))]


def _parts(o: Outcome) -> list[Part]:
    c = o.comparison
    if c is None or o.before is None or o.after is None:
        first, *rest = o.reason.split("\n")
        said = f"{_STATUS[o.status].capitalize()}: {first}"
        return [Paragraph((said,), "warn"), *(Paragraph((line.strip(),), "note") for line in rest)]
    parts: list[Part] = []
    if c.length_moved:
        parts.append(Paragraph((f"Its length has moved: {length_text(o)}.",), "warn"))
    if o.notes:
        parts.append(Items(tuple((f"{note[0].upper()}{note[1:]}.",) for note in o.notes)))
    if o.status == SAME:
        parts.append(
            Paragraph((f"All {len(c.curves)} curves are the same, digit by digit, in {c.old_rows} rows.",))
        )
    else:
        parts.append(_table(o))
    if o.status == MOVED:
        ranked = sorted(c.curves, key=lambda d: d.verdict != MOVED)
        with svg.drawing():
            parts += [_chart(o, d) for d in ranked if d.verdict != SAME]
    p = o.before.provenance
    config = f"Config {p.config}, seed {p.seed}" + "".join(f", {text}" for text in p.overrides)
    made = f"{config}. The baseline was made by kvpool {p.kvpool} (core {p.core}, vLLM {p.vllm} rules)."
    parts.append(Paragraph((made,), "note"))
    return parts


def _table(o: Outcome) -> Table:
    assert o.comparison is not None
    rows = []
    for d in sorted(o.comparison.curves, key=lambda d: {MOVED: 0, "within": 1}.get(d.verdict, 2)):
        area = Value(d.area, f"{100 * d.area:.3g} %", "fraction")
        outside = Value(d.rows_outside, str(d.rows_outside), "rows")
        first = when(o, d.first) if d.first >= 0 else "-"
        most = f"{change_text(d, d.worst)} at {when(o, d.worst)}" if d.worst >= 0 else "-"
        rows.append(
            (
                d.curve.key,
                _STATUS[d.verdict],
                most,
                first,
                outside,
                area,
                d.tolerance.text(d.curve.is_share),
            )
        )
    columns = (
        Column("curve", words=True),
        Column("outcome", words=True),
        Column("largest difference", words=True),
        Column("first outside"),
        Column("rows outside"),
        Column("area between"),
        Column("tolerance", "tolerance", words=True),
    )
    return Table(f"curves-{o.name}", columns, tuple(rows))


def _chart(o: Outcome, d: CurveDifference) -> Chart:
    assert o.before is not None
    period = o.before.provenance.period_ns
    key = f"{o.name}-{d.curve.key}"
    figure = svg.new_figure()
    ax = figure.add_axes((0.115, 0.185, 0.865, 0.67))
    _draw(ax, d, period)
    legend(ax, columns=2)
    most = d.worst
    first = f", first at {when(o, d.first)} (dashed)" if d.first >= 0 else ""
    says = (
        f"{_STATUS[d.verdict].capitalize()}{first}: {value_text(d, float(d.old[most]))} to"
        f" {value_text(d, float(d.new[most]))} at {when(o, most)}, where the difference is largest."
    )
    markup = svg.inline_svg(figure, key, f"{d.curve.title}. {says}")
    data: dict[str, Any] = {
        "baseline": [None if np.isnan(v) else float(v) for v in d.old],
        "now": [None if np.isnan(v) else float(v) for v in d.new],
    }
    return Chart(key, d.curve.title, (says,), markup, data, term=d.curve.key)


def _draw(ax: Axes, d: CurveDifference, period_ns: int) -> None:
    end = max(len(d.old), len(d.new)) * period_ns
    scale, unit = time_unit(float(end))
    times = [(np.arange(len(v)) + 1) * period_ns / scale for v in (d.old, d.new)]
    n = min(len(d.old), len(d.new))
    ax.fill_between(times[0][:n], d.old[:n], d.new[:n], color=style.RED, alpha=0.18, linewidth=0)
    ax.plot(times[0], d.old, color=style.GREY, linewidth=2.2, alpha=0.75, label="baseline")
    ax.plot(times[1], d.new, color=style.RED, linewidth=1.2, label="now")
    if d.curve.is_share:
        percent_axis(ax)
    else:
        count_axis(ax)
    if d.first >= 0:
        x = (d.first + 1) * period_ns / scale
        ax.axvline(x, color=style.BLACK, linewidth=0.8, linestyle=(0, (3, 3)))
    ax.set_xlim(0, end / scale)
    ax.set_xlabel(f"simulated time ({unit})", labelpad=2)
