"""A run folder simulated again: any instant, and a clear message when it is not the same run any more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sim.analysis.layout import METRICS, analyze
from sim.analysis.rerun import Rerun, read_columns
from sim.analysis.tracker import track
from sim.errors import InputError
from tests.analysis.pools import assert_same


def test_a_snapshot_at_a_row_has_the_row_s_numbers(run_folder: Path) -> None:
    rerun = Rerun(run_folder)
    steps = rerun.steps
    rows = [5, len(steps["time_ns"]) // 2, len(steps["time_ns"]) - 2]
    for i, s in zip(rows, rerun.snapshots(steps["time_ns"][rows]), strict=True):
        assert s.time_ns == steps["time_ns"][i]
        assert s.num_free == steps["num_free_blocks"][i]
        assert s.num_free_runs == steps["free_runs"][i]
        assert s.wasted_slots == steps["wasted_slots"][i]
        assert s.num_cached == steps["num_cached_blocks"][i]
        assert s.by_request.runs.sum() == steps["table_runs"][i]
        assert (s.born_ns[s.owner >= 0] >= 0).all()
        assert (s.born_ns <= s.time_ns).all()


def test_time_may_go_back(run_folder: Path) -> None:
    rerun = Rerun(run_folder)
    early = rerun.snapshot(rerun.end_ns // 3)
    rerun.snapshot(rerun.end_ns // 2)
    assert_same(rerun.snapshot(rerun.end_ns // 3), early)
    # how the way there is cut does not matter
    other = Rerun(run_folder)
    for _ in other.snapshots(np.arange(0, other.end_ns // 3, 123_456_789)):
        pass
    assert_same(other.snapshot(rerun.end_ns // 3), early)


def test_times_cover_the_run(run_folder: Path) -> None:
    rerun = Rerun(run_folder)
    times = rerun.times(7)
    assert len(times) == 7
    assert times[-1] == rerun.end_ns
    with pytest.raises(InputError, match="outside the run"):
        rerun.state_at(rerun.end_ns + 1)


def test_tracking_a_folder_gives_its_rows(run_folder: Path) -> None:
    tracked = track(run_folder, pattern_samples=20)
    steps = read_columns(run_folder / "steps.parquet")
    assert all(np.array_equal(tracked.steps[name], steps[name]) for name in steps)
    requests = read_columns(run_folder / "requests.parquet")
    assert all(np.array_equal(tracked.requests[name], requests[name]) for name in requests)
    summary = json.loads((run_folder / "summary.json").read_text())
    assert tracked.cache.hit_rate == summary["prefix_cache"]["first_lookup_token_hit_rate"]
    assert tracked.time_weighted["usage"]["mean"] == summary["usage"]["mean"]
    assert len(np.unique(tracked.patterns.time_ns)) == 20
    assert summary["preemptions"]["preemptions"] > 0
    assert any(f.cause == "running request" for f in tracked.failures)


@pytest.mark.parametrize("overrides", [("output.every_step=true",), ("run.until=3s",), ("run.warmup=2s",)])
def test_other_logs(make_run: Callable[..., Path], overrides: tuple[str, ...]) -> None:
    folder = make_run(*overrides)
    rerun = Rerun(folder)
    assert rerun.snapshot(rerun.end_ns).num_blocks == 90
    assert track(folder, 3).steps["time_ns"][-1] == rerun.end_ns


def test_the_layout_names_requests(run_folder: Path) -> None:
    report = analyze(run_folder, samples=25, top=3)
    assert len(report.times_ns) == len(report.interleaving) == 25
    assert 1 <= len(report.splitters) <= 3
    assert report.splitters[0].request_id.startswith("r")
    steps = read_columns(run_folder / "steps.parquet")
    assert {moment.metric for moment in report.worst} == set(METRICS)
    most = next(m for m in report.worst if m.metric == "wasted_slots")
    assert most.value == steps["wasted_slots"].max()
    assert sum(cause.amount for cause in most.causes) <= most.value
    assert most.causes[0].share == most.causes[0].amount / most.value
    fewest = next(m for m in report.worst if m.metric == "num_free_blocks")
    assert fewest.value == steps["num_free_blocks"].min()


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_changed_rows_are_noticed(run_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(run_folder, tmp_path)
    table = pq.read_table(folder / "steps.parquet")
    column = table["free_runs"].to_numpy().copy()
    column[40] += 1
    i = table.column_names.index("free_runs")
    pq.write_table(table.set_column(i, "free_runs", pa.array(column)), folder / "steps.parquet")
    rerun = Rerun(folder)
    rerun.snapshot(1_000_000_000)  # not there yet
    with pytest.raises(InputError, match=r"free_runs differs at 1\.517 s") as raised:
        rerun.snapshot(rerun.end_ns)
    assert "python -m sim run" in str(raised.value)
    with pytest.raises(InputError, match="free_runs"):
        track(folder)


def test_another_engine_is_named(run_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(run_folder, tmp_path)
    path = folder / "provenance.json"
    record = json.loads(path.read_text())
    record["core_digest"] = "another"
    path.write_text(json.dumps(record))
    # an engine that gives the same rows is as good
    Rerun(folder).snapshot(2_000_000_000)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("step: 10ms", "step: 11ms"))
    with pytest.raises(InputError, match="made by engine another"):
        Rerun(folder).snapshot(2_000_000_000)


def test_another_workload_is_refused(run_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(run_folder, tmp_path)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("seed: 3", "seed: 4"))
    with pytest.raises(InputError, match=r"the requests .* are not those of the run"):
        Rerun(folder)


def test_what_is_no_run_folder(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        Rerun(tmp_path)
    folder = copy_of(run_folder, tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    del summary["preemptions"]
    (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match=r"has no preemptions[^$]*another version of kvpool"):
        Rerun(folder)
    (folder / "summary.json").write_text("{")
    with pytest.raises(InputError, match=r"summary\.json: this file of the run can't be read"):
        Rerun(folder)
    (folder / "summary.json").write_text("[]")
    with pytest.raises(InputError, match="holds no JSON object"):
        Rerun(folder)
    (folder / "steps.parquet").write_bytes(b"no")
    with pytest.raises(InputError, match=r"steps\.parquet: this file of the run can't be read"):
        Rerun(folder)
