"""The HTML page of a replay: self-contained, no script, plots inside."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sim.report.units import count, plural, share, span
from validation.replay.figures import LOOKS

_TEMPLATE = "page.html.j2"


def number(value: float | None, unit: str) -> str:
    """A value of a metric as people read it."""
    return share(value) if unit == "share" else count(value)


def inline(svg: bytes, prefix: str) -> str:
    """An SVG to stand inside a page: no XML header, and ids that no other plot has."""
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', text)
    text = re.sub(r' height="[^"]*pt"', "", text, count=1)
    return re.sub(r' width="[^"]*pt"', "", text, count=1)


def page(report: Mapping[str, Any], plots: Mapping[str, bytes]) -> bytes:
    """The page.

    Args:
        report: content of report.json.
        plots: SVGs by metric, and "latency".
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [name for name in ("recorded", "fitted") if any(name in c for c in report["curves"].values())]
    text = environment.get_template(_TEMPLATE).render(
        r=report,
        on=report["recorded_on"],
        hardware=hardware_line(report["recorded_on"]),
        plots={name: inline(svg, name) for name, svg in plots.items()},
        looks={who: LOOKS[who] for who in LOOKS},
        shown=shown,
        verdict=verdict(report),
        number=number,
        count=count,
        share=share,
        span=span,
        plural=partial(plural),
    )
    return text.encode()


def hardware_line(info: Mapping[str, Any]) -> str:
    """Where it was recorded, in one line."""
    machine, software = info.get("machine") or {}, info.get("software") or {}
    parts = []
    gpu = machine.get("gpu")
    if gpu:
        parts.append(f"{gpu['name']} ({gpu['memory_gib']} GiB, driver {gpu['driver']}, CUDA {gpu['cuda']})")
    if machine.get("cpu"):
        parts.append(f"{machine['cpu']}, {plural(int(machine['cores']), 'core')}")
    if info.get("url"):
        parts.append(f"server {info['url']}")
    if software.get("vllm"):
        parts.append(f"vLLM {software['vllm']}")
    if software.get("torch"):
        parts.append(f"PyTorch {software['torch']}")
    return ", ".join(parts)


def verdict(report: Mapping[str, Any]) -> list[str]:
    """What the report found, in sentences."""
    out = []
    rules, steps = report["rules"], report["recorded_steps"]
    if rules is not None and rules["equal"]:
        out.append(
            f"Rules: all {rules['columns']} columns of {rules['rows']:,} rows of the step log are equal: the"
            " simulator made every decision that the engine made."
        )
    elif rules is not None:
        out.append(f"Rules differ: {rules['summary']}.")
    if steps is not None and steps["equal"]:
        out.append(
            f"Recorded steps: with the durations of the real steps all {steps['rows']:,} rows are equal in"
            " time and content, so what is left between the curves is the error of the step-time model."
        )
    elif steps is not None:
        out.append(
            f"Recorded steps: {steps['rows_equal']:,} of {steps['rows']:,} rows are equal; first difference:"
            f" {steps['first_difference']}."
        )
    usage = report["curves"].get("usage", {}).get("fitted")
    if usage is not None:
        out.append(
            f"Timing: with the step time ({report['step_time']['source']}) the mean usage is "
            f"{share(usage['mean_simulated'])} against {share(usage['mean_real'])}, "
            f"{share(usage['area'])} apart on average and {share(usage['max_gap'])} at most."
        )
    drift = report["step_time"]["drift"]
    if drift is not None:
        out.append(
            f"Speed of the machine: in eighths of the run the steps took {min(drift):.2f} to {max(drift):.2f}"
            " times what the model says; a step time that depends on the batch alone can't follow that."
        )
    if not out:
        out.append("No simulated curve; step time: " + report["step_time"]["source"] + ".")
    return out
