"""The curves of a report's page: small figures, all with the same time axis and the same marked moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.report import style, svg
from sim.report.document import Chart, Inline, Paragraph, plain_text
from sim.report.series import Rows, Series, spread, time_unit, windows
from sim.report.units import seconds, thousands

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DATA_POINTS = 200
#: Room that the number of a marked moment takes, of the width of the axes.
_MARK_WIDTH = 0.028


@dataclass(frozen=True)
class Marked:
    """A moment that all curves mark: nanoseconds and the number that the text calls it by."""

    time_ns: int
    label: str


@dataclass(frozen=True)
class CurveSpec:
    """One figure: `draw` fills the axes; `says` tells it in words; `data` are its columns over the rows.

    `look` says how to read the picture; `unit` is that of the first column, or of `spark` in its place.
    """

    key: str
    title: str
    says: Inline
    draw: Callable[[Axes, Series], None]
    data: dict[str, NDArray[Any]]
    term: str = ""
    spark: NDArray[Any] | None = None
    unit: str = "fraction"
    look: str = ""


def curve_charts(
    steps: Rows,
    specs: Sequence[CurveSpec],
    marks: Sequence[Marked],
    preempted_ns: NDArray[Any],
    clock: str = "simulated time",
) -> list[Chart]:
    """All figures; call with at least two rows of steps. `clock` names the time axis."""
    series = Series(steps, 600)
    charts = []
    with svg.drawing():
        for spec in specs:
            figure = svg.new_figure()
            ax = figure.add_axes((0.115, 0.185, 0.865, 0.64))
            spec.draw(ax, series)
            if ax.get_legend() is None:
                ax.set_position((0.115, 0.185, 0.865, 0.74))
            _frame(ax, series, steps, marks, preempted_ns, clock)
            markup = svg.inline_svg(figure, spec.key, f"{spec.title}. {plain_text(spec.says)}")
            charts.append(
                Chart(
                    spec.key,
                    spec.title,
                    spec.says,
                    markup,
                    _data(steps, spec.data),
                    term=spec.term,
                    look=spec.look,
                    spark=tuple(_spark(steps, spec)),
                    spark_unit=spec.unit,
                )
            )
    return charts


def window(time_ns: NDArray[Any]) -> str:
    """Length of the 60 equal windows of `windows`."""
    return seconds(float(time_ns[-1]) / 60e9)


def bars_note(steps: Rows) -> Paragraph:
    """What the lines of bars are that stand in the place of the curves."""
    end = seconds(float(steps["time_ns"][-1]) / 1e9)
    text = f"Each line of bars goes from 0 s to {end}, from zero to the value behind it."
    return Paragraph((text,), "note", only="text")


def _frame(
    ax: Axes,
    series: Series,
    steps: Rows,
    marks: Sequence[Marked],
    preempted_ns: NDArray[Any],
    clock: str,
) -> None:
    scale, unit = time_unit(float(steps["time_ns"][-1]))
    end = max(float(steps["time_ns"][-1]) / scale, 1e-9)
    ax.set_xlim(0, end)
    ax.set_xlabel(f"{clock} ({unit})", labelpad=2)
    for mark, place in zip(marks, spread([m.time_ns / scale / end for m in marks], _MARK_WIDTH), strict=True):
        x = mark.time_ns / scale
        ax.axvline(x, color=style.BLACK, linewidth=0.8, linestyle=(0, (3, 3)), zorder=3)
        ax.annotate(
            mark.label,
            (place, 1.0),
            xycoords="axes fraction",
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
            fontweight="bold",
        )
    if len(preempted_ns):
        keep = np.unique(np.round(preempted_ns / scale / end * 500)) / 500 * end
        ax.plot(
            keep,
            np.zeros(len(keep)),
            "|",
            color=style.RED,
            markersize=7,
            markeredgewidth=1.0,
            transform=ax.get_xaxis_transform(),
            clip_on=False,
            zorder=4,
        )


def _equal_times(steps: Rows, values: NDArray[Any], points: int = _DATA_POINTS) -> NDArray[np.float64]:
    """The column at the ends of equal stretches of time."""
    times = np.linspace(0, float(steps["time_ns"][-1]), points)
    at = np.maximum(np.searchsorted(steps["time_ns"], times, side="right") - 1, 0)
    return np.asarray(values, np.float64)[at]


def _spark(steps: Rows, spec: CurveSpec) -> list[float]:
    values = _equal_times(steps, next(iter(spec.data.values()))) if spec.spark is None else spec.spark
    return [float(v) for v in values if not np.isnan(v)]


def _data(steps: Rows, columns: dict[str, NDArray[Any]]) -> dict[str, Any]:
    times = np.linspace(0, float(steps["time_ns"][-1]), _DATA_POINTS) / 1e9
    out: dict[str, Any] = {"time_s": [float(t) for t in times]}
    for name, values in columns.items():
        out[name] = [None if np.isnan(v) else float(v) for v in _equal_times(steps, values)]
    return out


# ---- what stands in the axes ----


def percent_axis(ax: Axes, high: float | None = None) -> None:
    """y in percent, from 0 to `high` (None: as the data ask)."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.3g} %"))
    ax.set_ylim(0, high if high is not None else max(ax.get_ylim()[1], 1e-6))


def count_axis(ax: Axes, whole: bool = True) -> None:
    """y in counts from 0, with few ticks."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ax.yaxis.set_major_locator(MaxNLocator(4, integer=whole))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: thousands(v)))
    ax.set_ylim(0, max(ax.get_ylim()[1], 1))


def legend(ax: Axes, columns: int = 3) -> None:
    """Names of the lines, above the axes and to the right."""
    ax.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.115),
        borderaxespad=0.0,
        ncols=columns,
        columnspacing=1.0,
        handletextpad=0.4,
    )


def draw_usage(usable: int) -> Callable[[Axes, Series], None]:
    """Used and evictable blocks, stacked."""

    def draw(ax: Axes, s: Series) -> None:
        low = s.mean(s.steps["used_blocks"] / usable)
        cached = s.mean(s.steps["cached_free_blocks"] / usable)
        ax.fill_between(s.x, 0, low, color=style.BLUE, alpha=0.85, linewidth=0, label="used")
        ax.fill_between(
            s.x, low, low + cached, color=style.SKY, alpha=0.5, linewidth=0, label="free, still cached"
        )
        percent_axis(ax, 1.0)
        legend(ax)

    return draw


def draw_line(
    values: NDArray[Any], color: str, kind: str, label: str | None = None, bound: float | None = None
) -> Callable[[Axes, Series], None]:
    """One line, in percent ("share") or counts ("count")."""

    def draw(ax: Axes, s: Series) -> None:
        s.line(ax, values, color, label)
        if kind == "share":
            percent_axis(ax, bound)
        else:
            count_axis(ax)

    return draw


def draw_lines(lines: Sequence[tuple[str, NDArray[Any], str]]) -> Callable[[Axes, Series], None]:
    """Several lines of counts with their names."""

    def draw(ax: Axes, s: Series) -> None:
        for name, values, color in lines:
            s.line(ax, values, color, name)
        count_axis(ax)
        legend(ax)

    return draw


def draw_hit_rate(ax: Axes, s: Series) -> None:
    """Token hit rate at first lookups: in windows, and since the start."""
    time = s.steps["time_ns"]
    edges, queries = windows(time, s.steps["prefix_queries"])
    hits = windows(time, s.steps["prefix_hits"])[1]
    scale = time_unit(float(time[-1]))[0]
    with np.errstate(invalid="ignore"):
        rate = np.where(queries > 0, hits / np.maximum(queries, 1), np.nan)
    ax.stairs(
        rate, edges / scale, baseline=None, color=style.SKY, linewidth=1.2, label=f"in each {window(time)}"
    )
    whole = cumulative_rate(s.steps)
    pick = slice(None) if s.edges is None else s.edges
    ax.plot(s.x, whole[pick], color=style.BLUE, linewidth=1.6, label="since the start")
    percent_axis(ax, 1.02)
    legend(ax)


def cumulative_rate(steps: Rows) -> NDArray[np.float64]:
    """Token hit rate at first lookups since the start, by row; not-a-number before the first."""
    queries, hits = steps["prefix_queries"], steps["prefix_hits"]
    return np.where(queries > 0, hits / np.maximum(queries, 1), np.nan)


def draw_windows(column: str, color: str) -> Callable[[Axes, Series], None]:
    """Growth of a cumulative column in each of 60 windows, as bars."""

    def draw(ax: Axes, s: Series) -> None:
        edges, growth = windows(s.steps["time_ns"], s.steps[column])
        scale = time_unit(float(s.steps["time_ns"][-1]))[0]
        ax.stairs(growth, edges / scale, color=color, fill=True, alpha=0.8)
        count_axis(ax)

    return draw


def histogram_chart(
    key: str,
    title: str,
    says: Inline,
    labels: Sequence[str],
    series: Sequence[tuple[str, Sequence[float], str]],
    x_label: str,
    y_label: str,
    term: str = "",
) -> Chart:
    """Bars by class; several series stand beside each other."""
    with svg.drawing():
        figure = svg.new_figure()
        ax = figure.add_axes((0.115, 0.215, 0.865, 0.62))
        width = 0.86 / len(series)
        at = np.arange(len(labels))
        for i, (name, values, color) in enumerate(series):
            offset = (i - (len(series) - 1) / 2) * width
            ax.bar(at + offset, values, width, color=color, label=name, linewidth=0)
        every = max(1, -(-len(labels) // 9))
        ax.set_xticks(at[::every], [labels[i] for i in at[::every]])
        ax.grid(False, axis="x")
        count_axis(ax, whole=False)
        ax.set_xlabel(x_label, labelpad=2)
        ax.set_title(y_label, fontsize=9, fontweight="normal", color="#444444", pad=4)
        if len(series) > 1:
            legend(ax)
        markup = svg.inline_svg(figure, key, f"{title}. {plain_text(says)}")
    data: dict[str, Any] = {"class": list(labels)}
    data |= {name: [float(v) for v in values] for name, values, _ in series}
    return Chart(key, title, says, markup, data, term=term)
