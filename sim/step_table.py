"""A step-time table fitted from recorded steps.

The file has one row a step: scheduled tokens, context tokens that the step read, and its duration. Rows are
binned on a grid that is even in log(1 + x); a grid point is the median of its bin's own values, and a cell is
the median duration of its rows. Cells without rows are interpolated between filled cells below and above them
(in both features), and the table is made monotone: more tokens or more context never take less time.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.config_yaml import read_text
from sim.errors import InputError, did_you_mean
from sim.step_time import StepTime, table

TOKENS, CONTEXT = "scheduled_tokens", "context_tokens"
UNITS = {"duration_ns": 1.0, "duration_us": 1e3, "duration_ms": 1e6, "duration_s": 1e9}
Array = NDArray[np.float64]


def load_table(path: str | Path, token_bins: int = 24, context_bins: int = 16) -> StepTime:
    """Fit a table from a CSV or Parquet file of recorded steps.

    Raises:
        InputError: missing file or column, a cell that is not a number, no usable row.
    """
    file = Path(path)
    columns = _read_parquet(file) if file.suffix == ".parquet" else _read_csv(file)
    tokens, context, duration = columns
    used = (tokens > 0) & (duration > 0)
    if not used.any():
        raise InputError("no step with scheduled tokens and a duration", str(path), 1)
    return fit(tokens[used], context[used], duration[used], token_bins, context_bins)


def fit(tokens: Array, context: Array, duration: Array, token_bins: int, context_bins: int) -> StepTime:
    """Fit a table from one value a step; all float64[n], durations in nanoseconds."""
    rows, row_of = _bin(tokens, token_bins)
    columns, column_of = _bin(context, context_bins)
    cells = np.full((rows.size, columns.size), np.nan)
    order = np.lexsort((duration, column_of, row_of))
    flat = (row_of * columns.size + column_of)[order]
    starts = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]])
    for start, stop in zip(starts, np.r_[starts[1:], flat.size], strict=True):
        cells.reshape(-1)[flat[start]] = np.median(duration[order[start:stop]])
    return table(rows.tolist(), columns.tolist(), monotone(fill_holes(cells)))


def _bin(x: Array, bins: int) -> tuple[Array, NDArray[np.intp]]:
    """Grid points (medians of non-empty bins, ascending) and the bin of each value."""
    log = np.log1p(x)
    low, high = float(log.min()), float(log.max())
    if high <= low or bins == 1:
        return np.array([np.median(x)]), np.zeros(x.size, np.intp)
    raw = np.minimum(((log - low) / (high - low) * bins).astype(np.intp), bins - 1)
    used, index = np.unique(raw, return_inverse=True)
    points = np.array([np.median(x[index == i]) for i in range(used.size)])
    return points, index.astype(np.intp)


def fill_holes(cells: Array) -> Array:
    """Replace NaN cells by the mean of the largest value below-left and the smallest above-right of them,
    weighted by nearness; by the one that exists at an edge, or by the nearest filled cell."""
    out = cells.copy()
    known = np.argwhere(~np.isnan(cells))
    for i, j in np.argwhere(np.isnan(cells)):
        below = known[(known[:, 0] <= i) & (known[:, 1] <= j)]
        above = known[(known[:, 0] >= i) & (known[:, 1] >= j)]
        ends = []
        for side, pick in ((below, np.argmax), (above, np.argmin)):
            if len(side):
                values = cells[side[:, 0], side[:, 1]]
                k = int(pick(values))
                ends.append((float(values[k]), float(abs(side[k, 0] - i) + abs(side[k, 1] - j))))
        if len(ends) == 2:
            (v0, d0), (v1, d1) = ends
            out[i, j] = (v0 * d1 + v1 * d0) / (d0 + d1)
        elif ends:
            out[i, j] = ends[0][0]
        else:
            nearest = np.abs(known - (i, j)).sum(axis=1).argmin()
            out[i, j] = cells[tuple(known[nearest])]
    return out


def monotone(cells: Array) -> Array:
    """The mean of the smallest monotone table above and the largest monotone table below `cells`."""
    above = np.maximum.accumulate(np.maximum.accumulate(cells, 0), 1)
    below = np.minimum.accumulate(np.minimum.accumulate(cells[::-1, ::-1], 0), 1)[::-1, ::-1]
    return np.asarray((above + below) / 2.0)


def _columns(names: list[str], file: Path) -> tuple[int, int, int, float]:
    """Indices of the three columns and the nanoseconds of the duration's unit."""
    for want in (TOKENS, CONTEXT):
        if want not in names:
            hint = did_you_mean(want, names) or f"columns found: {', '.join(names)}"
            raise InputError(f"the column '{want}' is missing", str(file), 1, 1, hint)
    unit = next((u for u in UNITS if u in names), None)
    if unit is None:
        raise InputError(f"one of the columns {', '.join(UNITS)} is needed", str(file), 1, 1)
    return names.index(TOKENS), names.index(CONTEXT), names.index(unit), UNITS[unit]


def _read_csv(file: Path) -> tuple[Array, Array, Array]:
    reader = csv.reader(read_text(file, "step-time").splitlines())
    header = [name.strip() for name in next(reader, [])]
    if not header:
        raise InputError("the file is empty", str(file), 1, 1)
    *picks, scale = _columns(header, file)
    rows: list[list[float]] = []
    for row in reader:
        if not row:
            continue
        values = []
        for pick in picks:
            text = row[pick].strip() if pick < len(row) else ""
            try:
                value = float(text)
            except ValueError:
                value = float("nan")
            if not 0.0 <= value < float("inf"):
                message = f"'{header[pick]}' must be a number, 0 or more, got '{text}'"
                column = sum(len(c) + 1 for c in row[:pick]) + 1
                raise InputError(message, str(file), reader.line_num, column)
            values.append(value)
        rows.append(values)
    data = np.array(rows, np.float64).reshape(-1, 3)
    return data[:, 0].copy(), data[:, 1].copy(), data[:, 2] * scale


def _read_parquet(file: Path) -> tuple[Array, Array, Array]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.is_file():
        raise InputError("no such step-time file", str(file))
    try:
        *picks, scale = _columns(pq.read_schema(file).names, file)
        names = pq.read_schema(file).names
        data = pq.read_table(file, columns=[names[p] for p in picks])
        t, c, d = (data.column(names[p]).cast(pa.float64()).to_numpy() for p in picks)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as e:
        raise InputError(f"not a usable Parquet file: {str(e).splitlines()[0]}", str(file)) from None
    for name, values in ((TOKENS, t), (CONTEXT, c), ("duration", d)):
        bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if bad.size:
            raise InputError(f"'{name}' must be a number, 0 or more", f"{file} row {bad[0] + 1}")
    return t, c, d * scale
