"""What stands in the pictures of a sweep: metrics against axes, heat maps, Pareto front, curves over time.

Each is drawn by one function into given axes; `sim.sweep.charts` makes figures for the page and for plots/.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.report import style
from sim.report.compare_curves import CUMULATIVE
from sim.report.curves import count_axis, percent_axis
from sim.report.series import time_unit
from sim.report.units import count, share, size, span, thousands
from sim.sweep.answer import Best, Grid
from sim.sweep.axes import Axis
from sim.sweep.metrics import Named
from sim.sweep.plan import Point, Sweep
from sim.sweep.point import CURVE_POINTS, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Lines that one picture can hold.
MOST_LINES = 6
#: Lines over time with a band; more would hide each other.
MOST_BANDS = 3
_COLORS = (style.BLUE, style.RED, style.GREEN, style.PURPLE, style.ORANGE, style.SKY)
_MARKS = ("o", "s", "^", "D", "v", "P")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (8, 2)), (0, (2, 2)))
SHOWN_CURVES = (
    "usage",
    "internal_fragmentation",
    "external_fragmentation",
    "free_runs",
    "hit_rate",
    "preemptions",
)


def _spread_out(items: Sequence[Any], most: int = MOST_LINES) -> list[Any]:
    """At most so many, evenly spread, first and last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, most).round().astype(int))]


def tick(metric: Named) -> Callable[[float], str]:
    texts: dict[str, Callable[[float], str]] = {
        "fraction": lambda v: f"{100 * v:.3g} %",
        "s": lambda v: _round_span(v) if v >= 0 else "",
        "bytes": lambda v: size(v) if v >= 0 else "",
    }
    return texts.get(metric.unit, thousands)


def _formatter(metric: Named) -> Any:
    from matplotlib.ticker import FuncFormatter

    show = tick(metric)
    return FuncFormatter(lambda v, _: show(v))


def _round_span(v: float) -> str:
    """A round number of seconds as on an axis: `20 s`, `2.5 ms`."""
    number, unit = span(v).split(" ")
    return f"{float(number):g} {unit}"


def _y_axis(ax: Axes, metric: Named, low: float, high: float) -> None:
    """Few ticks in the metric's unit; from 0, unless all values lie in the upper half."""
    from matplotlib.ticker import MaxNLocator

    ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    ax.yaxis.set_major_formatter(_formatter(metric))
    room = 0.08 * (high - low) or 0.08 * abs(high) or 1.0
    ax.set_ylim(0.0 if low < 0.5 * high else max(0.0, low - room), high + room)


def _x_axis(ax: Axes, axis: Axis) -> NDArray[np.float64]:
    """Where the values stand: numbers to scale (logarithmic if they grow so), others side by side."""
    from matplotlib.ticker import NullFormatter, NullLocator

    numbers = axis.numbers
    if numbers is None:
        at = np.arange(len(axis), dtype=np.float64)
        ax.set_xlim(-0.5, len(axis) - 0.5)
        ax.grid(False, axis="x")
    else:
        at = np.array(numbers)
        if _grows(at):
            ax.set_xscale("log")
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_minor_formatter(NullFormatter())
    shown = _spread_out(range(len(axis)), 9)
    longest = max(len(axis.labels[i]) for i in shown)
    if longest * len(shown) > 56:
        shown = _spread_out(shown, max(2, 56 // longest))
    ax.set_xticks(at[shown], [short(axis.labels[i], 16) for i in shown])
    ax.set_xlabel(axis.label, labelpad=2)
    return at


def short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _grows(at: NDArray[np.float64]) -> bool:
    """Whether positive numbers are spaced by ratios rather than by differences."""
    if len(at) < 3 or at.min() <= 0:
        return False
    ordered = np.sort(at)
    ratios, steps = ordered[1:] / ordered[:-1], np.diff(ordered)
    return bool(
        ratios.max() / ratios.min() < steps.max() / steps.min() * 0.999 and ordered[-1] / ordered[0] >= 4
    )


def lines(sweep: Sweep, grid: Grid, axis: int) -> tuple[list[tuple[str, list[Point]]], int]:
    """The points along an axis for each combination of the other axes; how many combinations there are."""
    others = [i for i in sweep.varied if i != axis]
    known = {p.positions: p for p in grid.points}
    combinations = list(product(*(range(len(sweep.axes[i])) for i in others)))
    lines = []
    for combination in _spread_out(combinations):
        name = "/".join(sweep.axes[i].labels[j] for i, j in zip(others, combination, strict=True))
        points = []
        for k in range(len(sweep.axes[axis])):
            at = dict(zip(others, combination, strict=True)) | {axis: k}
            points.append(known[tuple(at.get(i, 0) for i in range(len(sweep.axes)))])
        lines.append((name, points))
    return lines, len(combinations)


def against(sweep: Sweep, axis: int) -> str:
    """`against rate, a line for each max_num_seqs`."""
    others = [sweep.axes[i].label for i in sweep.varied if i != axis]
    lines = f", a line for each {'/'.join(others)}" if others else ""
    return f"against {sweep.axes[axis].label}{lines}"


def _line_label(sweep: Sweep, point: Point) -> str:
    """`block_size 8`; only the values where that is long."""
    text = point.label(sweep.axes)
    if len(text) <= 20:
        return text
    return "/".join(short(sweep.axes[i].labels[point.positions[i]], 14) for i in sweep.varied) or short(
        text, 20
    )


def line_names(sweep: Sweep) -> str:
    """What the values in a line's name stand for; empty if the name says it."""
    if all(len(p.label(sweep.axes)) <= 20 for p in sweep.points):
        return ""
    return "/".join(sweep.axes[i].label for i in sweep.varied)


def draw_metric(ax: Axes, sweep: Sweep, grid: Grid, metric: Named, axis: int) -> bool:
    """A metric against an axis, with the 95 % interval of the mean; whether it needs a legend."""
    at = _x_axis(ax, sweep.axes[axis])
    drawn, _ = lines(sweep, grid, axis)
    low, high = np.inf, -np.inf
    in_order = np.argsort(at)
    for i, (name, points) in enumerate(drawn):
        cells = [grid.cell(metric, p) for p in points]
        mean = np.array([np.nan if c is None else c.mean for c in cells])
        half = np.array([0.0 if c is None or c.half is None else c.half for c in cells])
        if np.all(np.isnan(mean)):
            continue
        low = min(low, float(np.nanmin(mean - half)))
        high = max(high, float(np.nanmax(mean + half)))
        color, dash = _COLORS[i % len(_COLORS)], _DASHES[i % len(_DASHES)]
        x, y, h = at[in_order], mean[in_order], half[in_order]
        if sweep.axes[axis].numbers is None:
            shift = (i - (len(drawn) - 1) / 2) * 0.6 / max(1, len(drawn))
            ax.errorbar(
                x + shift,
                y,
                h,
                fmt=_MARKS[i % len(_MARKS)],
                color=color,
                ms=4.5,
                capsize=2.5,
                lw=1.2,
                label=name,
            )
            continue
        if h.any():
            ax.fill_between(x, y - h, y + h, color=color, alpha=0.2, linewidth=0)
        ax.plot(x, y, color=color, linestyle=dash, marker=_MARKS[i % len(_MARKS)], ms=3.6, lw=1.4, label=name)
    if low <= high:
        # all metrics are shares, counts or times: only an interval can reach below 0
        _y_axis(ax, metric, max(0.0, low), high)
    return len(drawn) > 1


def framed(sweep: Sweep, grid: Grid, metric: Named) -> list[Best]:
    """The best points of a heat map: one, or one in each circumstance."""
    found = [grid.best(metric, points) for points in sweep.groups()]
    return [b for b in found if b is not None]


def draw_heat(ax: Axes, sweep: Sweep, grid: Grid, metric: Named) -> None:
    """A metric over two axes; the best points are framed."""
    import matplotlib as mpl
    from matplotlib.patches import Rectangle

    across, up = sweep.varied
    x_axis, y_axis = sweep.axes[across], sweep.axes[up]
    table = np.full((len(y_axis), len(x_axis)), np.nan)
    for p in grid.points:
        cell = grid.cell(metric, p)
        if cell is not None:
            table[p.positions[up], p.positions[across]] = cell.mean
    known = table[~np.isnan(table)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    colors = mpl.colormaps["Blues"]
    ax.grid(False)
    for (j, i), value in np.ndenumerate(table):
        if np.isnan(value):
            ax.text(i, j, "failed", ha="center", va="center", fontsize=7.5, color=style.GREY)
            continue
        part = (value - low) / (high - low) if high > low else 0.5
        face = colors(0.08 + 0.77 * part)
        ax.add_patch(Rectangle((i - 0.5, j - 0.5), 1, 1, facecolor=face, edgecolor="#FDFDFD", linewidth=0.8))
        if table.size <= 80:
            ink = "#FEFEFE" if part > 0.62 else "#101010"
            ax.text(i, j, _cell_text(metric, value), ha="center", va="center", fontsize=8, color=ink)
    for best in framed(sweep, grid, metric):
        i, j = best.point.positions[across], best.point.positions[up]
        ax.add_patch(
            Rectangle((i - 0.47, j - 0.47), 0.94, 0.94, fill=False, edgecolor=style.RED, linewidth=2.0)
        )
    ax.set_xlim(-0.5, len(x_axis) - 0.5)
    ax.set_ylim(-0.5, len(y_axis) - 0.5)
    for setter, axis in ((ax.set_xticks, x_axis), (ax.set_yticks, y_axis)):
        shown = _spread_out(range(len(axis)), 10)
        setter(shown, [short(axis.labels[k], 12) for k in shown])
    ax.tick_params(length=0)
    ax.set_xlabel(x_axis.label, labelpad=2)
    ax.set_ylabel(y_axis.label, labelpad=3)


def _cell_text(metric: Named, value: float) -> str:
    if metric.unit == "fraction":
        return share(value)
    if metric.unit == "s":
        return span(value)
    if metric.unit == "bytes":
        return size(value)
    return thousands(float(f"{value:.3g}")) if abs(value) >= 1e4 else count(value)


def draw_pareto(ax: Axes, sweep: Sweep, grid: Grid, figure: Figure) -> None:
    """Two metrics against each other, the third as colour; points on the front have a ring and a name."""
    from matplotlib.ticker import MaxNLocator

    weighed, front = grid.pareto()
    on = {p.index for p in front}
    x_metric, y_metric, *more = weighed
    spots = []
    for p in grid.points:
        cells = [grid.cell(m, p) for m in weighed]
        if all(c is not None for c in cells):
            spots.append((p, [c.mean for c in cells if c is not None]))
    third = [v[2] for _, v in spots] if more else None
    x, y = [v[0] for _, v in spots], [v[1] for _, v in spots]
    sizes = [64.0 if p.index in on else 26.0 for p, _ in spots]
    edges = [style.BLACK if p.index in on else style.GREY for p, _ in spots]
    widths = [1.5 if p.index in on else 0.4 for p, _ in spots]
    kind: dict[str, Any] = {"c": third, "cmap": "cividis_r"} if third else {"color": style.SKY}
    drawn = ax.scatter(x, y, s=sizes, edgecolors=edges, linewidths=widths, zorder=3, **kind)
    if third:
        bar = figure.colorbar(drawn, ax=ax, pad=0.02, aspect=14)
        bar.set_label(more[0].label, fontsize=8.5)
        bar.ax.yaxis.set_major_locator(MaxNLocator(4))
        bar.ax.yaxis.set_major_formatter(_formatter(more[0]))
        bar.ax.tick_params(length=0)
    named = sorted(((v, p) for p, v in spots if p.index in on), key=lambda s: s[0]) if len(on) <= 10 else []
    for k, (v, p) in enumerate(named):
        text = "/".join(short(sweep.axes[i].labels[p.positions[i]], 10) for i in sweep.varied)
        left = k % 2 == 0
        ax.annotate(
            text,
            (v[0], v[1]),
            xytext=(-6, 4) if left else (6, -9),
            textcoords="offset points",
            ha="right" if left else "left",
            fontsize=8,
        )
    for values, metric, setter, axis in (
        (x, x_metric, ax.set_xlim, ax.xaxis),
        (y, y_metric, ax.set_ylim, ax.yaxis),
    ):
        room = 0.12 * (max(values) - min(values)) or 0.1 * abs(max(values)) or 1.0
        setter(min(values) - room, max(values) + room)
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(_formatter(metric))
    ax.set_xlabel(f"{x_metric.label} ({'less' if x_metric.better < 0 else 'more'} is better)", labelpad=2)
    ax.set_ylabel(f"{y_metric.label}\n({'less' if y_metric.better < 0 else 'more'} is better)", labelpad=2)


def curve_points(sweep: Sweep, grid: Grid) -> list[Point]:
    """The points whose curves are drawn: evenly spread over those that finished."""
    done = [p for p in grid.points if any(isinstance(r.outcome, Result) for r in grid.by_point[p.index])]
    return _spread_out(done)


def _over_time(
    grid: Grid, point: Point, key: str, times: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean, least and most over the seeds at each time (s); not-a-number where all have ended."""
    found = []
    for row in grid.by_point[point.index]:
        if isinstance(row.outcome, Result):
            own = row.outcome.curves["time_s"]
            at = np.clip(np.searchsorted(own, times, side="right") - 1, 0, CURVE_POINTS - 1)
            values = row.outcome.curves[key][at]
            if key not in CUMULATIVE:
                values = np.where(times <= own[-1], values, np.nan)
            found.append(values)
    table = np.array(found)
    out = np.full((3, len(times)), np.nan)
    some = ~np.all(np.isnan(table), axis=0)
    out[0, some] = np.nanmean(table[:, some], axis=0)
    out[1, some] = np.nanmin(table[:, some], axis=0)
    out[2, some] = np.nanmax(table[:, some], axis=0)
    return out[0], out[1], out[2]


def _end_s(grid: Grid, points: Sequence[Point]) -> float:
    rows = [r for p in points for r in grid.by_point[p.index]]
    return max(float(r.outcome.curves["time_s"][-1]) for r in rows if isinstance(r.outcome, Result))


def draw_curve(ax: Axes, sweep: Sweep, grid: Grid, key: str, is_share: bool) -> None:
    """One quantity over simulated time, a line a point."""
    points = curve_points(sweep, grid)
    end = _end_s(grid, points)
    times = np.linspace(0.0, end, 2 * CURVE_POINTS - 1)
    scale, unit = time_unit(end * 1e9)
    x = times * 1e9 / scale
    for i, point in enumerate(points):
        mean, low, high = _over_time(grid, point, key, times)
        color = _COLORS[i % len(_COLORS)]
        if len(points) <= MOST_BANDS and len(grid.by_point[point.index]) > 1:
            ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        ax.plot(
            x, mean, color=color, linestyle=_DASHES[i % len(_DASHES)], lw=1.3, label=_line_label(sweep, point)
        )
    if is_share:
        percent_axis(ax)
    else:
        count_axis(ax)
    ax.set_xlim(0, max(float(x[-1]), 1e-9))
    ax.set_xlabel(f"simulated time ({unit})", labelpad=2)
