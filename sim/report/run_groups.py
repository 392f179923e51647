"""Runs in groups: those of one config, with several seeds, form a side of a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.errors import InputError
from sim.report.folder import RunFolder
from sim.report.units import plural

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
#: Keys of a config that say nothing about what is simulated.
_NOT_COMPARED = ("name", "description", "seed", "output", "baseline")


@dataclass(frozen=True)
class Group:
    """Runs of one config: a letter, a name, the runs in order of seed."""

    letter: str
    name: str
    runs: tuple[RunFolder, ...]
    config: Mapping[str, Any]

    @property
    def recorded(self) -> bool:
        """Whether these are recordings of a live vLLM."""
        return self.runs[0].summary["seed"] is None

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the runs; empty for a recording."""
        return tuple(int(r.summary["seed"]) for r in self.runs if r.summary["seed"] is not None)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keys with dots -> plain values; lists are values."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def _config(run: RunFolder) -> dict[str, Any]:
    kept = {k: v for k, v in run.config.items() if k not in _NOT_COMPARED}
    return flatten(kept)


def group_runs(runs: Sequence[RunFolder]) -> tuple[list[Group], list[str]]:
    """Groups in the order of their first run, and what has to be said about the grouping."""
    notes = []
    found: dict[str, list[RunFolder]] = {}
    for run in runs:
        found.setdefault(json.dumps(_config(run), sort_keys=True), []).append(run)
    if len(found) == 1 and len(runs) > 1:
        notes.append(
            "All runs have the same config, so each run is a side of its own: the differences are what"
            " another seed makes, or none."
        )
        sides = [[r] for r in runs]
    else:
        sides = []
        for members in found.values():
            unique: dict[str, RunFolder] = {}
            for r in members:
                unique.setdefault(str(r.summary["content_id"]), r)
            if len(unique) < len(members):
                notes.append("Runs with the same content id count once.")
            sides.append(sorted(unique.values(), key=lambda r: int(r.summary["seed"] or 0)))
    if len(sides) > len(_LETTERS):
        raise InputError(f"{len(sides)} configs are too many to compare", hint="at most 26")
    configs = [_config(members[0]) for members in sides]
    return [
        Group(_LETTERS[i], _name(members, configs[i], configs), tuple(members), configs[i])
        for i, members in enumerate(sides)
    ], notes


def _says_else(config: Mapping[str, Any], key: str, value: Any) -> bool:
    """Whether a config has another value; a recording's does not speak of keys that it lacks."""
    if key not in config and not any(k.startswith("workload.") for k in config):
        return False
    return bool(config.get(key) != value)


def _name(
    runs: Sequence[RunFolder], config: Mapping[str, Any], all_configs: Sequence[Mapping[str, Any]]
) -> str:
    """The run's name, the first keys that set it apart, and the number of seeds."""
    # a recording has no workload section, and not every key of the engine's
    keys = [k for k in config if any(_says_else(c, k, config[k]) for c in all_configs)]
    shown = [f"{k.rpartition('.')[2]} {json.dumps(config[k])}" for k in keys[:2]]
    seeds = plural(len(runs), "seed") if len(runs) > 1 else f"seed {runs[0].summary['seed']}"
    if runs[0].summary["seed"] is None:
        seeds = "recorded" if len(runs) == 1 else plural(len(runs), "recording")
    return ", ".join([str(runs[0].summary["name"]), *shown, seeds])


def paired_by_seed(a: Group, b: Group) -> bool:
    """Whether the runs meet the same workloads: equal seeds and equal workload sections."""
    same = [{k: v for k, v in g.config.items() if k.startswith("workload.")} for g in (a, b)]
    return len(a.runs) == len(a.seeds) > 1 and a.seeds == b.seeds and same[0] == same[1]
