"""Plots of a replay: one small figure a quantity, the real curve and the simulated ones on top of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.report import style
from validation.replay.compare import LATENCIES, Curves
from validation.replay.recording import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 320
LOOKS: dict[str, tuple[str, str, Any, float, str]] = {
    "real": (style.BLACK, "real", "-", 1.5, "the real engine"),
    "fitted": (style.RED, "simulated", "-", 1.1, "simulated, step-time model"),
    "recorded": (style.SKY, "simulated, recorded steps", (0, (4, 2)), 1.3, "simulated, recorded steps"),
}


def draw(curves: list[Curves], requests: Mapping[str, Table]) -> dict[str, bytes]:
    """All plots: file name below plots/ without its ending -> SVG."""
    import matplotlib as mpl

    files: dict[str, bytes] = {}
    rc: Any = style.RC | {"axes.titlesize": 9.0, "svg.fonttype": "path"}
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(rc)
        for c in curves:
            files[c.metric.name] = _shorter(style.save(_over_time(c), "svg"))
        files["latency"] = _shorter(style.save(_latency(requests), "svg"))
    return files


def _shorter(svg: bytes) -> bytes:
    """The paths of an SVG in hundredths of a point."""
    return re.sub(
        rb' d="[^"]*"', lambda path: re.sub(rb"(\.\d\d)\d+", rb"\1", path.group()), svg, flags=re.DOTALL
    )


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 2.5))
    figure.subplots_adjust(left=0.13, right=0.985, top=0.9, bottom=0.17)
    return figure, figure.subplots()


def _over_time(c: Curves) -> Figure:
    from matplotlib.ticker import FuncFormatter

    figure, ax = _figure()
    stride = max(1, len(c.time_s) // MAX_POINTS)
    for name, (color, label, dashes, width, _) in LOOKS.items():
        if name in c.values:
            order = 4 if name == "recorded" else 3
            x, y = c.time_s[::stride], c.values[name][::stride]
            ax.plot(x, y, color=color, ls=dashes, lw=width, label=label, zorder=order)
    top = max(float(v.max()) for v in c.values.values())
    ax.set_ylim(0, (min(1.0, top) if c.metric.unit == "share" else top) * 1.08 or 1)
    ax.set_xlim(0, float(c.time_s[-1]))
    if c.metric.unit == "share":
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.3g} %"))
    ax.set_xlabel("seconds")
    ax.set_title(c.metric.title)
    return figure


def _latency(requests: Mapping[str, Table]) -> Figure:
    """Cumulative distributions, one panel a latency."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    from sim.report.duration_axis import set_duration_axis
    from sim.summary import latencies

    figure = Figure(figsize=(4.6, 2.5))
    axes = figure.subplots(1, 3, sharey=True)
    figure.subplots_adjust(left=0.12, right=0.985, top=0.9, bottom=0.17, wspace=0.12)
    found = {
        who: latencies(table, np.ones(len(table["arrival_ns"]), bool)) for who, table in requests.items()
    }
    for ax, (name, short) in zip(
        axes, (("ttft_s", "First token"), ("tpot_s", "Per token"), ("e2e_s", "Request")), strict=True
    ):
        assert name in LATENCIES
        low, high = np.inf, 0.0
        for who, (color, _, dashes, width, _) in LOOKS.items():
            values = np.sort(found[who][name]) if who in found else np.zeros(0)
            if len(values):
                share = np.arange(1, len(values) + 1) / len(values)
                x = np.maximum(values, 1e-6)
                low, high = min(low, float(x[0])), max(high, float(x[-1]))
                ax.step(x, share, where="post", color=color, ls=dashes, lw=width)
        if high > 0:
            set_duration_axis(ax, low, high, room=3)
        ax.tick_params(axis="x", labelsize=7)
        ax.set_title(short)
        ax.set_ylim(0, 1.03)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    return figure
