"""Transfer descriptors: hand-made tables, known patterns of allocation, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sim.analysis.descriptors import CostModel, descriptor_costs
from sim.analysis.handoffs import FINISH, FIRST_TOKEN, Handoffs, check_source, pairs_of, simulate_handoffs
from sim.cli import main

CONFIG = """
engine:
  block_size: 16
  num_gpu_blocks: {blocks}
  max_model_len: 640
  async_scheduling: {asynchronous}
step_time: {{kind: constant, step: 10ms}}
workload:
  kind: random
  arrivals: {{kind: closed_loop, clients: {clients}}}
  num_requests: 12
  prompt_len: 160
  output_len: {output}
output: {{plots: false}}
"""


def write(
    folder: Path, *, blocks: int = 41, clients: int = 1, output: int = 1, asynchronous: bool = False
) -> str:
    path = folder / "config.yaml"
    flag = "true" if asynchronous else "false"
    path.write_text(CONFIG.format(blocks=blocks, clients=clients, output=output, asynchronous=flag))
    return str(path)


def handoffs(config: str, when: str = FIRST_TOKEN) -> Handoffs:
    return simulate_handoffs(*check_source(config), when)


@pytest.mark.parametrize(
    ("table", "ascending", "descending"),
    [
        ([], 0, 0),
        ([7], 0, 0),
        ([1, 2, 3, 4], 3, 0),
        ([4, 3, 2, 1], 0, 3),
        ([1, 2, 9, 10, 11, 5], 3, 0),
        ([1, 3, 5, 4, 5], 1, 1),
    ],
)
def test_pairs_of_a_table(table: list[int], ascending: int, descending: int) -> None:
    assert pairs_of(np.array(table, dtype=np.int32)) == (ascending, descending)


def test_costs_of_hand_made_tables() -> None:
    # tables of 4 blocks in 1 run, 4 in 4 and 1 in 1, of 16 tokens; 2 regions of 100 bytes a block
    h = Handoffs(
        when=FINISH,
        request=np.array([0, 1, 2]),
        time_ns=np.array([10, 20, 30]),
        tokens=np.array([64, 60, 3]),
        blocks=np.array([4, 4, 1]),
        ascending=np.array([3, 0, 0]),
        descending=np.array([0, 2, 0]),
        missed=0,
    )
    model = CostModel(2, 100.0, post_s=1e-6, wire_s=2e-6, bandwidth=1e6, latency_s=1e-3)
    costs = descriptor_costs(h, model)
    assert h.runs.tolist() == [1, 4, 1]
    assert costs["mergeable"] == 3 / 6
    assert costs["descending"] == 2 / 6
    assert costs["totals"]["descriptors"] == 2 * 6
    assert costs["totals"]["descriptors_unmerged"] == 2 * 9
    assert costs["bytes"] == 9 * 200
    assert costs["totals"]["posting_s"] == pytest.approx(12e-6)
    assert costs["totals"]["transfer_s"] == pytest.approx(3e-3 + 12 * 2e-6 + 1800 / 1e6)
    assert costs["per_request"]["mergeable"]["mean"] == 0.5
    assert [r["request"] for r in costs["most"]] == [1, 0, 2]


def test_a_new_pool_gives_one_run_and_a_used_one_none(tmp_path: Path) -> None:
    """Four requests of ten blocks fill the pool in order; freed last first, they come back descending."""
    h = handoffs(write(tmp_path))
    assert h.blocks.tolist() == [10] * 12
    assert h.runs.tolist() == [1, 1, 1, 1, 10, 10, 10, 10, 1, 1, 1, 1]
    assert h.descending.tolist()[4:8] == [9] * 4


def test_interleaved_requests_leave_one_run_a_block(tmp_path: Path) -> None:
    """Two that decode in step take blocks in turn: all blocks of their outputs are runs of their own."""
    h = handoffs(write(tmp_path, blocks=1001, clients=2, output=161), FINISH)
    first = h.request < 2
    # 160 prompt tokens in 10 blocks, then 160 computed ones of the output in 10 more
    assert h.blocks[first].tolist() == [20, 20]
    assert h.runs[first].tolist() == [11, 11]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_tables_at_the_end_agree_with_the_run(tmp_path: Path, asynchronous: bool) -> None:
    from sim.simulate import Simulation

    config = write(tmp_path, blocks=61, clients=4, output=40, asynchronous=asynchronous)
    h = handoffs(config, FINISH)
    resolved, workload = check_source(config)
    simulation = Simulation(resolved.engine, workload, resolved.step_time)
    simulation.run()
    rows = simulation.result().requests
    assert len(h.request) + h.missed == int((rows["status"] == 3).sum())
    assert (rows["finish_ns"][h.request] == h.time_ns).all()
    assert (h.tokens == rows["prompt_tokens"][h.request] + rows["output_tokens"][h.request] - 1).all()
    allocated = rows["allocated_slots"][h.request] // resolved.engine.block_size
    # in asynchronous scheduling a block for the token after the last may have been added
    assert (allocated - h.blocks <= int(asynchronous)).all()
    assert (allocated >= h.blocks).all()


def test_run_folder_gives_what_its_config_gives(tmp_path: Path) -> None:
    config, folder = write(tmp_path), str(tmp_path / "run")
    runner = CliRunner()
    assert runner.invoke(main, ["run", config, "--out", folder, "-q"]).exit_code == 0
    options = ["--regions", "4", "--json", "-q"]
    of_config = runner.invoke(main, ["descriptors", config, *options])
    of_run = runner.invoke(main, ["descriptors", folder, *options])
    assert of_config.exit_code == of_run.exit_code == 0, of_config.output + of_run.output
    assert json.loads(of_config.stdout) == json.loads(of_run.stdout)
    assert json.loads(of_run.stdout)["totals"]["descriptors"] == 4 * (8 * 1 + 4 * 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--regions", "many"], "expected kv, layer, packed or a number"),
        ([], "names no model"),
        (["--regions", "1", "--bandwidth", "0"], "must be more than 0"),
    ],
)
def test_bad_input_is_one_message(tmp_path: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["descriptors", write(tmp_path), *options])
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["descriptors", str(tmp_path)])
    assert result.exit_code == 2
    assert "not the folder of a run" in result.stderr


@pytest.mark.slow
def test_published_copies_of_193_blocks() -> None:
    config = Path(__file__).parents[2] / "configs" / "published" / "copies.yaml"
    h = handoffs(str(config))
    assert set(h.blocks.tolist()) == {193}
    assert h.runs.tolist()[:5] == [1] * 5
    assert h.runs.tolist()[6:10] == [193] * 4
