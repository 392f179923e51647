"""`compare --profiles`: one config under several releases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sim.cli import main
from sim.report.folder import RunFolder
from sim.report.rules_table import features
from sim.switches import FEATURES, SWITCHES

CONFIG = """\
name: upgrade
engine:
  num_gpu_blocks: 40
  max_model_len: 200
  max_num_seqs: 8
  watermark: 0.05
step_time: {kind: constant, step: 0.01}
workload:
  kind: random
  num_requests: 30
  arrivals: {kind: poisson, rate: 60}
  prompt_len: 60
  output_len: 50
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(CONFIG)
    return "a.yaml"


def test_an_upgrade_is_shown(config: str) -> None:
    done = CliRunner().invoke(
        main, ["compare", "--profiles", "0.14,0.25", config, "--format", "json", "--runs", "r"]
    )
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    sections = {s["key"]: s for s in document["sections"]}
    rules = {row[0]: row[1:3] for row in sections["rules"]["parts"][0]["rows"]}
    assert rules["free_order"] == ["append", "split"]
    assert not {"group_ratio", "state_tables", "priority_mode", "draft_slots"} & set(rules)
    note = "".join(sections["rules"]["parts"][1]["text"])
    assert "more rules differ, about what these engines don't have: the priority policy" not in note
    assert note.endswith("Mamba states, drafts, an encoder.")
    configs = {row[0]: row[1:] for row in sections["configs"]["parts"][0]["rows"]}
    assert configs["engine.watermark"] == ["0.0", "0.05"]
    assert "vLLM 0.14 has no watermark (since 0.24): left out there" in done.stderr
    old, new = (json.loads(Path(f"r/{r}/summary.json").read_text()) for r in ("0.14", "0.25"))
    assert (old["engine"]["vllm"], new["engine"]["vllm"]) == ("0.14", "0.25")
    provenance = json.loads(Path("r/0.14/provenance.json").read_text())
    assert (provenance["vllm_profile"], provenance["vllm_switches"]) == ("0.14", {})


@pytest.mark.parametrize(
    ("summary", "engine", "expected"),
    [
        ({"kv_cache_groups": ["full"]}, {"enable_prefix_caching": True}, {"caching"}),
        (
            {"kv_cache_groups": ["full", "mamba"]},
            {"num_speculative_tokens": 2, "policy": "priority", "async_scheduling": False},
            {"groups", "states", "sparse", "drafts", "priority"},
        ),
        (
            {"kv_cache_groups": ["sliding_window"], "model": "mistral-7b-v0.1", "gpu": "b200"},
            {"kv_cache_groups": "auto", "watermark": 0.1},
            {"windows", "sparse", "model", "huge", "watermark"},
        ),
        ({"kv_cache_groups": ["full"], "model": "deepseek-v3"}, {"policy": "fcfs"}, {"latent", "model"}),
        ({"kv_cache_groups": ["full", "cross_attention"]}, {"x": 0}, {"encoder", "groups"}),
        ({}, {"policy": "fcfs"}, None),
    ],
)
def test_what_an_engine_has(
    summary: dict[str, object], engine: dict[str, object], expected: set[str] | None
) -> None:
    run = RunFolder(Path("r"), {"engine": summary}, {}, {"engine": engine}, {})
    assert features(run) == expected


def test_what_rules_concern_is_known() -> None:
    assert {name for switch in SWITCHES for name in switch.concerns} == set(FEATURES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profiles", "0.14,0.52"], "--profiles: no vLLM release '0.52'"),
        (["--profiles", "0.14"], "--profiles: there is nothing to compare"),
        (["--seeds", "2"], "compare: --seeds is for --profiles A,B CONFIG"),
        (
            ["--profiles", "0.14,0.25", "--set", "engine.switches.free_oder=append"],
            "unknown key 'engine.switches.free_oder'",
        ),
    ],
)
def test_mistakes(config: str, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["compare", *arguments, config])
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_run_names_its_switches(config: str) -> None:
    done = CliRunner().invoke(
        main,
        [
            "run",
            config,
            "--set",
            "engine.vllm=0.30",
            "--set",
            "engine.switches.free_order=append",
            "--no-plots",
        ],
    )
    assert done.exit_code == 0, done.output
    assert "vLLM 0.30 with free_order=append" in done.stdout
