"""`python -m sim compare --profiles A,B CONFIG`: one config under the rules of several vLLM releases."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from sim.config import load_config
from sim.errors import InputError, did_you_mean
from sim.profiles import missing_keys, releases

Say = Callable[[str], None]


def parse_profiles(text: str) -> list[str]:
    """Releases separated by commas. Raises InputError for unknown ones, all at once."""
    from sim.errors import raise_all

    names = [part.strip() for part in text.split(",") if part.strip()]
    problems = []
    for name in names:
        if name not in releases():
            hint = did_you_mean(name, releases()) or f"known: {', '.join(releases())}"
            problems.append(InputError(f"no vLLM release '{name}'", "--profiles", hint=hint))
    raise_all(problems)
    if len(dict.fromkeys(names)) < 2:
        raise InputError(
            "there is nothing to compare: give two different releases or more, as 0.25,0.32", "--profiles"
        )
    return list(dict.fromkeys(names))


def run_profiles(
    config: str, profiles: Sequence[str], overrides: Sequence[str], seeds: int, folder: Path, say: Say
) -> list[str]:
    """Run a config under each release; returns the run folders, by release and seed.

    A key that a release does not have yet is left out there, and said. Raises InputError for a config that
    can't be used.
    """
    from sim import runner

    loaded = load_config(config, overrides)
    given = loaded.config.engine.model_fields_set
    first = loaded.config.seed
    prepared = []
    for release in profiles:
        sets = [*overrides, f"engine.vllm={release}"]
        for name, later in missing_keys(release).items():
            if name in given and getattr(loaded.config.engine, name) != later.absent:
                sets.append(f"engine.{name}={json.dumps(later.absent)}")
                say(f"vLLM {release} has no {name} (since {later.since}): left out there")
        runner.check(config, sets)
        prepared.append((release, sets))
    folders = []
    for release, sets in prepared:
        for seed in range(first, first + seeds):
            out = folder / (release if seeds == 1 else f"{release}-seed{seed}")
            options = runner.RunOptions(overrides=sets, seed=seed, out=str(out), plots=False, quiet=True)
            say(f"running vLLM {release}" + (f", seed {seed}" if seeds > 1 else ""))
            outcome = runner.run(config, options)
            if outcome.interrupted:
                raise KeyboardInterrupt
            outcome.write()
            folders.append(str(out))
    return folders
