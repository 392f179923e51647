"""A user's own config.json: keys that published files leave out, and wrong things that can stand there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sim.config import load_config
from sim.errors import InputError
from sim.models import FOLDER, find_model, load_model
from sim.resolve import resolve
from sim.runner import RunOptions, run


def write(tmp_path: Path, name: str, change: dict[str, Any], gone: tuple[str, ...] = ()) -> Path:
    """A shipped config with keys changed and left out, in its text model where it has one."""
    config = json.loads((FOLDER / f"{name}.json").read_text())
    text = config.get("text_config", config)
    text.update(change)
    for key in gone:
        del text[key]
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    return file


def complaints(file: Path) -> list[str]:
    with pytest.raises(InputError) as e:
        load_model(file)
    return [str(p) for p in e.value.problems]


def test_gemma_3_as_published_leaves_keys_out(tmp_path: Path) -> None:
    gone = ("num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings")
    shape, known = load_model(write(tmp_path, "gemma-3-4b", {}, gone)), find_model("gemma-3-4b")
    assert known is not None
    assert (shape.cache_layers, shape.params) == (known.cache_layers, known.params)
    assert shape.max_position == known.max_position == 131_072
    assert shape.notes[-1].startswith(
        "not in config.json, so as transformers fills it in: num_attention_heads 8"
    )


def test_key_value_heads_of_the_class_and_not_of_the_query(tmp_path: Path) -> None:
    shape = load_model(write(tmp_path, "mixtral-8x7b", {}, ("num_key_value_heads",)))
    assert shape.kv_heads == 8
    assert "num_key_value_heads 8" in shape.notes[-1]
    # Llama's class takes the number of heads; a null is a value that was given
    assert load_model(write(tmp_path, "llama-3.1-8b", {}, ("num_key_value_heads",))).kv_heads == 32
    assert load_model(write(tmp_path, "mixtral-8x7b", {"num_key_value_heads": None})).kv_heads == 32


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        (
            "llama-3.1-8b",
            "num_hidden_layers",
            10**8,
            "'num_hidden_layers' must be a whole number from 1 to 10000",
        ),
        ("llama-3.1-8b", "vocab_size", 10**30, "'vocab_size' must be a whole number from 1 to"),
        ("llama-3.1-8b", "hidden_size", "4096", "'hidden_size' must be a whole number from 1: got '4096'"),
        ("llama-3.1-8b", "tie_word_embeddings", "false", "'tie_word_embeddings' must be true or false"),
        ("llama-3.1-8b", "num_experts", "8", "'num_experts' must be a whole number from 0"),
        ("llama-3.1-8b", "quantization_config", [], "quantization '[]' is not known"),
        (
            "llama-3.1-8b",
            "rope_scaling",
            {"type": "linear", "factor": -2},
            "'rope_scaling.factor' must be a number",
        ),
        ("mixtral-8x7b", "mlp_only_layers", 3, "'mlp_only_layers' must be a list of whole numbers"),
        ("deepseek-v3", "q_lora_rank", "x", "'q_lora_rank' must be a whole number from 0"),
        ("jamba-mini", "mamba_ssm_dtype", "int8", "unknown dtype 'int8'"),
        ("llama-3.2-11b-vision", "cross_attention_layers", "x", "'cross_attention_layers' must be a list"),
    ],
)
def test_wrong_values_are_told_once_with_their_place(
    tmp_path: Path, name: str, key: str, value: object, message: str
) -> None:
    found = complaints(write(tmp_path, name, {key: value}))
    assert len(found) == 1
    assert found[0].startswith(f"{tmp_path / 'config.json'}:1:")
    assert message in found[0]
    assert f"did you mean '{key}'" not in found[0]


def test_wrong_sizes_of_an_image_encoder(tmp_path: Path) -> None:
    config = json.loads((FOLDER / "llama-3.2-11b-vision.json").read_text())
    config["vision_config"]["patch_size"] = 0
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    assert "'vision_config.patch_size' must be a whole number from 1: got 0" in complaints(file)[0]


CONFIG = """\
gpu: h200
engine: {max_model_len: 2048, enforce_eager: true}
workload: {kind: random, arrivals: {kind: poisson, rate: 9}, num_requests: 3, prompt_len: 9, output_len: 2}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "chat.yaml"
    file.write_text(CONFIG)
    return file


@pytest.mark.parametrize("name", ["google/gemma-3-4b-it", "gemma-3-4b", "own/config.json", "own", "./own/"])
def test_ways_to_name_a_model(config: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(config.parent)
    (config.parent / "own").mkdir()
    write(config.parent / "own", "gemma-3-4b", {})
    shape = resolve(load_config(config, [f"model={name}"])).model
    known = find_model("gemma-3-4b")
    assert shape is not None
    assert known is not None
    assert shape.cache_layers == known.cache_layers


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Qwen/Qwen3-8B-FP8", "did you mean 'qwen3-8b'?"),
        ("./nothing", "the folder './nothing' has no config.json"),
        ("nothing", "unknown model 'nothing'"),
        ("''", "unknown model ''"),
    ],
)
def test_models_that_are_not_found(
    config: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    (config.parent / "nothing").mkdir()
    with pytest.raises(InputError) as e:
        resolve(load_config(config, [f"model={name}"]))
    assert str(e.value).startswith("--set model: ")
    assert message in str(e.value)


@pytest.mark.parametrize(
    ("method", "name", "ours"),
    [
        ("eagle3", "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B", "eagle3-llama-3.1-8b"),
        ("draft_model", "meta-llama/Llama-3.2-1B-Instruct", "llama-3.2-1b"),
    ],
)
def test_drafters_by_their_published_names(config: Path, method: str, name: str, ours: str) -> None:
    sets = ["model=llama-3.1-8b", f"engine.speculative_method={method}", "engine.num_speculative_tokens=2"]
    sets.append("engine.draft_acceptance=0.5")
    sizes = {
        resolve(load_config(config, [*sets, f"engine.speculative_model={n}"])).engine.num_gpu_blocks
        for n in (name, ours)
    }
    assert len(sizes) == 1


def test_a_run_says_what_was_assumed(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = write(config.parent, "gemma-3-4b", {}, ("vocab_size",))
    for model in (str(own), "gemma-3-4b"):
        run(str(config), RunOptions((f"model={model}",), out=str(config.parent / "out"), plots=False))
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "transformers" in line] == [
        "note: not in config.json, so as transformers fills it in: vocab_size 262208"
    ]
