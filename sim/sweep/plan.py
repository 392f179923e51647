"""A sweep file, read and checked: its points, each with the config that it runs."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sim.config import MAX_SEED, RunConfig, check_document, name_of
from sim.config_explain import KeyPath, Problem, validate_model
from sim.config_yaml import Document, Place, apply_overrides, read_yaml, set_value, to_input_errors
from sim.errors import InputError, raise_all
from sim.resolve import Resolved, find_file, resolve
from sim.sweep.axes import Axis, expand
from sim.sweep.config import SweepConfig
from sim.sweep.metrics import Named, find_metric

MOST_POINTS = 100_000


@dataclass(frozen=True)
class Point:
    """One combination of axis values.

    Attributes:
        index: in the order of the axes, the last one fastest.
        positions: for each axis, which of its values.
        resolved: what to run (with the first seed), or None.
        problem: why it can't be run; empty if it can.
    """

    index: int
    positions: tuple[int, ...]
    resolved: Resolved | None
    problem: str = ""

    def label(self, axes: Sequence[Axis]) -> str:
        """`block_size 16, rate 1.2`; an axis with one value is left out, since all points have it."""
        pairs = list(zip(axes, self.positions, strict=True))
        varied = [(a, i) for a, i in pairs if len(a) > 1]
        return ", ".join(a.says(i) for a, i in varied or pairs)

    def values(self, axes: Sequence[Axis]) -> dict[str, Any]:
        """Dotted key of the config -> value."""
        return {
            k: v
            for a, i in zip(axes, self.positions, strict=True)
            for k, v in zip(a.keys, a.values[i], strict=True)
        }


@dataclass(frozen=True)
class Sweep:
    """A sweep that passed its checks.

    Attributes:
        file: as the user gave it.
        name, title, description: of the file.
        base: name of the base config: its file, or "" if it is inline.
        axes: in the order of the file.
        seeds: of each point.
        metrics: shown, the most important first.
        points: every combination, in order.
    """

    file: str
    name: str
    title: str
    description: str
    base: str
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    metrics: tuple[Named, ...]
    points: tuple[Point, ...]

    @property
    def varied(self) -> tuple[int, ...]:
        """Positions of the axes that have two values or more."""
        return tuple(i for i, a in enumerate(self.axes) if len(a) > 1)

    @property
    def circumstances(self) -> tuple[int, ...]:
        """Those of the varied axes that change the workload and nothing else; the others are choices."""
        return tuple(i for i in self.varied if all(k.startswith("workload.") for k in self.axes[i].keys))

    def groups(self) -> list[list[Point]]:
        """Points that differ in choices only, by circumstances; one group where there are none."""
        inside = self.circumstances
        if len(inside) == len(self.varied):
            return [list(self.points)]
        found: dict[tuple[int, ...], list[Point]] = {}
        for p in self.points:
            found.setdefault(tuple(p.positions[i] for i in inside), []).append(p)
        return list(found.values())


def load_sweep(path: str, overrides: Sequence[str] = (), seeds: int | None = None) -> Sweep:
    """Read a sweep file, its base config and its axes.

    Args:
        path: the file.
        overrides: `key=value` texts of `--set`, for the base config.
        seeds: of `--seeds`, in place of the file's.

    Raises:
        InputError: the problems of the file, of its axes and of the base config, all at once, each with its
            place. What only a combination of values makes impossible is not one of them: such a point has a
            `problem`.
    """
    document = read_yaml(path)
    if "axes" not in document.data and "workload" in document.data:
        raise InputError(
            "this is the config of one run, not a sweep: it has no `axes`",
            path,
            1,
            1,
            f"python -m sim run {path}, or see docs/sweep.md",
        )
    config, problems = validate_model(SweepConfig, document)
    if config is None:
        raise_all(to_input_errors(problems, document))
        raise AssertionError("a failed validation has problems")
    problems = []
    axes = [a for name, spec in config.axes.items() if (a := expand(name, spec, problems)) is not None]
    _check_keys(axes, overrides, problems)
    metrics = _metrics(config, problems)
    errors = to_input_errors(problems, document)
    base, folder = _base(config, document, errors)
    if base is None:
        raise_all(errors)
        raise AssertionError("a base that can't be read has problems")
    apply_overrides(base, overrides)
    builder = _Builder(document, base, folder, name_of(base.file), axes)
    raise_all([*errors, *builder.input_errors()])
    total = math.prod(len(a) for a in axes)
    if total > MOST_POINTS:
        place = document.place(("axes",), at_key=True)
        raise InputError(
            f"{total:,} points are too many (at most {MOST_POINTS:,})", path, place.line, place.column
        )
    points = tuple(builder.points())
    if all(p.resolved is None for p in points):
        raise_all(builder.refused)
    first = next(p.resolved for p in points if p.resolved is not None)
    return Sweep(
        file=path,
        name=config.name or name_of(path),
        title=config.title or config.name or name_of(path),
        description=config.description or "",
        base="" if isinstance(config.base, dict) else config.base,
        axes=tuple(axes),
        seeds=_seeds(config.seeds if seeds is None else seeds, first.seed, document),
        metrics=tuple(metrics),
        points=points,
    )


def with_seed(resolved: Resolved, seed: int) -> Resolved:
    """The same run with another seed."""
    return replace(resolved, seed=seed, config={**resolved.config, "seed": seed})


def _seeds(given: int | list[int], first: int, document: Document) -> tuple[int, ...]:
    if isinstance(given, list):
        if len(set(given)) < len(given):
            raise_all(to_input_errors([Problem(("seeds",), "a seed is given twice")], document))
        return tuple(given)
    if first + given - 1 > MAX_SEED:
        raise_all(to_input_errors([Problem(("seeds",), "the last seed would be too large")], document))
    return tuple(range(first, first + given))


def _metrics(config: SweepConfig, problems: list[Problem]) -> list[Named]:
    found: dict[str, Named] = {}
    for i, name in enumerate(config.metrics):
        try:
            metric = find_metric(name)
        except InputError as e:
            problems.append(Problem(("metrics", i), e.message, e.hint))
            continue
        found.setdefault(metric.name, metric)
    return list(found.values())


def _check_keys(axes: Sequence[Axis], overrides: Sequence[str], problems: list[Problem]) -> None:
    """No key is set by two axes, or by an axis and `--set`."""
    places = {k: p for a in axes for k, p in zip(a.keys, a.places[0], strict=True)}
    for (a, place_a), (b, place_b) in itertools.combinations(places.items(), 2):
        if _overlap(a, b):
            inner, where = (b, place_b) if len(b) >= len(a) else (a, place_a)
            outer = a if inner == b else b
            problems.append(Problem(where[:2], f"'{inner}' is set by two axes (the other one is '{outer}')"))
    names = [k for axis in axes for k in axis.keys]
    for text in overrides:
        key = text.partition("=")[0].strip()
        for name in names:
            if _overlap(key, name):
                raise InputError(
                    f"'{name}' is an axis of the sweep", f"--set {key}", hint="change the sweep file"
                )
    if len(names) != len(set(names)):
        twice = next(n for n in names if names.count(n) > 1)
        problems.append(Problem(("axes",), f"'{twice}' is set by two axes"))


def _overlap(a: str, b: str) -> bool:
    return a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.")


def _base(config: SweepConfig, document: Document, errors: list[InputError]) -> tuple[Document | None, Path]:
    """The base config and the folder for its relative paths."""
    folder = Path(document.file).parent
    if isinstance(config.base, dict):
        inner = Document(document.file, copy.deepcopy(document.data["base"]))
        for ours, theirs in ((inner.keys, document.keys), (inner.values, document.values)):
            ours.update({p[1:]: place for p, place in theirs.items() if p[0] == "base" and len(p) > 1})
        return inner, folder
    file = find_file(config.base, folder)
    if not file.is_file():
        try:
            read_yaml(file)
        except InputError as e:
            message = f"the base config '{config.base}' can't be read: {e.message}"
            errors += to_input_errors([Problem(("base",), message, e.hint)], document)
        return None, folder
    try:
        base = read_yaml(file)
    except InputError as e:
        errors += e.problems
        return None, folder
    if "axes" in base.data:
        text = f"the base '{config.base}' is a sweep itself"
        errors += to_input_errors([Problem(("base",), text, "give the config of a run")], document)
        return None, folder
    return base, file.parent


class _Builder:
    """Makes the config of each point, with the places of the axes' values in the sweep file."""

    def __init__(
        self, document: Document, base: Document, folder: Path, name: str, axes: Sequence[Axis]
    ) -> None:
        self.document, self.base, self.folder, self.name, self.axes = document, base, folder, name, axes
        self.refused: list[InputError] = []

    def _place(self, path: KeyPath, at_key: bool = False) -> Place:
        line, column, file = self.document.place(path, at_key)
        return Place(line, column, file or self.document.file)

    def config(self, positions: Sequence[int]) -> tuple[Document, list[Problem]]:
        """The base config with one value of each axis."""
        out = Document(
            self.base.file, copy.deepcopy(self.base.data), dict(self.base.keys), dict(self.base.values)
        )
        problems = []
        for axis, i in zip(self.axes, positions, strict=True):
            for key, value, path in zip(axis.keys, axis.values[i], axis.places[i], strict=True):
                error = set_value(out, key, copy.deepcopy(value), self._place(path))
                at_key = path[: 4 if path[2:3] == ("zip",) else 2]
                if error:
                    problems.append(Problem(at_key, error))
                else:
                    out.keys[_path(key)] = self._place(at_key, at_key=True)
        return out, problems

    def input_errors(self) -> list[InputError]:
        """What the models refuse: each value of each axis is tried with the first values of the others."""
        tries = [[0] * len(self.axes)]
        for a, axis in enumerate(self.axes):
            for i in range(1, len(axis)):
                tries.append([i if b == a else 0 for b in range(len(self.axes))])
        errors: dict[str, InputError] = {}
        for positions in tries:
            document, problems = self.config(positions)
            found = to_input_errors(problems, self.document)
            if not problems:
                found = _refusals(document, self.folder, self.name)
            for e in found:
                errors.setdefault(str(e), e)
        return list(errors.values())

    def points(self) -> Iterator[Point]:
        """Every combination, resolved."""
        seen: set[str] = set()
        for index, positions in enumerate(itertools.product(*(range(len(a)) for a in self.axes))):
            document, _ = self.config(positions)
            try:
                resolved = resolve(check_document(document, self.folder, self.name))
            except InputError as e:
                self.refused += [p for p in e.problems if str(p) not in seen]
                seen |= {str(p) for p in e.problems}
                yield Point(index, positions, None, "; ".join(_one_line(p) for p in e.problems))
                continue
            yield Point(index, positions, resolved)


def _one_line(e: InputError) -> str:
    return f"{e.message} ({e.hint})" if e.hint else e.message


def _path(key: str) -> KeyPath:
    return tuple(int(p) if p.isdigit() else p for p in key.split("."))


def _refusals(document: Document, folder: Path, name: str) -> list[InputError]:
    """What the models refuse, and traces that are not there."""
    config, _ = validate_model(RunConfig, document)
    if config is None:
        try:
            check_document(document, folder, name)
        except InputError as e:
            return list(e.problems)
    missing = []
    for path in document.values:
        if path[:1] == ("workload",) and path[-1] == "path":
            value: Any = document.data
            for part in path:
                value = value[part]
            if isinstance(value, str) and not find_file(value, folder).exists():
                text = f"no such trace file '{value}'"
                hint = "it was looked for beside the config and in the working folder"
                missing.append(Problem(path, text, hint))
    return to_input_errors(missing, document)


__all__ = ["Point", "Sweep", "load_sweep", "with_seed"]
