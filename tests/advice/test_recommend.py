"""`python -m sim recommend` on small simulations."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sim.cli import main

#: Steps cost 5 ms and 10 us a prefilled token: with 32 tokens a step, prompts of 400 take far too many steps.
CONFIG = """
engine:
  block_size: 16
  num_gpu_blocks: 1200
  max_num_seqs: 32
  max_num_batched_tokens: {tokens}
  max_model_len: 2048
step_time: {{kind: affine, overhead: 5ms, prefill_token: 10us, decode_sequence: 20us, context_token: 0ns}}
workload:
  kind: random
  arrivals: {{kind: poisson, rate: 6}}
  num_requests: 40
  prompt_len: {{kind: uniform, mean: 400, range_ratio: 0.5}}
  output_len: {{kind: uniform, mean: 20, range_ratio: 0.5}}
output: {{plots: false}}
"""

TRACE = """{"timestamp": 0, "input_length": 300, "output_length": 20, "hash_ids": [1]}
{"timestamp": 10, "input_length": 400, "output_length": 20, "hash_ids": [2]}
{"timestamp": 30, "input_length": 500, "output_length": 20, "hash_ids": [3]}
"""


def write(folder: Path, tokens: int) -> str:
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(tokens=tokens))
    return str(path)


def recommend(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["recommend", *arguments, "-q", "-j1"])


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Advice on a config whose max_num_batched_tokens is far too small."""
    folder = tmp_path_factory.mktemp("planted")
    result = recommend(write(folder, 32), "--json", "--seeds", "4", "--out", str(folder / "out"))
    assert result.exit_code == 0, result.output
    data: dict[str, Any] = json.loads(result.stdout)
    assert json.loads((folder / "out" / "recommendation.json").read_text()) == data
    data["recommended"] = str(folder / "out" / "recommended.yaml")
    data["text"] = (folder / "out" / "recommendation.txt").read_text()
    return data


def test_planted_improvement_is_found_and_confirmed(planted: dict[str, Any]) -> None:
    assert planted["verdict"] == "change"
    change = planted["changes"]["max_num_batched_tokens"]
    assert change["from"] == 32
    assert change["to"] >= 128
    gain = next(a for a in planted["advice"] if a["kind"] == "gain")["evidence"][0]
    assert gain["seeds"] == planted["plan"]["confirmation_seeds"]
    assert not set(gain["seeds"]) & set(planted["plan"]["screening_seeds"])
    assert gain["interval"][1] < 0


def test_every_sentence_is_backed_by_the_simulations_listed(planted: dict[str, Any]) -> None:
    runs = {
        (json.dumps(r["changes"], sort_keys=True), r["seed"]): r["metrics"] for r in planted["simulations"]
    }

    def of(changes: dict[str, Any], seed: int, metric: str) -> float:
        key = json.dumps({k: v["to"] for k, v in changes.items()}, sort_keys=True)
        return float(runs[key, seed][metric])

    assert planted["advice"]
    for sentence in planted["advice"]:
        assert sentence["evidence"], sentence["text"]
        for e in sentence["evidence"]:
            for side in ("before", "after"):
                values = [of(e[side], seed, e["metric"]) for seed in e["seeds"]]
                assert e[f"mean_{side}"] == pytest.approx(sum(values) / len(values))
            assert e["difference"] == pytest.approx(e["mean_after"] - e["mean_before"])
            assert e["interval"][0] <= e["difference"] <= e["interval"][1]


def test_text_shows_the_same_advice_and_flags(planted: dict[str, Any]) -> None:
    flat = " ".join(planted["text"].split())
    for sentence in planted["advice"]:
        assert sentence["text"] in flat
    assert f"vllm serve ... {shlex.join(planted['vllm_serve'])}" in planted["text"]


def test_recommended_config_runs_and_gives_the_metrics_shown(planted: dict[str, Any], tmp_path: Path) -> None:
    arguments = ["run", planted["recommended"], "--seed", str(planted["plan"]["confirmation_seeds"][0])]
    result = CliRunner().invoke(main, [*arguments, "--json", "-q", "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    gain = next(a for a in planted["advice"] if a["kind"] == "gain")["evidence"][0]
    changes = {k: v["to"] for k, v in gain["after"].items()}
    shown = next(
        r for r in planted["simulations"] if r["changes"] == changes and r["seed"] == gain["seeds"][0]
    )
    assert json.loads(result.stdout)["latency"]["e2e_s"]["mean"] == shown["metrics"]["e2e_s.mean"]


def test_a_fleet_is_simulated_as_one(tmp_path: Path) -> None:
    config = Path(write(tmp_path, 256))
    config.write_text(config.read_text() + "replicas: 2\nrouter: round_robin\n")
    result = recommend(str(config), "--seeds", "2", "--runs", "8", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert "simulated: 2 replicas behind round_robin; settings and flags are those of" in result.stdout
    data = json.loads((tmp_path / "out" / "recommendation.json").read_text())
    assert data["replicas"] == 2
    base = next(s for s in data["simulations"] if not s["changes"] and s["seed"] == 0)
    folder = tmp_path / "run"
    assert CliRunner().invoke(main, ["run", str(config), "-q", "--out", str(folder)]).exit_code == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["fleet"]["replicas"] == 2
    assert base["metrics"]["e2e_s.mean"] == summary["latency"]["e2e_s"]["mean"]


def test_config_at_its_optimum_is_kept(tmp_path: Path) -> None:
    result = recommend(write(tmp_path, 2048), "--seeds", "4", "--min-gain", "0.02", "--json")
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert data["verdict"] == "keep"
    assert data["vllm_serve"] == []
    assert data["advice"][0]["text"].startswith("Keep what you have")


def test_workers_change_no_byte(tmp_path: Path) -> None:
    config = write(tmp_path, 128)
    few = ("--seeds", "2", "--runs", "12", "--json")
    alone = recommend(config, *few)
    together = CliRunner().invoke(main, ["recommend", config, *few, "-q", "-j2"])
    assert alone.exit_code == together.exit_code == 0
    assert alone.stdout == together.stdout


def test_trace_is_said_to_give_no_confidence(tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_text(TRACE)
    engine, _, _ = CONFIG.format(tokens=32).partition("workload:")
    path = tmp_path / "trace.yaml"
    path.write_text(engine + "workload: {kind: trace, path: trace.jsonl, format: mooncake}\n")
    result = recommend(str(path))
    assert result.exit_code == 0, result.output
    flat = " ".join(result.stdout.split())
    assert "CHANGE" in flat
    assert "no confidence can be given" in flat
    assert "interval -" not in flat


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objective", "ttft_s.p9"], "did you mean 'ttft_s.p99'"),
        (["--constraint", "ttft_s.p99=2"], "expected METRIC<=NUMBER"),
        (["--constraint", "ttft_s.p99<=fast"], "'fast' is not a number"),
        (["--set", "engine.block_sze=8"], "block_size"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_two(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = recommend(write(tmp_path, 128), *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
