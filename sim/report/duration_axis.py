"""An x axis of durations with round labels that never touch: linear, or logarithmic where they span much."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from sim.report.series import time_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: A longest-to-shortest ratio above which the axis is logarithmic.
LOG_FROM = 8.0
_UNITS = ((3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
_MINUTE, _HOUR = 60.0, 3600.0


def _below_a_minute(steps: Sequence[float]) -> list[float]:
    found = [step * 10.0**power for power in range(-6, 2) for step in steps]
    return [round(v, 9) for v in found if v < _MINUTE]


#: Seconds at which a logarithmic axis may have its labels, from many to few.
_LOG_TICKS = (
    [
        *_below_a_minute((1, 2, 5)),
        *(_MINUTE * m for m in (1, 2, 5, 10, 20, 30)),
        *(_HOUR * h for h in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)),
    ],
    [
        *_below_a_minute((1, 3)),
        *(_MINUTE * m for m in (2, 5, 20)),
        *(_HOUR * h for h in (1, 3, 10, 30, 100, 300, 1000)),
    ],
    [*_below_a_minute((1,)), _MINUTE, 10 * _MINUTE, *(_HOUR * h for h in (1, 10, 100, 1000))],
    [1e-6, 1e-3, 1.0, _MINUTE, _HOUR, 100 * _HOUR],
)


def short_duration(s: float) -> str:
    """A round duration as a label: `200 ms`, `10 s`, `1.5 min`, `2 h`; `0` for none."""
    if s == 0:
        return "0"
    scale, unit = next(((v, u) for v, u in _UNITS if s >= v * 0.9995), _UNITS[-1])
    return f"{s / scale:.4g} {unit}"


def duration_ticks(low: float, high: float, log: bool, room: int = 4) -> list[tuple[float, str]]:
    """(seconds, label) of the ticks of an axis from `low` to `high`.

    Args:
        low, high: ends of the axis, seconds; above 0 where it is logarithmic.
        log: whether it is.
        room: labels that fit side by side.
    """
    if log:
        return [(t, short_duration(t)) for t in _log_ticks(low, high, room)]
    nanoseconds, unit = time_unit(high * 1e9)
    scale = nanoseconds / 1e9
    rough = (high - low) / scale / room
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.9999)
    first, last = np.ceil(low / scale / step - 1e-9), np.floor(high / scale / step + 1e-9)
    values = [float(k * step) for k in np.arange(first, last + 1)]
    return [(v * scale, f"{v:.6g} {unit}" if v else "0") for v in values]


def _log_ticks(low: float, high: float, room: int) -> list[float]:
    least = np.log(high / low) / room
    ticks: list[float] = []
    for candidates in _LOG_TICKS:
        ticks = [t for t in candidates if low <= t <= high]
        if all(np.log(b / a) >= least for a, b in pairwise(ticks)):
            return ticks
    return ticks[:: -(-len(ticks) // room)]


def set_duration_axis(ax: Axes, low: float, high: float, room: int = 4) -> bool:
    """Scale and label the x axis for data from `low` to `high` seconds; whether it is logarithmic.

    Args:
        ax: to change.
        low, high: of the data, above 0.
        room: labels that fit side by side.
    """
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter

    log = high > LOG_FROM * low
    margin = 0.06
    if log:
        ax.set_xscale("log")
        by = float(high / low) ** margin
        ends = low / by, high * by
    else:
        by = max(margin * (high - low), 0.02 * high)
        ends = max(0.0, low - by), high + by
    ax.set_xlim(*ends)
    ticks = duration_ticks(*ends, log, room)
    ax.xaxis.set_major_locator(FixedLocator([at for at, _ in ticks]))
    ax.xaxis.set_major_formatter(FixedFormatter([label for _, label in ticks]))
    ax.xaxis.set_minor_locator(FixedLocator(_LOG_TICKS[0] if log else []))
    ax.xaxis.set_minor_formatter(NullFormatter())
    return log
