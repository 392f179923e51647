"""Runs of models with cross attention, from a config to the requests' rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.config_groups import check_groups
from sim.engine_settings import EngineSettings, KVCacheGroup
from sim.errors import InputError
from sim.runner import check
from sim.simulate import RunResult, Simulation

WHISPER = Path(__file__).resolve().parents[2] / "configs" / "whisper.yaml"
CROSS = EngineSettings(
    kv_cache_groups=(KVCacheGroup(), KVCacheGroup("cross_attention", encoder_tokens=100)),
    enable_prefix_caching=False,
    enable_chunked_prefill=False,
    max_model_len=1024,
)


def run(*changes: str) -> tuple[EngineSettings, RunResult]:
    """A run of configs/whisper.yaml over some seconds, changed."""
    resolved, workload = check(str(WHISPER), ["workload.duration=20s", *changes], None)
    simulation = Simulation(resolved.engine, workload, resolved.step_time)
    simulation.run()
    return resolved.engine, simulation.result()


def test_a_whisper_request_holds_the_blocks_of_its_encoder_input() -> None:
    engine, result = run()
    assert engine.kv_cache_groups == (KVCacheGroup(), KVCacheGroup("cross_attention", encoder_tokens=1500))
    assert (engine.enable_prefix_caching, engine.enable_chunked_prefill) == (False, False)
    rows = result.requests
    assert (rows["status"] == 3).all()
    decoder = -(-(rows["prompt_tokens"] + rows["output_tokens"] - 1) // 16)
    # an asynchronous engine may have begun a step too many
    assert np.isin(rows["peak_blocks"] - 94 - decoder, [0, 1]).all()
    # four slots of the last block, and those of the decoder's
    assert (rows["wasted_slots"] >= 4).all()
    assert (rows["wasted_slots"] < 4 + 16).all()
    assert result.totals["encoder_tokens"] == 1500 * len(rows["status"])


def test_inputs_of_their_own_length_and_one_that_is_too_long() -> None:
    _, result = run("workload.encoder_len={kind: uniform, low: 100, high: 900}")
    peak = result.requests["peak_blocks"]
    assert peak.max() <= 57 + 28
    assert peak.min() >= 7 + 1
    with pytest.raises(InputError, match="encoder input of 2000 tokens, the engine takes at most 1500"):
        run("workload.encoder_len=2000")
    with pytest.raises(InputError, match="no KV-cache group has cross attention"):
        run("workload.encoder_len=100", "model=llama-3.2-1b")


def test_a_step_admits_as_many_inputs_as_its_budget_holds() -> None:
    arrivals = ["workload.arrivals={kind: closed_loop, clients: 20}", "workload.num_requests=20"]
    for tokens, inputs in ((2048, 1), (8192, 5)):
        resolved, workload = check(
            str(WHISPER),
            [*arrivals, "workload.duration=null", f"engine.max_num_batched_tokens={tokens}"],
            None,
        )
        simulation = Simulation(resolved.engine, workload, resolved.step_time)
        simulation.run()
        times = simulation.result().requests["first_scheduled_ns"]
        assert np.unique(times, return_counts=True)[1].max() == inputs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"enable_prefix_caching": True}, "enable_prefix_caching with a cross_attention group"),
        ({"enable_chunked_prefill": True}, "enable_chunked_prefill with a cross_attention group"),
        ({"long_prefill_token_threshold": 9}, "long_prefill_token_threshold with a cross_attention group"),
        ({"max_num_batched_tokens": 64}, r"max_num_batched_tokens \(64\) is smaller than an encoder input"),
        ({"kv_cache_groups": (KVCacheGroup("cross_attention"),)}, "group needs encoder_tokens"),
        (
            {"kv_cache_groups": (*CROSS.kv_cache_groups, KVCacheGroup("cross_attention", encoder_tokens=9))},
            "9 encoder tokens, another group has 100",
        ),
        ({"kv_cache_groups": (KVCacheGroup(encoder_tokens=9),)}, "encoder_tokens means nothing for a full"),
    ],
)
def test_what_cross_attention_excludes(changes: dict[str, Any], message: str) -> None:
    assert check_groups(CROSS) == []
    (problem,) = check_groups(replace(CROSS, **changes))
    with pytest.raises(InputError, match=message):
        raise InputError(problem.message)


def test_groups_of_ones_own_turn_caching_and_chunks_off(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text(
        "engine:\n  num_gpu_blocks: 600\n  enable_chunked_prefill: true\n  long_prefill_token_threshold: 50\n"
        "  max_num_batched_tokens: 4096\n"
        "  kv_cache_groups:\n    - {type: full}\n    - {type: cross_attention, encoder_tokens: 100}\n"
        "step_time: {kind: affine, overhead: 1ms, encoder_token: 10us}\n"
        "workload: {kind: batch, num_requests: 3, prompt_len: 5, output_len: 4}\n"
    )
    resolved, workload = check(str(config), [], None)
    engine = resolved.engine
    assert (engine.enable_prefix_caching, engine.enable_chunked_prefill) == (False, False)
    assert engine.long_prefill_token_threshold == 0
    simulation = Simulation(engine, workload, resolved.step_time)
    simulation.run()
    # one step with three inputs, three without
    assert simulation.result().totals["busy_ns"] == 4 * 1_000_000 + 300 * 10_000
