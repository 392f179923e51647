"""A run in the formats of other tools: tables (Parquet, CSV), OpenMetrics, Chrome trace."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analysis.chrome_trace import chrome_trace
from sim.analysis.openmetrics import openmetrics
from sim.analysis.rerun import Rerun
from sim.analysis.residency import ResidencyHistogram
from sim.analysis.tracker import Tracked, track
from sim.columns import REQUESTS, STEPS
from sim.results import to_parquet

FORMATS = ("parquet", "csv", "prometheus", "chrome-trace")

_CURVES = {
    "usage": ("", "used / usable blocks"),
    "internal_fragmentation": ("", "wasted / allocated slots of tables"),
    "external_fragmentation": ("", "1 - largest free run / free blocks"),
    "token_usage": ("", "slots that hold a token, a shared one once / slots of usable blocks"),
    "table_contiguity": ("", "adjacent pairs in tables with consecutive ids / all; NaN: no pair"),
    "hit_rate": ("", "tokens found / looked up at first lookups since the row before; NaN: none"),
}
_FAILURES = {
    "time_ns": ("ns", "first refusal"),
    "request": ("", "position in the workload"),
    "request_id": ("", "its name"),
    "cause": ("", "full-sequence reserve, watermark, pool, running request"),
    "wanted_blocks": ("blocks", "free blocks that it asked for"),
    "free_blocks": ("blocks", "free then"),
    "attempts": ("", "refusals of the episode"),
    "outcome": ("", "admitted, preempted others, preempted itself, dropped, open"),
    "waited_ns": ("ns", "from the first refusal to the outcome"),
    "preempted": ("", "requests preempted for it, separated by spaces"),
    "recomputed_tokens": ("tokens", "that these computed again"),
}
_PATTERNS = {
    "time_ns": ("ns", "instant of the sample"),
    "request": ("", "position in the workload"),
    "blocks": ("blocks", "in its tables"),
    "runs": ("", "maximal runs of consecutive ids in them"),
    "allocated_slots": ("tokens", "slots of these blocks"),
    "wasted_slots": ("tokens", "of these, without a token"),
}
RESIDENCY_COLUMNS = {
    "kind": ("", "lifetime, idle, reuse_gap"),
    "le_s": ("s", "upper bound of the bucket, inf: the last one"),
    "count": ("blocks", "durations in the bucket"),
}


def tables(t: Tracked) -> dict[str, tuple[dict[str, Any], Mapping[str, tuple[str, str]]]]:
    """The tables of a tracked run: name -> columns, and unit and meaning of each."""
    kinds = {"lifetime": t.residency.lifetime, "idle": t.residency.idle, "reuse_gap": t.residency.reuse_gap}
    failures: dict[str, Any] = {
        name: np.array([getattr(f, name) for f in t.failures])
        if t.failures
        else np.zeros(0, dtype=np.str_ if name in ("request_id", "cause", "outcome") else np.int64)
        for name in _FAILURES
        if name != "preempted"
    }
    failures["preempted"] = np.array([" ".join(map(str, f.preempted)) for f in t.failures], dtype=np.str_)
    patterns = {name: getattr(t.patterns, name) for name in _PATTERNS}
    return {
        "steps": ({**t.steps, **t.curves}, {**STEPS, **_CURVES}),
        "requests": (dict(t.requests), REQUESTS),
        "failures": (failures, _FAILURES),
        "patterns": (patterns, _PATTERNS),
        "residency": (residency_table(kinds), RESIDENCY_COLUMNS),
    }


def residency_table(kinds: Mapping[str, ResidencyHistogram]) -> dict[str, NDArray[Any]]:
    """Buckets of several histograms, one below the other."""
    width = {name: len(h.counts) for name, h in kinds.items()}
    return {
        "kind": np.concatenate([np.full(n, name) for name, n in width.items()]),
        "le_s": np.concatenate([np.append(h.bounds_s, np.inf) for h in kinds.values()]),
        "count": np.concatenate([h.counts for h in kinds.values()]),
    }


def to_csv(columns: Mapping[str, NDArray[Any]], known: Mapping[str, tuple[str, str]]) -> bytes:
    """CSV with a header line; NaN is an empty field."""
    import pyarrow as pa
    import pyarrow.csv

    names = [n for n in known if n in columns] + [n for n in columns if n not in known]
    arrays = [pa.array(columns[n], from_pandas=True) for n in names]
    sink = io.BytesIO()
    pyarrow.csv.write_csv(pa.Table.from_arrays(arrays, names=names), sink)
    return sink.getvalue()


def export_tables(
    folder: str | Path,
    style: str,
    progress: Callable[..., None] | None = None,
    residency_sample: float = 1.0,
    replica: int | None = None,
) -> dict[str, bytes]:
    """The files of the formats "parquet" and "csv": name -> content.

    `residency_sample` as of ``track``; `replica` of a fleet.

    Raises:
        InputError: as ``track``.
    """
    tracked = track(folder, residency_sample=residency_sample, progress=progress, replica=replica)
    files = {}
    for name, (columns, known) in tables(tracked).items():
        meta = {"table": name, "run": Path(folder).name}
        if replica is not None:
            meta["replica"] = str(replica)
        data = to_parquet(columns, known, meta) if style == "parquet" else to_csv(columns, known)
        files[f"{name}.{style}"] = data
    return files


def export_prometheus(
    folder: str | Path,
    points: int,
    start_s: float,
    residency_sample: float = 1.0,
    replica: int | None = None,
) -> bytes:
    """OpenMetrics text, see ``openmetrics``; `residency_sample` as of ``Rerun``, `replica` of a fleet.

    Raises:
        InputError: as ``Rerun``.
    """
    rerun = Rerun(folder, residency_sample=residency_sample, replica=replica)
    return "".join(openmetrics(rerun, points, start_s)).encode()


def export_chrome_trace(
    folder: str | Path, progress: Callable[..., None] | None = None, replica: int | None = None
) -> bytes:
    """Chrome trace JSON, see ``chrome_trace``; `replica` of a fleet.

    Raises:
        InputError: as ``Rerun``; the simulation does not give the folder's rows any more.
    """
    rerun = Rerun(folder, replica=replica)
    simulation = rerun.fresh()
    simulation.run(rerun.until_ns, progress)
    result = simulation.result()
    rerun.check_rows(result.steps)
    assert result.events is not None
    names = [rerun.workload.request_id(i) for i in range(len(rerun.workload))]
    return "".join(chrome_trace(result.requests, result.events, result.steps, names, rerun.end_ns)).encode()
