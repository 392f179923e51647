"""`engine.mamba_cache_mode`: which states a model's groups cache, by release."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.config import load_config
from sim.errors import InputError
from sim.resolve import Resolved, resolve

CONFIG = """\
model: {model}
gpu: h100
engine: {{vllm: "{vllm}", enable_prefix_caching: {caching}, tensor_parallel_size: 4, max_model_len: 32768}}
workload: {{kind: random, num_requests: 2,
  arrivals: {{kind: poisson, rate: 1}}, prompt_len: 9, output_len: 5}}
"""


def resolved(
    folder: Path, vllm: str, *sets: str, model: str = "jamba-mini", caching: str = "true"
) -> Resolved:
    path = folder / "a.yaml"
    path.write_text(CONFIG.format(model=model, vllm=vllm, caching=caching))
    return resolve(load_config(str(path), list(sets)))


def modes(run: Resolved) -> set[str | None]:
    return {g.mamba_cache_mode for g in run.engine.kv_cache_groups if g.type == "mamba"}


@pytest.mark.parametrize(
    ("vllm", "mode"), [("0.14", "all"), ("0.25", "all"), ("0.28", "align"), ("0.32", "align")]
)
def test_jamba_caches_as_the_release_does(tmp_path: Path, vllm: str, mode: str) -> None:
    run = resolved(tmp_path, vllm)
    assert modes(run) == {mode}
    assert run.engine.mamba_cache_mode == mode
    assert run.engine.block_size == (2048 if mode == "all" else 80)


def test_the_mode_that_is_asked_for(tmp_path: Path) -> None:
    asked = resolved(tmp_path, "0.25", "engine.mamba_cache_mode=align")
    assert (modes(asked), asked.engine.block_size) == ({"align"}, 80)
    every = resolved(tmp_path, "0.30", "engine.mamba_cache_mode=all")
    assert (modes(every), every.engine.block_size) == ({"all"}, 2048)
    assert modes(resolved(tmp_path, "0.25", "engine.mamba_cache_mode=none")) == {"all"}
    assert modes(resolved(tmp_path, "0.25", model="qwen3-next-80b-a3b")) == {"align"}
    assert modes(resolved(tmp_path, "0.25", caching="false")) == {"none"}


@pytest.mark.parametrize(
    ("vllm", "mode", "model", "caching", "message", "hint"),
    [
        ("0.32", "all", "jamba-mini", "true", "all for jamba-mini in vLLM 0.32", "vLLM uses align then"),
        ("0.14", "align", "jamba-mini", "true", "align for jamba-mini in vLLM 0.14", "vLLM uses all then"),
        ("0.30", "all", "qwen3-next-80b-a3b", "true", "all for qwen3-next-80b-a3b", "vLLM uses align then"),
        ("0.25", "all", "jamba-mini", "false", "all without prefix caching", "enable_prefix_caching on"),
    ],
)
def test_modes_that_are_not_there(
    tmp_path: Path, vllm: str, mode: str, model: str, caching: str, message: str, hint: str
) -> None:
    with pytest.raises(InputError) as caught:
        resolved(tmp_path, vllm, f"engine.mamba_cache_mode={mode}", model=model, caching=caching)
    problem = caught.value.problems[0]
    assert f"there is no mamba_cache_mode {message}" in str(problem)
    assert hint in str(problem)
