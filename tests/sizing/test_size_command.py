"""`python -m sim size`: table, bar, JSON and picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sim.cli import main
from sim.gpus import find_gpu
from sim.serve_args import ServeSource
from sim.sizing.report import PARTS, as_data, as_text, bar, budget_of, padding_of

GIB = 2**30


def run(*args: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(main, ["size", *args])
    assert result.exit_code == code, result.output + result.stderr
    return result.stdout, result.stderr


def test_the_parts_fill_the_gpu() -> None:
    budget = budget_of(None, ServeSource(gpu="h100"), (), "gemma-3-12b")
    gpu = find_gpu("h100")
    assert gpu is not None
    assert sum(budget.parts.values()) == gpu.memory_bytes
    assert set(budget.parts) == {key for key, _, _ in PARTS}
    drawn = bar(budget)
    assert len(drawn) == 60
    assert drawn.startswith("WWW")
    assert drawn.endswith("....")
    assert abs(drawn.count("#") / 60 - budget.parts["kv_cache"] / gpu.memory_bytes) < 0.02
    text = as_text(budget)
    assert "Available" not in text
    assert text.count("estimate") >= 5
    assert f"num_gpu_blocks        {budget.plan.num_blocks:,} (block 0 is the null block)" in text


def test_padding() -> None:
    """Gemma 3 27B: 52 window layers in six groups of nine or eight beside ten full ones."""
    plan = budget_of(None, ServeSource(gpu="h200"), (), "gemma-3-27b").plan
    lost = padding_of(plan)
    window, full = plan.request_blocks[0], plan.request_blocks[-1]
    assert lost["pages"] == 0.0
    assert lost["layers"] == pytest.approx((4 * 1 + 2 * 2) * window / 10 / (6 * window + full))
    jamba = padding_of(budget_of(None, ServeSource(gpu="h200"), (), "jamba-mini").plan)
    assert jamba["layers"] == 0.0
    assert 0 < jamba["pages"] < 0.01


def test_exact_inputs() -> None:
    out, _ = run("--model", "llama-3.1-8b", "--set", "engine.kv_cache_memory_bytes=20GiB")
    assert "exact: engine.kv_cache_memory_bytes" in out
    assert "num_gpu_blocks        10,240 (" in out
    assert "1.25x for 131,072 tokens per request" in out
    out, _ = run(
        "--vllm-args",
        "serve Qwen/Qwen3-8B --num-gpu-blocks-override 5000 --max-model-len 8K",
        "--gpu",
        "h100",
    )
    assert "exact: engine.num_gpu_blocks" in out
    assert "GPU KV cache size     80,000 tokens" in out


def test_json_and_picture(tmp_path: Path) -> None:
    picture = tmp_path / "sub" / "budget.png"
    args = ("--model", "gpt-oss-20b", "--gpu", "h100", "--png", str(picture))
    out, err = run(*args, "--json")
    data = json.loads(out)
    assert f"picture in {picture}" in err
    first = picture.read_bytes()
    assert first.startswith(b"\x89PNG")
    run(*args)
    assert picture.read_bytes() == first
    assert [g["kind"] for g in data["groups"]] == ["sliding_window", "full"]
    assert data["exact"]["weights"] is False
    assert data["starts"]
    assert data["num_gpu_blocks"] * data["block_bytes"] <= data["parts_bytes"]["kv_cache"]
    assert data == json.loads(run(*args[:4], "--json")[0])


def test_a_model_that_does_not_start() -> None:
    out, _ = run("--model", "llama-3.1-8b", "--gpu", "l4")
    assert "vLLM WOULD NOT START" in out
    out, _ = run("--model", "llama-3.1-8b", "--gpu", "l4", "--set", "engine.max_model_len=fit")
    assert "WOULD NOT START" not in out
    budget = budget_of(None, ServeSource(gpu="l4"), ["engine.max_model_len=fit"], "llama-3.1-8b")
    longest = budget.settings.max_model_len
    assert longest == as_data(budget)["max_model_len"] == (budget.plan.num_blocks - 1) * 16


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--model", "gemma-9-9b", "--gpu", "h100"), "--model: unknown model 'gemma-9-9b'"),
        (("--model", "gemma-2-9b", "--gpu", "h10"), "--gpu: unknown gpu 'h10'"),
        (("--model", "gemma-2-9b"), "gpu is not given"),
        (("--gpu", "h100", "--model", "jamba-mini"), "leaves no room for a KV cache"),
        (
            ("--gpu", "h100", "--model", "phi-4", "--set", "engine.tensor_parallel_size=4"),
            "10 key-value heads",
        ),
        (
            ("--vllm-args", "serve --gpu-memory-utilization 0.8", "--gpu", "h100"),
            "the memory budget needs a model",
        ),
    ],
)
def test_bad_input(args: tuple[str, ...], message: str) -> None:
    _, err = run(*args, code=2)
    assert message in err
    assert "Traceback" not in err


def test_nothing_given() -> None:
    _, err = run(code=2)
    assert "give a CONFIG" in err


def test_published_padding() -> None:
    from sim.published.padding import make
    from sim.published.registry import Options

    table = make(Options())
    assert table.met
    assert [row.label for row in table.rows] == ["mllama", "Ministral", "Gemma-2"]


def test_what_a_run_refuses_is_refused() -> None:
    done = CliRunner().invoke(
        main,
        [
            *("size", "--model", "qwen3-8b", "--gpu", "h100"),
            *("--set", "engine.enable_chunked_prefill=false", "--set", "engine.max_num_batched_tokens=512"),
        ],
    )
    assert done.exit_code == 2
    assert "is smaller than max_model_len" in done.stderr
