"""`compare --profiles`: one config under several releases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sim.cli import main
from sim.profiles import SWITCHES
from sim.report.rules_table import _NEEDS, features

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
    assert not {"group_ratio", "draft_slots", "state_wait"} & set(rules)
    note = sections["rules"]["parts"][1]["text"]
    assert note.startswith(
        "Further rules differ that need what these configs do not have: windows or chunks ("
    )
    assert "drafts (" in note
    assert "state_wait" in note
    assert "group_ratio" in note
    configs = {row[0]: row[1:] for row in sections["configs"]["parts"][0]["rows"]}
    assert configs["engine.watermark"] == ["0.0", "0.05"]
    assert "vLLM 0.14 has no watermark (since 0.24): left out there" in done.stderr
    old, new = (json.loads(Path(f"r/{r}/summary.json").read_text()) for r in ("0.14", "0.25"))
    assert (old["engine"]["vllm"], new["engine"]["vllm"]) == ("0.14", "0.25")
    provenance = json.loads(Path("r/0.14/provenance.json").read_text())
    assert (provenance["vllm_profile"], provenance["vllm_switches"]) == ("0.14", {})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"engine.kv_cache_groups": [{"type": "full"}]}, set()),
        (
            {
                "engine.kv_cache_groups": [{"type": "full"}, {"type": "mamba"}],
                "engine.num_speculative_tokens": 0,
            },
            {"Mamba states", "several KV-cache groups"},
        ),
        ({"engine.kv_cache_groups": "auto", "model": None, "engine.num_speculative_tokens": 0}, set()),
        ({"engine.kv_cache_groups": "auto", "model": "llama-3.1-8b"}, set()),
        ({"engine.kv_cache_groups": "auto", "model": "mistral-7b-v0.1"}, {"windows or chunks"}),
        (
            {"model": "openai/gpt-oss-20b", "engine.num_speculative_tokens": 2},
            {"windows or chunks", "several KV-cache groups", "drafts"},
        ),
        ({"model": "whisper-large-v3"}, {"an encoder", "several KV-cache groups"}),
        ({"model": "gone/config.json"}, None),
        ({}, None),
    ],
)
def test_what_a_config_has(config: dict[str, object], expected: set[str] | None) -> None:
    assert features(config) == expected


def test_every_rule_with_a_need_is_one_of_the_table() -> None:
    names = [s.name for s in SWITCHES]
    assert all(any(n.startswith(start) for n in names) for start in _NEEDS)


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
