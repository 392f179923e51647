"""A replica of a fleet, simulated alone from what it was sent, and the commands that look into one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import cli
from sim.analysis.handoffs import check_source
from sim.errors import InputError
from sim.fleet.replica import ReplicaSimulation, replica_workload
from sim.fleet.simulate import FleetSimulation
from tests.core.test_core_cuts import assert_equal_results
from tests.fleet.test_fleet_core import draw_fleet

LONG_NS = 10_000_000
CONFIG = """\
name: three
replicas: 3
router: least_loaded
engine: {num_gpu_blocks: 129, max_model_len: 1024, max_num_seqs: 8, max_num_batched_tokens: 256}
step_time: {kind: affine, overhead: 5ms, prefill_token: 20us, decode_sequence: 100us}
workload:
  kind: chat
  arrivals: {kind: poisson, rate: 20}
  num_sessions: 120
  system_len: 100
  output_len: 20
  max_context: 700
  think_time: {kind: lognormal, mean: 2s, cv: 1.0}
output: {plots: false}
"""


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_alone_it_gives_what_it_gave_in_the_fleet(seed: int) -> None:
    case, fleet = draw_fleet(seed, events=True)
    simulation = FleetSimulation(*case, fleet, seed)
    if simulation.run(LONG_NS) != "finished":
        return  # requests that preempt themselves for ever
    whole = simulation.result()
    end = whole.totals["now_ns"]
    # whoever is released at the instant of an end may come behind another replica's phase of that instant
    ends = set(whole.requests["finish_ns"].tolist())
    released = case.workload.arrival[whole.requests["index"]] < 0
    if ends & set(whole.requests["arrival_ns"][released].tolist()):
        return
    for part in whole.replicas:
        index = part.requests["index"]
        if not len(index):
            with pytest.raises(InputError, match="was sent no request"):
                replica_workload(case.workload, index, part.requests["arrival_ns"])
            continue
        workload = replica_workload(case.workload, index, part.requests["arrival_ns"])
        workload.validate()
        alone = ReplicaSimulation(case.engine, workload, case.step_time, case.log, end)
        half = ReplicaSimulation(case.engine, workload, case.step_time, case.log, end)
        alone.run()
        half.run(end // 2)
        half.run(end)
        half.run()
        result = alone.result()
        assert_equal_results(half.result(), result)
        # numbers of requests are those of the fleet
        result.requests["index"] = index[result.requests["index"]]
        assert result.events is not None
        named = result.events["request"] >= 0
        result.events["request"][named] = index[result.events["request"][named]]
        del part.requests["replica"]
        assert_equal_results(result, part)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fleet's run."""
    base = tmp_path_factory.mktemp("fleet")
    (base / "three.yaml").write_text(CONFIG)
    invoke("run", str(base / "three.yaml"), "-q", "--out", str(base / "r"))
    return base / "r"


def invoke(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli.main, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


def test_report_is_that_of_the_replica(run: Path) -> None:
    report: dict[str, Any] = json.loads(
        invoke("report", str(run), "--replica", "1", "-q", "--format", "json")
    )
    requests = pq.read_table(run / "requests.parquet").to_pydict()
    ours = [i for i, k in zip(requests["index"], requests["replica"], strict=True) if k == 1]
    text = json.dumps(report)
    assert f"{len(ours)} requests" in text
    assert "three, replica 1" in text
    assert "pool_map" in text
    assert "The fleet" not in text
    # requests keep the names that they have in the fleet
    table = next(s for s in report["sections"] if s["key"] == "requests")
    names = {f"r{i}" for i in ours}
    worst = next(p for p in table["parts"] if p.get("key") == "worst_requests")
    assert worst["rows"]
    assert {row[0] for row in worst["rows"]} <= names


def test_layout_and_export_take_a_replica(run: Path, tmp_path: Path) -> None:
    assert "128 blocks" in invoke("layout", str(run), "--replica", "2", "--ascii")
    invoke("export", str(run), "--replica", "0", "--format", "parquet", "--out", str(tmp_path / "t"))
    exported = pq.read_table(tmp_path / "t" / "steps.parquet")
    stored = pq.read_table(run / "replica_steps.parquet").to_pydict()
    keep = np.array(stored["replica"]) == 0
    for name in ("time_ns", "used_blocks", "free_runs"):
        assert exported[name].to_pylist() == np.array(stored[name])[keep].tolist()
    text = invoke("export", str(run), "--replica", "2", "--format", "metrics", "--out", "-")
    assert 'model_name="three",engine="2"' in text
    resolved, workload = check_source(str(run), replica=1)
    requests = pq.read_table(run / "requests.parquet").to_pydict()
    assert len(workload) == requests["replica"].count(1)
    assert resolved.fleet is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "--replica", "3"], "there is no replica 3 hint: give --replica 0 to 2"),
        (["report", "--replica", "1", "--no-rerun"], "leave out --no-rerun"),
        (["layout"], "here are 3 replicas hint: name one with --replica N, from 0"),
        (["export", "--format", "csv"], "here are 3 replicas hint: name one with --replica N, from 0"),
        (["descriptors"], "here are 3 replicas hint: name one with --replica N, from 0"),
        (["descriptors", "--replica", "1", "--seed", "3"], "--replica"),
    ],
)
def test_what_is_refused(run: Path, arguments: list[str], message: str) -> None:
    output = invoke(arguments[0], str(run), *arguments[1:], code=2)
    assert message in " ".join(output.split())
    assert "Traceback" not in output


def test_one_engine_has_no_replicas(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(CONFIG)
    more = ["--set", "replicas=1", "--set", "workload.num_sessions=5"]
    invoke("run", str(tmp_path / "one.yaml"), "-q", *more, "--out", str(tmp_path / "r"))
    output = invoke("layout", str(tmp_path / "r"), "--replica", "0", code=2)
    assert "this is the run of one engine\n  hint: leave out --replica" in output
