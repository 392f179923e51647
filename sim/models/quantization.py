"""What a checkpoint's `quantization_config` says of the bytes of its weights: an estimate, scales included.

Embedding, output projection, norms and what a config leaves out of the quantization by name keep their type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Quantization:
    """How the weights of a checkpoint are stored.

    Attributes:
        method: as the config names it.
        experts: bytes of a parameter of an expert.
        linear: bytes of a parameter of another linear layer; None: as unquantized.
        fp8_math: linear layers are multiplied at the GPU's FP8 rate.
        padded_experts: experts have the sizes that their kernel pads them to.
    """

    method: str
    experts: float
    linear: float | None
    fp8_math: bool = False
    padded_experts: bool = False


def _grouped(method: str, bits: int, group: int, scale_bytes: float = 2.0) -> Quantization:
    """Weights of so many bits that share a scale of two bytes, and a zero of their own width, in groups."""
    size = bits / 8 + ((scale_bytes + bits / 8) / group if group > 0 else 0)
    return Quantization(method, size, size)


#: As `engine.quantization: fp8` has it, too.
FP8 = Quantization("fp8", 1.0, 1.0, fp8_math=True)
#: Experts of four bits with a scale of a byte for each 32 (gpt-oss).
MXFP4 = Quantization("mxfp4", 4.25 / 8, None, padded_experts=True)
#: Four bits with a scale of a byte for each 16.
_NVFP4 = 4.5 / 8
METHODS = ("fp8", "mxfp4", "awq", "gptq", "compressed-tensors", "modelopt", "bitsandbytes")


def quantization_of(section: object) -> Quantization | None:
    """The quantization of a `quantization_config`; None where the method is not known.

    Args:
        section: the value of the key: a mapping with `quant_method`, or a name.

    Raises:
        ValueError: the method is known, what it says of its bits is not.
    """
    values: Mapping[str, Any] = section if isinstance(section, Mapping) else {"quant_method": section}
    method = str(values.get("quant_method"))
    if method == "fp8":
        return FP8
    if method == "mxfp4":
        return MXFP4
    if method in ("awq", "gptq", "awq_marlin", "gptq_marlin"):
        return _grouped(method, _bits(values.get("bits", values.get("w_bit", 4))), _group(values))
    if method == "bitsandbytes":
        # four bits: a scale of four bytes for each 64
        return Quantization(method, 1.0, 1.0) if values.get("load_in_8bit") else _grouped(method, 4, 64, 4.0)
    if method == "compressed-tensors":
        return _compressed(values)
    if method in ("modelopt", "modelopt_fp4"):
        return _modelopt(values, method)
    return None


def _bits(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 16:
        return value
    raise ValueError(f"weights of {value!r} bits are not known")


def _group(values: Mapping[str, Any]) -> int:
    size = values.get("group_size", values.get("q_group_size", 128))
    if isinstance(size, int) and not isinstance(size, bool):
        return size
    raise ValueError(f"groups of {size!r} weights are not known")


def _compressed(values: Mapping[str, Any]) -> Quantization:
    """The first group of compressed-tensors' `config_groups`."""
    groups = values.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    if not isinstance(weights, Mapping):
        raise ValueError("its config_groups say nothing of weights")
    bits = _bits(weights.get("num_bits"))
    if weights.get("type") == "float" and bits == 4:
        return Quantization("compressed-tensors", _NVFP4, _NVFP4)
    if bits == 8:
        inputs = isinstance(first, Mapping) and first.get("input_activations")
        fp8 = weights.get("type") == "float" and bool(inputs)
        return Quantization("compressed-tensors", 1.0, 1.0, fp8_math=fp8)
    size = weights.get("group_size")
    return _grouped("compressed-tensors", bits, size if isinstance(size, int) else 0)


def _modelopt(values: Mapping[str, Any], method: str) -> Quantization:
    algorithm = values.get("quant_algo")
    if algorithm is None and isinstance(values.get("quantization"), Mapping):
        algorithm = values["quantization"].get("quant_algo")
    name = str(algorithm or ("NVFP4" if method == "modelopt_fp4" else "")).upper()
    if name.startswith("FP8"):
        return Quantization(method, 1.0, 1.0, fp8_math=True)
    if name.startswith("NVFP4"):
        return Quantization(method, _NVFP4, _NVFP4)
    raise ValueError(f"quant_algo {algorithm!r} is not known")


__all__ = ["FP8", "METHODS", "MXFP4", "Quantization", "quantization_of"]
