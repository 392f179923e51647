"""Which pools are too small to start with, by the groups of the engine: written by hand, or by a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.config import load_config
from sim.engine_checks import blocks_of_longest_request, check_pool
from sim.engine_settings import EngineSettings, KVCacheGroup
from sim.errors import InputError
from sim.resolve import resolve
from sim.results import to_yaml

MODEL = """\
model: {model}
gpu: h200
engine: {{max_model_len: 16384, tensor_parallel_size: {gpus}}}
workload: {{kind: batch, num_requests: 3}}
"""


@pytest.mark.parametrize(
    ("model", "gpus"), [("mamba-codestral-7b", 1), ("jamba-mini", 2), ("gemma-3-27b", 1), ("gpt-oss-20b", 1)]
)
def test_a_resolved_config_is_accepted_again(model: str, gpus: int, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(MODEL.format(model=model, gpus=gpus))
    first = resolve(load_config(path))
    (tmp_path / "b.yaml").write_bytes(to_yaml(first.config, ""))
    assert resolve(load_config(tmp_path / "b.yaml")).engine == first.engine


def engine(*groups: KVCacheGroup, blocks: int = 1000, **more: object) -> EngineSettings:
    settings = {"max_num_batched_tokens": 64, "max_num_seqs": 8, "max_model_len": 4096, **more}
    return EngineSettings(num_gpu_blocks=blocks, kv_cache_groups=groups, **settings)  # type: ignore[arg-type]


def test_blocks_of_the_longest_request_are_those_of_its_groups() -> None:
    window, states = KVCacheGroup("sliding_window", sliding_window=128), KVCacheGroup("mamba")
    # 128 - 1 + 64 tokens, one block more for the window's edge; the null block
    assert blocks_of_longest_request(engine(window), 4096) == 12 + 1 + 1
    assert blocks_of_longest_request(engine(window, async_scheduling=True), 4096) == 16 + 1 + 1
    # with caching the state before the last one is kept too
    assert blocks_of_longest_request(engine(states), 4096) == 2 + 1
    assert blocks_of_longest_request(engine(states, enable_prefix_caching=False), 4096) == 1 + 1
    both = engine(KVCacheGroup(), window)
    assert blocks_of_longest_request(both, 4096) == 256 + 13 + 1
    assert blocks_of_longest_request(engine(KVCacheGroup(), vllm="0.25"), 4096) == 256


def test_the_message_counts_the_groups() -> None:
    groups = (KVCacheGroup(), KVCacheGroup("sliding_window", sliding_window=128))
    assert not check_pool(engine(*groups, blocks=270))
    (problem,) = check_pool(engine(*groups, blocks=269))
    assert "4096 tokens need 270 blocks in 2 groups, the null block included" in problem.message
    assert problem.hint == "raise num_gpu_blocks to 270, or lower max_model_len to 4080"


def test_a_window_alone_wants_no_blocks_for_the_whole_length(tmp_path: Path) -> None:
    text = (
        "engine: {num_gpu_blocks: N, max_num_batched_tokens: 64, max_num_seqs: 8, async_scheduling: false,\n"
        "  kv_cache_groups: [{type: sliding_window, sliding_window: 128}]}\n"
        "step_time: {kind: constant, step: 1ms}\nworkload: {kind: batch, num_requests: 3}\n"
    )
    path = tmp_path / "a.yaml"
    path.write_text(text.replace("N", "14"))
    assert resolve(load_config(path)).engine.num_gpu_blocks == 14
    path.write_text(text.replace("N", "13"))
    with pytest.raises(InputError, match="need 14 blocks, the null"):
        resolve(load_config(path))


@pytest.mark.parametrize(
    ("release", "need", "with_null"),
    [
        # 8,192 blocks of full attention; in the window 127 tokens and two batches, one before 0.26
        ("0.32", 8192 + 1033 + 1, True),
        ("0.25", 8192 + 521, False),
    ],
)
def test_a_models_pool_is_measured_by_the_release(
    release: str, need: int, with_null: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.yaml"
    text = (
        "model: gpt-oss-20b\ngpu: h100\nengine: {vllm: 'R', num_gpu_blocks: N}\n"
        "workload: {kind: batch, num_requests: 3}\n"
    ).replace("R", release)
    path.write_text(text.replace("N", str(need)))
    assert resolve(load_config(path)).engine.num_gpu_blocks == need
    path.write_text(text.replace("N", str(need - 1)))
    with pytest.raises(InputError, match=f"need {need} blocks in 2 groups") as refused:
        resolve(load_config(path))
    assert ("the null block included" in str(refused.value)) == with_null
