"""A short replay on a whole real vLLM engine, in real time; `make validate` runs it."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.validation.replay_fakes import write_config
from validation.cli import main
from validation.replay.http_replay import OUTPUT_KEY

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# torch and vllm warn of their own affairs, while they are imported and while they run
pytestmark = pytest.mark.filterwarnings("ignore")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip(
        "vllm.v1.core.block_pool", reason="no vLLM in this environment: `make validate` runs these tests"
    )

ENGINE = """
name: short
seed: 4
engine:
  block_size: 32
  num_gpu_blocks: 14
  max_num_seqs: 6
  max_num_batched_tokens: 128
  max_model_len: 384
  async_scheduling: false
  policy: POLICY
"""
SESSIONS = """
workload:
  kind: chat
  arrivals: {kind: poisson, rate: 40}
  num_sessions: 14
  personas: 2
  system_len: 40
  user_len: 30
  output_len: {kind: uniform, low: 5, high: 60}
  max_tokens: 50
  turns: 2.0
  think_time: 30ms
  max_context: 330
"""
CLOSED_LOOP = """
workload:
  kind: random
  arrivals: {kind: closed_loop, clients: 8}
  num_requests: 24
  prompt_len: {kind: uniform, low: 20, high: 390}
  output_len: 12
"""


@pytest.mark.parametrize(
    ("policy", "workload"), [("fcfs", SESSIONS), ("priority", CLOSED_LOOP)], ids=["sessions", "closed_loop"]
)
def test_a_real_engine_in_real_time(tmp_path: Path, policy: str, workload: str) -> None:
    config = write_config(tmp_path, ENGINE.replace("POLICY", policy) + workload)
    out = tmp_path / "out"
    done = CliRunner().invoke(main, ["replay", "--device", "cpu", str(config), "--out", str(out)])
    assert done.exit_code == 0, done.output
    report = json.loads((out / "report.json").read_text())
    assert report["rules"]["equal"]
    assert report["recorded_steps"]["equal"]
    assert report["rules"]["rows"] > 100
    assert report["recorded_on"]["software"]["vllm"] == "0.32.0"
    sent = report["workload"]
    assert sent["finished"] + sent["rejected"] == sent["sent"] == sent["requests"]
    for c in report["curves"].values():
        assert c["recorded"]["max_gap"] == 0
        assert "fitted" in c
    for by in report["latency"].values():
        assert by["real"] == by["recorded"]


def test_the_key_of_forced_outputs() -> None:
    from validation import vllm_forced_output

    assert vllm_forced_output.OUTPUT_KEY == OUTPUT_KEY
