"""Weights of quantized checkpoints: bytes of a parameter, by `quantization_config`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sim.errors import InputError
from sim.models import FOLDER, load_model
from sim.models.quantization import FP8, quantization_of
from sim.sizing.budget import weight_bytes


@pytest.mark.parametrize(
    ("section", "linear", "experts"),
    [
        ("fp8", 1.0, 1.0),
        ({"quant_method": "mxfp4"}, None, 0.53125),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 0.5 + 2.5 / 128, 0.5 + 2.5 / 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 1.0, 1.0),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 0.5 + 4.5 / 64, 0.5 + 4.5 / 64),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 1.0, 1.0),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, 1.0, 1.0),
        ({"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4"}}, 0.5625, 0.5625),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 64}}},
            },
            0.5 + 2.5 / 64,
            0.5 + 2.5 / 64,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int", "group_size": None}}},
            },
            1.0,
            1.0,
        ),
    ],
)
def test_bytes_of_a_parameter(section: object, linear: float | None, experts: float) -> None:
    found = quantization_of(section)
    assert found is not None
    assert (found.linear, found.experts) == (linear, pytest.approx(experts))


def test_fp8_is_multiplied_as_fp8_where_the_inputs_are_too() -> None:
    weights = {"num_bits": 8, "type": "float"}
    both = {"config_groups": {"group_0": {"weights": weights, "input_activations": {"num_bits": 8}}}}
    alone = {"config_groups": {"group_0": {"weights": weights, "input_activations": None}}}
    found = [quantization_of({"quant_method": "compressed-tensors", **c}) for c in (both, alone)]
    assert [q is not None and q.fp8_math for q in found] == [True, False]
    assert FP8.fp8_math


def test_the_bytes_of_an_awq_checkpoint(tmp_path: Path) -> None:
    """Llama 3.1 8B: layers in four bits, embedding, output projection and norms in bfloat16."""
    data = json.loads((FOLDER / "llama-3.1-8b.json").read_text())
    data["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 128}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(data))
    layers = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    rest = 2 * (2 * 128256 * 4096 + 65 * 4096)
    assert weight_bytes(load_model(path), 1, None) == int(layers * (0.5 + 2.5 / 128) + rest)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"quant_method": "awq", "bits": "four"}, "weights of 'four' bits are not known"),
        ({"quant_method": "gptq", "bits": 4, "group_size": "x"}, "groups of 'x' weights are not known"),
        ({"quant_method": "compressed-tensors"}, "its config_groups say nothing of weights"),
        ({"quant_method": "modelopt", "quant_algo": "W9"}, "quant_algo 'W9' is not known"),
        ({"quant_method": "hqq"}, "quantization 'hqq' is not known"),
    ],
)
def test_what_is_not_known_is_told_with_its_place(tmp_path: Path, section: object, message: str) -> None:
    data = json.loads((FOLDER / "llama-3.1-8b.json").read_text())
    data["quantization_config"] = section
    path = tmp_path / "config.json"
    path.write_text(json.dumps(data, indent=1))
    with pytest.raises(InputError) as caught:
        load_model(path)
    assert len(caught.value.problems) == 1
    assert message in str(caught.value.problems[0])
    assert "config.json:" in str(caught.value.problems[0])
