"""Cumulative distributions of a run's latencies, and the heading that its plots have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.report import style
from sim.report.duration_axis import set_duration_axis
from sim.report.series import MAX_POINTS
from sim.report.units import plural, pool_text, seconds, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = (
    ("ttft_s", "Time to the first token", style.BLUE),
    ("tpot_s", "Time per output token", style.GREEN),
    ("e2e_s", "Whole request", style.RED),
)
_MARKS = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))


def latency(
    summary: Mapping[str, Any], requests: Mapping[str, NDArray[Any]], warmup_ns: int
) -> Figure | None:
    """Time to the first token, per output token and of the whole request; None: no request has one.

    Args:
        summary: of sim.summary.
        requests: columns of requests.parquet.
        warmup_ns: requests that arrived before are left out.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    from sim.summary import latencies

    data = latencies(requests, requests["arrival_ns"] >= warmup_ns)
    if all(len(data[name]) == 0 for name, _, _ in _PANELS):
        return None
    figure = Figure(figsize=(8.2, 3.5))
    axes = figure.subplots(1, 3, sharey=True)
    figure.subplots_adjust(left=0.085, right=0.985, top=0.74, bottom=0.1, wspace=0.1)
    for ax, (name, title, color) in zip(axes, _PANELS, strict=True):
        ax.set_title(title, color="black")
        if len(data[name]) == 0:
            ax.text(0.5, 0.5, "none", transform=ax.transAxes, ha="center", color=style.GREY)
            continue
        _distribution(ax, np.sort(data[name]), summary["latency"][name], color)
    axes[0].set_ylim(0, 1.08)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes[0].set_ylabel("of requests")
    heading(figure, summary, y=0.955)
    return figure


def _distribution(ax: Axes, values: NDArray[Any], quantiles: Mapping[str, float], color: str) -> None:
    """One rising curve with its percentiles; `values` ascend, in seconds."""
    floor = max(float(values[-1]) * 1e-6, 1e-6)
    share_of = np.arange(1, len(values) + 1) / len(values)
    keep = np.unique(np.linspace(0, len(values) - 1, MAX_POINTS).astype(np.intp))
    x = np.maximum(values, floor)
    ax.step(np.append(x[0], x[keep]), np.append(0, share_of[keep]), where="post", color=color, lw=1.6)
    log = set_duration_axis(ax, float(x[0]), float(x[-1]))
    for key, mark in _MARKS:
        value = max(quantiles[key], floor)
        ax.plot([value], [mark], "o", ms=3.6, color=color, clip_on=False, zorder=5)
        # a rising curve leaves free what is left of and above a point, and right of and below it
        right = _place(*ax.get_xlim(), value, log) < 0.45
        ax.annotate(
            f"{key} {span(quantiles[key])}",
            (value, mark),
            xytext=(5, -3) if right else (-4, 1),
            textcoords="offset points",
            ha="left" if right else "right",
            va="top" if right else "bottom",
            fontsize=8,
            color="black",
        )


def _place(low: float, high: float, value: float, log: bool) -> float:
    """Where a value lies between the ends of its axis, from 0 to 1."""
    if high <= low:
        return 0.0
    if log:
        low, high, value = (float(np.log(v)) for v in (low, high, value))
    return (value - low) / (high - low)


def heading(figure: Figure, summary: Mapping[str, Any], y: float = 0.978) -> None:
    """The run's name, and pool, model and length below it; `y`: where the name stands, of the figure."""
    e = summary["engine"]
    height = figure.get_figheight()
    figure.text(0.02, y, summary["name"], fontsize=13, fontweight="bold", va="center")
    where = " on ".join(x for x in (e["model"], e["gpu"] and f"{e['gpus']} x {e['gpu']}") if x)
    requests = plural(summary["requests"]["arrived"], "request")
    parts = (pool_text(e), where, f"vLLM {e['vllm']}", f"{requests} in {seconds(summary['simulated_s'])}")
    text = ", ".join(x for x in parts if x)
    figure.text(0.02, y - 0.25 / height, text, fontsize=8.5, color="#444444", va="center")
