"""From a recording to its report folder: simulate, measure, draw, write.

report.json        every number          report.html   one page, with its plots inside
plots/*.svg        the plots             config.yaml   the replayed config with the fitted step time
step_time.yaml     the fitted section    the recording's own files, and provenance.json
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim import __version__
from sim.errors import InputError
from sim.step_time import StepTime
from validation.replay.calibrate import MIN_STEPS, Fitted, Quality, drift, fit, step_time_yaml, steps_of
from validation.replay.calibrate_server import ServerFit, fit_server
from validation.replay.compare import Curves, curves, grid_period, latency_table
from validation.replay.plan import Plan
from validation.replay.recording import Recording, Table
from validation.replay.simulated import RecordedSteps, check_rules, simulate, with_recorded_steps

if TYPE_CHECKING:
    from validation.diff import Comparison

TABLE_FILE = "step_times.csv"


@dataclass
class Model:
    """The step-time model of the simulation in time: fitted here, given in a file, or of the config.

    Attributes:
        step_time: for the simulator; None: there is none.
        source: in words.
        section: the `step_time:` section, or None.
        table: name and content of the file that the section names, if it is of kind table.
        fitted, tried: the fit and the held-out quality of every kind tried, if it was fitted to these steps.
    """

    step_time: StepTime | None
    source: str
    section: dict[str, Any] | None = None
    table: tuple[str, bytes] | None = None
    fitted: Fitted | ServerFit | None = None
    tried: dict[str, Quality] = field(default_factory=dict)


@dataclass
class Findings:
    """Everything that a report says."""

    plan: Plan
    recording: Recording
    model: Model
    rules: Comparison | None
    recorded: RecordedSteps | None
    curves: list[Curves]
    requests: dict[str, Table]


def choose_model(
    plan: Plan, recording: Recording, kind: str = "auto", step_time_file: Path | None = None
) -> Model:
    """The step-time model: of a file, else fitted to the recorded steps, else of the config.

    Raises:
        InputError: the file has no usable `step_time:` section, or the recorded steps don't allow a fit.
    """
    if step_time_file is not None:
        step_time, section = read_step_time(step_time_file)
        table = None
        if "path" in section:
            source = Path(section["path"])
            section["path"] = Path(TABLE_FILE).stem + source.suffix
            table = section["path"], source.read_bytes()
        return Model(step_time, f"given: {step_time_file.name}", section, table)
    if recording.batches is not None:
        if int((recording.batches["scheduled_tokens"] > 0).sum()) >= MIN_STEPS:
            found, tried = fit(steps_of(recording.batches), kind)
            section = found.section(TABLE_FILE)
            table = (TABLE_FILE, found.table_file()) if found.kind == "table" else None
            source_text = f"{found.kind}, fitted to this recording"
            return Model(found.model, source_text, section, table, found, tried)
        return Model(None, f"none: fewer than {MIN_STEPS} steps were recorded")
    server = fit_server(recording.timeline)
    if server is not None:
        source_text = f"affine, fitted to {server.windows} windows between polls of this recording"
        return Model(server.model, source_text, server.section(), None, server, {"affine": server.held_out})
    if plan.has_step_time:
        section = dict(plan.resolved.config["step_time"])
        return Model(plan.resolved.step_time, "the config's", section)
    return Model(
        None,
        "none (the server was busy for too few steps to fit one; give --step-time FILE, or"
        " `step_time:` in the config)",
    )


def read_step_time(path: Path) -> tuple[StepTime, dict[str, Any]]:
    """The `step_time:` section of a YAML file (of `calibrate`, or a whole config), read as `sim run` does.

    Raises:
        InputError: with the place in the file.
    """
    import tempfile

    from sim.config import load_config
    from sim.config_yaml import read_yaml
    from sim.resolve import find_file, resolve
    from sim.results import to_yaml

    section = read_yaml(path).data.get("step_time")
    if not isinstance(section, dict) or section.get("kind") not in ("affine", "table", "constant"):
        raise InputError(
            "no `step_time:` section of kind affine, table or constant", str(path),
            hint="`validation calibrate` writes one",
        )  # fmt: skip
    section = dict(section)
    if isinstance(section.get("path"), str):
        section["path"] = str(find_file(section["path"], path.parent).resolve())
    probe = {
        "engine": {"num_gpu_blocks": 1024},
        "step_time": section,
        "workload": {"kind": "random", "num_requests": 1, "arrivals": {"kind": "constant", "rate": 1.0}},
    }
    with tempfile.TemporaryDirectory(prefix="kvpool-") as folder:
        file = Path(folder) / "step_time.yaml"
        file.write_bytes(to_yaml(probe, "a config around a step_time section"))
        try:
            step_time = resolve(load_config(file)).step_time
        except InputError as e:
            raise InputError("; ".join(p.message for p in e.problems), str(path)) from None
    return step_time, section


def investigate(
    plan: Plan, recording: Recording, model: Model, say: Callable[[str], None] = lambda _: None
) -> Findings:
    """Make all simulations and comparisons of a recording."""
    rules, recorded = None, None
    timelines: dict[str, Table] = {"real": recording.timeline}
    requests: dict[str, Table] = {"real": recording.requests}
    if recording.kind == "engine" and recording.order:
        say("comparing the exact step logs in logical time")
        rules = check_rules(plan, recording)
        say("simulating with the recorded step durations")
        recorded = with_recorded_steps(plan, recording)
        timelines["recorded"] = recorded.run.timeline
        requests["recorded"] = _as_sent(recorded.run.requests, recording)
    period = grid_period(recording.end_ns)
    if model.step_time is not None:
        say(f"simulating with the step time ({model.source})")
        run = simulate(plan, model.step_time, period)
        timelines["fitted"], requests["fitted"] = run.timeline, run.requests
    found = curves(timelines, plan.settings.usable_blocks, period)
    return Findings(plan, recording, model, rules, recorded, found, requests)


def _as_sent(requests: Table, recording: Recording) -> Table:
    """Requests of the simulation with recorded steps with the arrivals that the clients meant: that
    simulation is given the moments at which the engine got them."""
    arrival = dict(
        zip(recording.requests["index"].tolist(), recording.requests["arrival_ns"].tolist(), strict=True)
    )
    meant = np.array([arrival[recording.order[k]] for k in requests["index"].tolist()], np.int64)
    return {**requests, "arrival_ns": meant}


def to_report(f: Findings) -> dict[str, Any]:
    """The content of report.json."""
    r, engine = f.recording, f.plan.settings
    sent = r.requests
    return {
        "format": "1",
        "name": f.plan.resolved.name,
        "description": f.plan.resolved.config.get("description"),
        "recorded_on": r.info,
        "workload": {
            "requests": len(f.plan.workload),
            "sent": len(sent["index"]),
            "finished": int((sent["status"] == 3).sum()),
            "rejected": int((sent["status"] == 4).sum()),
            "prompt_tokens": int(sent["prompt_tokens"].sum()),
            "output_tokens": int(sent["output_tokens"].sum()),
            "seed": f.plan.resolved.seed,
            "sha256": f.plan.workload.content_hash(),
        },
        "engine": {
            "vllm_profile": engine.vllm,
            "block_size": engine.block_size,
            "num_gpu_blocks": engine.num_gpu_blocks,
            "max_num_seqs": engine.max_num_seqs,
            "max_num_batched_tokens": engine.max_num_batched_tokens,
            "max_model_len": engine.max_model_len,
            "enable_prefix_caching": engine.enable_prefix_caching,
            "async_scheduling": engine.async_scheduling,
            "policy": engine.policy,
        },
        "steps": _steps(r),
        "step_time": {
            "source": f.model.source,
            "section": f.model.section,
            "fit": f.model.fitted.to_json() if f.model.fitted else None,
            "drift": _drift(f),
            "held_out": {k: q.to_json() for k, q in f.model.tried.items()},
        },
        "rules": _rules(f),
        "recorded_steps": _recorded(f),
        "curves": {
            c.metric.name: {
                "title": c.metric.title,
                "unit": c.metric.unit,
                **{name: c.gap(name).to_json() for name in c.values if name != "real"},
            }
            for c in f.curves
        },
        "latency": latency_table(f.requests),
    }


def _steps(r: Recording) -> dict[str, Any] | None:
    if r.batches is None:
        return None
    busy = r.batches["duration_ns"][(r.batches["scheduled_tokens"] > 0) & (r.batches["duration_ns"] > 0)]
    if not len(busy):
        return {"batches": 0}
    p50, p90, p99 = (float(x) / 1e9 for x in np.percentile(busy, [50, 90, 99]))
    return {
        "batches": len(busy), "mean_s": float(busy.mean()) / 1e9,
        "p50_s": p50, "p90_s": p90, "p99_s": p99, "max_s": float(busy.max()) / 1e9,
    }  # fmt: skip


def _drift(f: Findings) -> list[float] | None:
    """Recorded / predicted time in eighths of the run, with the model of the simulation in time."""
    if f.model.step_time is None or f.recording.batches is None:
        return None
    usable = (f.recording.batches["scheduled_tokens"] > 0) & (f.recording.batches["duration_ns"] > 0)
    if int(usable.sum()) < MIN_STEPS:
        return None
    return [round(x, 4) for x in drift(f.model.step_time, steps_of(f.recording.batches))]


def _rules(f: Findings) -> dict[str, Any] | None:
    if f.rules is None:
        return None
    return {
        "equal": f.rules.equal,
        "rows": f.rules.rows_a,
        "columns": len(f.rules.columns),
        "columns_equal": len(f.rules.columns) - len(f.rules.differing),
        "summary": f.rules.summary(),
    }


def _recorded(f: Findings) -> dict[str, Any] | None:
    if f.recorded is None:
        return None
    return {
        "equal": f.recorded.rows == f.recorded.equal and f.recorded.first is None,
        "rows": f.recorded.rows,
        "rows_equal": f.recorded.equal,
        "first_difference": f.recorded.first,
    }


def write_report(f: Findings, folder: Path, command: list[str]) -> dict[str, Any]:
    """Write the folder, whole or not at all; returns the content of report.json.

    Raises:
        InputError: the folder holds other files, or can't be written.
    """
    from sim.results import to_json, to_yaml, write_run
    from validation.replay.figures import draw
    from validation.replay.page import page

    report = to_report(f)
    plots = draw(f.curves, f.requests)
    config = dict(f.plan.resolved.config)
    if f.model.section is not None:
        config["step_time"] = f.model.section
    header = f"kvpool {__version__}: the config of this replay, with the step time that it was compared with"
    files: dict[str, Any] = {
        "report.json": to_json(report),
        "report.html": page(report, plots),
        "config.yaml": to_yaml(config, header),
        **f.recording.files(),
        **{f"plots/{name}.svg": content for name, content in plots.items()},
    }
    if isinstance(f.model.fitted, Fitted):
        files["step_time.yaml"] = step_time_yaml(f.model.fitted, f.plan.resolved.name, TABLE_FILE)
    if f.model.table is not None:
        files[f.model.table[0]] = f.model.table[1]
    provenance = {
        "version": __version__,
        "name": f.plan.resolved.name,
        "config_file": f.plan.config_file,
        "command": command,
        "recorded_on": f.recording.info,
        "workload": {"sha256": report["workload"]["sha256"], "source": f.plan.workload.source},
    }
    write_run(folder, files, provenance)
    return report
