"""A report on a fleet: memory is short where one replica is full, whatever the others have left."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner

from sim.cli import main
from sim.report.answer import pressure_seconds
from sim.report.folder import read_run
from sim.runner import RunOptions, run

CONFIG = """\
name: two
replicas: 2
router: round_robin
engine: {num_gpu_blocks: 41, max_num_seqs: 8, max_model_len: 256}
step_time: {kind: constant, step: 10ms}
workload:
  kind: random
  arrivals: {kind: poisson, rate: 4}
  num_requests: 20
  prompt_len: {kind: constant, value: 60}
  output_len: {kind: constant, value: 20}
output: {sample_period: 50ms, plots: false}
"""


def test_pressure_is_the_mean_over_the_replicas(tmp_path: Path) -> None:
    config, folder = tmp_path / "two.yaml", tmp_path / "out"
    config.write_text(CONFIG)
    run(str(config), RunOptions(out=str(folder), quiet=True)).write()
    assert pressure_seconds(read_run(folder)) == 0.0
    # replica 1 full all the time: half of each second
    rows = pq.read_table(folder / "replica_steps.parquet").to_pydict()
    rows["used_blocks"] = [
        40 if replica == 1 else used
        for replica, used in zip(rows["replica"], rows["used_blocks"], strict=True)
    ]
    first = min(t for t, replica in zip(rows["time_ns"], rows["replica"], strict=True) if replica == 1)
    pq.write_table(pa.table(rows), folder / "replica_steps.parquet")
    length = json.loads((folder / "summary.json").read_text())["simulated_s"]
    full = pressure_seconds(read_run(folder))
    assert abs(full - (length - first / 1e9) / 2) < 1e-6
    text = CliRunner().invoke(main, ["report", str(folder)]).stdout
    assert "KV memory runs short" in text
    assert "in a replica" in " ".join(text.split())
    assert "bright is" not in text.lower()
