"""What all sections of a config share: the strict base model, keys with units, durations and byte sizes."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

NS = 1_000_000_000
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


class Strict(BaseModel):
    """Base of all config models: unknown keys are errors, and types are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def key(default: Any, text: str, unit: str = "") -> Any:
    """A config key with its default, description and unit (shown in the schema and in docs/config.md)."""
    extra: Any = {"unit": unit} if unit else None
    if callable(default):
        return Field(default_factory=default, description=text, json_schema_extra=extra)
    return Field(default, description=text, json_schema_extra=extra)


def _seconds(value: object) -> object:
    """Seconds as a float from a number or from text such as `90s`, `5 min`, `1h`, `250ms`."""
    if isinstance(value, str):
        found = re.fullmatch(r"\s*([0-9.]+(?:[eE][-+]?\d+)?)\s*([a-z]+)\s*", value)
        if not found or found.group(2) not in _SECONDS or found.group(1).count(".") > 1:
            units = ", ".join(_SECONDS)
            raise ValueError(f"must be seconds or a number with a unit ({units}), got '{value}'")
        return float(found.group(1)) * _SECONDS[found.group(2)]
    return value


def _bytes(value: object) -> object:
    """Bytes as an int from a number or from text such as `20GiB` or `80 GB`."""
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
        if not found or found.group(2) not in _BYTES:
            raise ValueError(f"must be bytes or a number with a unit (GiB, MiB, GB, MB ...), got '{value}'")
        return round(float(found.group(1)) * _BYTES[found.group(2)])
    return value


#: Whole number from 1.
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
#: Share from 0 to below 1.
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
#: Seconds, 0 or more; text with a unit is understood.
Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0.0, le=1e9, allow_inf_nan=False)]
#: Bytes, more than 0; text with a unit is understood.
Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=1)]


def to_ns(seconds: float) -> int:
    """Seconds as integer nanoseconds, rounded half to even."""
    return round(seconds * NS)
