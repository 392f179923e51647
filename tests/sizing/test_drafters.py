"""Drafters: their layers in the groups, their weights in the budget, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from sim.cli import main
from sim.config import load_config
from sim.errors import InputError
from sim.models import find_model
from sim.models.drafters import find_drafter
from sim.models.shape import ModelShape
from sim.resolve import resolve
from sim.serve_args import ServeSource, serve_edit
from sim.sizing.budget import weight_bytes
from sim.sizing.layers import CacheArgs, cache_layout
from sim.sizing.plan import Limits, plan_pool
from sim.sizing.report import Budget, budget_of

LIMITS = Limits(8192, 16384)


def model(name: str) -> ModelShape:
    found = find_model(name)
    assert found is not None
    return found


def drafter(name: str, method: str, target: str) -> ModelShape:
    found = find_drafter(name, method, model(target))
    assert found is not None
    return found


def budget(line: str, *overrides: str, gpu: str = "h100") -> Budget:
    return budget_of(None, ServeSource(f"serve {line}", None, gpu), overrides)


def complaint(line: str, *overrides: str) -> str:
    with pytest.raises(InputError) as e:
        budget(line, *overrides)
    return str(e.value)


@pytest.mark.parametrize(
    ("shape", "tensor_parallel", "expected"),
    [
        # bytes of the tensors that vLLM 0.32.0's classes make, without those shared with the model
        (drafter("eagle-llama-3.1-8b", "eagle", "llama-3.1-8b"), 1, 503_324_672),
        (drafter("eagle-llama-3.1-8b", "eagle", "llama-3.1-8b"), 4, 176_168_960),
        (drafter("eagle3-llama-3.1-8b", "eagle3", "llama-3.1-8b"), 1, 849_635_328),
        (drafter("eagle3-llama-3.1-8b", "eagle3", "llama-3.1-8b"), 4, 288_122_880),
        # an embedding of its own, since the widths differ
        (drafter("eagle3-llama-3.1-8b", "eagle3", "llama-3.1-70b"), 1, 1_900_308_480),
        (drafter("qwen3-0.6b", "draft_model", "qwen3-32b"), 4, 298_123_264),
        (model("qwen3-next-80b-a3b").mtp, 4, 827_876_352),
    ],
)
def test_weights(shape: ModelShape, tensor_parallel: int, expected: int) -> None:
    assert weight_bytes(shape, tensor_parallel, None) == expected


def test_mtp_layers_are_quantized_with_the_model() -> None:
    mtp = model("deepseek-v3").mtp
    assert mtp is not None
    plain = replace(mtp, quantization=None, params=replace(mtp.params, absorbed=0))
    assert weight_bytes(plain, 1, None) == 23_220_135_936
    assert weight_bytes(mtp, 1, None) < 0.52 * weight_bytes(plain, 1, None)
    assert model("deepseek-v2-lite").mtp is None


def test_layers_of_a_head_join_the_full_ones() -> None:
    """gpt-oss: 12 layers of each kind; with one more of the full kind the window's group loses a layer."""
    head = drafter("eagle3-llama-3.1-8b", "eagle3", "gpt-oss-20b")
    specs = cache_layout(model("gpt-oss-20b"), CacheArgs(None), replace(head, cache_layers=head.cache_layers))
    wide = replace(specs.specs[-1], head_size=64, head_size_v=64)
    plan = plan_pool([*specs.specs[:-1], wide], 2**34, LIMITS)
    assert [len(g.layers) for g in plan.groups] == [12, 13]
    assert plan.groups[1].layers[-1] == 24
    assert not any(g.is_eagle_group for g in plan.groups)


def test_a_head_takes_the_window_that_all_layers_have() -> None:
    head = drafter("eagle-llama-3.1-8b", "eagle", "mistral-7b-v0.1")
    layout = cache_layout(model("mistral-7b-v0.1"), CacheArgs(None), head)
    assert {s.sliding_window for s in layout.specs} == {4096}
    assert len(plan_pool(layout.specs, 2**34, LIMITS).groups) == 1


def test_the_group_of_mtp_layers_is_marked() -> None:
    line = (
        "Qwen/Qwen3-Next-80B-A3B-Instruct -tp 4 --spec-method mtp --spec-tokens 2 --max-model-len 8192"
        " --num-gpu-blocks-override 5000"
    )

    def marks(release: str) -> list[bool]:
        return [g.is_eagle_group for g in budget(line, f"engine.vllm='{release}'").settings.kv_cache_groups]

    assert marks("0.32") == [False, False, False, True]
    assert marks("0.28") == [False] * 4
    groups = budget(line).plan.groups
    assert [len(g.layers) for g in groups] == [12, 12, 12, 13]
    assert groups[3].layers[-1] == 48


def test_states_keep_the_inputs_of_drafts() -> None:
    """A convolution keeps one input more for each draft; blocks of attention grow with the state."""
    qwen = model("qwen3-next-80b-a3b")
    sizes = [cache_layout(qwen, CacheArgs(None, num_speculative_tokens=n)) for n in (0, 2)]
    conv = 2 * 16 * 128 + 32 * 128
    assert sizes[1].specs[0].state_bytes - sizes[0].specs[0].state_bytes == 2 * conv * 2
    assert (sizes[0].block_size, sizes[1].block_size) == (544, 560)
    assert sizes[1].specs[0].speculative_blocks == 2
    jamba = model("jamba-mini")
    mamba1 = [cache_layout(jamba, CacheArgs(None, num_speculative_tokens=n)).specs[0] for n in (0, 2)]
    assert mamba1[0].state_bytes == mamba1[1].state_bytes


def test_budget_counts_the_drafter() -> None:
    line = "meta-llama/Llama-3.1-8B-Instruct --max-model-len 32K"
    spec = '{"method": "eagle3", "model": "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B", "num_speculative_tokens": 3}'
    alone, drafted = budget(line), budget(f"{line} --speculative-config '{spec}'")
    assert alone.parts["drafter"] == 0
    assert drafted.parts["drafter"] == 849_635_328
    assert alone.parts["kv_cache"] - drafted.parts["kv_cache"] == 849_635_328
    assert drafted.plan.block_bytes * 32 == alone.plan.block_bytes * 33
    assert drafted.settings.speculative_method == "eagle"
    given = (
        budget(line, "engine.kv_cache_memory_bytes=20GiB"),
        budget(f"{line} --speculative-config '{spec}'", "engine.kv_cache_memory_bytes=20GiB"),
    )
    assert [b.plan.num_blocks for b in given] == [10240, 10240 * 32 // 33]


def test_a_head_in_a_file(tmp_path: Path) -> None:
    """A head in the format of the speculators library, whose sizes lie in a section."""
    section = {
        "model_type": "llama",
        "num_hidden_layers": 1,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    }
    config = {
        "speculators_model_type": "eagle3",
        "draft_vocab_size": 32000,
        "transformer_layer_config": section,
    }
    folder = tmp_path / "speculator.eagle3"
    folder.mkdir()
    file = folder / "config.json"
    file.write_text(json.dumps(config))
    line = f"Qwen/Qwen3-8B --max-model-len 8192 --spec-model {folder} --spec-tokens 3"
    found = budget(line)
    assert found.drafter is not None
    assert found.drafter.name == "speculator.eagle3"
    h, q, kv, ids = 4096, 32 * 128, 2 * 8 * 128, 32000 * 4
    elements = 2 * h * (q + kv) + q * h + 3 * h * 12288 + 3 * h * h + 4 * h + 32000 * h + ids
    assert found.parts["drafter"] == 2 * elements
    # a run writes down the file, and is the same again
    source = ServeSource(f"serve {line}", None, "h100")
    loaded = load_config(None, ["engine.draft_acceptance=0.6"], None, [serve_edit(source)])
    resolved = resolve(loaded)
    assert resolved.config["engine"]["speculative_model"] == str(file)
    assert resolved.pool.num_gpu_blocks == found.plan.num_blocks
    config["transformer_layer_config"] = section | {"model_type": "cohere", "hidden_size": 0}
    file.write_text(json.dumps(config))
    assert "eagle3 heads of type 'cohere' are not known" in complaint(line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "Qwen/Qwen3-8B --spec-method mtp --spec-tokens 2",
            "qwen3-8b has no layers for multi-token prediction that are known here",
        ),
        (
            "Qwen/Qwen3-8B --spec-method eagle3 --spec-model RedHatAI/x.eagle3 --spec-tokens 2",
            "unknown drafter 'RedHatAI/x.eagle3'",
        ),
        (
            "Qwen/Qwen3-8B --spec-method eagle3 --spec-tokens 2",
            "the layers of the drafter (eagle3) of qwen3-8b are not known",
        ),
        (
            "openai/gpt-oss-20b --spec-method eagle3 --spec-model x --spec-tokens 2"
            " --num-gpu-blocks-override 9000",
            "the layers of the drafter (eagle3) of gpt-oss-20b are not known",
        ),
        (
            "Qwen/Qwen3-8B --spec-model meta-llama/Llama-3.2-1B --spec-tokens 2",
            "llama-3.2-1b has a vocabulary of 128256 tokens, qwen3-8b has 151936: vLLM refuses this drafter",
        ),
        (
            "ai21labs/AI21-Jamba-Mini-1.6 -tp 8 --spec-model ai21labs/Jamba-v0.1 --spec-tokens 2",
            "jamba-mini as a drafter: its layers (mamba) are not covered",
        ),
        (
            "Qwen/Qwen3-8B --spec-model Qwen/Qwen3-0.6B --spec-tokens 2 -sc.quantization awq",
            "quantization of a drafter changes its share of the memory",
        ),
    ],
)
def test_what_is_refused(line: str, message: str) -> None:
    assert message in complaint(line)


def test_modules_in_turn_are_refused(tmp_path: Path) -> None:
    from sim.models import FOLDER

    config = json.loads((FOLDER / "deepseek-v3.json").read_text()) | {"num_nextn_predict_layers": 2}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    line = f"{file} -tp 8 --num-gpu-blocks-override 40000 --spec-method mtp --spec-tokens"
    assert "2 modules for multi-token prediction in turn are not simulated" in complaint(f"{line} 2")
    assert budget(f"{line} 1").plan.groups[0].layers[-1] == 62


def test_keys_of_a_config() -> None:
    where = "engine.speculative_model=eagle3-llama-3.1-8b"
    assert "speculative_model means nothing with speculative_method None" in complaint("Qwen/Qwen3-8B", where)
    near = "engine.speculative_model=eagle3-llama-3.1-9b"
    text = complaint(
        "Qwen/Qwen3-8B --spec-method eagle3 --spec-tokens 1 --num-gpu-blocks-override 9000", near
    )
    assert "unknown drafter 'eagle3-llama-3.1-9b'" in text
    assert "did you mean 'eagle3-llama-3.1-8b'?" in text


def test_table_and_picture(tmp_path: Path) -> None:
    line = "serve deepseek-ai/DeepSeek-V3 -tp 8 --spec-method mtp --spec-tokens 1"
    args = ["size", "--vllm-args", line, "--gpu", "h200", "--png", str(tmp_path / "b.png")]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    assert "D drafter " in result.stdout
    assert "1 MTP layer, " in result.stdout
    assert max(len(row) for row in result.stdout.splitlines()) <= 80
    assert (tmp_path / "b.png").stat().st_size > 10_000


def test_medusa(tmp_path: Path) -> None:
    """As many heads as drafts, each with an output projection of its own; no layers with a KV cache."""
    file = tmp_path / "medusa" / "config.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"medusa_num_heads": 5, "medusa_num_layers": 2, "hidden_size": 4096}))
    line = (
        f"Qwen/Qwen3-8B --max-model-len 8192 --spec-method medusa --spec-tokens 3 --spec-model {file.parent}"
    )
    found = budget(line)
    # 151,936 is a multiple of 64
    assert found.parts["drafter"] == 2 * 3 * (2 * 4096**2 + 151936 * 4096)
    assert found.drafter is not None
    assert found.drafter.name == "medusa"
    assert len(found.plan.groups[0].layers) == 36
    # the rules are those of n-grams: no slots for the drafter, nothing dropped, no async scheduling
    assert found.settings.speculative_method == "ngram"
    assert not found.settings.async_scheduling
    alone = "Qwen/Qwen3-8B --max-model-len 8192 --spec-method medusa --spec-tokens 3"
    assert "the size of the drafter (medusa) of qwen3-8b is not known" in complaint(alone)
    assert budget(f"{alone} --kv-cache-memory-bytes 20g").plan.num_blocks > 8000
