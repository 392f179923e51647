"""From the `axes:` section to the values of each axis."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sim.config_explain import KeyPath, Problem, show
from sim.sweep.config import AxisSpec, LogRangeSpec, RangeSpec, ValuesSpec

MOST_VALUES = 10_000
#: Keys that say nothing about what is simulated, or that `seeds` sets.
_NOT_AXES = ("seed", "name", "description", "output")


@dataclass(frozen=True)
class Axis:
    """Values that one key, or several together, go through.

    Attributes:
        label: what it is called.
        keys: dotted paths in the config.
        values: for each position the value of each key.
        labels: what each position is called.
        places: for each position the path of each key's value in the sweep file.
        named: the labels are the user's own.
    """

    label: str
    keys: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]
    labels: tuple[str, ...]
    places: tuple[tuple[KeyPath, ...], ...]
    named: bool = False

    def __len__(self) -> int:
        return len(self.values)

    @property
    def numbers(self) -> tuple[float, ...] | None:
        """The first key's values, if all are numbers, no two are equal and none has a name."""
        first = [v[0] for v in self.values]
        if self.named or any(isinstance(v, bool) or not isinstance(v, int | float) for v in first):
            return None
        return tuple(float(v) for v in first) if len(set(first)) == len(first) else None

    def says(self, position: int) -> str:
        """`block_size 16`."""
        return f"{self.label} {self.labels[position]}"


def text_of(value: Any) -> str:
    """A value as a label: short and on one line."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = json.dumps(value, ensure_ascii=False)
    return text.replace('"', "") if isinstance(value, dict | list) else text


def expand(name: str, spec: list[Any] | AxisSpec, problems: list[Problem]) -> Axis | None:
    """One entry of `axes:`; None, and why in `problems`, if it gives no values."""
    path: KeyPath = ("axes", name)
    before = len(problems)
    if isinstance(spec, AxisSpec) and spec.zip is not None:
        if spec.values is not None or spec.range is not None or spec.log_range is not None:
            problems.append(
                Problem(path, f"the axis '{name}' has 'zip' and values of its own", "give one of them")
            )
            return None
        columns = [_values(k, s, (*path, "zip", k), problems) for k, s in spec.zip.items()]
        keys = tuple(spec.zip)
        known = [c for c in columns if c is not None]
        lengths = {k: len(c[0]) for k, c in zip(keys, columns, strict=True) if c is not None}
        if len(known) == len(columns) and len(set(lengths.values())) > 1:
            told = ", ".join(f"{k} has {n}" for k, n in lengths.items())
            problems.append(
                Problem((*path, "zip"), f"the zipped keys of '{name}' have unequal numbers of values: {told}")
            )
    else:
        one = spec if isinstance(spec, list) else ValuesSpec(**{k: getattr(spec, k) for k in _OWN})
        columns = [_values(name, one, path, problems)]
        keys = (name,)
    for key, where in zip(keys, _key_paths(path, keys, spec), strict=True):
        problems += _bad_key(key, where)
    if len(problems) > before or any(c is None for c in columns):
        return None
    found = [c for c in columns if c is not None]
    values = tuple(zip(*(c[0] for c in found), strict=True))
    places = tuple(zip(*(c[1] for c in found), strict=True))
    labels = _labels(name, spec, values, path, problems)
    seen: dict[str, int] = {}
    for i, value in enumerate(values):
        first = seen.setdefault(json.dumps(value, sort_keys=True), i)
        if first != i:
            problems.append(Problem(places[i][0], f"the axis '{name}' has the value {show(value[0])} twice"))
    if len(problems) > before or labels is None:
        return None
    given = spec.label if isinstance(spec, AxisSpec) else None
    zipped = isinstance(spec, AxisSpec) and spec.zip is not None
    named = isinstance(spec, AxisSpec) and spec.labels is not None
    return Axis(given or (name if zipped else name.rpartition(".")[2]), keys, values, labels, places, named)


_OWN = ("values", "range", "log_range")


def _key_paths(path: KeyPath, keys: Sequence[str], spec: list[Any] | AxisSpec) -> list[KeyPath]:
    zipped = isinstance(spec, AxisSpec) and spec.zip is not None
    return [(*path, "zip", k) if zipped else path for k in keys]


def _bad_key(key: str, where: KeyPath) -> list[Problem]:
    parts = key.split(".")
    if not all(parts):
        return [Problem(where, f"'{key}' is not a dotted path of a key", "as in engine.block_size")]
    if parts[0] in _NOT_AXES:
        hint = "give `seeds` instead" if parts[0] == "seed" else "it does not change what is simulated"
        return [Problem(where, f"'{key}' can't be an axis", hint)]
    return []


def _labels(
    name: str,
    spec: list[Any] | AxisSpec,
    values: tuple[tuple[Any, ...], ...],
    path: KeyPath,
    problems: list[Problem],
) -> tuple[str, ...] | None:
    given = spec.labels if isinstance(spec, AxisSpec) else None
    if given is None:
        return tuple("/".join(text_of(v) for v in row) for row in values)
    if len(given) != len(values):
        problems.append(
            Problem((*path, "labels"), f"the axis '{name}' has {len(values)} values and {len(given)} labels")
        )
        return None
    return tuple(given)


def _values(
    name: str, spec: list[Any] | ValuesSpec, path: KeyPath, problems: list[Problem]
) -> tuple[list[Any], list[KeyPath]] | None:
    """Values and their paths in the sweep file."""
    if isinstance(spec, list):
        return spec, [(*path, i) for i in range(len(spec))]
    given = [k for k in _OWN if getattr(spec, k) is not None]
    if len(given) != 1:
        what = f"has {' and '.join(given)}" if given else "has no values"
        problems.append(Problem(path, f"the axis '{name}' {what}", "give one of values, range, log_range"))
        return None
    where = (*path, given[0])
    if spec.values is not None:
        return spec.values, [(*where, i) for i in range(len(spec.values))]
    numbers = _range(spec.range) if spec.range is not None else _log_range(spec.log_range)
    if isinstance(numbers, str):
        problems.append(Problem(where, f"the axis '{name}': {numbers}"))
        return None
    return numbers, [where] * len(numbers)


def _exact(x: float) -> Decimal:
    return Decimal(repr(x))


def _number(x: Decimal, whole: bool) -> int | float:
    return int(x) if whole else float(x)


def _range(spec: RangeSpec) -> list[Any] | str:
    """In decimal, so that 0.8 and four steps of 0.2 make 1.6."""
    first, last, step = (_exact(x) for x in (spec.from_, spec.to, spec.step))
    if not all(x.is_finite() for x in (first, last, step)):
        return "from, to and step must be finite"
    if step == 0 or (last - first) * step < 0:
        return f"from {spec.from_} in steps of {spec.step} never comes to {spec.to}"
    n = int((last - first) / step) + 1
    if n > MOST_VALUES:
        return f"{n:,} values are too many (at most {MOST_VALUES:,})"
    whole = all(isinstance(x, int) for x in (spec.from_, spec.step))
    return [_number(first + i * step, whole) for i in range(n)]


def _log_range(spec: LogRangeSpec | None) -> list[Any] | str:
    assert spec is not None
    first, last = float(spec.from_), float(spec.to)
    whole = isinstance(spec.from_, int) and isinstance(spec.to, int)
    if spec.points is not None:
        ratio = (last / first) ** (1 / (spec.points - 1))
        numbers = [first * ratio**i for i in range(spec.points - 1)] + [last]
        if whole:
            return list(dict.fromkeys(round(x) for x in numbers))
        return [float(f"{x:.12g}") for x in numbers]
    factor = float(spec.factor or 0.0)
    if factor == 1 or (last - first) * (factor - 1) < 0:
        return f"from {spec.from_} by factors of {spec.factor:g} never comes to {spec.to}"
    numbers = []
    x = first
    while (x - last) * (factor - 1) <= 1e-9 * abs(last):
        numbers.append(x)
        if len(numbers) > MOST_VALUES:
            return f"more than {MOST_VALUES:,} values"
        x = first * factor ** len(numbers)
    if whole:
        return list(dict.fromkeys(round(x) for x in numbers))
    return [float(f"{x:.12g}") for x in numbers]
