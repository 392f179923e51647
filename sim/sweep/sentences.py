"""The answer of a sweep in words: which point is best, how sure that is, what went wrong."""

from __future__ import annotations

from collections.abc import Sequence

from sim.report.document import (
    Column,
    Inline,
    Items,
    Paragraph,
    Part,
    Piece,
    Table,
    Value,
    as_count,
)
from sim.report.units import plural
from sim.sweep.answer import Best, Grid, Row
from sim.sweep.metrics import Named
from sim.sweep.plan import Point, Sweep
from sim.sweep.point import Result

_MOST_NAMED = 4


def cap(text: str) -> str:
    """With a capital letter."""
    return text[0].upper() + text[1:]


def answer_parts(sweep: Sweep, grid: Grid) -> list[Part]:
    """Which point is best in which metric, what went wrong, and how sure all that is."""
    parts: list[Part] = []
    groups = sweep.groups()
    if len(groups) > 1:
        return [*_choices(sweep, grid, groups), *_warnings(sweep, grid)]
    sentences = [s for m in sweep.metrics if (s := _sentence(sweep, grid, m))]
    if sentences:
        parts.append(Paragraph(sentences[0], "lead"))
    if len(sentences) > 1:
        parts.append(Items(tuple(sentences[1:])))
    return [*parts, *_warnings(sweep, grid)]


def _choices(sweep: Sweep, grid: Grid, groups: Sequence[Sequence[Point]]) -> list[Part]:
    """The best choice in each circumstance: a sentence for the first metric, a table for all."""
    metrics = [m for m in sweep.metrics if m.better and grid.has(m)]
    inside = sweep.circumstances
    chosen = [i for i in sweep.varied if i not in inside]
    where = "/".join(sweep.axes[i].label for i in inside)
    rows = []
    for points in groups:
        cells: list[str | Inline] = [sweep.axes[i].labels[points[0].positions[i]] for i in inside]
        for metric in metrics:
            best = grid.best(metric, points)
            cells.append("-" if best is None else _choice(sweep, metric, best, chosen))
        rows.append(tuple(cells))
    columns = [Column(sweep.axes[i].label, words=sweep.axes[i].numbers is None) for i in inside]
    columns += [Column(f"{_most(m)} {m.label}", m.name) for m in metrics]
    label = "/".join(sweep.axes[i].label for i in chosen)
    caption = (
        f"Best {label} for each {where} and the metric's mean there. N alike: so many of the other"
        f" {len(groups[0]) - 1} are within noise of it."
    )
    parts: list[Part] = [Table("choices", tuple(columns), tuple(rows), caption)]
    return [*_lead(sweep, grid, metrics[:1], groups, label, where), *parts] if metrics else []


def _lead(
    sweep: Sweep,
    grid: Grid,
    metrics: Sequence[Named],
    groups: Sequence[Sequence[Point]],
    label: str,
    where: str,
) -> list[Part]:
    metric = metrics[0]
    found = [b for points in groups if (b := grid.best(metric, points)) is not None]
    chosen = [i for i in sweep.varied if i not in sweep.circumstances]
    names = [_values(sweep, b.point, chosen) for b in found]
    if len(set(names)) == 1:
        text = f"{_most(metric)} {metric.label}: {label} {names[0]} at every {where}."
    else:
        told = [
            f"{n} at {_values(sweep, b.point, sweep.circumstances)}"
            for n, b in zip(names, found, strict=True)
        ]
        shown = ", ".join(told[:6]) + (f" and {len(told) - 6} more" if len(told) > 6 else "")
        text = f"{_most(metric)} {metric.label}: the best {label} depends on {where}: {shown}."
    if all(b.rivals or b.equal for b in found):
        text += " But nowhere is it clearly better than all others."
    return [Paragraph((text,), "lead")]


def _choice(sweep: Sweep, metric: Named, best: Best, chosen: Sequence[int]) -> Inline:
    """`2048: 152 ms (1 alike)`."""
    near = len(best.equal) + len(best.rivals)
    note = f" ({near} alike)" if near else ""
    return (f"{_values(sweep, best.point, chosen)}: ", metric.value(best.cell.mean), note)


def _values(sweep: Sweep, point: Point, axes: Sequence[int]) -> str:
    return "/".join(sweep.axes[i].labels[point.positions[i]] for i in axes)


def _most(metric: Named) -> str:
    return "Lowest" if metric.better < 0 else "Highest"


def _warnings(sweep: Sweep, grid: Grid) -> list[Part]:
    """Failures, requests that were not served, and how far the numbers can be trusted."""
    parts: list[Part] = []
    failed = grid.failed()
    if failed:
        which = (
            "every run"
            if len(failed) == len(grid.rows)
            else f"{len(failed):,} of {plural(len(grid.rows), 'run')}"
        )
        parts.append(Paragraph((f"{cap(which)} failed; the messages are below.",), "warn"))
    unserved = _unserved(sweep, grid)
    if unserved:
        parts.append(Paragraph(unserved, "warn"))
    parts.append(Paragraph((_confidence(sweep, grid),), "note"))
    return parts


def _sentence(sweep: Sweep, grid: Grid, metric: Named) -> Inline | None:
    """Where a metric is best, how sure that is, and what comes next."""
    cells = [c for p in grid.points if (c := grid.cell(metric, p)) is not None]
    if not cells:
        return None
    name = cap(metric.label)
    if len(cells) > 1 and len({c.mean for c in cells}) == 1:
        return (f"{name}: ", metric.value(cells[0].mean), _noun(metric), " at every point.")
    best = grid.best(metric)
    if best is None:
        low, high = (f([c.mean for c in cells]) for f in (min, max))
        return (f"{name} goes from ", metric.value(low), " to ", metric.value(high), _noun(metric), ".")
    pieces: list[Piece] = [f"{_most(metric)} {metric.label}: ", metric.value(best.cell.mean)]
    if best.cell.half:
        pieces += [" ± ", metric.half(best.cell.half)]
    pieces.append(f"{_noun(metric)} with {best.point.label(sweep.axes)}")
    if best.equal:
        pieces.append(f", the same as with {_named(sweep, best.equal)}")
    if best.rivals:
        verb = "is" if len(best.rivals) == 1 else "are"
        pieces.append(f"; {_named(sweep, best.rivals)} {verb} within noise of it")
    if best.next is not None:
        pieces += _next(sweep, metric, best, grid)
    return (*pieces, ".")


def _noun(metric: Named) -> str:
    return "" if metric.unit in ("fraction", "s", "bytes", metric.label) else f" {metric.unit}"


def _next(sweep: Sweep, metric: Named, best: Best, grid: Grid) -> list[Piece]:
    assert best.next is not None
    point, pair = best.next
    cell = grid.cell(metric, point)
    assert cell is not None
    sure = "clearly worse, " if pair.low is not None else ""
    out: list[Piece] = [f"; {sure}next: {point.label(sweep.axes)} with ", metric.value(cell.mean)]
    n = metric.number
    difference = Value(pair.difference, n.signed(pair.difference), metric.unit)
    out += [" (", difference]
    if pair.low is not None and pair.high is not None and pair.high > pair.low:
        ends = (
            Value(pair.low, n.bare(pair.low), metric.unit),
            Value(pair.high, n.signed(pair.high), metric.unit),
        )
        out += [", interval ", ends[0], " to ", ends[1]]
    out.append(")")
    return out


def _named(sweep: Sweep, points: Sequence[Point]) -> str:
    """`block_size 8, 32 and 64`; of many the first few."""
    if len(sweep.varied) == 1:
        axis = sweep.axes[sweep.varied[0]]
        names = [axis.labels[p.positions[sweep.varied[0]]] for p in points]
        return f"{axis.label} {_enumerate(names, 2 * _MOST_NAMED)}"
    if len(points) > 2:
        return f"{len(points)} of the other {plural(len(sweep.points) - 1, 'point')}"
    return " and ".join(p.label(sweep.axes) for p in points)


def _enumerate(names: Sequence[str], most: int) -> str:
    more = len(names) - most
    if more > 1:
        return f"{', '.join(names[:most])} and {more} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _unserved(sweep: Sweep, grid: Grid) -> Inline:
    """Requests that never finished spoil comparisons of latencies."""
    worst: tuple[Row, int] | None = None
    affected: set[int] = set()
    for row in grid.rows:
        if isinstance(row.outcome, Result):
            served = row.outcome.summary["requests"]
            left = served["rejected"] + served["unservable"] + served["unfinished"]
            if left:
                affected.add(row.point.index)
                if worst is None or left > worst[1]:
                    worst = row, left
    if worst is None:
        return ()
    row, left = worst
    return (
        f"At {plural(len(affected), 'point')} some requests did not finish (rejected, too large for the pool,"
        f" or not done at the end), most with {row.point.label(sweep.axes)}: ",
        as_count(left, "requests"),
        " requests. Latencies leave them out.",
    )


def _confidence(sweep: Sweep, grid: Grid) -> str:
    counts = {len(rows) for rows in grid.by_point.values()}
    n = max(counts)
    if n == 1 and len(sweep.seeds) > 1:
        return (
            "The workload is the same for every seed, so each point was run once: differences are exact for"
            " this workload, and nothing is known about others."
        )
    if n == 1:
        return (
            "One seed: differences are exact for this workload, and nothing is known about others. Several"
            " seeds (`seeds: 5`) give intervals."
        )
    return (
        f"{n} seeds a point, the same for all points. Differences are taken seed by seed; an interval holds"
        " with 95 % confidence over all comparisons with the best point of a metric."
    )
