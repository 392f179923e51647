"""Fleets from the command line: result files, summary, report, comparison, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from sim import cli

CONFIG = """\
name: little
replicas: 3
router: {kind: prefix_affinity}
engine: {num_gpu_blocks: 129, max_model_len: 1024, max_num_seqs: 8, max_num_batched_tokens: 512}
step_time: {kind: affine, overhead: 5ms, prefill_token: 20us, decode_sequence: 100us}
workload:
  kind: chat
  arrivals: {kind: poisson, rate: 12}
  personas: 6
  num_sessions: 25
  system_len: 200
  output_len: 20
  max_context: 900
  think_time: {kind: lognormal, mean: 2s, cv: 1.0}
output: {plots: false}
"""


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(cli.main, list(arguments), catch_exceptions=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same traffic behind two routers, with plots for the first."""
    folder = tmp_path_factory.mktemp("fleet")
    config = folder / "little.yaml"
    config.write_text(CONFIG)
    out = {}
    for name, more in (("prefix", ["--set", "output.plots=true", "--events"]), ("turns", [])):
        router = [] if name == "prefix" else ["--set", "router=round_robin"]
        out[name] = folder / name
        result = invoke("run", str(config), "--out", str(out[name]), *router, *more)
        assert result.exit_code == 0, result.output
    out["config"] = config
    return out


def columns(run: Path, name: str) -> dict[str, np.ndarray]:
    table = pq.read_table(run / name)
    return {column: table.column(column).to_numpy() for column in table.column_names}


def test_result_files_name_the_replica(runs: dict[str, Path]) -> None:
    run = runs["prefix"]
    summary = json.loads((run / "summary.json").read_text())
    fleet = summary["fleet"]
    requests = columns(run, "requests.parquet")
    assert np.bincount(requests["replica"]).tolist() == [p["requests"] for p in fleet["per_replica"]]
    steps, parts = columns(run, "steps.parquet"), columns(run, "replica_steps.parquet")
    assert set(parts) == {"replica", *steps}
    last = [parts["prefix_hits"][parts["replica"] == k][-1] for k in range(3)]
    assert steps["prefix_hits"][-1] == sum(last) == summary["prefix_cache"]["first_lookup_hit_tokens"]
    assert set(columns(run, "events.parquet")["replica"]) == {0, 1, 2}
    assert summary["engine"]["usable_blocks"] == 3 * 128
    assert fleet["usable_blocks_per_replica"] == 128
    assert sum(p["preemptions"] for p in fleet["per_replica"]) == summary["preemptions"]["preemptions"]
    assert (run / "plots" / "fleet.png").read_bytes()[:4] == b"\x89PNG"
    for name in ("replica_steps.parquet", "requests.parquet"):
        field = pq.read_schema(run / name).field("replica")
        assert b"replica" in field.metadata[b"description"]


def test_the_run_folder_gives_the_same_bytes_again(runs: dict[str, Path], tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert invoke("run", str(runs["turns"] / "config.yaml"), "--out", str(again)).exit_code == 0
    names = [p.name for p in runs["turns"].iterdir() if p.is_file() and p.name != "provenance.json"]
    for name in sorted(names):
        assert (again / name).read_bytes() == (runs["turns"] / name).read_bytes(), name


def test_one_replica_gives_the_bytes_of_no_fleet(runs: dict[str, Path], tmp_path: Path) -> None:
    plain = tmp_path / "little.yaml"
    plain.write_text(
        "\n".join(line for line in CONFIG.splitlines() if not line.startswith(("replicas", "router")))
    )
    with_keys, without = tmp_path / "with", tmp_path / "without"
    more = ("--set", "replicas=1")
    assert invoke("run", str(runs["config"]), *more, "--out", str(with_keys)).exit_code == 0
    assert invoke("run", str(plain), "--out", str(without)).exit_code == 0
    names = sorted(p.name for p in without.iterdir() if p.is_file())
    assert names == sorted(p.name for p in with_keys.iterdir() if p.is_file())
    for name in names:
        if name != "provenance.json":
            assert (with_keys / name).read_bytes() == (without / name).read_bytes(), name


def test_terminal_report_and_comparison_tell_of_the_fleet(runs: dict[str, Path], tmp_path: Path) -> None:
    said = invoke("run", str(runs["config"]), "--out", str(tmp_path / "r"))
    assert "fleet               3 replicas of 128 blocks behind prefix_affinity" in said.output
    assert max(len(line) for line in said.stdout.splitlines()) <= 80
    report = invoke("report", str(runs["prefix"]), "--format", "json")
    data = json.loads(report.stdout)
    section = next(s for s in data["sections"] if s["key"] == "fleet")
    table = next(p for p in section["parts"] if p.get("key") == "replicas")
    assert len(table["rows"]) == 3
    compared = invoke("compare", str(runs["turns"]), str(runs["prefix"]))
    assert compared.exit_code == 0
    assert "fleet: copies of a cached block" in compared.stdout
    hits = [json.loads((runs[n] / "summary.json").read_text())["prefix_cache"] for n in ("turns", "prefix")]
    assert hits[1]["first_lookup_token_hit_rate"] > hits[0]["first_lookup_token_hit_rate"]


@pytest.mark.parametrize(
    ("overrides", "message", "hint"),
    [
        (["replicas=0"], "'replicas' must be", ""),
        (["router=prefix_afinity"], "'router.kind' must be one of", "prefix_affinity"),
        (["router.stats_intervall=1ms"], "unknown key 'router.stats_intervall'", "stats_interval"),
        (["router.queue_weight=-1"], "'router.queue_weight' must be", ""),
    ],
)
def test_bad_keys_are_told(
    runs: dict[str, Path], tmp_path: Path, overrides: list[str], message: str, hint: str
) -> None:
    more = [x for o in overrides for x in ("--set", o)]
    result = invoke("run", str(runs["config"]), *more, "--out", str(tmp_path / "r"))
    assert result.exit_code == 2
    assert message in result.output
    assert hint in result.output
    assert not (tmp_path / "r").exists()


def test_what_needs_one_engine_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    looked = invoke("layout", str(runs["prefix"]), "--ascii")
    assert looked.exit_code == 2
    assert "here are 3 replicas" in looked.output
    logical = tmp_path / "w.jsonl"
    row = {"request_id": "a", "arrival_step": 0, "prompt_token_ids": [1, 2], "output_token_ids": [3]}
    logical.write_text(json.dumps(row) + "\n")
    config = tmp_path / "logical.yaml"
    head = CONFIG.split("workload:", maxsplit=1)[0]
    config.write_text(head + "workload: {kind: trace, path: w.jsonl, format: logical}\n")
    result = invoke("run", str(config), "--out", str(tmp_path / "r"))
    assert result.exit_code == 2
    assert f"{config}:2:11: the workload counts engine steps" in result.output
