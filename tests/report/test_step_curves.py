"""Curves of a step log are the same, whole or in pieces, and those of the rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.report.step_curves import PARTS, Rows, RowsInFile, RowsInMemory, step_curves
from sim.results import ParquetFile

FORMULAS = {"share": lambda rows: rows["a"] / 7, "count": lambda rows: rows["b"]}


def table(n: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "time_ns": np.cumsum(rng.integers(0, 3, n)),
        "a": rng.integers(0, 1000, n),
        "b": rng.integers(0, 1000, n),
        "sum": np.cumsum(rng.integers(0, 5, n)),
    }


class Pieces(RowsInMemory):
    """The same rows, cut at random."""

    def __init__(self, steps: Rows, cuts: list[int]) -> None:
        super().__init__(steps)
        self._cuts = [0, *sorted(cut % (len(self) + 1) for cut in cuts), len(self)]

    def pieces(self) -> Iterator[Rows]:
        for a, b in zip(self._cuts, self._cuts[1:], strict=False):
            yield {name: column[a:b] for name, column in self._steps.items()}


@given(n=st.integers(1, 300), seed=st.integers(0, 999), cuts=st.lists(st.integers(0, 10_000), max_size=6))
def test_pieces_change_nothing(n: int, seed: int, cuts: list[int]) -> None:
    steps = table(n, seed)
    whole = step_curves(RowsInMemory(steps), FORMULAS, ("sum",), max_points=40)
    cut = step_curves(Pieces(steps, cuts), FORMULAS, ("sum",), max_points=40)
    for name, curve in whole.curves.items():
        for kind in ("mean", "low", "high", "most"):
            np.testing.assert_array_equal(getattr(curve, kind), getattr(cut.curves[name], kind))
    np.testing.assert_array_equal(whole.x, cut.x)
    np.testing.assert_array_equal(whole.at_points["sum"], cut.at_points["sum"])
    np.testing.assert_array_equal(whole.at_edges["sum"], cut.at_edges["sum"])
    # and by hand
    edges = np.linspace(steps["time_ns"][0], steps["time_ns"][-1], PARTS + 1)
    expected = [steps["sum"][np.flatnonzero(steps["time_ns"] <= edge)[-1]] for edge in edges]
    assert whole.at_edges["sum"].tolist() == expected
    assert whole.curves["count"].most == steps["b"].max()
    if n <= 40:
        assert whole.curves["share"].mean.tolist() == (steps["a"] / 7).tolist()
        assert not len(whole.curves["share"].low)
    else:
        assert len(whole.x) == 20
        assert whole.curves["count"].low[0] == steps["b"][: n // 20].min()


def test_row_groups_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.results.ROW_GROUP", 64)
    steps = table(1000, 5)
    file = ParquetFile(tmp_path / "s.parquet", {}, {})
    file.add(steps)
    file.close()
    rows = RowsInFile(tmp_path / "s.parquet")
    assert (len(rows), rows.span_ns) == (1000, (int(steps["time_ns"][0]), int(steps["time_ns"][-1])))
    assert len(list(rows.pieces())) == 16
    read = step_curves(rows, FORMULAS, ("sum",), max_points=100)
    whole = step_curves(RowsInMemory(steps), FORMULAS, ("sum",), max_points=100)
    np.testing.assert_array_equal(read.curves["share"].mean, whole.curves["share"].mean)
    np.testing.assert_array_equal(read.at_edges["sum"], whole.at_edges["sum"])
