"""The commands `check` and `baseline`; what they need is imported when they run."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sim.compilation import NOTE, is_compiled

EXIT_MOVED, EXIT_NOT_RUN = 1, 2
_ABSENT = click.option(
    "--trace-absent",
    type=click.Choice(["fail", "skip"]),
    help="When a trace file is not there; default: as the config's baseline.trace_absent says, else fail.",
)


def _tell_of_compilation() -> None:
    if not is_compiled():
        click.echo(NOTE, err=True)


@click.command()
@click.argument("baselines", type=click.Path(), nargs=-1, metavar="[BASELINE]...")
@click.option("--dir", "folder", metavar="DIR", help="Folder of the baselines; default configs/baselines.")
@click.option("--html", metavar="FILE", help="Write a page with the curves laid over each other.")
@click.option("--junit", metavar="FILE", help="Write JUnit XML, a test case a curve.")
@_ABSENT
def check(
    baselines: tuple[str, ...],
    folder: str | None,
    html: str | None,
    junit: str | None,
    trace_absent: str | None,
) -> None:
    """Run the configs of baselines again and compare their curves.

    A BASELINE is a file, or its name; without one, all in configs/baselines are checked. Exit code 0:
    nothing moved; 1: a curve moved; 2: a baseline could not run.
    """
    from sim.regression.check import (
        FAILED,
        FOLDER,
        Outcome,
        baseline_paths,
        check_all,
        lines_of,
        summary_text,
    )
    from sim.regression.compare import MOVED

    paths = baseline_paths(baselines, Path(folder) if folder else FOLDER)
    _tell_of_compilation()

    def say(outcome: Outcome) -> None:
        for line in lines_of(outcome):
            click.echo(line)

    skip = None if trace_absent is None else trace_absent == "skip"
    outcomes = check_all(paths, skip, say)
    click.echo(summary_text(outcomes))
    if html or junit:
        from sim.report.files import write_whole

        if html:
            from sim.regression.page import page

            write_whole(Path(html), page(outcomes).encode())
            click.echo(f"written to {html}", err=True)
        if junit:
            from sim.regression.junit import junit_xml

            write_whole(Path(junit), junit_xml(outcomes))
            click.echo(f"written to {junit}", err=True)
    statuses = {outcome.status for outcome in outcomes}
    if MOVED in statuses:
        click.echo("if that is meant: python -m sim baseline update, and commit the files", err=True)
        sys.exit(EXIT_MOVED)
    if FAILED in statuses:
        sys.exit(EXIT_NOT_RUN)


@click.group()
def baseline() -> None:
    """Make the baselines that `check` compares with."""


@baseline.command()
@click.argument("configs", type=click.Path(), nargs=-1, metavar="[CONFIG]...")
@click.option("--dir", "folder", metavar="DIR", help="Folder of the baselines; default configs/baselines.")
@click.option("--diff", is_flag=True, help="Only show what would change; write nothing.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the config.")
@click.option("--seed", type=click.IntRange(0), metavar="N", help="Seed, in place of the config's.")
@_ABSENT
def update(
    configs: tuple[str, ...],
    folder: str | None,
    diff: bool,
    overrides: tuple[str, ...],
    seed: int | None,
    trace_absent: str | None,
) -> None:
    """Store the curves of CONFIGS as baselines, one CSV each, named like the config.

    A CONFIG may also be a baseline (.csv), which is made again; without one, all in configs/baselines are.
    Files are written when all have run, each of them whole; one whose curves are the same stays as it is.
    """
    from sim.regression.check import FOLDER
    from sim.regression.update import make, targets, write

    wanted = targets(configs, Path(folder) if folder else FOLDER, overrides, seed)
    _tell_of_compilation()
    skip = None if trace_absent is None else trace_absent == "skip"
    updates = make(wanted, skip, click.echo)
    changed = sum(not u.unchanged for u in updates)
    if diff:
        click.echo(f"{changed} of {len(updates)} would be written")
        return
    click.echo(f"{write(updates)} of {len(updates)} written")
