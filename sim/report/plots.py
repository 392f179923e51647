"""The plots of a run: an overview over time, and the latency distributions of `sim.report.latency_plot`.

matplotlib is imported here and nowhere else in the run path; figures are made without pyplot, so nothing
global is touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.report import style
from sim.report.latency_plot import heading, latency
from sim.report.step_curves import Formulas, RowsInMemory, StepCurves, StepRows, step_curves
from sim.report.units import count, share, size, thousands

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Mapping[str, NDArray[Any]]


def draw(
    summary: Mapping[str, Any], steps: Rows | StepRows, requests: Rows, warmup_ns: int
) -> dict[str, bytes]:
    """All plots: path in the run folder -> content.

    Args:
        summary: of sim.summary.
        steps: columns of steps.parquet, or its rows on disk.
        requests: columns of requests.parquet.
        warmup_ns: latencies of requests that arrived before are left out.
    """
    import matplotlib as mpl

    rows = RowsInMemory(steps) if isinstance(steps, Mapping) else steps
    files: dict[str, bytes] = {}
    rc: Any = style.RC
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(rc)
        figures = {"overview": overview(summary, rows), "latency": latency(summary, requests, warmup_ns)}
        for name, figure in figures.items():
            if figure is not None:
                for kind in ("png", "svg"):
                    files[f"plots/{name}.{kind}"] = style.save(figure, kind)
    return files


def overview(summary: Mapping[str, Any], steps: StepRows) -> Figure | None:
    """Usage, waste, fragmentation, load, hit rate and preemptions over simulated time."""
    if len(steps) < 2:
        return None
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    engine = summary["engine"]
    usable = engine["usable_blocks"]
    figure = Figure(figsize=(8.2, 10.4))
    axes = figure.subplots(6, 1, sharex=True, gridspec_kw={"hspace": 0.46})
    figure.subplots_adjust(left=0.105, right=0.915, top=0.905, bottom=0.055)
    percent = FuncFormatter(lambda v, _: f"{100 * v:.3g} %")

    s = step_curves(steps, _formulas(usable), _CUMULATIVE)
    ax = axes[0]
    low = s.curves["used"].mean
    ax.fill_between(s.x, 0, low, color=style.BLUE, alpha=0.85, linewidth=0, label="used")
    ax.fill_between(
        s.x,
        low,
        low + s.curves["cached"].mean,
        color=style.SKY,
        alpha=0.55,
        linewidth=0,
        label="free, still cached",
    )
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_formatter(percent)
    u = summary["usage"]
    _title(ax, "KV cache usage", f"mean {share(u['mean'])}, peak {share(u['max'])}" if u else "")
    _legend(ax)
    ax.set_ylabel("blocks")

    ax = axes[1]
    _line(ax, s, "inside", style.RED)
    _from_zero(ax)
    ax.yaxis.set_major_formatter(percent)
    ax.set_ylabel("of allocated slots")
    waste = summary["waste"]
    note = (
        f"mean {share(summary['internal_fragmentation']['mean'])}"
        if summary["internal_fragmentation"]
        else ""
    )
    if waste["mean_wasted_bytes"] is not None:
        note += f", {size(waste['mean_wasted_bytes'])} on average"
    _title(ax, "Internal fragmentation: allocated slots without a token", note)

    ax = axes[2]
    _line(ax, s, "outside", style.PURPLE)
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(percent)
    ax.set_ylabel("1 - largest / free", color=style.PURPLE)
    twin = _twin(ax, "free runs", style.GREY)
    twin.plot(s.x, s.curves["free_runs"].mean, color=style.GREY, linewidth=1.0)
    _from_zero(twin)
    e, runs = summary["external_fragmentation"], summary["free_runs"]
    note = f"mean {share(e['mean'])}; {count(runs['mean'])} runs on average" if e and runs else ""
    _title(ax, "External fragmentation and free runs", note)

    ax = axes[3]
    _load(ax, s)
    _title(ax, "Requests in the engine", _load_note(summary))

    ax = axes[4]
    _hit_rate(ax, s)
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(percent)
    ax.set_ylabel("of tokens")
    c = summary["prefix_cache"]
    rate = c["first_lookup_token_hit_rate"]
    _title(
        ax, "Prefix cache: token hit rate at first lookup", "" if rate is None else f"{share(rate)} in all"
    )
    _legend(ax)

    ax = axes[5]
    _per_second(ax, s)
    ax.set_xlabel(f"simulated time ({s.unit})")
    ax.set_xlim(0, s.x_edges[-1] if s.x_edges[-1] > 0 else 1)
    heading(figure, summary)
    figure.align_ylabels(list(axes))
    return figure


#: Columns that count from the start, which windows are made of.
_CUMULATIVE = ("prefix_queries", "prefix_hits", "preemptions", "evictions")


def _formulas(usable: int) -> Formulas:
    """The curves of the overview."""

    def outside(rows: Rows) -> NDArray[Any]:
        free = rows["num_free_blocks"]
        return np.where(free > 0, 1.0 - rows["largest_free_run"] / np.maximum(free, 1), 0.0)

    return {
        "used": lambda rows: rows["used_blocks"] / usable,
        "cached": lambda rows: rows["cached_free_blocks"] / usable,
        "inside": lambda rows: rows["wasted_slots"] / np.maximum(rows["allocated_slots"], 1),
        "outside": outside,
        "free_runs": lambda rows: rows["free_runs"],
        "running": lambda rows: rows["num_running"],
        "waiting": lambda rows: rows["num_waiting"],
    }


def _line(ax: Axes, s: StepCurves, name: str, color: str, label: str | None = None) -> None:
    """A line of the means, and a band from the least to the most where rows were thinned."""
    curve = s.curves[name]
    if len(curve.low):
        ax.fill_between(s.x, curve.low, curve.high, color=color, alpha=0.22, linewidth=0, rasterized=False)
    ax.plot(s.x, curve.mean, color=color, label=label)


def _load(ax: Axes, s: StepCurves) -> None:
    """Running and waiting requests; on two axes where a long queue would flatten the other line."""
    from matplotlib.ticker import MaxNLocator

    _line(ax, s, "running", style.GREEN, "running")
    ax.set_ylabel("requests")
    if s.curves["waiting"].most > 4 * max(1.0, s.curves["running"].most):
        ax.set_ylabel("running", color=style.GREEN)
        twin = _twin(ax, "waiting", style.ORANGE)
        _line(twin, s, "waiting", style.ORANGE)
        _from_zero(twin)
    else:
        _line(ax, s, "waiting", style.ORANGE, "waiting")
        _legend(ax)
    _from_zero(ax)
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _load_note(summary: Mapping[str, Any]) -> str:
    running, waiting = summary["num_running"], summary["num_waiting"]
    if not running or not waiting:
        return ""
    return f"mean {count(running['mean'])} running, {count(waiting['mean'])} waiting"


def _twin(ax: Axes, label: str, color: str) -> Axes:
    """A second y axis on the right."""
    from matplotlib.ticker import FuncFormatter

    twin = ax.twinx()
    twin.grid(False)
    twin.spines["right"].set_visible(True)
    twin.set_ylabel(label, color=color)
    twin.yaxis.set_major_formatter(FuncFormatter(lambda v, _: thousands(v)))
    return twin


def _hit_rate(ax: Axes, s: StepCurves) -> None:
    """The rate in windows of 1/60 of the run, and since the start."""
    dq, dh = np.diff(s.at_edges["prefix_queries"]), np.diff(s.at_edges["prefix_hits"])
    queries, hits = s.at_points["prefix_queries"], s.at_points["prefix_hits"]
    with np.errstate(invalid="ignore", divide="ignore"):
        window = np.where(dq > 0, dh / np.maximum(dq, 1), np.nan)
        whole = np.where(queries > 0, hits / np.maximum(queries, 1), np.nan)
    ax.stairs(
        window, s.x_edges, baseline=None, color=style.SKY, linewidth=1.0, label="in each 1/60 of the run"
    )
    ax.plot(s.x, whole, color=style.BLUE, label="since the start")


def _per_second(ax: Axes, s: StepCurves) -> None:
    """Preemptions and evicted blocks in 60 windows."""
    from matplotlib.ticker import MaxNLocator

    since_start, evictions = s.at_edges["preemptions"], s.at_edges["evictions"]
    preempted, evicted = np.diff(since_start), np.diff(evictions)
    preempted[0] += since_start[0]
    ax.stairs(preempted, s.x_edges, color=style.RED, fill=True, alpha=0.8)
    ax.set_ylabel("preemptions", color=style.RED)
    ax.set_ylim(0, max(1.0, float(preempted.max(initial=0)) * 1.08))
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    twin = _twin(ax, "blocks evicted", style.GREY)
    twin.stairs(evicted, s.x_edges, color=style.GREY, linewidth=1.0)
    twin.set_ylim(0, max(1.0, float(evicted.max(initial=0)) * 1.08))
    total, blocks = int(since_start[-1]), int(evictions[-1])
    note = f"{count(total)} and {count(blocks)} in all"
    _title(ax, "Preemptions, and cached blocks evicted, in each 1/60 of the run", note)


def _title(ax: Axes, title: str, note: str) -> None:
    """A bold title and, behind it, a note in grey."""
    ax.set_title(title, pad=4)
    if note:
        ax.annotate(
            note,
            xy=(1.0, 0.0),
            xycoords=ax._left_title,  # type: ignore[attr-defined]
            xytext=(8, 0),
            textcoords="offset points",
            fontsize=8,
            color="#444444",
            va="bottom",
        )


def _legend(ax: Axes) -> None:
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 0.97), borderaxespad=0.0, ncols=2, columnspacing=1.2)


def _from_zero(ax: Axes) -> None:
    high = ax.get_ylim()[1]
    ax.set_ylim(0, high if high > 0 else 1)
