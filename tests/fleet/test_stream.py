"""A workload on disk gives the run of the same workload in memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sim import cli
from sim.errors import InputError
from sim.simulate import Columns, RunResult, Simulation
from sim.stream.simulate import StreamedSimulation
from sim.stream.window import check_streamable
from tests.core.cases import Case, draw_case
from workloads import spool as spools
from workloads.builder import WorkloadBuilder
from workloads.spool import spool_workload


class Collected:
    """Columns of requests as they are handed out."""

    def __init__(self) -> None:
        self.parts: list[Columns] = []

    def __call__(self, columns: Columns) -> None:
        self.parts.append(columns)

    def columns(self) -> Columns:
        return {name: np.concatenate([p[name] for p in self.parts]) for name in self.parts[0]}


def sorted_case(seed: int) -> Case:
    """A random case on the real clock whose known arrivals rise, with think times of all kinds."""
    case = draw_case(seed, "time")
    known = case.workload.arrival >= 0
    case.workload.arrival[known] = np.sort(case.workload.arrival[known])
    rng = random.Random(seed)
    if rng.random() < 0.5:
        case.workload.think_ns[~known] += rng.choice([700, 100_000])
    if rng.random() < 0.7:
        return case._replace(workload=dataclasses.replace(case.workload, request_ids=None))
    return case


def assert_equal(a: RunResult, requests: Columns, b: RunResult) -> None:
    assert a.totals == b.totals
    assert a.exit_reason == b.exit_reason
    assert a.time_weighted == b.time_weighted
    assert (a.events is None) == (b.events is None)
    for left, right in ((a.steps, b.steps), (requests, b.requests), (a.events or {}, b.events or {})):
        assert list(left) == list(right)
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)


@given(seed=st.integers(0, 2**32 - 1), chunk=st.sampled_from([1, 2, 5, 11]))
@example(seed=14469, chunk=1)  # a rejected request's successor arrives at the same instant
@example(seed=334039, chunk=2)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_streamed_run_is_the_run_in_memory(
    seed: int, chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    case = sorted_case(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spools, "CHUNK", chunk)
        patch.setattr("sim.stream.window.CHUNK", chunk)
        spool = spool_workload(case.workload, tmp_path_factory.mktemp("spool"))
        assert spool.content_hash() == case.workload.content_hash()
        try:
            check_streamable(case.engine, spool)
        except InputError:
            assert case.engine.policy == "priority"
            return
        log = dataclasses.replace(case.log, every_step=seed % 2 == 0, events=seed % 3 > 0)
        whole = Simulation(case.engine, case.workload, case.step_time, log)
        whole.run()
        expected = whole.result()
        out = Collected()
        steps, events = Collected(), Collected()
        streamed = StreamedSimulation(
            case.engine, spool, case.step_time, log, out, write_steps=steps, write_events=events
        )
        rng = random.Random(seed)
        for until in sorted(rng.randint(0, 1 + whole.progress().now_ns) for _ in range(2)):
            streamed.run(until_ns=until)
        assert streamed.run() == "finished"
        result = streamed.result()
        assert not len(result.steps["time_ns"])
        assert (result.events is None) == (not log.events)
        written = dataclasses.replace(
            result, steps=steps.columns(), events=events.columns() if log.events else None
        )
        assert_equal(written, out.columns(), expected)
        indices = np.concatenate([part["index"] for part in out.parts])
        assert (np.diff(indices) > 0).all()


def test_what_needs_all_requests_is_refused(tmp_path: Path) -> None:
    builder = WorkloadBuilder(vocab_size=100)
    for arrival in (5, 3):
        builder.add([arrival], [9], output_len=2, arrival=arrival)
    spool = spool_workload(builder.build(), tmp_path)
    with pytest.raises(InputError, match="not in order"):
        check_streamable(sorted_case(1).engine, spool)


CONFIG = """\
name: little
engine: {num_gpu_blocks: 257, max_model_len: 1024, max_num_seqs: 16, max_num_batched_tokens: 512}
step_time: {kind: affine, overhead: 5ms, prefill_token: 20us, decode_sequence: 100us}
workload:
  kind: chat
  arrivals: {kind: poisson, rate: 6}
  num_sessions: 300
  system_len: 200
  output_len: 20
  max_context: 900
  think_time: {kind: lognormal, mean: 2s, cv: 1.0}
run: {warmup: 5s}
output: {plots: false}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config, in an empty folder, of a run that takes a second."""
    file = tmp_path / "little.yaml"
    file.write_text(CONFIG)
    return file


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sim", "run", *arguments]


@pytest.mark.parametrize("logs", [[], ["--every-step", "--events"]], ids=["samples", "every step"])
def test_files_are_those_of_a_run_in_memory(
    config: Path, tmp_path: Path, logs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # several row groups
    monkeypatch.setattr("sim.results.ROW_GROUP", 500)
    more = ["--quiet", "--set", "output.plots=true", *logs]
    for name, flag in (("streamed", "--stream"), ("whole", "--no-stream")):
        result = CliRunner().invoke(
            cli.main, ["run", str(config), flag, *more, "--out", str(tmp_path / name)]
        )
        assert result.exit_code == 0, result.output
    names = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["little.yaml", "streamed", "whole"]
    for name in names:
        a, b = (tmp_path / run / name for run in ("streamed", "whole"))
        if name.name == "summary.json":
            left, right = json.loads(a.read_text()), json.loads(b.read_text())
            means = [left["latency"].pop(kind)["mean"] for kind in list(left["latency"])]
            assert means == pytest.approx([right["latency"].pop(k)["mean"] for k in list(right["latency"])])
            assert left == right
        elif name.name != "provenance.json":
            assert a.read_bytes() == b.read_bytes(), name
    record = [json.loads((tmp_path / run / "provenance.json").read_text()) for run in ("streamed", "whole")]
    assert record[0]["content_id"] == record[1]["content_id"]
    digest = hashlib.sha256((tmp_path / "streamed" / "requests.parquet").read_bytes()).hexdigest()
    assert record[0]["files"]["requests.parquet"] == digest


def test_kill_leaves_no_result_and_the_next_run_clears_up(config: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of a streamed run: nothing under the final name."""
    long = ["--set", "workload.num_sessions=20000", "--stream", "--out", str(tmp_path / "r")]
    process = subprocess.Popen(command(str(config), *long), stderr=subprocess.DEVNULL)
    while process.poll() is None and not any(tmp_path.glob(".r.stream-*/*")):
        time.sleep(0.01)
    assert process.poll() is None
    process.kill()
    process.wait()
    assert not (tmp_path / "r").exists()
    left = [p for p in tmp_path.iterdir() if p.name.startswith(".r.stream-")]
    assert len(left) == 1
    result = CliRunner().invoke(
        cli.main, ["run", str(config), "--stream", "-q", "--out", str(tmp_path / "r")]
    )
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["little.yaml", "r"]


def test_full_disk_gives_one_message(config: Path, tmp_path: Path) -> None:
    """Files may not grow beyond a limit, which the operating system tells like a full disk."""
    limited = (
        f"import resource, runpy, signal, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));\
signal.signal(signal.SIGXFSZ, signal.SIG_IGN); sys.argv = ['sim', 'run', {str(config)!r}, '--stream', '-q',\
'--out', {str(tmp_path / 'r')!r}]; runpy.run_module('sim', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("the results can't be written") == 1
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["little.yaml"]


def test_a_fleet_is_not_streamed(config: Path, tmp_path: Path) -> None:
    more = ["--set", "replicas=2", "--out", str(tmp_path / "r")]
    result = CliRunner().invoke(cli.main, ["run", str(config), "--stream", *more])
    assert result.exit_code == 2
    assert "--stream: a fleet keeps its requests in memory" in result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["little.yaml"]
