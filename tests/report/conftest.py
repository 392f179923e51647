"""Small runs whose pools can be followed by hand, made once for the tests of reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim import runner

# Requests of two to eight blocks in a pool of 16 usable blocks of 4 tokens. A step lasts 1 s and a request
# arrives every 2 s: the pool is first filled in order, then has holes, and the last requests have to wait.
SMALL = """\
name: small
seed: {seed}
engine:
  block_size: 4
  num_gpu_blocks: {blocks}
  max_num_seqs: 4
  max_num_batched_tokens: 64
  max_model_len: 64
  async_scheduling: false
step_time: {{kind: constant, step: 1s}}
workload:
  kind: random
  num_requests: 12
  arrivals: {{kind: constant, rate: 0.5}}
  prompt_len: {{kind: uniform, low: 5, high: 20}}
  output_len: {{kind: uniform, low: 4, high: 12}}
output: {{plots: false, every_step: true}}
"""


def make_run(folder: Path, seed: int = 0, blocks: int = 17) -> Path:
    """Simulate the small config into `folder`/run-SEED-BLOCKS."""
    config = folder / f"small-{seed}-{blocks}.yaml"
    config.write_text(SMALL.format(seed=seed, blocks=blocks), encoding="utf-8")
    out = folder / f"run-{seed}-{blocks}"
    runner.run(str(config), runner.RunOptions(out=str(out), quiet=True)).write()
    return out


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def seeded_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Path]:
    """(seed, blocks) -> run folder: two configs with three seeds each."""
    folder = tmp_path_factory.mktemp("seeded")
    return {(seed, blocks): make_run(folder, seed, blocks) for blocks in (17, 25) for seed in (0, 1, 2)}
