"""The pictures of a sweep: as inline SVG for the page, and as PNG and SVG files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sim.report import style, svg
from sim.report.compare_curves import CURVES
from sim.report.curves import legend
from sim.report.document import Chart, Inline, Piece, as_plural, plain_text
from sim.sweep.answer import Grid
from sim.sweep.draw import (
    MOST_BANDS,
    MOST_LINES,
    SHOWN_CURVES,
    against,
    curve_points,
    draw_curve,
    draw_heat,
    draw_metric,
    draw_pareto,
    framed,
    lines,
)
from sim.sweep.metrics import Named
from sim.sweep.plan import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# ---- for the page ----


def _finish(figure: Figure, ax: Axes, key: str, title: str, says: Inline, **more: Any) -> Chart:
    return Chart(key, title, says, svg.inline_svg(figure, key, f"{title}. {plain_text(says)}"), **more)


def _columns(labels: Sequence[str]) -> int:
    return max(1, min(len(labels), 60 // (max(len(t) for t in labels) + 6)))


def _with_legend(height: float = svg.HEIGHT) -> tuple[Figure, Axes, Callable[[], None]]:
    """Figure, axes, and what puts the legend above them once the lines are drawn."""
    figure = svg.new_figure(height)
    ax = figure.add_axes((0.125, 0.42 / height, 0.86, 1 - 0.55 / height))

    def place() -> None:
        labels = ax.get_legend_handles_labels()[1]
        columns = _columns(labels)
        rows = -(-len(labels) // columns)
        taller = height + 0.19 * rows
        figure.set_figheight(taller)
        ax.set_position((0.125, 0.42 / taller, 0.86, (height - 0.55) / taller))
        legend(ax, columns)
        box = ax.get_legend()
        if box is not None:
            box.set_loc("lower left")
            box.set_bbox_to_anchor((0.0, 1.03))

    return figure, ax, place


def metric_charts(sweep: Sweep, grid: Grid, metric: Named, says: Inline) -> list[Chart]:
    """A metric against each axis that has two values or more."""
    charts: list[Chart] = []
    with svg.drawing():
        for i in sweep.varied:
            figure, ax, place = _with_legend()
            if draw_metric(ax, sweep, grid, metric, i):
                place()
            total = lines(sweep, grid, i)[1]
            told: tuple[Piece, ...] = says if not charts else ()
            if total > MOST_LINES:
                told = (*told, f" Lines: {MOST_LINES} of {total} combinations of the other axes.")
            title = metric.label[0].upper() + metric.label[1:]
            charts.append(
                _finish(figure, ax, f"metric-{_slug(metric.name)}-{i}", f"{title} {against(sweep, i)}", told)
            )
    return charts


def _slug(name: str) -> str:
    return name.replace(".", "-")


def heat_charts(sweep: Sweep, grid: Grid) -> list[Chart]:
    """A heat map a metric, where there are two axes."""
    if len(sweep.varied) != 2:
        return []
    charts = []
    with svg.drawing():
        for metric in sweep.metrics:
            if not grid.has(metric):
                continue
            height = max(svg.HEIGHT, 0.62 + 0.3 * min(len(sweep.axes[sweep.varied[1]]), 12))
            figure = svg.new_figure(height)
            ax = figure.add_axes((0.14, 0.42 / height, 0.85, 1 - 0.52 / height))
            draw_heat(ax, sweep, grid, metric)
            best = framed(sweep, grid, metric)
            says: tuple[Piece, ...] = ("Mean over the seeds; darker is more.",)
            if len(best) > 1:
                where = sweep.axes[sweep.circumstances[0]].label
                says = (f"Mean over the seeds; darker is more. Framed: the best for each {where}.",)
            elif best:
                says = (
                    "Mean over the seeds; darker is more. Framed: the best, ",
                    metric.value(best[0].cell.mean),
                    f" with {best[0].point.label(sweep.axes)}.",
                )
            title = metric.label[0].upper() + metric.label[1:]
            charts.append(_finish(figure, ax, f"heat-{_slug(metric.name)}", title, says))
    return charts


def pareto_chart(sweep: Sweep, grid: Grid) -> Chart | None:
    """The front; None where fewer than two of its metrics differ between points."""
    weighed, front = grid.pareto()
    if len(weighed) < 2 or not front:
        return None
    with svg.drawing():
        figure = svg.new_figure(2.9)
        ax = figure.add_axes((0.155, 0.15, 0.83, 0.82))
        draw_pareto(ax, sweep, grid, figure)
        says: Inline = (
            "Ringed: ",
            as_plural(len(front), "point"),
            " that no other point beats in one of these metrics without losing in another.",
        )
        names = ", ".join(m.label for m in weighed)
        return _finish(figure, ax, "pareto", f"Weighed against each other: {names}", says, wide=False)


def curve_charts(sweep: Sweep, grid: Grid) -> list[Chart]:
    """Curves over simulated time of up to six points."""
    if not curve_points(sweep, grid):
        return []
    charts = []
    with svg.drawing():
        for key, title, _, is_share in CURVES:
            if key not in SHOWN_CURVES:
                continue
            figure, ax, place = _with_legend()
            draw_curve(ax, sweep, grid, key, is_share)
            place()
            charts.append(_finish(figure, ax, f"curve-{key}", title, ()))
    return charts


# ---- for plots/ ----


def pictures(sweep: Sweep, grid: Grid) -> dict[str, bytes]:
    """All pictures as files: path in the sweep's folder -> content."""
    import matplotlib as mpl

    files: dict[str, bytes] = {}
    rc: Any = style.RC
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(rc)
        figures = {
            "metrics": _metrics_figure(sweep, grid),
            "heat": _heat_figure(sweep, grid),
            "pareto": _pareto_figure(sweep, grid),
            "curves": _curves_figure(sweep, grid),
        }
        for name, figure in figures.items():
            if figure is not None:
                for kind in ("png", "svg"):
                    files[f"plots/{name}.{kind}"] = style.save(figure, kind)
    return files


def _heading(figure: Figure, sweep: Sweep, text: str) -> float:
    """Title and a line below it, in inches from the top; returns the room that they take."""
    height = figure.get_figheight()
    figure.text(0.02, 1 - 0.22 / height, sweep.title, fontsize=13, fontweight="bold", va="center")
    figure.text(0.02, 1 - 0.47 / height, text, fontsize=8.5, color="#444444", va="center")
    return 0.66


def _seeds_text(grid: Grid) -> str:
    n = max(len(rows) for rows in grid.by_point.values())
    return f"mean of {n} seeds, band: 95 % interval of the mean" if n > 1 else "one seed: no interval"


def _over_seeds(points: int) -> str:
    band = ", band: from the least to the most" if points <= MOST_BANDS else ""
    return f"mean over the seeds{band}"


def _metrics_figure(sweep: Sweep, grid: Grid) -> Figure | None:
    from matplotlib.figure import Figure

    axes = sweep.varied
    metrics = [m for m in sweep.metrics if grid.has(m)]
    if not axes or not metrics:
        return None
    columns = len(axes) if len(axes) > 1 else min(2, len(metrics))
    cells = [(m, i) for m in metrics for i in axes]
    rows = -(-len(cells) // columns)
    legends = len(axes) > 1
    height = 0.66 + (0.55 if legends else 0.1) + 2.35 * rows
    figure = Figure(figsize=(4.7 * columns + 0.4, height))
    head = _heading(figure, sweep, _seeds_text(grid))
    grid_axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=0.68 / figure.get_figwidth(),
        right=1 - 0.15 / figure.get_figwidth(),
        top=1 - (head + (0.5 if legends else 0.25)) / height,
        bottom=0.5 / height,
        hspace=0.62 if legends else 0.5,
        wspace=0.24,
    )
    for ax, (metric, i) in zip(grid_axes.flat, cells, strict=False):
        needs = draw_metric(ax, sweep, grid, metric, i)
        ax.set_title(metric.label[0].upper() + metric.label[1:], pad=20 if needs else 6)
        if needs:
            others = "/".join(sweep.axes[k].label for k in sweep.varied if k != i)
            ax.set_xlabel(f"{sweep.axes[i].label}; a line for each {others}", labelpad=2)
            ax.legend(
                loc="lower left",
                bbox_to_anchor=(-0.01, 0.97),
                ncols=MOST_LINES,
                fontsize=7,
                columnspacing=1.0,
                handletextpad=0.4,
            )
    for ax in list(grid_axes.flat)[len(cells) :]:
        ax.set_visible(False)
    return figure


def _heat_figure(sweep: Sweep, grid: Grid) -> Figure | None:
    from matplotlib.figure import Figure

    metrics = [m for m in sweep.metrics if grid.has(m)]
    if len(sweep.varied) != 2 or not metrics:
        return None
    columns = min(2, len(metrics))
    rows = -(-len(metrics) // columns)
    tall = 0.75 + 0.32 * min(len(sweep.axes[sweep.varied[1]]), 14)
    height = 0.9 + rows * max(2.3, tall)
    figure = Figure(figsize=(5.2 * columns, height))
    head = _heading(figure, sweep, "mean over the seeds; darker is more; framed: the best")
    cells = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=0.75 / figure.get_figwidth(),
        right=0.99,
        top=1 - (head + 0.3) / height,
        bottom=0.5 / height,
        hspace=0.42,
        wspace=0.2,
    )
    for ax, metric in zip(cells.flat, metrics, strict=False):
        draw_heat(ax, sweep, grid, metric)
        ax.set_title(metric.label[0].upper() + metric.label[1:])
    for ax in list(cells.flat)[len(metrics) :]:
        ax.set_visible(False)
    return figure


def _pareto_figure(sweep: Sweep, grid: Grid) -> Figure | None:
    from matplotlib.figure import Figure

    weighed, front = grid.pareto()
    if len(weighed) < 2 or not front:
        return None
    figure = Figure(figsize=(7.6, 5.0))
    _heading(
        figure,
        sweep,
        "ringed: points that no other point beats in one of these metrics without losing in another",
    )
    ax = figure.add_axes((0.125, 0.105, 0.85, 0.73))
    draw_pareto(ax, sweep, grid, figure)
    return figure


def _curves_figure(sweep: Sweep, grid: Grid) -> Figure | None:
    from matplotlib.figure import Figure

    points = curve_points(sweep, grid)
    if not points:
        return None
    figure = Figure(figsize=(10.4, 8.4))
    axes = figure.subplots(3, 2, sharex=True, gridspec_kw={"hspace": 0.34, "wspace": 0.17})
    figure.subplots_adjust(left=0.06, right=0.985, top=0.865, bottom=0.06)
    shown = [c for c in CURVES if c[0] in SHOWN_CURVES]
    for ax, (key, title, _, is_share) in zip(axes.flat, shown, strict=True):
        draw_curve(ax, sweep, grid, key, is_share)
        ax.set_title(title)
    for ax in axes[:-1].flat:
        ax.set_xlabel("")
    _heading(figure, sweep, _over_seeds(len(points)))
    handles, labels = axes.flat[0].get_legend_handles_labels()
    columns = max(1, min(len(labels), 130 // (max(len(t) for t in labels) + 6)))
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.012, 0.935), ncols=columns)
    return figure
