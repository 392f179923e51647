"""The results of a sweep as a document: the answer first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sim.report.document import (
    Column,
    Document,
    Inline,
    Paragraph,
    Part,
    Section,
    Table,
    Value,
)
from sim.report.units import plural
from sim.sweep.answer import Cell, Grid, Row
from sim.sweep.axes import Axis
from sim.sweep.metrics import Named
from sim.sweep.plan import Point, Sweep
from sim.sweep.point import Failure, Result
from sim.sweep.sentences import answer_parts, cap

_MOST_NAMED = 4


def build_document(sweep: Sweep, grid: Grid, meta: Mapping[str, str], charts: bool) -> Document:
    """The page; `charts`: with pictures."""
    sections = [
        Section("answer", "The answer", tuple(answer_parts(sweep, grid))),
        Section("points", "Points", tuple(_points(sweep, grid))),
    ]
    if charts and len(grid.failed()) < len(grid.rows):
        sections += _charts(sweep, grid)
    sections += [
        Section("failed", "Failed", tuple(_failed(sweep, grid))),
        Section("axes", "What was varied", (_axes(sweep),)),
    ]
    metrics = list(dict.fromkeys([*sweep.metrics, *grid.pareto()[0]]))
    definitions = {m.name: (cap(m.label), m.number.meaning) for m in metrics}
    definitions["interval95"] = (
        "± and bands",
        "Half the 95 % interval of the mean over seeds, by Student's t: the mean over other seeds"
        " lies there with 95 % confidence. None with one seed.",
    )
    definitions["noise"] = (
        "Clearly, within noise",
        "Two points are compared seed by seed, since both meet the same workloads. Clearly worse: the"
        " interval of the mean difference excludes 0; within noise: it does not. The intervals hold with 95 %"
        " confidence all together (Bonferroni, over all points compared with the best one).",
    )
    return Document(
        "sweep",
        sweep.title,
        _subtitle(sweep, grid),
        tuple(s for s in sections if s.parts),
        definitions,
        {
            "kvpool": meta["version"],
            "sweep": sweep.file,
            "base": sweep.base or "inline",
            "seeds": ", ".join(str(s) for s in grid.seeds),
            "core": meta["core_digest"],
            "files": "points.parquet has every metric of every run, curves.parquet the curves over time",
        },
    )


def terminal(document: Document) -> str:
    """What the terminal shows: the answer, the points and the failures."""
    from sim.report.terminal import terminal_text

    kept = tuple(s for s in document.sections if s.key in ("answer", "points", "failed"))
    return terminal_text(replace(document, sections=kept, definitions={}, provenance={}))


def _subtitle(sweep: Sweep, grid: Grid) -> str:
    axes = "; ".join(f"{a.label} {_span(a)}" for a in sweep.axes)
    base = f"{sweep.base}: " if sweep.base else ""
    runs = plural(len(grid.rows), "run")
    text = f"{base}{axes}; {plural(len(sweep.points), 'point')}, {runs}"
    return f"{sweep.description}. {text}" if sweep.description else text


def _span(axis: Axis) -> str:
    if len(axis) <= _MOST_NAMED:
        return ", ".join(axis.labels)
    return f"{axis.labels[0]}, {axis.labels[1]} ... {axis.labels[-1]}"


# ---- tables ----


def _mean(metric: Named, cell: Cell | None) -> Value | Inline:
    if cell is None:
        return metric.value(None)
    if not cell.half:
        return metric.value(cell.mean)
    return (metric.value(cell.mean), " ± ", metric.half(cell.half))


def _points(sweep: Sweep, grid: Grid) -> list[Part]:
    metrics = [m for m in sweep.metrics if grid.has(m)]
    shown = sweep.varied or tuple(range(len(sweep.axes)))
    rows = []
    for p in grid.points:
        done = [r for r in grid.by_point[p.index] if isinstance(r.outcome, Result)]
        labels = [sweep.axes[i].labels[p.positions[i]] for i in shown]
        runs = grid.by_point[p.index]
        state = "" if len(done) == len(runs) else "failed" if not done else f"{len(runs) - len(done)} failed"
        cells = [_mean(m, grid.cell(m, p)) for m in metrics]
        rows.append((*labels, *cells, *([state] if grid.failed() else [])))
    columns = [Column(sweep.axes[i].label, words=sweep.axes[i].numbers is None) for i in shown]
    columns += [Column(_heading(m), m.name) for m in metrics]
    if grid.failed():
        columns.append(Column("", words=True))
    n = max(len(rows) for rows in grid.by_point.values())
    caption = f"Means over {n} seeds ± half of the 95 % interval." if n > 1 else "One run a point."
    return [Table("points-table", tuple(columns), tuple(rows), caption)]


def _heading(metric: Named) -> str:
    return (
        metric.label
        if metric.unit in ("fraction", "s", "bytes", metric.label)
        else f"{metric.label} ({metric.unit})"
    )


def _failed(sweep: Sweep, grid: Grid) -> list[Part]:
    failed = grid.failed()
    if not failed:
        return []
    by_message: dict[tuple[int, str], list[Row]] = {}
    for row in failed:
        if isinstance(row.outcome, Failure):
            by_message.setdefault((row.point.index, row.outcome.message), []).append(row)
    rows = tuple(
        (found[0].point.label(sweep.axes), ", ".join(str(r.seed) for r in found), message)
        for (_, message), found in by_message.items()
    )
    columns = (Column("point", words=True), Column("seeds", words=True), Column("message", words=True))
    return [Table("failures", columns, rows)]


def _axes(sweep: Sweep) -> Table:
    rows = tuple(
        (a.label, ", ".join(a.keys), ", ".join(a.labels) if len(a) <= 24 else f"{_span(a)} ({len(a)} values)")
        for a in sweep.axes
    )
    columns = (Column("axis", words=True), Column("key", words=True), Column("values", words=True))
    return Table("axes-table", columns, rows)


# ---- pictures ----


def _charts(sweep: Sweep, grid: Grid) -> list[Section]:
    from sim.sweep import charts, draw

    metric_parts: list[Part] = []
    for metric in sweep.metrics:
        if grid.has(metric):
            metric_parts += charts.metric_charts(sweep, grid, metric, ())
    pareto: list[Part] = []
    chart = charts.pareto_chart(sweep, grid)
    if chart is not None:
        pareto = [chart, _front(sweep, grid)]
    drawn = draw.curve_points(sweep, grid)
    note = "Mean over a point's seeds."
    if len(drawn) <= draw.MOST_BANDS:
        note = "Mean over a point's seeds; the band reaches from the least to the most."
    finished = sum(any(isinstance(r.outcome, Result) for r in rows) for rows in grid.by_point.values())
    names = draw.line_names(sweep)
    if names:
        note += f" Lines are named by {names}."
    if len(drawn) < finished:
        note += f" {len(drawn)} of {finished} points; all are in curves.parquet."
    curves: list[Part] = [Paragraph((note,), "note"), *charts.curve_charts(sweep, grid)]
    return [
        Section("metrics", "Metrics against axes", tuple(metric_parts)),
        Section("heat", "Heat maps", tuple(charts.heat_charts(sweep, grid))),
        Section("front", "Pareto front", tuple(pareto)),
        Section("time", "Over time", tuple(curves)),
    ]


def _front(sweep: Sweep, grid: Grid) -> Table:
    weighed, front = grid.pareto()
    rows = tuple(
        (p.label(sweep.axes), *(_mean(m, grid.cell(m, p)) for m in weighed))
        for p in sorted(front, key=lambda p: _order(grid, weighed[0], p))
    )
    columns = (Column("on the front", words=True), *(Column(_heading(m), m.name) for m in weighed))
    return Table("front-table", columns, rows)


def _order(grid: Grid, metric: Named, point: Point) -> tuple[float, int]:
    cell = grid.cell(metric, point)
    return (-metric.better * cell.mean if cell else 0.0, point.index)
