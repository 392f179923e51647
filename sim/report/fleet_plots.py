"""The picture of a fleet: usage, load and fragmentation of every replica over time; hit rates, requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.report import style
from sim.report.fleet_text import router_text
from sim.report.series import time_unit
from sim.report.units import count, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Mapping[str, NDArray[Any]]
_COLUMNS = 240


def grid_over_time(
    rows: Rows, values: NDArray[Any], replicas: int, columns: int = _COLUMNS
) -> tuple[NDArray[np.float64], float]:
    """A column of replica_steps.parquet at equal instants: float64[replicas, columns] and the last time (ns).

    Args:
        rows: with `replica` and `time_ns`, those of a replica together and in order of time.
        values: one a row.
        replicas: their number.
        columns: instants, the middles of equal stretches of time.
    """
    end = float(rows["time_ns"].max(initial=0))
    times = (np.arange(columns) + 0.5) / columns * end
    out = np.zeros((replicas, columns))
    first = np.searchsorted(rows["replica"], np.arange(replicas + 1))
    for k in range(replicas):
        own = slice(first[k], first[k + 1])
        if first[k] == first[k + 1]:
            continue
        at = np.searchsorted(rows["time_ns"][own], times, side="right") - 1
        out[k] = np.where(at >= 0, values[own][np.maximum(at, 0)], 0)
    return out, end


def panels(rows: Rows, usable: int) -> list[tuple[str, str, NDArray[np.float64]]]:
    """Title, unit ("share" or "count") and values by row of what is shown over time."""
    return [
        ("KV cache usage of each replica", "share", rows["used_blocks"] / usable),
        (
            "Requests in each replica, running and waiting",
            "count",
            (rows["num_running"] + rows["num_waiting"]).astype(np.float64),
        ),
        (
            "External fragmentation of each replica",
            "share",
            1 - rows["largest_free_run"] / np.maximum(rows["num_free_blocks"], 1),
        ),
    ]


def heat(ax: Axes, grid: NDArray[np.float64], end_ns: float, kind: str) -> Any:
    """A heat map of replicas over time; returns the image, for a colour bar."""
    from matplotlib.ticker import MaxNLocator

    scale, unit = time_unit(end_ns)
    top = 1.0 if kind == "share" else max(1.0, float(grid.max(initial=0)))
    image = ax.imshow(
        grid,
        aspect="auto",
        interpolation="nearest",
        origin="upper",
        extent=(0, max(end_ns / scale, 1e-9), len(grid) - 0.5, -0.5),
        cmap="viridis",
        vmin=0.0,
        vmax=top,
    )
    ax.grid(False)
    ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.set_ylabel("replica")
    ax.set_xlabel(f"simulated time ({unit})", labelpad=2)
    return image


def fleet_figure(summary: Mapping[str, Any], rows: Rows) -> Figure | None:
    """Heat maps over time and bars by replica; None where the run is too short for them."""
    fleet = summary["fleet"]
    n = fleet["replicas"]
    if len(rows["time_ns"]) < 2 * n or rows["time_ns"].max() <= 0:
        return None
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(8.2, 10.4))
    axes = figure.subplots(5, 1, gridspec_kw={"hspace": 0.62, "height_ratios": (1.25, 1.25, 1.25, 1, 1)})
    figure.subplots_adjust(left=0.085, right=0.955, top=0.895, bottom=0.05)
    percent = FuncFormatter(lambda v, _: f"{100 * v:.3g} %")
    for ax, (title, kind, values) in zip(
        axes, panels(rows, fleet["usable_blocks_per_replica"]), strict=False
    ):
        grid, end = grid_over_time(rows, values, n)
        image = heat(ax, grid, end, kind)
        ax.set_title(title, color="black", pad=4)
        bar = figure.colorbar(image, ax=ax, pad=0.015, fraction=0.04, aspect=12)
        bar.outline.set_visible(False)
        if kind == "share":
            bar.ax.yaxis.set_major_formatter(percent)
        else:
            bar.ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    parts = fleet["per_replica"]
    at = np.arange(n)
    ax = axes[3]
    rates = [p["first_lookup_token_hit_rate"] or 0.0 for p in parts]
    ax.bar(at, rates, 0.8, color=style.BLUE, linewidth=0)
    ax.yaxis.set_major_formatter(percent)
    whole = summary["prefix_cache"]["first_lookup_token_hit_rate"]
    if whole is not None:
        ax.axhline(whole, color=style.BLACK, linewidth=0.8, linestyle=(0, (3, 3)))
    ax.set_title(
        f"Token hit rate at first lookup, by replica (line: fleet, {share(whole)})", color="black", pad=4
    )
    ax = axes[4]
    ax.bar(at, [p["requests"] for p in parts], 0.8, color=style.GREEN, linewidth=0)
    ax.axhline(sum(p["requests"] for p in parts) / n, color=style.BLACK, linewidth=0.8, linestyle=(0, (3, 3)))
    ax.set_title("Requests, by replica (line: mean)", color="black", pad=4)
    ax.set_xlabel("replica", labelpad=2)
    for ax in axes[3:]:
        ax.set_xlim(-0.6, n - 0.4)
        ax.xaxis.set_major_locator(MaxNLocator(16, integer=True))
        ax.grid(False, axis="x")
    figure.text(
        0.02, 0.978, f"{summary['name']}, replica by replica", fontsize=13, fontweight="bold", va="center"
    )
    even = fleet["imbalance"]["computed_tokens"]
    text = (
        f"{n} replicas of {count(fleet['usable_blocks_per_replica'])} blocks, {router_text(fleet['router'])};"
        f" hit rate {share(whole)}, largest / mean of computed tokens"
        f" {'-' if even is None else format(even, '.2f')}"
    )
    figure.text(0.02, 0.954, text, fontsize=8.5, color="#444444", va="center")
    return figure


def draw_fleet(summary: Mapping[str, Any], rows: Rows) -> dict[str, bytes]:
    """The picture as PNG and SVG: path in the run folder -> content.

    Args:
        summary: of a fleet.
        rows: columns of replica_steps.parquet.
    """
    import matplotlib as mpl

    rc: Any = style.RC
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(rc)
        figure = fleet_figure(summary, rows)
        if figure is None:
            return {}
        return {f"plots/fleet.{kind}": style.save(figure, kind) for kind in ("png", "svg")}
