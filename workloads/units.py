"""Durations as people write them ("500ms", "2s", "1min", or seconds), kept as integer nanoseconds."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

NS_PER_SECOND = 1_000_000_000
MAX_DURATION_NS = 2**62

#: Unit -> nanoseconds, largest last; `format_duration` picks the largest that divides the value.
UNITS: dict[str, int] = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": NS_PER_SECOND,
    "min": 60 * NS_PER_SECOND,
    "h": 3600 * NS_PER_SECOND,
    "d": 86400 * NS_PER_SECOND,
}

_PATTERN = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Zµ]+)\s*")
_EXPECTED = 'a number of seconds, or a number and a unit (ns, us, ms, s, min, h, d) such as "500ms" or "2min"'


def parse_duration(value: Any) -> int:
    """Nanoseconds of a duration.

    Args:
        value: int or float seconds, or text such as "500ms", "1.5s", "2min".

    Returns:
        integer nanoseconds, in [0, 2**62]; fractions of a nanosecond are rounded half to even.

    Raises:
        ValueError: not a duration, negative or too long.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected {_EXPECTED}, got {value!r}")
    if isinstance(value, str):
        match = _PATTERN.fullmatch(value)
        if match is None:
            raise ValueError(f"expected {_EXPECTED}, got {value!r}")
        number, unit = match.groups()
        if unit not in UNITS:
            raise ValueError(f"unknown unit {unit!r} in {value!r}; use one of {', '.join(UNITS)}")
        exact = Decimal(number) * UNITS[unit]
    else:
        if not math.isfinite(value):
            raise ValueError(f"expected {_EXPECTED}, got {value!r}")
        exact = Decimal(str(value)) * NS_PER_SECOND
    nanoseconds = round(exact)
    if not 0 <= nanoseconds <= MAX_DURATION_NS:
        raise ValueError(f"a duration must lie between 0 and {MAX_DURATION_NS} ns, got {value!r}")
    return nanoseconds


def format_duration(nanoseconds: int) -> str:
    """The shortest exact text of a duration: 1_500_000_000 is "1500ms", 60_000_000_000 is "1min"."""
    if nanoseconds == 0:
        return "0s"
    unit = max((u for u in UNITS if nanoseconds % UNITS[u] == 0), key=UNITS.__getitem__)
    return f"{nanoseconds // UNITS[unit]}{unit}"


#: A pydantic field type: read with `parse_duration`, held as integer nanoseconds, written as exact text.
Duration = Annotated[
    int,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0},
                {"type": "string", "pattern": r"^\s*([0-9]+(\.[0-9]*)?|\.[0-9]+)\s*(ns|us|ms|s|min|h|d)\s*$"},
            ]
        }
    ),
]
