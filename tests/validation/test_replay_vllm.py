"""A short replay on a whole real vLLM engine, in real time; `make validate` runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.engine_settings import EngineSettings
from tests.validation.replay_fakes import FakeClock, write_config
from validation.logical import LogicalRequest
from validation.replay.client import drive
from validation.replay.engine import EnginePort
from validation.replay.http_replay import OUTPUT_KEY
from validation.replay.plan import load_plan, logical_request
from validation.replay.recording import Recording
from validation.replay.simulated import check_rules, with_recorded_steps
from validation.vllm_scheduler import SchedulerLoop

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


class TimedScheduler(SchedulerLoop):
    """vLLM's scheduler with no model; a batch takes 1 ms and 10 us a token, one batch after the other."""

    def __init__(
        self, settings: EngineSettings, requests: Sequence[LogicalRequest], clock: FakeClock
    ) -> None:
        super().__init__(settings, requests)
        self.clock = clock
        self.new_tokens: dict[str, int] = {}
        self.done = 0
        self.ends: dict[int, int] = {}

    def _schedule(self) -> tuple[Any, frozenset[str]]:
        batch, sampling = super()._schedule()
        took = 1_000_000 + 10_000 * batch.total_num_scheduled_tokens
        self.done = max(self.done, self.clock.ns) + (took if batch.total_num_scheduled_tokens else 0)
        self.ends[id(batch)] = self.done
        return batch, sampling

    def _update(self, batch: Any, sampling: frozenset[str]) -> bool:
        self.clock.ns = max(self.clock.ns, self.ends.pop(id(batch)))
        return super()._update(batch, sampling)

    def _next_tokens(self, request_id: str, num_drafts: int) -> list[int]:
        if request_id in self.scheduler.requests:
            self.new_tokens[request_id] = 1
        return super()._next_tokens(request_id, num_drafts)


@pytest.mark.parametrize(
    ("policy", "workload"), [("fcfs", SESSIONS), ("priority", CLOSED_LOOP)], ids=["sessions", "closed_loop"]
)
def test_a_real_engine_in_real_time(tmp_path: Path, policy: str, workload: str) -> None:
    config = write_config(tmp_path, ENGINE.replace("POLICY", policy) + workload)
    out = tmp_path / "out"
    # A process each: vLLM 0.32.0 can't make an engine where llvmlite, which the simulator needs, is loaded
    # (register_kernels looks into every module's objects, and llvmlite's library object answers to any name).
    command = [
        sys.executable,
        "-m",
        "validation",
        "replay",
        "--device",
        "cpu",
        str(config),
        "--out",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
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
        assert by["real"] == pytest.approx(by["recorded"], rel=1e-12)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("workload", [SESSIONS, CLOSED_LOOP], ids=["sessions", "closed_loop"])
def test_a_real_scheduler_with_steps_that_take_their_time(
    tmp_path: Path, workload: str, asynchronous: bool
) -> None:
    """The same loop around vLLM's scheduler with no model: asynchronous scheduling needs no GPU here."""
    text = (ENGINE.replace("POLICY", "fcfs") + workload).replace("block_size: 32", "block_size: 16")
    text = text.replace("num_gpu_blocks: 14", "num_gpu_blocks: 27")
    plan = load_plan(write_config(tmp_path, text), [f"engine.async_scheduling={asynchronous}"], None, 4096)
    requests = [logical_request(plan.workload, i) for i in range(len(plan.workload))]
    clock = FakeClock()
    loop = TimedScheduler(plan.settings, requests, clock)
    port = EnginePort(requests, loop, clock)
    rejected = np.array([plan.is_rejected(i) for i in range(len(plan.workload))])
    sent = drive(plan.workload, rejected, port, clock)
    timeline, batches, table = port.tables(sent)
    recording = Recording("engine", timeline, table, batches, loop.recorder.log, sent.order, {})
    rules = check_rules(plan, recording)
    assert rules.equal, rules.summary()
    steps = with_recorded_steps(plan, recording)
    assert (steps.equal, steps.first) == (steps.rows, None)
    at = [int(np.flatnonzero(table["index"] == i)[0]) for i in sent.order]
    for column in ("first_scheduled_ns", "first_token_ns", "finish_ns", "output_tokens", "preemptions"):
        assert (table[column][at] == steps.run.requests[column]).all(), column


def test_the_key_of_forced_outputs() -> None:
    from validation import vllm_forced_output

    assert vllm_forced_output.OUTPUT_KEY == OUTPUT_KEY
