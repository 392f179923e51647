"""Transfer descriptors: hand-made tables, known patterns of allocation, and the command."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sim.analysis.descriptors import CostModel, cost_model, descriptor_costs
from sim.analysis.handoffs import (
    FINISH,
    FIRST_TOKEN,
    Handoffs,
    check_source,
    pairs_of,
    recorded_handoffs,
    simulate_handoffs,
)
from sim.analysis.recording import load
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
        blocks=np.array([[4], [4], [1]]),
        ascending=np.array([[3], [0], [0]]),
        descending=np.array([[0], [2], [0]]),
        missed=0,
    )
    model = CostModel((2,), (100.0,), post_s=1e-6, wire_s=2e-6, bandwidth=1e6, latency_s=1e-3)
    costs = descriptor_costs(h, model)
    assert h.runs.tolist() == [[1], [4], [1]]
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
    assert h.blocks[:, 0].tolist() == [10] * 12
    assert h.runs[:, 0].tolist() == [1, 1, 1, 1, 10, 10, 10, 10, 1, 1, 1, 1]
    assert h.descending[:, 0].tolist()[4:8] == [9] * 4


def test_interleaved_requests_leave_one_run_a_block(tmp_path: Path) -> None:
    """Two that decode in step take blocks in turn: all blocks of their outputs are runs of their own."""
    h = handoffs(write(tmp_path, blocks=1001, clients=2, output=161), FINISH)
    first = h.request < 2
    # 160 prompt tokens in 10 blocks, then 160 computed ones of the output in 10 more
    assert h.blocks[first, 0].tolist() == [20, 20]
    assert h.runs[first, 0].tolist() == [11, 11]


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
    assert (allocated - h.blocks[:, 0] <= int(asynchronous)).all()
    assert (allocated >= h.blocks[:, 0]).all()


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


HYBRID = """
engine:
  num_gpu_blocks: 400
  max_model_len: 1024
  max_num_batched_tokens: 256
  kv_cache_groups:
    - {type: full}
    - {type: sliding_window, sliding_window: 64}
    - {type: mamba}
step_time: {kind: constant, step: 10ms}
workload:
  kind: random
  arrivals: {kind: closed_loop, clients: 1}
  num_requests: 3
  prompt_len: 200
  output_len: 20
output: {plots: false}
"""


def test_every_group_has_its_own_tables_and_regions(tmp_path: Path) -> None:
    config = tmp_path / "hybrid.yaml"
    config.write_text(HYBRID)
    h = handoffs(str(config), FINISH)
    # 219 tokens: 14 blocks; the last 63 of them and what their blocks hold before: 5; the current state
    assert h.blocks.tolist() == [[14, 5, 1]] * 3
    assert h.tokens.tolist() == [219] * 3
    assert (h.runs[:, 2] == 1).all()
    costs = descriptor_costs(h, CostModel((4, 2, 1), (10.0, 20.0, 30.0)))
    assert costs["totals"]["descriptors_unmerged"] == 3 * (4 * 14 + 2 * 5 + 1)
    assert costs["bytes"] == 3 * (4 * 14 * 10 + 2 * 5 * 20 + 30)
    assert [g["descriptors"] for g in costs["groups"]] == (h.runs * [4, 2, 1]).sum(axis=0).tolist()
    assert costs["groups"][2]["mergeable"] is None
    result = CliRunner().invoke(
        main, ["descriptors", str(config), "--regions", "3", "--when", "finish", "-q"]
    )
    assert result.exit_code == 0, result.output
    assert "1: window of 64" in result.stdout


def test_a_model_of_several_groups_has_the_regions_of_each_groups_layers() -> None:
    chat = Path(__file__).parents[2] / "configs" / "chat.yaml"
    of = {"model": "gemma-3-12b", "gpu": "h100", "engine.max_model_len": "8192"}
    resolved, _ = check_source(str(chat), [f"{k}={v}" for k, v in of.items()])
    model = cost_model(resolved)
    assert model.regions == (16,) * 6
    assert model.region_bytes is not None
    page = resolved.pool.page_bytes
    assert [n * b for n, b in zip(model.regions, model.region_bytes, strict=True)] == [page] * 6
    assert cost_model(resolved, "layer").regions == (8,) * 6
    assert cost_model(resolved, "packed").regions == (1,) * 6


@pytest.mark.parametrize("when", [FIRST_TOKEN, FINISH])
def test_accepted_drafts_hide_nobodys_last_token(tmp_path: Path, when: str) -> None:
    config = write(tmp_path, blocks=201, clients=4, output=37)
    drafts = ("num_speculative_tokens=3", "speculative_method=ngram", "draft_acceptance=0.7")
    h = simulate_handoffs(*check_source(config, [f"engine.{d}" for d in drafts]), when)
    assert sorted(h.request.tolist()) == list(range(12))
    assert h.missed == 0
    assert h.tokens.tolist() == [160 if when == FIRST_TOKEN else 160 + 36] * 12


def test_an_interrupted_run_ends_where_it_did(tmp_path: Path) -> None:
    config, folder = write(tmp_path), tmp_path / "run"
    assert CliRunner().invoke(main, ["run", config, "--out", str(folder), "-q"]).exit_code == 0
    summary = json.loads((folder / "summary.json").read_text())
    whole = len(handoffs(str(folder)).request)
    summary |= {"exit_reason": "interrupted", "simulated_s": summary["simulated_s"] / 2}
    (folder / "summary.json").write_text(json.dumps(summary))
    assert 0 < len(handoffs(str(folder)).request) < whole == 12


RECORDING = Path(__file__).parents[2] / "validation" / "recordings" / "live-cpu-chat.jsonl.gz"


@pytest.mark.parametrize("when", [FIRST_TOKEN, FINISH])
def test_tables_of_a_recording(when: str) -> None:
    recorded = load(RECORDING)
    h = recorded_handoffs(recorded, when)
    assert len(h.request) + h.missed == 107
    assert (np.diff(h.time_ns) >= 0).all()
    i = int(np.argmax(h.tokens))
    name = h.names[h.request[i]]
    shown = [s for s in recorded.snapshots() if name in s.tables.request_id]
    if when == FIRST_TOKEN:
        assert recorded.requests is not None
        prompt = recorded.requests["prompt_tokens"][h.request[i]]
        at = [s.tables.request_id.index(name) for s in shown]
        shown = [s for s, k in zip(shown, at, strict=True) if s.tables.num_computed[k] >= prompt][:1]
    s = shown[-1]
    k = s.tables.request_id.index(name)
    assert s.time_ns == h.time_ns[i]
    assert s.tables.num_computed[k] == h.tokens[i]
    table = s.tables.table(k, 0)[: -(-int(h.tokens[i]) // 32)]
    assert h.blocks[i, 0] == len(table)
    assert h.ascending[i, 0] == sum(b == a + 1 for a, b in itertools.pairwise(table.tolist()))
    result = CliRunner().invoke(main, ["descriptors", str(RECORDING), "--when", when, "--regions", "8"])
    assert result.exit_code == 0, result.output
    assert "of 131 recorded states" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [([], "a recording does not tell of the model"), (["--set", "seed=1"], "a recording can't be changed")],
)
def test_what_a_recording_does_not_know(options: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["descriptors", str(RECORDING), *options])
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.slow
def test_published_copies_of_193_blocks() -> None:
    config = Path(__file__).parents[2] / "configs" / "published" / "copies.yaml"
    h = handoffs(str(config))
    assert set(h.blocks[:, 0].tolist()) == {193}
    assert h.runs[:, 0].tolist()[:5] == [1] * 5
    assert h.runs[:, 0].tolist()[6:10] == [193] * 4
