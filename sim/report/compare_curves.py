"""Curves of several runs over each other: a line a side, a band over its seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.report import style, svg
from sim.report.curves import count_axis, cumulative_rate, legend, percent_axis
from sim.report.document import Chart, Inline, Piece, as_count, as_share, plain_text
from sim.report.folder import RunFolder
from sim.report.moments import external
from sim.report.series import time_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Sides = Sequence[tuple[str, Sequence[RunFolder]]]
_POINTS = 400
_COLORS = (style.BLUE, style.RED, style.GREEN, style.PURPLE, style.ORANGE, style.SKY)
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (8, 2)), (0, (2, 2)))


def _usage(r: RunFolder) -> NDArray[Any]:
    return r.steps["used_blocks"] / r.summary["engine"]["usable_blocks"]


def _waste(r: RunFolder) -> NDArray[Any]:
    return r.steps["wasted_slots"] / np.maximum(r.steps["allocated_slots"], 1)


#: Curves since the start: they keep their last value when a run has ended.
CUMULATIVE = ("hit_rate", "preemptions")
#: key, title, values by row, whether a share
CURVES: tuple[tuple[str, str, Callable[[RunFolder], NDArray[Any]], bool], ...] = (
    ("usage", "KV cache usage", _usage, True),
    ("internal_fragmentation", "Internal fragmentation", _waste, True),
    ("external_fragmentation", "External fragmentation", lambda r: external(r.steps), True),
    ("free_runs", "Free runs", lambda r: r.steps["free_runs"], False),
    ("hit_rate", "Token hit rate at first lookup, since the start", lambda r: cumulative_rate(r.steps), True),
    ("running", "Running requests", lambda r: r.steps["num_running"], False),
    ("waiting", "Waiting requests", lambda r: r.steps["num_waiting"], False),
    ("preemptions", "Preemptions since the start", lambda r: r.steps["preemptions"], False),
)


#: Columns of steps that a curve needs; recordings may lack some.
_NEEDS: dict[str, tuple[str, ...]] = {
    "usage": (),
    "internal_fragmentation": ("wasted_slots",),
    "external_fragmentation": ("largest_free_run",),
    "free_runs": ("free_runs",),
    "hit_rate": ("prefix_queries",),
    "running": (),
    "waiting": (),
    "preemptions": ("preemptions",),
}


#: Curves that are left out of the page where they are zero throughout.
_ONLY_IF_ANY = ("waiting", "preemptions")


def _grid(sides: Sides) -> NDArray[np.float64]:
    end = max(r.end_ns for _, runs in sides for r in runs)
    return np.linspace(0.0, float(max(end, 1)), _POINTS)


def _on_grid(
    runs: Sequence[RunFolder],
    values: Callable[[RunFolder], NDArray[Any]],
    grid: NDArray[np.float64],
    hold: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean, least and most over the runs at each time; not-a-number where a run has ended or has no value."""
    table = np.full((len(runs), len(grid)), np.nan)
    for i, run in enumerate(runs):
        times, column = run.steps["time_ns"], np.asarray(values(run), np.float64)
        if len(times) == 0:
            continue
        at = np.searchsorted(times, grid, side="right") - 1
        alive = (at >= 0) & (hold | (grid <= max(run.end_ns, int(times[-1]))))
        table[i, alive] = column[at[alive]]
    out = np.full((3, len(grid)), np.nan)
    some = ~np.all(np.isnan(table), axis=0)
    out[0, some] = np.nanmean(table[:, some], axis=0)
    out[1, some] = np.nanmin(table[:, some], axis=0)
    out[2, some] = np.nanmax(table[:, some], axis=0)
    return out[0], out[1], out[2]


def _draw(ax: Axes, sides: Sides, curve: int, grid: NDArray[np.float64]) -> dict[str, Any]:
    key, _, values, is_share = CURVES[curve]
    scale, unit = time_unit(float(grid[-1]))
    x = grid / scale
    data: dict[str, Any] = {"time_s": (grid / 1e9).tolist()}
    for i, (name, runs) in enumerate(sides):
        if any(column not in r.steps for r in runs for column in _NEEDS[key]):
            data[name] = [None] * len(grid)  # a recording without it
            continue
        mean, low, high = _on_grid(runs, values, grid, key in CUMULATIVE)
        color = _COLORS[i % len(_COLORS)]
        if len(runs) > 1:
            ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
        ax.plot(x, mean, color=color, linestyle=_DASHES[i % len(_DASHES)], label=name, linewidth=1.5)
        data[name] = [None if np.isnan(v) else float(v) for v in mean]
    if is_share:
        percent_axis(ax)
    else:
        count_axis(ax)
    ax.set_xlim(0, x[-1])
    ax.set_xlabel(f"time ({unit})", labelpad=2)
    return data


def _says(sides: Sides, data: dict[str, Any], is_share: bool, cumulative: bool) -> Inline:
    """The end of each line that counts since the start, the highest point of the others."""
    pieces: list[Piece] = ["At the end: " if cumulative else "Highest point: "]
    for i, (name, _) in enumerate(sides):
        values = [v for v in data[name] if v is not None]
        number = (values[-1] if cumulative else max(values)) if values else None
        pieces += [", " if i else "", f"{name} ", as_share(number) if is_share else as_count(number)]
    return (*pieces, ".")


def overlay_charts(sides: Sides) -> list[Chart]:
    """One chart a curve for the page; a side is its letter and its runs."""
    grid = _grid(sides)
    charts = []
    with svg.drawing():
        for i, (key, title, _, is_share) in enumerate(CURVES):
            figure = svg.new_figure()
            ax = figure.add_axes((0.115, 0.185, 0.865, 0.67))
            data = _draw(ax, sides, i, grid)
            if key in _ONLY_IF_ANY and not any(v for name, _ in sides for v in data[name]):
                continue
            legend(ax, columns=6)
            says = _says(sides, data, is_share, key in CUMULATIVE)
            markup = svg.inline_svg(figure, f"compare_{key}", f"{title}. {plain_text(says)}")
            charts.append(Chart(key, title, says, markup, data))
    return charts


def overlay_picture(sides: Sides, heading: str) -> dict[str, bytes]:
    """All curves in one figure, "curves.png" and "curves.svg"; a side is its name and its runs."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    grid = _grid(sides)
    rc: Any = style.RC
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(rc)
        figure = Figure(figsize=(11.0, 10.0))
        axes = figure.subplots(4, 2, sharex=True, gridspec_kw={"hspace": 0.35, "wspace": 0.16})
        figure.subplots_adjust(left=0.06, right=0.985, top=0.915, bottom=0.055)
        for i, ax in enumerate(axes.flat):
            _draw(ax, sides, i, grid)
            ax.set_title(CURVES[i][1])
            if i < len(CURVES) - 2:
                ax.set_xlabel("")
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.055, 0.968), ncols=4, fontsize=9)
        figure.text(0.06, 0.98, heading, fontsize=11, fontweight="bold", va="center")
        return {f"curves.{kind}": style.save(figure, kind) for kind in ("png", "svg")}
