"""The step-time model of a machine, fitted to the steps that were recorded on it.

    affine    robust least squares (IRLS with Huber weights), coefficients not negative
    table     sim.step_table over (scheduled tokens, context tokens)
    constant  the mean

Each model is scaled so that the sum of its predictions is the sum of the recorded durations: a robust fit
follows the typical step, and what matters over a run is the time that all steps take. Models are judged by
cross-validation over blocks of consecutive steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim import step_table
from sim import step_time as st
from sim.config_types import format_cost
from sim.errors import InputError, did_you_mean
from sim.step_time import StepTime
from validation.replay.recording import read_table

KINDS = ("affine", "table", "constant")
MIN_STEPS = 20
FOLDS, BLOCK = 5, 20
_HUBER = 1.345
_ROUNDS = 60
_TOKENS, _CONTEXT = step_table.TOKENS, step_table.CONTEXT
_AFFINE = ("prefill_tokens", "decode_seqs", "decode_context")
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Steps:
    """Recorded steps that computed something: one value a step, float64[n]; durations in ns.

    `affine` is float64[n, 3]: prefill tokens, decode sequences, context tokens of the decodes; None if the
    file has only what a table needs.
    """

    tokens: Array
    context: Array
    duration: Array
    affine: Array | None

    def __len__(self) -> int:
        return len(self.duration)

    def take(self, keep: NDArray[np.bool_]) -> Steps:
        """The steps that `keep` marks."""
        affine = None if self.affine is None else self.affine[keep]
        return Steps(self.tokens[keep], self.context[keep], self.duration[keep], affine)


@dataclass(frozen=True)
class Quality:
    """How a model's predictions lie, over steps it was not fitted to when it is of a cross-validation.

    Attributes:
        mean_abs_error: mean of |predicted - recorded| / mean recorded.
        total_error: (sum predicted - sum recorded) / sum recorded.
        p50, p90, p99: percentiles of |predicted - recorded| / recorded.
        r2: share of the variance of the durations that is explained.
    """

    mean_abs_error: float
    total_error: float
    p50: float
    p90: float
    p99: float
    r2: float

    def to_json(self) -> dict[str, float]:
        """The numbers, with six digits."""
        return {name: round(float(value), 6) for name, value in vars(self).items()}


@dataclass(frozen=True)
class Fitted:
    """A fitted model.

    Attributes:
        kind: "affine", "table" or "constant".
        model: for the simulator.
        scale: factor that made the totals equal.
        residuals: on the steps that it was fitted to.
        held_out: on blocks of steps left out of the fit.
        steps: what it was fitted to.
    """

    kind: str
    model: StepTime
    scale: float
    residuals: Quality
    held_out: Quality
    steps: Steps

    def section(self, table_path: str | None = None) -> dict[str, Any]:
        """The `step_time:` section of a config; a table needs the path of its file."""
        c = [cost_text(x) for x in self.model.coef[:4].tolist()]
        if self.kind == "constant":
            return {"kind": "constant", "step": c[0]}
        if self.kind == "affine":
            names = ("overhead", "prefill_token", "decode_sequence", "context_token")
            return {"kind": "affine", **dict(zip(names, c, strict=True))}
        assert table_path is not None
        return {"kind": "table", "path": table_path, **_bins(len(self.steps))}

    def table_file(self) -> bytes:
        """CSV for `kind: table`: the recorded steps, durations times `scale`."""
        rows = zip(self.steps.tokens, self.steps.context, self.steps.duration * self.scale, strict=True)
        lines = [f"{_TOKENS},{_CONTEXT},duration_ns", *(f"{t:.0f},{c:.0f},{d:.0f}" for t, c, d in rows)]
        return ("\n".join(lines) + "\n").encode()

    def to_json(self) -> dict[str, Any]:
        """For report.json."""
        return {
            "kind": self.kind,
            "steps": len(self.steps),
            "scale": round(self.scale, 6),
            "residuals": self.residuals.to_json(),
            "held_out": self.held_out.to_json(),
            "coef_ns": [float(x) for x in self.model.coef[:4]] if self.kind != "table" else None,
            "table_cells": int(self.model.table.size) if self.kind == "table" else None,
        }


def cost_text(ns: float) -> str:
    """A cost for a config, in seven digits."""
    return format_cost(float(f"{ns:.7g}"))


def read_steps(path: str | Path) -> Steps:
    """Steps from a report folder, or from a CSV or Parquet file with the columns of its batches.parquet.

    Raises:
        InputError: no such file, a missing column, too few steps.
    """
    source = Path(path)
    if source.is_dir():
        source = source / "batches.parquet"
    if not source.is_file():
        raise InputError("no recorded steps there", str(path), hint="give the folder of a replay, or a file")
    columns = read_table(source) if source.suffix == ".parquet" else _read_csv(source)
    return steps_of(columns, str(source))


def steps_of(columns: Mapping[str, NDArray[Any]], file: str | None = None) -> Steps:
    """Steps from columns; those that computed nothing or were not completed are left out."""
    unit = next((u for u in step_table.UNITS if u in columns), None)
    for name in (_TOKENS, _CONTEXT):
        if name not in columns:
            raise InputError(
                f"the column '{name}' is missing", file, 1, hint=did_you_mean(name, list(columns))
            )
    if unit is None:
        raise InputError(f"one of the columns {', '.join(step_table.UNITS)} is needed", file, 1)
    data = {name: np.asarray(columns[name], np.float64) for name in columns}
    duration = data[unit] * step_table.UNITS[unit]
    used = (data[_TOKENS] > 0) & (duration > 0)
    if int(used.sum()) < MIN_STEPS:
        raise InputError(f"{int(used.sum())} usable steps; a fit needs {MIN_STEPS}", file)
    affine = None
    if all(name in data for name in _AFFINE):
        affine = np.stack([data[name] for name in _AFFINE], axis=1)
    return Steps(data[_TOKENS], data[_CONTEXT], duration, affine).take(used)


def _read_csv(source: Path) -> dict[str, NDArray[Any]]:
    import csv

    from sim.config_yaml import read_text

    reader = csv.reader(read_text(source, "recorded steps").splitlines())
    names = [name.strip() for name in next(reader, [])]
    rows: list[list[float]] = []
    for row in reader:
        if not row:
            continue
        try:
            values = [float(x) for x in row]
        except ValueError:
            values = []
        if len(values) != len(names) or not np.all(np.isfinite(values)):
            raise InputError(f"expected {len(names)} numbers", str(source), reader.line_num)
        rows.append(values)
    table = np.array(rows, np.float64).reshape(-1, max(1, len(names)))
    return {name: table[:, k] for k, name in enumerate(names)}


def fit(steps: Steps, kind: str = "auto") -> tuple[Fitted, dict[str, Quality]]:
    """Fit a model of a kind; "auto": the one with the least cross-validated error.

    Returns:
        the model, and the held-out quality of each kind that was tried.

    Raises:
        InputError: the steps lack the columns of this kind.
    """
    if kind == "affine" and steps.affine is None:
        raise InputError(f"an affine fit needs the columns {', '.join(_AFFINE)}")
    tried = [k for k in KINDS if k != "affine" or steps.affine is not None] if kind == "auto" else [kind]
    held_out = {k: cross_validate(steps, k) for k in tried}
    best = min(tried, key=lambda k: held_out[k].mean_abs_error)
    model, scale = _BUILDERS[best](steps)
    return Fitted(
        best, model, scale, quality(predict(model, steps), steps.duration), held_out[best], steps
    ), held_out


def cross_validate(steps: Steps, kind: str) -> Quality:
    """Quality on blocks of 20 consecutive steps, each predicted by a fit to the other four fifths."""
    fold = (np.arange(len(steps)) // BLOCK) % FOLDS
    if len(steps) < BLOCK * FOLDS:
        fold = np.arange(len(steps)) % FOLDS
    predicted = np.zeros(len(steps))
    for k in range(FOLDS):
        model, _ = _BUILDERS[kind](steps.take(fold != k))
        predicted[fold == k] = predict(model, steps.take(fold == k))
    return quality(predicted, steps.duration)


def quality(predicted: Array, recorded: Array) -> Quality:
    """Errors of predictions; both float64[n], ns."""
    error = predicted - recorded
    p50, p90, p99 = np.percentile(np.abs(error) / recorded, [50, 90, 99])
    spread = float(((recorded - recorded.mean()) ** 2).sum())
    r2 = 1.0 - float((error**2).sum()) / spread if spread else 0.0
    mean = float(recorded.mean())
    return Quality(float(np.abs(error).mean()) / mean, float(error.mean()) / mean, p50, p90, p99, r2)


def drift(model: StepTime, steps: Steps, parts: int = 8) -> list[float]:
    """Recorded / predicted time of equal parts of a run, in order: a machine of steady speed stays near 1."""
    predicted = predict(model, steps)
    pieces = np.array_split(np.arange(len(steps)), parts)
    return [float(steps.duration[p].sum() / max(float(predicted[p].sum()), 1.0)) for p in pieces]


def predict(model: StepTime, steps: Steps) -> Array:
    """The model's duration of each step, float64[n] ns."""
    if model.kind == st.TABLE:
        pairs = zip(steps.tokens.tolist(), steps.context.tolist(), strict=True)
        return np.array([st.duration_ns(model, (t, 0, 0, c, 0, 0, 0)) for t, c in pairs], np.float64)
    if model.kind == st.CONSTANT:
        return np.full(len(steps), model.coef[0])
    assert steps.affine is not None
    return model.coef[0] + steps.affine @ model.coef[1:4]


def _fit_constant(steps: Steps) -> tuple[StepTime, float]:
    return st.constant(float(steps.duration.mean())), 1.0


def _fit_affine(steps: Steps) -> tuple[StepTime, float]:
    assert steps.affine is not None
    features = np.column_stack([np.ones(len(steps)), steps.affine])
    coef = robust_fit(features, steps.duration)
    scale = float(steps.duration.sum() / (features @ coef).sum())
    return st.affine(*(coef * scale).tolist()), scale


def _fit_table(steps: Steps) -> tuple[StepTime, float]:
    bins = _bins(len(steps))
    args = steps.tokens, steps.context, steps.duration, bins["token_bins"], bins["context_bins"]
    model = step_table.fit(*args)
    scale = float(steps.duration.sum() / predict(model, steps).sum())
    return model._replace(table=model.table * scale), scale


def _bins(n: int) -> dict[str, int]:
    """A grid with some ten steps a cell, if they were spread evenly; no finer than the default of configs."""
    tokens = int(np.clip(np.sqrt(n / 10), 2, 24))
    return {"token_bins": tokens, "context_bins": min(tokens, 16)}


_BUILDERS: dict[str, Callable[[Steps], tuple[StepTime, float]]] = {
    "affine": _fit_affine,
    "table": _fit_table,
    "constant": _fit_constant,
}


def robust_fit(features: Array, target: Array) -> Array:
    """Coefficients >= 0 of a linear model by iteratively reweighted least squares with Huber's weights.

    Args:
        features: float64[n, k], columns not negative, the first all ones.
        target: float64[n].
    """
    size = np.maximum(features.max(axis=0), 1.0)
    scaled = features / size
    weights = np.ones(len(target))
    coef = np.zeros(features.shape[1])
    for _ in range(_ROUNDS):
        before = coef
        coef = _nonnegative(scaled, target, weights)
        residual = target - scaled @ coef
        spread = float(np.median(np.abs(residual))) / 0.6745
        if spread <= 1e-9 * float(np.abs(target).max()):
            break
        far = np.abs(residual) / (_HUBER * spread)
        weights = 1.0 / np.maximum(far, 1.0)
        if np.allclose(coef, before, rtol=1e-7, atol=0.0):
            break
    return np.asarray(coef / size)


def _nonnegative(features: Array, target: Array, weights: Array) -> Array:
    """Weighted least squares with coefficients >= 0: the best of all subsets of columns that gives such."""
    root = np.sqrt(weights)
    a, b = features * root[:, None], target * root
    gram, side = a.T @ a, a.T @ b
    k = features.shape[1]
    best, least = np.zeros(k), float("inf")
    for size in range(1, k + 1):
        for columns in combinations(range(k), size):
            pick = list(columns)
            part = np.linalg.lstsq(gram[np.ix_(pick, pick)], side[pick], rcond=None)[0]
            if (part < 0).any():
                continue
            loss = float(part @ gram[np.ix_(pick, pick)] @ part - 2 * part @ side[pick])
            if loss < least:
                best, least = np.zeros(k), loss
                best[pick] = part
    return best


def step_time_yaml(fitted: Fitted, source: str, table_path: str | None) -> bytes:
    """A YAML file with the `step_time:` section for `sim run`."""
    from sim.results import to_yaml

    r, h = fitted.residuals, fitted.held_out
    header = (
        f"Step-time model fitted to {len(fitted.steps)} steps of {source}; put this section into a config.\n"
        f"mean absolute error {100 * r.mean_abs_error:.1f} % of the mean step"
        f" ({100 * h.mean_abs_error:.1f} % on steps left out), R2 {r.r2:.3f}"
    )
    return to_yaml({"step_time": fitted.section(table_path)}, header)
