"""Reading of a Hugging Face config.json: typed keys, all problems at once, each with its place."""

from __future__ import annotations

from typing import Any

from sim.config_yaml import Document
from sim.errors import InputError, did_you_mean

from .shape import DTYPE_BYTES, QUANTIZED_BYTES

BY_HAND = (
    "leave `model` out and give engine.num_gpu_blocks, engine.kv_cache_groups and a step_time of another kind"
)


#: Sections that hold a model's own keys: of a model that also sees images, and of heads that draft.
_NESTED = ("text_config", "transformer_layer_config")


class Reader:
    """Keys of a config, of its `text_config` or the like first; problems are collected in `problems`."""

    def __init__(self, document: Document, name: str) -> None:
        self.document = document
        self.name = name
        self.problems: list[InputError] = []
        self.notes: list[str] = []
        self._section = next((k for k in _NESTED if isinstance(document.data.get(k), dict)), "")
        self._text: dict[str, Any] = document.data.get(self._section, {})

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default where it is missing or null."""
        value = self._text.get(key)
        if value is None:
            value = self.document.data.get(key)
        return default if value is None else value

    def fail(self, key: str, message: str, hint: str | None = None) -> None:
        """Note a problem at a key."""
        place = self.document.place((self._section, key) if key in self._text else (key,))
        self.problems.append(InputError(message, self.document.file, place.line, place.column, hint))

    def number(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number; without a default the key is required."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            got = "it is missing" if value is None else f"got {value!r}"
            known = {**self.document.data, **self._text}
            self.fail(key, f"'{key}' must be a whole number from {least}: {got}", did_you_mean(key, known))
            return max(1, least)
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """A true or false."""
        return bool(self.get(key, default))

    def strings(self, key: str, length: int) -> list[str] | None:
        """A list of texts, one a layer, or None where the key is missing."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value) or len(value) < length:
            self.fail(key, f"'{key}' must be a list of {length} texts, one for each layer")
            return None
        return value[:length]

    def dtype(self) -> str:
        """The type of weights and activations; float32 checkpoints are run in bfloat16, as vLLM does."""
        value = str(self.get("torch_dtype") or self.get("dtype") or "bfloat16").removeprefix("torch.")
        if value not in DTYPE_BYTES:
            self.fail("torch_dtype", f"unknown dtype '{value}'", f"known: {', '.join(DTYPE_BYTES)}")
            return "bfloat16"
        return {"half": "float16", "float": "bfloat16", "float32": "bfloat16"}.get(value, value)

    def quantization(self) -> str | None:
        """What the checkpoint's weights are quantized to."""
        section = self.get("quantization_config")
        if section is None:
            return None
        method = section.get("quant_method") if isinstance(section, dict) else section
        if method not in QUANTIZED_BYTES:
            known = ", ".join(QUANTIZED_BYTES)
            self.fail(
                "quantization_config",
                f"quantization '{method}' is not known, so the weights can't be estimated",
                f"known: {known}; leave the key out and give engine.kv_cache_memory_bytes",
            )
            return None
        return str(method)

    def vision_tower(self) -> int:
        """Parameters of the image encoder, estimated from `vision_config`; 0 if there is none."""
        section = self.document.data.get("vision_config")
        if not isinstance(section, dict):
            return 0
        try:
            h, inner = int(section["hidden_size"]), int(section["intermediate_size"])
            layers = int(section["num_hidden_layers"]) + int(section.get("num_global_layers", 0))
        except (KeyError, TypeError, ValueError):
            self.notes.append("the image encoder is left out: its vision_config has no sizes")
            return 0
        self.notes.append("the image encoder is counted by its layers only")
        return layers * (4 * h * h + 2 * h * inner)
