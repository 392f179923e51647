"""The step-time model of a server, of which only counters are seen: affine, fitted to windows between polls.

Over a window in which the engine had work all the time, its length is the sum of its steps' durations:

    length = overhead * steps + prefill_token * prompt tokens computed + decode_sequence * tokens generated

(vLLM 0.32.0: iteration_tokens_total_count, prompt_tokens_by_source_total of local_compute,
generation_tokens_total). Windows are joined until they hold 50 steps: a server publishes its counters with
some delay, and windows of equal work differ in their length, which is what is fitted. Tokens computed again
after a preemption are in no counter and end up in the overhead; what a decode reads of its context can't be
told apart here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sim import step_time as st
from sim.step_time import StepTime
from validation.replay.calibrate import FOLDS, Array, Quality, cost_text, quality, robust_fit
from validation.replay.recording import Table

MIN_WINDOWS = 20
WINDOW_STEPS = 50
COUNTERS = ("engine_steps", "computed_prompt_tokens", "generated_tokens")


@dataclass(frozen=True)
class ServerFit:
    """A fitted model: the windows it was fitted to, its quality on them and on windows left out."""

    model: StepTime
    windows: int
    scale: float
    residuals: Quality
    held_out: Quality

    def section(self) -> dict[str, Any]:
        """The `step_time:` section of a config."""
        c = [cost_text(x) for x in self.model.coef[:3].tolist()]
        return {"kind": "affine", "overhead": c[0], "prefill_token": c[1], "decode_sequence": c[2]}

    def to_json(self) -> dict[str, Any]:
        """For report.json."""
        return {
            "kind": "affine",
            "windows": self.windows,
            "scale": round(self.scale, 6),
            "residuals": self.residuals.to_json(),
            "coef_ns": [float(x) for x in self.model.coef[:3]],
        }


def busy_windows(timeline: Table) -> tuple[Array, Array]:
    """Features float64[n, 3] and lengths float64[n] (ns) of windows of 50 steps or more in which requests
    were running at every poll."""
    counted = np.stack([timeline[name] for name in COUNTERS], axis=1).astype(np.float64)
    time = timeline["time_ns"].astype(np.float64)
    features, length = [], []
    begin: int | None = None
    for k, running in enumerate(timeline["num_running"] > 0):
        if not running:
            begin = None
        elif begin is None:
            begin = k
        elif counted[k, 0] - counted[begin, 0] >= WINDOW_STEPS:
            features.append(counted[k] - counted[begin])
            length.append(time[k] - time[begin])
            begin = k
    return np.array(features).reshape(-1, len(COUNTERS)), np.array(length)


def fit_server(timeline: Table) -> ServerFit | None:
    """Fit to the polls of a replay; None when there are too few busy windows."""
    if any(name not in timeline for name in COUNTERS):
        return None
    features, length = busy_windows(timeline)
    if len(length) < MIN_WINDOWS:
        return None
    coef, scale = _fit(features, length)
    fold = np.arange(len(length)) % FOLDS
    predicted = np.zeros(len(length))
    for k in range(FOLDS):
        part, _ = _fit(features[fold != k], length[fold != k])
        predicted[fold == k] = features[fold == k] @ part
    return ServerFit(
        st.affine(*coef.tolist()),
        len(length),
        scale,
        quality(features @ coef, length),
        quality(predicted, length),
    )


def _fit(features: Array, length: Array) -> tuple[Array, float]:
    coef = robust_fit(features, length)
    total = float((features @ coef).sum())
    scale = float(length.sum()) / total if total > 0 else 1.0
    return coef * scale, scale
