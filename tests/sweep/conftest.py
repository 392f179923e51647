"""A small config, and sweeps over it, in a folder of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sim import cli

ROOT = Path(__file__).resolve().parents[2]
BASE = """\
name: small
engine: {num_gpu_blocks: 300, max_model_len: 512, max_num_seqs: 8, max_num_batched_tokens: 128}
step_time: {kind: constant, step: 10ms}
workload:
  kind: random
  num_requests: REQUESTS
  arrivals: {kind: poisson, rate: 5}
  prompt_len: {kind: uniform, low: 20, high: 200}
  output_len: {kind: uniform, low: 5, high: 40}
"""
SWEEP = """\
base: small.yaml
axes:
  engine.block_size: [4, 8, 16]
  engine.max_num_seqs: {log_range: {from: 2, to: 8, factor: 2}}
seeds: 2
metrics: [waste, latency, preemptions]
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test, with small.yaml and sweep.yaml in it."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    return tmp_path


def write(folder: Path, requests: int = 40, sweep: str = SWEEP) -> None:
    """small.yaml and sweep.yaml."""
    (folder / "small.yaml").write_text(BASE.replace("REQUESTS", str(requests)), encoding="utf-8")
    (folder / "sweep.yaml").write_text(sweep, encoding="utf-8")


def kvpool(*args: str) -> Result:
    """A command in this process."""
    return CliRunner().invoke(cli.main, list(args))


def command(*args: str, cwd: Path, **more: Any) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "sim", *args],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def points(folder: Path) -> dict[str, bytes]:
    """Files of the finished points."""
    return {p.name: p.read_bytes() for p in sorted((folder / "points").glob("*.json.gz"))}


def rows(folder: Path, name: str = "points.parquet") -> list[dict[str, Any]]:
    """A table's rows."""
    import pyarrow.parquet as pq

    return pq.read_table(folder / name).to_pylist()


#: A sweep that takes long enough to be killed in its middle.
LONG_REQUESTS = 2500
LONG = """\
base: small.yaml
axes: {engine.block_size: [4, 8, 16]}
seeds: 4
metrics: [waste]
"""


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Tables of the long sweep from one process, undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    write(folder, LONG_REQUESTS, LONG)
    args = ("sweep", str(folder / "sweep.yaml"), "--jobs", "1", "--no-plots", "--quiet", "--out")
    said = kvpool(*args, str(folder / "o"))
    assert said.exit_code == 0, said.output
    return {name: (folder / "o" / name).read_bytes() for name in ("points.parquet", "curves.parquet")}


@pytest.fixture
def long_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test, with the long sweep in it."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, LONG_REQUESTS, LONG)
    return tmp_path


def equal(folder: Path, whole: dict[str, bytes]) -> None:
    """The tables in `folder` are the same bytes."""
    for name, data in whole.items():
        assert (folder / name).read_bytes() == data, name
