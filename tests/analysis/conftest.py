"""A run folder that several tests read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sim.runner import RunOptions, run

CONFIG = """\
name: small
seed: 3
engine: {num_gpu_blocks: 90, max_num_seqs: 32, max_model_len: 1024, max_num_batched_tokens: 512}
step_time: {kind: constant, step: 10ms}
workload:
  kind: random
  arrivals: {kind: poisson, rate: 8}
  num_requests: 60
  prompt_len: {kind: uniform, mean: 120, range_ratio: 0.5}
  output_len: {kind: uniform, mean: 60, range_ratio: 0.5}
output: {sample_period: 37ms, plots: false}
"""


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs a config text with overrides into a new folder."""

    def make(*overrides: str, text: str = CONFIG) -> Path:
        place = tmp_path_factory.mktemp("run")
        config = place / "small.yaml"
        config.write_text(text)
        outcome = run(str(config), RunOptions(overrides=overrides, out=str(place / "out"), quiet=True))
        outcome.write()
        return outcome.folder

    return make


@pytest.fixture(scope="session")
def run_folder(make_run: Callable[..., Path]) -> Path:
    """A run in which the pool is short: refusals and preemptions occur. Not to be changed."""
    return make_run()
