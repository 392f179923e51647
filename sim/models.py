"""Models: the shape of a dense decoder, read from a Hugging Face `config.json`.

Known names are the files of `sim/model_configs/`; a path to another `config.json` works for any dense
Llama-like model (grouped-query attention in every layer, gated MLP).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sim.config_yaml import Document, read_json
from sim.errors import InputError, did_you_mean, raise_all

FOLDER = Path(__file__).parent / "model_configs"
DTYPE_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}
_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")
_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a dense decoder, in elements; `dtype` is of weights and activations."""

    name: str
    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_position: int
    tie_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    dtype: str

    @property
    def dtype_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def layer_params(self) -> int:
        """Parameters in the linear layers of one decoder layer, biases left out."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def linear_params(self) -> int:
        """Parameters of all decoder layers' linear layers."""
        return self.layers * self.layer_params

    @property
    def head_params(self) -> int:
        """Parameters of the output projection (shared with the embedding if tied)."""
        return self.vocab * self.hidden

    @property
    def num_params(self) -> int:
        """All parameters."""
        extra = 2 * self.hidden
        if self.qkv_bias:
            extra += self.head_dim * (self.heads + 2 * self.kv_heads)
        if self.qk_norm:
            extra += 2 * self.head_dim
        embeddings = self.head_params * (1 if self.tie_embeddings else 2)
        return self.linear_params + self.layers * extra + self.hidden + embeddings

    def kv_bytes_per_token_layer(self, tensor_parallel: int, kv_dtype_bytes: int) -> int:
        """Bytes of one token's K and V in one layer on one GPU (vLLM: heads = max(1, kv_heads // TP))."""
        return 2 * max(1, self.kv_heads // tensor_parallel) * self.head_dim * kv_dtype_bytes

    def kv_bytes_per_token(self, tensor_parallel: int, kv_dtype_bytes: int) -> int:
        """Bytes of one token's K and V in all layers on one GPU."""
        return self.layers * self.kv_bytes_per_token_layer(tensor_parallel, kv_dtype_bytes)


def model_names() -> list[str]:
    """Names of the models that come with kvpool."""
    return sorted(p.stem for p in FOLDER.glob("*.json"))


def is_path(name: str) -> bool:
    """Whether `model:` is meant as a file, not as a name."""
    return name.endswith(".json") or "/" in name or "\\" in name


def find_model(name: str) -> ModelShape | None:
    """The model of this name in any case, or None."""
    low = name.lower()
    for candidate in (low, low.removesuffix("-instruct"), low.removeprefix("meta-")):
        if candidate in model_names():
            return _known(candidate)
    return None


@lru_cache
def _known(name: str) -> ModelShape:
    data = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return shape_from_config(Document(name, data), name)


def load_model(path: str | Path) -> ModelShape:
    """Read a Hugging Face `config.json`.

    Raises:
        InputError: missing file, broken JSON, missing or wrong keys, or an architecture that is not dense
            full attention; all problems at once.
    """
    document = read_json(path)
    parent = Path(path).resolve().parent.name
    name = str(document.data.get("_name_or_path") or (parent if Path(path).name == "config.json" else ""))
    return shape_from_config(document, name or Path(path).stem)


def shape_from_config(document: Document, name: str) -> ModelShape:
    """The shape in a Hugging Face config; see `load_model`."""
    data = document.data
    problems: list[InputError] = []

    def fail(key: str, message: str, hint: str | None = None) -> None:
        place = document.place((key,))
        problems.append(InputError(message, document.file, place.line, place.column, hint))

    def number(key: str, default: int | None) -> int:
        value = data.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            got = "it is missing" if value is None else f"got {value!r}"
            fail(key, f"'{key}' must be a whole number from 1: {got}", did_you_mean(key, data))
            return 1
        return value

    for key in _EXPERT_KEYS:
        if data.get(key):
            fail(key, "mixture-of-experts models are not supported", _BY_HAND)
            break
    if data.get("kv_lora_rank"):
        fail("kv_lora_rank", "multi-head latent attention is not supported", _BY_HAND)
    kinds = data.get("layer_types")
    if isinstance(kinds, list) and any(k != "full_attention" for k in kinds):
        other = next(k for k in kinds if k != "full_attention")
        fail("layer_types", f"layers of type '{other}' are not simulated yet", _BY_HAND)
    elif data.get("sliding_window") and data.get("use_sliding_window", True):
        fail("sliding_window", "sliding-window attention is not simulated yet", _BY_HAND)

    sizes = {key: number(key, None) for key in _REQUIRED}
    heads = sizes["num_attention_heads"]
    dtype = str(data.get("torch_dtype") or data.get("dtype") or "bfloat16").removeprefix("torch.")
    if dtype not in DTYPE_BYTES:
        fail("torch_dtype", f"unknown dtype '{dtype}'", f"known: {', '.join(DTYPE_BYTES)}")
        dtype = "bfloat16"
    kv_heads = number("num_key_value_heads", heads)
    if kv_heads > heads or heads % kv_heads:
        fail("num_key_value_heads", f"{heads} heads can't share {kv_heads} key-value heads evenly")
    model_type = str(data.get("model_type", "llama"))
    shape = ModelShape(
        name=name,
        model_type=model_type,
        layers=sizes["num_hidden_layers"],
        hidden=sizes["hidden_size"],
        intermediate=sizes["intermediate_size"],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=number("head_dim", max(1, sizes["hidden_size"] // heads)),
        vocab=sizes["vocab_size"],
        max_position=number("max_position_embeddings", 4096),
        tie_embeddings=bool(data.get("tie_word_embeddings", False)),
        qkv_bias=bool(data.get("attention_bias", model_type == "qwen2")),
        qk_norm=model_type.startswith("qwen3"),
        dtype={"half": "float16", "float": "float32"}.get(dtype, dtype),
    )
    raise_all(problems)
    return shape


_BY_HAND = "leave `model` out and give engine.num_gpu_blocks and a step_time of another kind"


def describe_model(shape: ModelShape) -> dict[str, Any]:
    """The shape with its derived numbers, for provenance."""
    return {
        "name": shape.name,
        "layers": shape.layers,
        "hidden": shape.hidden,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate": shape.intermediate,
        "vocab": shape.vocab,
        "tie_embeddings": shape.tie_embeddings,
        "dtype": shape.dtype,
        "num_params": shape.num_params,
    }
