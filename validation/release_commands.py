"""Commands: `python -m validation releases fetch | list | check | record` and `survey`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from validation.cli import EXIT_DIFFERENT, reports_input_errors

_folder = click.option(
    "--releases",
    "folder",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder of the releases; default $KVPOOL_VLLM_RELEASES or .vllm-releases.",
)
_family = click.option(
    "--family",
    default="full",
    show_default=True,
    help="Which random cases: full (one full-attention group), any, or a family of KV-cache groups.",
)


def _known_family(family: str) -> str:
    from sim.errors import InputError, did_you_mean
    from validation.fuzz_groups import FAMILIES

    names = ["full", "any", *FAMILIES]
    if family not in names:
        hint = did_you_mean(family, names) or f"one of {', '.join(dict.fromkeys(names))}"
        raise InputError(f"unknown family '{family}'", "--family", hint=hint)
    return family


def chosen_releases(names: tuple[str, ...], folder: Path | None) -> list[str]:
    """The releases named, or all checked ones that are at hand."""
    from sim.errors import InputError, did_you_mean
    from sim.profiles import VERSIONS
    from validation.releases import full_version, is_there, own_version, releases_folder

    for name in names:
        if name not in VERSIONS:
            hint = did_you_mean(name, list(VERSIONS)) or f"one of {', '.join(VERSIONS)}"
            raise InputError(f"no release '{name}' whose rules are known", hint=hint)
    if names:
        return list(names)
    place, own = releases_folder(folder), own_version()
    found = [r for r in VERSIONS if is_there(full_version(r), place) or full_version(r) == own]
    if not found:
        raise InputError(f"no vLLM release in {place}", hint="`python -m validation releases fetch`")
    return found


@click.group()
def releases() -> None:
    """Other vLLM releases: fetch them, check the simulator's profiles against their real control planes."""


@releases.command()
@click.argument("names", nargs=-1, metavar="[RELEASE]...")
@_folder
@reports_input_errors
def fetch(names: tuple[str, ...], folder: Path | None) -> None:
    """Download releases with pip (as 0.25 or 0.25.1; default: those that profiles are made for).

    Only the Python files of a wheel are kept. Exit code 2: no such release, or no network.
    """
    from sim.profiles import PROFILES
    from validation.releases import fetch as fetch_releases
    from validation.releases import own_version, releases_folder

    wanted = names or tuple(r for r in PROFILES if not (own_version() or "").startswith(f"{r}."))
    fetch_releases(wanted, releases_folder(folder), click.echo)


@releases.command("list")
@_folder
@reports_input_errors
def list_releases(folder: Path | None) -> None:
    """Every release whose rules are known, and whether its code is at hand."""
    from sim.profiles import PROFILES, VERSIONS
    from sim.switches import SWITCHES
    from validation.releases import full_version, is_there, own_version, releases_folder

    place, own = releases_folder(folder), own_version()
    for release, version in VERSIONS.items():
        if version == own:
            where = "installed here"
        else:
            where = f"in {place}" if is_there(full_version(release), place) else "not at hand"
        new = [f"{s.name}={o.value}" for s in SWITCHES for o in s.onsets[1:] if o.release == release]
        star = "*" if release in PROFILES else " "
        click.echo(f"{star} {release:<5} {version:<7} {where:<24} {', '.join(new)}".rstrip())
    click.echo("* fetched by default; then: what is new in the release")


@releases.command()
@click.argument("names", nargs=-1, metavar="[RELEASE]...")
@click.option("--seeds", type=click.IntRange(0), default=40, show_default=True, help="Random cases of each.")
@click.option(
    "--recorded",
    type=click.Path(path_type=Path),
    default=Path("tests/recorded_vllm"),
    show_default=True,
    help="Folder of the recordings.",
)
@_family
@_folder
@reports_input_errors
def check(names: tuple[str, ...], seeds: int, recorded: Path, family: str, folder: Path | None) -> None:
    """Compare releases (default: all at hand) with the simulator under their profiles.

    Exit code 0: all equal; 1: something differs; 2: a release is not at hand.
    """
    from validation.release_check import run_check

    chosen = chosen_releases(names, folder)
    equal = run_check(chosen, folder, recorded, _known_family(family), seeds, click.echo)
    sys.exit(0 if equal else EXIT_DIFFERENT)


@releases.command(hidden=True)
@click.argument("names", nargs=-1, metavar="[RELEASE]...")
@click.option("--out", type=click.Path(path_type=Path), default=Path("tests/recorded_vllm"))
@click.option("--seeds", type=click.IntRange(1), default=300, show_default=True)
@click.option("--keep", type=click.IntRange(1), default=4, show_default=True)
@_family
@_folder
@reports_input_errors
def record(
    names: tuple[str, ...], out: Path, seeds: int, keep: int, family: str, folder: Path | None
) -> None:
    """Record random cases on releases and keep short ones that show the release's rules."""
    from validation.release_check import record_release
    from validation.releases import Worker

    for name in chosen_releases(names, folder):
        with Worker(name, folder) as worker:
            record_release(name, worker, out, _known_family(family), seeds, keep, click.echo)


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--seeds", type=click.IntRange(1), default=60, show_default=True, help="Random cases.")
@click.option("--first-seed", type=click.IntRange(0), default=0, show_default=True, help="Where to begin.")
@click.option(
    "--switch",
    "switches",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change a rule of the simulator, to see what is left. May be repeated.",
)
@click.option(
    "--keep", type=click.Path(path_type=Path), default=None, help="Write each kind's smallest case here."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@_family
@_folder
@reports_input_errors
def survey(
    a: str,
    b: str,
    seeds: int,
    first_seed: int,
    switches: tuple[str, ...],
    keep: Path | None,
    as_json: bool,
    family: str,
    folder: Path | None,
) -> None:
    """Find out where two vLLM releases decide differently, on random cases.

    A and B are releases (0.25, 0.25.1), `sim` (the simulator under the other one's rules) or `sim:0.25`.
    Exit code 0: no difference; 1: differences; 2: a release is not at hand.
    """
    from validation.fuzz_groups import random_group_case
    from validation.survey import render, to_json
    from validation.survey import survey as run_survey
    from validation.survey_sides import open_sides, parse_switches

    family = _known_family(family)
    changed = parse_switches(switches)
    talk: Callable[[str], Any] = (lambda text: None) if as_json else (lambda text: click.echo(text, err=True))
    with open_sides(a, b, folder, changed) as (side_a, side_b):
        cases = ((seed, random_group_case(seed, family)) for seed in range(first_seed, first_seed + seeds))
        result = run_survey(side_a, side_b, cases, talk)
        if keep is not None:
            _write_kinds(result, side_a, keep)
    click.echo(to_json(result) if as_json else render(result))
    sys.exit(EXIT_DIFFERENT if result.kinds else 0)


def _write_kinds(result: Any, side_a: Any, keep: Path) -> None:
    from dataclasses import replace

    from validation.corpus import write_case

    for number, kind in enumerate(result.kinds, 1):
        case = replace(kind.case, name=f"kind_{number}")
        click.echo(str(write_case(keep, case, side_a.record(case).log)), err=True)


def register(main: click.Group) -> None:
    """Add the commands to the command line."""
    main.add_command(releases)
    main.add_command(survey)
