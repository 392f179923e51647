"""points.parquet, curves.parquet and timings.parquet: one order, whatever was done first and by whom."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sim.results import TOOL
from sim.sweep.answer import Row
from sim.sweep.axes import Axis
from sim.sweep.metrics import Named, named_metrics
from sim.sweep.point import Result

#: Column of curves.parquet -> (unit, description).
CURVE_COLUMNS: dict[str, tuple[str, str]] = {
    "time_s": ("s", "simulated time; 201 equally spaced times from the start to the end of the run"),
    "usage": ("fraction", "used blocks / usable blocks"),
    "internal_fragmentation": (
        "fraction",
        "slots of running requests without a computed token / their slots",
    ),
    "external_fragmentation": ("fraction", "1 - largest run of consecutive free ids / free blocks"),
    "free_runs": ("runs", "maximal runs of consecutive ids in the free set"),
    "hit_rate": ("fraction", "tokens found / tokens looked up at first lookups, since the start"),
    "running": ("requests", "running requests"),
    "waiting": ("requests", "waiting requests, preempted ones included"),
    "preemptions": ("preemptions", "since the start"),
}


def _column(values: Sequence[Any]) -> Any:
    """An array of one type: whole numbers, numbers, true or false, else text."""
    import pyarrow as pa

    kinds = {type(v) for v in values if v is not None}
    if kinds <= {int}:
        try:
            return pa.array(values, pa.int64())
        except OverflowError:
            kinds = {str, int}
    if kinds <= {int, float}:
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    texts = [v if isinstance(v, str) or v is None else json.dumps(v, sort_keys=True) for v in values]
    return pa.array(texts, pa.string())


def _parquet(columns: Mapping[str, tuple[Any, str, str]], metadata: Mapping[str, str]) -> bytes:
    """name -> (Arrow array, unit, description) as a file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [
        pa.field(name, array.type, True, {"unit": unit, "description": text})
        for name, (array, unit, text) in columns.items()
    ]
    schema = pa.schema(fields, metadata={f"{TOOL}.{k}": v for k, v in metadata.items()})
    sink = pa.BufferOutputStream()
    table = pa.Table.from_arrays([c[0] for c in columns.values()], schema=schema)
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def _keys(rows: Sequence[Row]) -> dict[str, tuple[Any, str, str]]:
    import pyarrow as pa

    return {
        "point": (
            pa.array([r.point.index for r in rows], pa.int64()),
            "",
            "combination of axis values, from 0",
        ),
        "seed": (pa.array([r.seed for r in rows], pa.int64()), "", "seed of the workload"),
    }


def points_table(
    rows: Sequence[Row], axes: Sequence[Axis], metrics: Sequence[Named], metadata: Mapping[str, str]
) -> bytes:
    """points.parquet: one row a point and seed, the metrics that the sweep names first."""
    import pyarrow as pa

    columns = _keys(rows)
    for axis in axes:
        for key in axis.keys:
            values = [r.point.values(axes)[key] for r in rows]
            columns[key] = (_column(values), "", f"axis '{axis.label}': this key of the config")
    columns["label"] = (_column([r.point.label(axes) for r in rows]), "", "the axis values in words")
    done = [isinstance(r.outcome, Result) for r in rows]
    columns["status"] = (pa.array(["done" if d else "failed" for d in done]), "", "done or failed")
    messages = ["" if isinstance(r.outcome, Result) else r.outcome.message for r in rows]
    columns["message"] = (pa.array(messages, pa.string()), "", "why it failed")
    columns["content_id"] = (
        pa.array([r.content_id or None for r in rows], pa.string()),
        "",
        "that of `sim run` with this config and seed",
    )
    named = {m.name: m for m in metrics} | named_metrics()
    for name, metric in named.items():
        values = [r.value(metric) for r in rows]
        text = metric.number.meaning.removesuffix(".")
        columns[name] = (pa.array(values, pa.float64()), metric.unit, f"{metric.label}: {text}")
    return _parquet(columns, metadata)


def curves_table(rows: Sequence[Row], metadata: Mapping[str, str]) -> bytes:
    """curves.parquet: the curves of every finished point and seed below each other."""
    import pyarrow as pa

    done = [(r, r.outcome) for r in rows if isinstance(r.outcome, Result)]
    lengths = [len(o.curves["time_s"]) for _, o in done]
    columns: dict[str, tuple[Any, str, str]] = {}
    for name, text in (("point", "as in points.parquet"), ("seed", "seed of the workload")):
        numbers = [r.point.index if name == "point" else r.seed for r, _ in done]
        columns[name] = (pa.array(np.repeat(np.array(numbers, np.int64), lengths)), "", text)
    for name, (unit, text) in CURVE_COLUMNS.items():
        parts = [np.zeros(0), *(o.curves[name] for _, o in done)]
        columns[name] = (pa.array(np.concatenate(parts), pa.float64(), from_pandas=True), unit, text)
    return _parquet(columns, metadata)


def timings_table(rows: Sequence[Row], metadata: Mapping[str, str]) -> bytes:
    """timings.parquet: what differs from one execution to the next, and therefore stands apart."""
    import pyarrow as pa

    done = [(r, r.outcome) for r in rows if isinstance(r.outcome, Result)]
    columns = _keys([r for r, _ in done])
    columns["wall_s"] = (
        pa.array([o.wall_s for _, o in done], pa.float64()),
        "s",
        "time that the simulation took",
    )
    columns["worker"] = (
        pa.array([o.worker for _, o in done], pa.string()),
        "",
        "machine and process that ran it",
    )
    return _parquet(columns, metadata)
