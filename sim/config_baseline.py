"""The `baseline:` section: how `baseline update` stores the curves of a config, and how `check` judges."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sim.config_types import Strict, key
from workloads.units import Duration

MAX_ROWS = 200
Bound = Annotated[float, Field(ge=0.0, le=1e12, allow_inf_nan=False)]

_ABSOLUTE = (
    "A row may differ by this, plus `relative`; shares in 0..1, counts as they are; null: by the curve."
)
_RELATIVE = "A row may differ by `absolute` plus this share of the baseline's value; null: by the curve."
_AREA = "Allowed area between the two curves / area under the baseline's, whole run; null: by the curve."
_EXACT = "Every row must be the same to the last stored digit; the three bounds then have no meaning."


class CurveTolerance(Strict):
    """What one curve may differ by; a key that is left out is as in `baseline` itself."""

    exact: bool | None = key(None, _EXACT)
    absolute: Bound | None = key(None, _ABSOLUTE)
    relative: Bound | None = key(None, _RELATIVE)
    area: Bound | None = key(None, _AREA)


class CurveTolerances(Strict):
    """Tolerances of single curves."""

    usage: CurveTolerance | None = key(None, "Used / usable blocks.")
    evictable: CurveTolerance | None = key(None, "Free blocks that carry a hash / usable blocks.")
    internal_fragmentation: CurveTolerance | None = key(None, "Wasted / allocated slots.")
    external_fragmentation: CurveTolerance | None = key(None, "1 - largest free run / free blocks.")
    free_runs: CurveTolerance | None = key(None, "Runs of consecutive ids in the free set.")
    largest_free_run: CurveTolerance | None = key(None, "Blocks of the longest of them.")
    contiguity: CurveTolerance | None = key(None, "Adjacent pairs in block tables with consecutive ids.")
    hit_rate: CurveTolerance | None = key(None, "Token hit rate at first lookup, since the start.")
    running: CurveTolerance | None = key(None, "Running requests.")
    waiting: CurveTolerance | None = key(None, "Waiting requests.")
    preemptions: CurveTolerance | None = key(None, "Preemptions since the start.")
    evictions: CurveTolerance | None = key(None, "Cached blocks evicted since the start.")
    finished: CurveTolerance | None = key(None, "Requests finished since the start.")


class BaselineSection(Strict):
    """Curves of this config that CI compares: `python -m sim baseline update`, `python -m sim check`."""

    rows: Annotated[int, Field(ge=10, le=MAX_ROWS)] = key(150, "Rows of the baseline, at most.")
    period: Duration | None = key(
        None, "Time between rows; null: from the run's length and `rows`.", "duration"
    )
    trace_absent: Literal["fail", "skip"] = key(
        "fail",
        "When the trace file is not there: `check` ends with exit code 2, or skips the baseline and says so.",
    )
    exact: bool = key(False, _EXACT)
    absolute: Bound | None = key(None, _ABSOLUTE)
    relative: Bound | None = key(None, _RELATIVE)
    area: Bound | None = key(None, _AREA)
    curves: CurveTolerances | None = key(None, "Tolerances of single curves.")
