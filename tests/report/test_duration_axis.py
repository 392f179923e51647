"""Axes of durations: round labels that never touch; marks whose numbers do not cover each other."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sim.report.duration_axis import duration_ticks, set_duration_axis
from sim.report.series import spread


@pytest.mark.parametrize("low", [3e-6, 7e-4, 0.0246, 0.9, 40.0])
@pytest.mark.parametrize("ratio", [1.0001, 1.3, 4.9, 7.9, 8.1, 40, 1e3, 3e4, 4e6])
def test_labels_do_not_touch(low: float, ratio: float) -> None:
    figure = Figure(figsize=(8.2, 3.5))
    ax = figure.subplots(1, 3)[0]
    ax.tick_params(labelsize=8)
    set_duration_axis(ax, low, low * ratio)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    left, right = ax.get_xlim()
    shown = [
        label.get_window_extent()
        for label in ax.get_xticklabels()
        if left <= label.get_position()[0] <= right and label.get_text()
    ]
    assert shown
    assert all(a.x1 + 3 < b.x0 for a, b in pairwise(shown))


def test_labels_are_round() -> None:
    def labels(low: float, high: float, log: bool) -> list[str]:
        return [label for _, label in duration_ticks(low, high, log)]

    assert labels(0.02, 0.135, log=False) == ["50 ms", "100 ms"]
    assert labels(2000, 7000, log=False) == ["50 min", "100 min"]
    assert labels(0.01, 3, log=True) == ["10 ms", "100 ms", "1 s"]
    assert labels(0.3, 6000, log=True) == ["1 s", "1 min", "1 h"]
    assert labels(1, 11, log=True) == ["1 s", "2 s", "5 s", "10 s"]


def test_numbers_of_near_moments_move_apart() -> None:
    assert spread([0.1, 0.5], 0.03) == [0.1, 0.5]
    assert np.allclose(spread([0.985, 0.99], 0.03), [0.97, 1.0])
    assert np.allclose(spread([0.5, 0.51, 0.52], 0.03), [0.5, 0.53, 0.56])
    assert spread([9, 9, 9], 1, 9) == [7, 8, 9]
    assert spread([], 1) == []
