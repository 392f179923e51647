"""Distances between curves, and the report of recorded replays, with no vLLM installed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from tests.validation.replay_fakes import CONFIG, write_config
from validation import steplog
from validation.cli import main
from validation.replay.compare import curves, latency_table, read_at
from validation.replay.plan import load_plan
from validation.replay.recording import read_recording
from validation.replay.simulated import check_rules, simulate, with_recorded_steps

RECORDINGS = Path(__file__).resolve().parents[2] / "validation" / "recordings"
REPLAYS = sorted(p.parent for p in RECORDINGS.glob("*/recording.json"))


@pytest.fixture(params=REPLAYS, ids=lambda p: p.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_there_are_recordings() -> None:
    assert REPLAYS


def test_a_step_function_is_read_just_before_a_moment() -> None:
    time, values = np.array([10, 20, 20, 30]), np.array([1.0, 2.0, 3.0, 4.0])
    moments = np.array([5, 10, 11, 20, 21, 30, 99])
    assert read_at(time, values, moments).tolist() == [0, 0, 1, 1, 3, 3, 4]


def test_gaps_by_hand() -> None:
    real = {"time_ns": np.array([0, 40]), "used_blocks": np.array([5, 0])}
    late = {"time_ns": np.array([20, 80]), "used_blocks": np.array([10, 0])}
    (usage,) = curves({"real": real, "fitted": late}, 10, 10)
    assert usage.time_s.tolist() == pytest.approx([k * 1e-8 for k in range(1, 9)])
    assert usage.values["real"].tolist() == [0.5] * 4 + [0] * 4
    assert usage.values["fitted"].tolist() == [0] * 2 + [1] * 6
    gap = usage.gap("fitted")
    assert gap.mean_real == 0.25
    assert gap.mean_simulated == 0.75
    assert gap.area == pytest.approx((2 * 0.5 + 2 * 0.5 + 4 * 1) / 8)
    assert gap.relative_area == pytest.approx(3.0)
    assert (gap.max_gap, gap.max_gap_at_s) == (1.0, pytest.approx(5e-8))


def test_equal_curves_have_no_gap() -> None:
    real = {"time_ns": np.array([0, 40]), "free_runs": np.array([5, 0]), "finished": np.array([0, 0])}
    found = {c.metric.name: c.gap("recorded") for c in curves({"real": real, "recorded": real}, 10, 10)}
    assert set(found) == {"free_runs", "finished"}
    assert found["free_runs"].area == found["free_runs"].max_gap == 0
    assert found["finished"].relative_area is None


def test_latencies_of_nothing_are_left_out() -> None:
    n = np.array([0])
    table = {
        "arrival_ns": n,
        "first_scheduled_ns": n - 1,
        "first_token_ns": n + 2_000_000,
        "finish_ns": n + 4_000_000,
        "output_tokens": n + 2,
        "status": n + 3,
    }
    found = latency_table({"real": table})
    assert set(found) == {"ttft_s", "tpot_s", "e2e_s"}
    assert found["e2e_s"]["real"]["p99"] == pytest.approx(0.004)


def test_the_rules_of_a_recorded_replay(folder: Path) -> None:
    """A real engine's decisions, at the moments at which it made them, are the simulator's."""
    recording = read_recording(folder)
    if recording.kind != "engine":
        pytest.skip(f"{folder.name} was recorded over HTTP: no steps to compare")
    plan = load_plan(folder / "config.yaml")
    comparison = check_rules(plan, recording)
    assert comparison.equal, comparison.summary()
    assert len(comparison.columns) == 34
    steps = with_recorded_steps(plan, recording)
    assert (steps.equal, steps.first) == (steps.rows, None)
    real, sim = recording.requests, steps.run.requests
    at = [int(np.flatnonzero(real["index"] == i)[0]) for i in recording.order]
    for column in (
        "first_scheduled_ns",
        "first_token_ns",
        "finish_ns",
        "output_tokens",
        "hit_tokens",
        "preemptions",
    ):
        assert (real[column][at] == sim[column]).all(), column


def test_the_report_is_made_again(tmp_path: Path) -> None:
    folder = REPLAYS[0]
    done = CliRunner().invoke(main, ["replay-report", str(folder), "--out", str(tmp_path / "again")])
    assert done.exit_code == 0, done.output
    old = json.loads((folder / "report.json").read_text())
    new = json.loads((tmp_path / "again" / "report.json").read_text())
    assert new["rules"] == old["rules"]
    assert new["recorded_steps"] == old["recorded_steps"]
    assert new["recorded_on"] == old["recorded_on"]
    assert set(new["curves"]) == set(old["curves"])
    assert new["recorded_on"]["machine"]["cpu"]
    assert new["recorded_on"]["software"]["vllm"] == "0.32.0"
    for name in ("recording.json", "requests.parquet", "timeline.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name


def test_the_page_needs_no_network(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    outside = re.findall(r'(?:src|href)="(?!#|data:)[^"]*"|@import|url\((?!#)', text)
    assert outside == []
    assert "<script" not in text
    assert len(set(re.findall(r'\bid="([^"]+)"', text))) == len(re.findall(r'\bid="([^"]+)"', text))


def test_files_hold_no_path_of_a_machine(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.suffix in (".json", ".yaml", ".html"):
            assert not re.search(r'"/(?:tmp|home|root|work)/', file.read_text()), file


def _changed(folder: Path, to: Path) -> Path:
    """A copy of a recording in which one step has one running request too many."""
    shutil.copytree(folder, to)
    log = steplog.read(to / "steps.parquet")
    log["num_running"][7] += 1
    steplog.write(to / "steps.parquet", log)
    table = pq.read_table(to / "timeline.parquet")
    names, at = table.column_names, table.column_names.index("num_running")
    values = table.column(at).to_numpy().copy()
    values[7] += 1
    pq.write_table(table.set_column(at, names[at], [values]), to / "timeline.parquet")
    return to


def test_a_difference_is_found_and_named(tmp_path: Path) -> None:
    engines = [p for p in REPLAYS if json.loads((p / "recording.json").read_text())["kind"] == "engine"]
    run = _changed(engines[0], tmp_path / "changed")
    done = CliRunner().invoke(main, ["replay-report", str(run), "--out", str(tmp_path / "out")])
    assert done.exit_code == 1, done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert not report["rules"]["equal"]
    assert report["rules"]["columns_equal"] == 33
    assert report["recorded_steps"]["rows_equal"] == report["recorded_steps"]["rows"] - 1
    assert "row 7, num_running" in report["recorded_steps"]["first_difference"]
    assert "Rules differ" in (tmp_path / "out" / "report.html").read_text()


def test_what_is_not_a_recording(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["replay-report", str(tmp_path)])
    assert done.exit_code == 2
    assert "no recording of a replay" in done.output


def test_a_plan_keeps_to_the_models_vocabulary(tmp_path: Path) -> None:
    text = CONFIG.replace("  vocab_size: 4096\n", "")
    assert load_plan(write_config(tmp_path, text)).workload.vocab_size == 128000
    plan = load_plan(write_config(tmp_path, text), vocabulary=4096)
    assert plan.workload.vocab_size == 4096
    assert max(int(plan.workload.prompt_tokens(i).max()) for i in range(len(plan.workload))) < 4096
    small = load_plan(write_config(tmp_path), ["workload.vocab_size=50"], vocabulary=4096)
    assert small.workload.vocab_size == 50


def test_a_plan_needs_no_step_time(tmp_path: Path) -> None:
    text = "".join(x for x in CONFIG.splitlines(keepends=True) if not x.startswith("step_time"))
    assert not load_plan(write_config(tmp_path, text)).has_step_time
    assert load_plan(write_config(tmp_path)).has_step_time


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["engine.block_size=16"], "wants a multiple of 32"),
        (["engine.block_size=32", "engine.async_scheduling=true"], "async_scheduling"),
    ],
)
def test_what_a_cpu_engine_cannot_do_is_said_at_once(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    options = [part for text in overrides for part in ("--set", text)]
    out = ["--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, ["replay", str(write_config(tmp_path)), *options, *out])
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "out").exists()


def test_the_config_of_a_report_runs(folder: Path) -> None:
    plan = load_plan(folder / "config.yaml")
    assert plan.has_step_time
    run = simulate(plan, plan.resolved.step_time, 10_000_000)
    assert run.exit_reason == "finished"
    assert len(run.requests["index"]) == len(plan.workload)
