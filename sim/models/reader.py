"""Reading of a Hugging Face config.json: typed keys, all problems at once, each with its place."""

from __future__ import annotations

from typing import Any

from sim.config_yaml import Document
from sim.errors import InputError, did_you_mean

from .defaults import class_defaults
from .quantization import METHODS, Quantization, quantization_of
from .shape import DTYPE_BYTES

BY_HAND = (
    "leave `model` out and give engine.num_gpu_blocks, engine.kv_cache_groups and a step_time of another kind"
)


#: No model has more: a slip of the keyboard must not end in a loop over so many layers.
_MOST, _MOST_LAYERS = 10**12, 10_000
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
        self._defaults: dict[str, int] = {}
        self._defaults = class_defaults(str(self.get("model_type", "")))
        #: Keys that the config leaves out, with what its class fills in.
        self.filled: dict[str, int] = {}

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default where it is missing or null.

        A key that is nowhere in the config has what the class of its type fills in (`class_defaults`).
        """
        value = self._text.get(key)
        if value is None:
            value = self.document.data.get(key)
        if value is None and key in self._defaults and not self._has(key):
            value = self.filled[key] = self._defaults[key]
        return default if value is None else value

    def _has(self, key: str) -> bool:
        return key in self._text or key in self.document.data

    def fail(self, key: str, message: str, hint: str | None = None) -> None:
        """Note a problem at a key, once."""
        place = self.document.place((self._section, key) if key in self._text else (key,))
        problem = InputError(message, self.document.file, place.line, place.column, hint)
        if str(problem) not in [str(p) for p in self.problems]:
            self.problems.append(problem)

    def number(self, key: str, default: int | None = None, least: int = 1, most: int = _MOST) -> int:
        """A whole number; without a default the key is required."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            got = "it is missing" if value is None else f"got {value!r}"
            hint = did_you_mean(key, {**self.document.data, **self._text}) if value is None else None
            span = f"from {least}" + (f" to {most}" if isinstance(value, int) and value > most else "")
            self.fail(key, f"'{key}' must be a whole number {span}: {got}", hint)
            return max(1, least)
        return value

    def layers(self, key: str = "num_hidden_layers") -> int:
        """A number of layers."""
        return self.number(key, most=_MOST_LAYERS)

    def numbers(self, key: str) -> list[int]:
        """A list of whole numbers, none where the key is missing."""
        value = self.get(key, [])
        if not isinstance(value, list) or not all(type(v) is int for v in value):
            self.fail(key, f"'{key}' must be a list of whole numbers")
            return []
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """A true or false, also as 1 or 0."""
        value = self.get(key, default)
        if value not in (True, False):
            self.fail(key, f"'{key}' must be true or false: got {value!r}")
            return default
        return bool(value)

    def part(self, section: str, key: str, default: int | None = None) -> int | None:
        """A whole number from 1 of a section beside the text model's; None where it is missing.

        Another thing is a problem, and None.
        """
        values = self.document.data.get(section)
        value = values.get(key, default) if isinstance(values, dict) else default
        if value is None or (type(value) is int and 1 <= value <= _MOST):
            return value
        place = self.document.place((section, key))
        message = f"'{section}.{key}' must be a whole number from 1: got {value!r}"
        self.problems.append(InputError(message, self.document.file, place.line, place.column))
        return None

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

    def quantization(self) -> Quantization | None:
        """What the checkpoint's weights are quantized to."""
        key = "quantization_config"
        section = self.get(key)
        if section is None:
            return None
        method = section.get("quant_method") if isinstance(section, dict) else section
        message = f"quantization '{method}' is not known, so the weights can't be estimated"
        hint = "leave the key out and give engine.kv_cache_memory_bytes"
        try:
            found = quantization_of(section)
        except ValueError as why:
            self.fail(key, f"quantization '{method}': {why}, so the weights can't be estimated", hint)
            return None
        if found is None:
            self.fail(key, message, f"known: {', '.join(METHODS)}; {hint}")
        return found

    def state_dtype(self) -> str | None:
        """The type of recurrent states (`mamba_ssm_dtype`), None where the config names none."""
        value = self.get("mamba_ssm_dtype")
        if value is None:
            return None
        name = str(value).removeprefix("torch.")
        if name not in DTYPE_BYTES:
            self.fail("mamba_ssm_dtype", f"unknown dtype '{value}'", f"known: {', '.join(DTYPE_BYTES)}")
            return None
        return {"half": "float16", "float": "float32"}.get(name, name)

    def vision_tower(self) -> int:
        """Parameters of the image encoder, estimated from `vision_config`; 0 if there is none."""
        section = "vision_config"
        if not isinstance(self.document.data.get(section), dict):
            return 0
        sizes = [self.part(section, k) for k in ("hidden_size", "intermediate_size", "num_hidden_layers")]
        if None in sizes:
            self.notes.append("the image encoder is left out: its vision_config has no sizes")
            return 0
        h, inner, layers = (s or 0 for s in sizes)
        layers += self.part(section, "num_global_layers") or 0
        self.notes.append("the image encoder is counted by its layers only")
        return layers * (4 * h * h + 2 * h * inner)

    def all_notes(self) -> tuple[str, ...]:
        """Notes of the reading, and which missing keys were filled in."""
        if not self.filled:
            return tuple(self.notes)
        values = ", ".join(f"{k} {v}" for k, v in self.filled.items())
        return (*self.notes, f"not in config.json, so as transformers fills it in: {values}")
