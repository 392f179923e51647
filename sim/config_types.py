"""What all sections of a config share: the strict base model, keys with units, fine durations, byte sizes."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

_NS = {"ns": 1.0, "us": 1e3, "ms": 1e6, "s": 1e9, "min": 6e10, "h": 3.6e12}
_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


class Strict(BaseModel):
    """Base of all config models: unknown keys are errors, and types are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True)


def key(default: Any, text: str, unit: str = "") -> Any:
    """A config key with its default (... = required), description and unit.

    Description and unit are shown in the schema and in docs/config.md. A default given as a function is
    called for each model.
    """
    extra: Any = {"unit": unit} if unit else None
    if callable(default):
        return Field(default_factory=default, description=text, json_schema_extra=extra)
    return Field(default, description=text, json_schema_extra=extra)


def _nanoseconds(value: object) -> object:
    """Float nanoseconds from a number of seconds or from text such as `2.5ns`, `20us`, `1.5ms`."""
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+)\s*([a-z]+)\s*", value)
        if not found or found.group(2) not in _NS:
            raise ValueError(f"must be seconds, or a number with a unit ({', '.join(_NS)}), got '{value}'")
        return float(found.group(1)) * _NS[found.group(2)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value * 1e9
    return value


def format_cost(ns: float) -> str:
    """The shortest exact text of a cost: 500000.0 is "500us", 2.5 is "2.5ns"."""
    for unit in ("s", "ms", "us"):
        if ns >= _NS[unit] and ns % _NS[unit] == 0:
            return f"{ns / _NS[unit]:.0f}{unit}"
    return f"{ns:.0f}ns" if ns.is_integer() else f"{ns!r}ns"


def _bytes(value: object) -> object:
    """Bytes as an int from a number or from text such as `20GiB` or `80 GB`."""
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
        if not found or found.group(2) not in _BYTES:
            raise ValueError(f"must be bytes, or a number with a unit (GiB, MiB, GB, MB), got '{value}'")
        return round(float(found.group(1)) * _BYTES[found.group(2)])
    return value


_NUMBER_OR_TEXT = {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}]}

#: Whole number from 1.
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
#: Share from 0 to below 1.
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
#: Float nanoseconds, 0 or more: a cost of one token or step, which may be a fraction of a nanosecond.
Cost = Annotated[
    float,
    BeforeValidator(_nanoseconds),
    Field(ge=0.0, le=1e15, allow_inf_nan=False),
    PlainSerializer(format_cost, return_type=str),
    WithJsonSchema(_NUMBER_OR_TEXT),
]
#: Bytes, more than 0; text with a unit is understood.
Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=1), WithJsonSchema(_NUMBER_OR_TEXT)]
