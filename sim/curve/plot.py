"""The picture of a hit curve: rates against size, the knee, what no cache can hit, and marked pools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sim.curve.table import RULES, SHOWN_ERRORS, Result
from sim.report import style
from sim.report.units import count, plural, share, thousands

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sim.curve.source import Pool

#: Share by which two lines have to differ somewhere to be drawn both.
_VISIBLE = 0.003


def draw(result: Result, kind: str) -> bytes:
    """The figure as "png" or "svg"."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rc: Any = style.RC
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(rc)
        figure = Figure(figsize=(9.0, 5.4))
        ax = figure.add_axes((0.075, 0.115, 0.9, 0.655))
        _lines(ax, result)
        _marks(ax, result)
        _axes(ax, result)
        curve = result.curve
        figure.text(0.018, 0.962, result.name, fontsize=13, fontweight="bold", va="center")
        said = (
            f"{plural(curve.requests, 'request')}, {count(curve.lookups)} lookups of blocks of"
            f" {curve.options.block_size} tokens"
        )
        if not curve.exact:
            said += f"; sample of {100 * curve.options.sample:g} %, band: 95 % interval"
        figure.text(0.018, 0.918, said, fontsize=8.5, color="#444444", va="center")
        figure.text(0.018, 0.88, RULES[curve.options.rule], fontsize=8.5, color="#444444", va="center")
        return style.save(figure, kind)


def _top_text(v: float, memory: bool) -> str:
    """A tick of the upper axis: bytes or tokens."""
    if not memory:
        return f"{thousands(v)} tokens"
    for scale, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if v >= scale:
            return f"{v / scale:.4g} {unit}"
    return ""


def _lines(ax: Axes, result: Result) -> None:
    curve, x = result.curve, result.dense.astype(np.float64)
    rates = curve.hit_rates(x)
    ax.set_xscale("log")
    ax.axhspan(curve.ceiling, 1.0, color=style.GREY, alpha=0.10, linewidth=0)
    ax.axhline(curve.ceiling, color=style.GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    if not curve.exact:
        error = SHOWN_ERRORS * curve.errors(x)
        low, high = np.clip(rates - error, 0, 1), np.clip(rates + error, 0, 1)
        ax.fill_between(x, low, high, color=style.BLUE, alpha=0.2, linewidth=0)
    ax.plot(x, rates, color=style.BLUE, linewidth=1.8, label="blocks that hit / blocks looked up")
    tokens = curve.token_hit_rates(x)
    if np.abs(tokens - rates).max() > _VISIBLE:
        ax.plot(
            x,
            tokens,
            color=style.ORANGE,
            linewidth=1.3,
            linestyle=(0, (5, 1.5)),
            label="tokens of blocks that hit / prompt tokens",
        )
    if result.pools:
        models = ", ".join(dict.fromkeys(pool.model for pool in result.pools))
        ax.plot([], [], color=style.GREEN, linewidth=0.9, linestyle=(0, (2, 2)), label=f"pools of {models}")
    knee = curve.knee()
    if knee:
        at = float(curve.hit_rates([knee])[0])
        label = f"knee: {count(knee)} blocks, {share(at)}"
        ax.plot([knee], [at], "o", color=style.RED, markersize=5.5, zorder=6, label=label)


def _axes(ax: Axes, result: Result) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    curve = result.curve
    ax.set_xlim(float(result.dense[0]), float(result.dense[-1]))
    highest = max(curve.ceiling, curve.token_ceiling)
    top = min(1.0, max(highest, 0.02) * 1.22) if highest > 0 else 1.0
    ax.set_ylim(0, top)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.3g} %"))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: thousands(v)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    unit = result.token_bytes
    ax.set_xlabel(f"size of the cache (blocks of {curve.options.block_size} tokens)")
    per_block = curve.options.block_size * (unit or 1.0)
    above = ax.secondary_xaxis(
        "top", functions=(lambda v: np.asarray(v) * per_block, lambda v: np.asarray(v) / per_block)
    )
    if unit:
        above.xaxis.set_major_locator(LogLocator(base=4, numticks=12))
    above.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _top_text(v, unit is not None)))
    above.xaxis.set_minor_locator(NullLocator())
    above.tick_params(labelsize=8, colors="#444444")
    missed = curve.missed_blocks / max(curve.lookups, 1)
    ax.annotate(
        f"no cache hits this: first use of a block, {share(missed)} of the lookups",
        (0.008, (curve.ceiling + top) / 2 / top if top < 1 else (curve.ceiling + 1) / 2),
        xycoords="axes fraction",
        fontsize=8.5,
        color="#444444",
        va="center",
    )
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.075), borderaxespad=0.0, ncols=1)


def _marks(ax: Axes, result: Result) -> None:
    """A line a pool, its place along it; pools that are close have one label."""
    low, high = float(np.log(result.dense[0])), float(np.log(result.dense[-1]))
    near = 0.022 * max(high - low, 1e-9)
    together: list[list[Pool]] = []
    for pool in sorted(result.pools, key=lambda p: p.blocks):
        if pool.blocks < result.dense[0]:
            continue
        ax.axvline(pool.blocks, color=style.GREEN, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        if together and np.log(pool.blocks) - np.log(together[-1][0].blocks) < near:
            together[-1].append(pool)
        else:
            together.append([pool])
    curve = result.curve
    for group in together:
        first = group[0].blocks
        # above the curve if there is room, else below
        above = float(curve.hit_rates([first])[0]) < 0.5 * curve.ceiling
        ax.annotate(
            ", ".join(dict.fromkeys(pool.place or pool.model for pool in group)),
            (first, curve.ceiling * (0.97 if above else 0.03)),
            xytext=(-3, 0),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="top" if above else "bottom",
            fontsize=8,
            color=style.GREEN,
        )
