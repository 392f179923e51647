"""Arrays of a struct in jitted code: what is read, written and refused, and how helpers are compiled."""

from __future__ import annotations

import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from numba.core.caching import NullCache
from numpy.typing import NDArray

from sim.core.jit import apart, entry, inner, leaf
from sim.core.records import Record
from sim.core.struct import Struct
from sim.record_arrays import record_array

CELL = np.dtype(
    {"names": ["wide", "narrow", "share"], "formats": [np.int64, np.int32, np.float64]}, align=True
)
jitted = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="NUMBA_DISABLE_JIT: nothing is compiled")


class Grid(Struct):
    """One array of each kind."""

    cells: Record  # CELL[rows, columns]
    line: Record  # CELL[columns]
    cube: NDArray[np.int32]
    words: NDArray[np.uint64]


def make_grid(rows: int = 3, columns: int = 5) -> Grid:
    """Numbers that are all different."""
    grid = Grid(
        cells=record_array(CELL, (rows, columns)),
        line=record_array(CELL, columns),
        cube=np.arange(2 * rows * columns, dtype=np.int32).reshape(2, rows, columns),
        words=np.arange(columns, dtype=np.uint64) << np.uint64(40),
    )
    grid.cells["wide"] = np.arange(rows * columns).reshape(rows, columns) + (1 << 40)
    grid.cells["narrow"] = -np.arange(rows * columns).reshape(rows, columns)
    grid.cells["share"] = np.arange(rows * columns).reshape(rows, columns) / 8
    return grid


@leaf
def _sum(grid: Grid, i: int, j: int) -> float:
    return grid.cells.wide[i, j] + grid.cells.narrow[i, j] + grid.cells.share[i, j]


@entry
def fold(grid: Grid) -> float:
    """Write each kind of element, and sum up what is read."""
    total = 0.0
    rows, columns = grid.cells.shape
    for i in range(rows):
        for j in range(columns):
            total += _sum(grid, i, j) + grid.cube[1, i, j] + grid.words[j]
            grid.cells.narrow[i, j] += grid.cube[0, i, j]
    for j in range(grid.line.size):
        grid.line[j].wide = j
        grid.line.share[j] = grid.cells.share[rows - 1, j]
    grid.line[0] = grid.line[columns - 1]
    grid.words[0] = np.uint64(grid.cells.size * 1000 + grid.cube.size)
    return total


@entry
def read(grid: Grid, i: int, j: int) -> int:
    """One element."""
    return grid.cells.wide[i, j]


def test_a_view_is_the_array() -> None:
    compiled, plain = make_grid(), make_grid()
    expected = sum(
        float(plain.cells.wide[i, j] + plain.cells.narrow[i, j])
        + float(plain.cells.share[i, j])
        + float(plain.cube[1, i, j])
        + float(plain.words[j])
        for i in range(3)
        for j in range(5)
    )
    assert fold(compiled) == expected
    plain.cells["narrow"] += plain.cube[0]
    assert np.array_equal(compiled.cells, plain.cells)
    assert compiled.line.wide.tolist() == [4, 1, 2, 3, 4]
    assert compiled.line.share.tolist() == [14 / 8, 11 / 8, 12 / 8, 13 / 8, 14 / 8]
    assert compiled.words.tolist() == [15 * 1000 + 30, *plain.words[1:].tolist()]


@jitted
@pytest.mark.parametrize("place", ["3, 0", "0, 5"])
def test_bounds_are_checked_where_numba_is_asked_to(place: str) -> None:
    script = f"from tests.core.test_views import make_grid, read; read(make_grid(), {place})"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "NUMBA_BOUNDSCHECK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "IndexError" in done.stderr
    inside = script.replace(place, "2, 4")
    subprocess.run([sys.executable, "-c", inside], env={**os.environ, "NUMBA_BOUNDSCHECK": "1"}, check=True)


@inner
def _next(x: int) -> int:
    return x + 1


@apart
def _twice(x: int) -> int:
    return 2 * _next(x)


@leaf
def _inlined_first(x: int) -> int:
    return _twice(x) + _twice(7)


@entry
def count(numbers: NDArray[np.int32]) -> int:
    """Calls with constants, narrow and wide integers."""
    return _inlined_first(numbers[0]) + _twice(numbers.size) + _next(np.int16(3))


@jitted
def test_a_helper_is_compiled_once_and_stays_apart() -> None:
    fresh = entry(count.py_func)  # type: ignore[attr-defined]
    fresh._cache = NullCache()
    numbers = np.array([20, 30], dtype=np.int32)
    assert fresh(numbers) == 2 * 21 + 2 * 8 + 2 * 3 + 4
    for helper in (_next, _twice, _inlined_first):
        assert [tuple(map(str, args)) for args in helper.overloads] == [("int64",)]  # type: ignore[attr-defined]
    # though the first caller of _twice is inlined itself
    code = fresh.inspect_llvm(fresh.signatures[0])
    called = {line.split("(")[0].split("@")[-1] for line in code.splitlines() if " call " in line}
    assert [name for name in called if "_twice" in name]
    assert not [name for name in called if "_next" in name or "_inlined_first" in name]


@jitted
def test_a_helper_runs_inside_an_entry_point_alone() -> None:
    @numba.njit
    def stranger(x: int) -> int:
        return _inlined_first(x)

    with pytest.raises(TypeError, match=r"_inlined_first is a helper of the core.*sim\.core\.jit\.entry"):
        stranger(1)
