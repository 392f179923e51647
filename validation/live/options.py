"""Options of the live recorder, from one environment variable: `name=value` pairs separated by commas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from sim.errors import InputError, did_you_mean


@dataclass(frozen=True)
class LiveOptions:
    """How much is recorded, and what it may cost.

    Attributes:
        row_every: a row of counters after the calls of every so many steps.
        state_every: the whole state (free queue, reference counts, block tables) with the first row after so
            many steps; 0: never; 1: with every row.
        budget: states are put off while the recorder has taken more than this share of the time that
            schedule() and update_from_output() took; 0: no limit.
        ops: record each block operation.
        tokens: record prompts, outputs and cache salts. They are the users' text: off unless asked for.
        queue_mb: memory for what the writer has not written yet; what does not fit is dropped and counted.
        flush_s: how often what is there is made durable.
        compress: zlib level of the file, 0 to 9.
    """

    row_every: int = 32
    state_every: int = 256
    budget: float = 0.003
    ops: bool = False
    tokens: bool = False
    queue_mb: float = 64.0
    flush_s: float = 1.0
    compress: int = 1


FULL = LiveOptions(row_every=1, state_every=1, budget=0.0, ops=True)
"""Every call with its state: for comparisons with the simulator, not for production."""

PRESETS = {"default": LiveOptions(), "full": FULL}


def _integer(low: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text)
        if value < low:
            raise ValueError(f"at least {low}")
        return value

    return read


def _number(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError("a number that is not negative")
    return value


def _switch(text: str) -> bool:
    values = {"1": True, "on": True, "true": True, "0": False, "off": False, "false": False}
    if text.lower() not in values:
        raise ValueError("on or off")
    return values[text.lower()]


def _level(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 9:
        raise ValueError("0 to 9")
    return value


_READERS: dict[str, Callable[[str], Any]] = {
    "row_every": _integer(1),
    "state_every": _integer(0),
    "budget": _number,
    "ops": _switch,
    "tokens": _switch,
    "queue_mb": _number,
    "flush_s": _number,
    "compress": _level,
}
assert set(_READERS) == {field.name for field in fields(LiveOptions)}


def parse_options(text: str) -> LiveOptions:
    """`full,tokens=on` and the like; a preset (default, full) may come first.

    Raises InputError that names the pair and what is allowed.
    """
    options = LiveOptions()
    where = "KVPOOL_LIVE_OPTIONS"
    for position, pair in enumerate(part.strip() for part in text.split(",")):
        if not pair:
            continue
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            if position or name not in PRESETS:
                raise InputError(
                    f"{pair!r}: expected name=value",
                    where,
                    hint=f"only the first word may be a preset: {', '.join(PRESETS)}",
                )
            options = PRESETS[name]
            continue
        if name not in _READERS:
            hint = did_you_mean(name, _READERS) or f"one of {', '.join(_READERS)}"
            raise InputError(f"unknown option {name!r}", where, hint=hint)
        try:
            options = replace(options, **{name: _READERS[name](value)})
        except ValueError as exc:
            raise InputError(f"{name}={value}: {exc}", where) from exc
    return options
