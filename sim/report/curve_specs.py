"""The curves over time that a report on a run and one on a recording have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sim.report import curves, style
from sim.report.curves import CurveSpec
from sim.report.document import as_count, as_plural, as_share
from sim.report.series import Rows, windows


def fragmentation_curves(
    steps: Rows, s: Mapping[str, Any], inside: np.ndarray, outside: np.ndarray
) -> list[CurveSpec]:
    """Internal and external fragmentation (shares, by row) and the free runs; `s` is the summary."""
    runs = s["free_runs"]
    return [
        CurveSpec(
            "internal_fragmentation",
            "Internal fragmentation",
            ("Allocated slots without a token, mean ", as_share(s["internal_fragmentation"]["mean"]), "."),
            curves.draw_line(inside, style.RED, "share"),
            {"internal_fragmentation": inside},
            "internal_fragmentation",
        ),
        CurveSpec(
            "external_fragmentation",
            "External fragmentation",
            (
                "Free blocks outside the longest free run, mean ",
                as_share(s["external_fragmentation"]["mean"]),
                ".",
            ),
            curves.draw_line(outside, style.PURPLE, "share", bound=1.02),
            {"external_fragmentation": outside},
            "external_fragmentation",
        ),
        CurveSpec(
            "free_runs",
            "Free runs",
            ("Mean ", as_count(runs["mean"], "runs"), ", most ", as_count(runs["max"], "runs"), "."),
            curves.draw_line(steps["free_runs"], style.GREEN, "count"),
            {"free_runs": steps["free_runs"]},
            "free_runs",
            unit="runs",
        ),
    ]


def hit_rate_curve(steps: Rows, s: Mapping[str, Any]) -> CurveSpec:
    """Hit rate at first lookup since the start."""
    return CurveSpec(
        "hit_rate",
        "Prefix cache: token hit rate at first lookup",
        (as_share(s["prefix_cache"]["first_lookup_token_hit_rate"]), " in all."),
        curves.draw_hit_rate,
        {"hit_rate_since_start": curves.cumulative_rate(steps)},
        "first_lookup_hit_rate",
    )


def load_curve(steps: Rows, s: Mapping[str, Any]) -> CurveSpec:
    """Requests that run and that wait."""
    running, waiting = steps["num_running"], steps["num_waiting"]
    return CurveSpec(
        "load",
        "Requests in the engine",
        (
            "Mean ",
            as_count(s["num_running"]["mean"], "requests"),
            " running, ",
            as_count(s["num_waiting"]["mean"], "requests"),
            " waiting.",
        ),
        curves.draw_lines((("running", running, style.GREEN), ("waiting", waiting, style.ORANGE))),
        {"running": running, "waiting": waiting},
        unit="requests",
    )


def preemption_curve(steps: Rows) -> CurveSpec:
    """Preemptions in windows of time."""
    return CurveSpec(
        "preemptions",
        f"Preemptions in each {curves.window(steps['time_ns'])}",
        (as_plural(int(steps["preemptions"][-1]), "preemption"), " in all."),
        curves.draw_windows("preemptions", style.RED),
        {"preemptions_since_start": steps["preemptions"]},
        "preemptions",
        windows(steps["time_ns"], steps["preemptions"])[1],
        unit="preemptions",
    )
