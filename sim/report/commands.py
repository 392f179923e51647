"""The commands `report`, `layout` and `compare`; what they need is imported when they run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sim.option_types import FiniteRange

if TYPE_CHECKING:
    from sim.report.document import Document

_SUFFIXES = {".html": "html", ".htm": "html", ".md": "md", ".json": "json", ".txt": "text"}


_replica = click.option(
    "--replica", type=click.IntRange(0), metavar="N", help="Of a fleet: look into this one, from 0."
)


def _style(style: str | None, out: str | None, known: tuple[str, ...]) -> str:
    """The format asked for, or the one that the file's name says, or text.

    Raises:
        InputError: none of those known.
    """
    from sim.errors import InputError, did_you_mean

    if style is None:
        if out is None or out == "-":
            return "text"
        suffix = Path(out).suffix.lower()
        if suffix not in _SUFFIXES and not Path(out).is_dir():
            said = f"no format is known by the ending '{suffix}'" if suffix else "the name says no format"
            raise InputError(said, f"--out {out}", hint=f"give --format {'|'.join(known)}")
        return _SUFFIXES.get(suffix, "html")
    if style not in known:
        hint = did_you_mean(style, known) or f"use one of {', '.join(known)}"
        raise InputError(f"unknown format '{style}'", "--format", hint=hint)
    return style


def _write(out: str | None, text: str, quiet: bool) -> None:
    """To a file (whole or not at all), or to stdout."""
    if out is None or out == "-":
        click.echo(text, nl=False)
        return
    from sim.report.files import write_whole

    write_whole(Path(out), text.encode())
    _say(quiet)(f"written to {out}")


def _say(quiet: bool) -> Callable[[str], None]:
    def say(text: str) -> None:
        if not quiet:
            click.echo(text, err=True)

    return say


@click.command()
@click.argument("run", type=click.Path())
@click.option(
    "--format",
    "style",
    metavar="html|md|json|text",
    help="Default: by the ending of --out, else text.",
)
@click.option("--out", metavar="FILE", help="Write to this file (replaced as a whole); - or none: stdout.")
@click.option(
    "--no-rerun",
    is_flag=True,
    help="Do not simulate the run again: quicker, but without heat map, causes, lifetimes and failures.",
)
@_replica
@click.option("--quiet", "-q", is_flag=True, help="Print errors only.")
def report(
    run: str, style: str | None, out: str | None, no_rerun: bool, replica: int | None, quiet: bool
) -> None:
    """Say where the KV memory of RUN went.

    RUN is a folder that `run` has written, or a recording of a live vLLM (a file of the live recorder,
    docs/live.md).
    """
    from sim.analysis.recording_file import is_recording
    from sim.report.render import render

    style = _style(style, out, ("html", "md", "json", "text"))
    if is_recording(run):
        from sim.analysis.recording import load
        from sim.report.recorded_report import build_recorded_report
        from sim.report.replica import refuse_replica

        refuse_replica(replica)
        _write(out, render(build_recorded_report(load(run)), style), quiet)
        return
    from sim.report.analyse import analyse
    from sim.report.content import Analysis, build_report
    from sim.report.folder import read_run

    folder = read_run(run)
    if replica is not None:
        from sim.report.replica import replica_folder

        folder = replica_folder(folder, replica, not no_rerun)
    if no_rerun:
        analysis = Analysis(note="--no-rerun was given")
    else:
        analysis = analyse(folder, _say(quiet))
    _write(out, render(build_report(folder, analysis), style), quiet)


@click.command()
@click.argument("run", type=click.Path())
@click.option(
    "--at", metavar="TIME", help='Instant to draw, such as "12.5s" or "3min"; default: the tightest.'
)
@click.option("--diff", nargs=2, metavar="T1 T2", help="Draw what changed between two instants.")
@click.option("--watch", is_flag=True, help="Play the run in the terminal; Ctrl-C stops.")
@click.option("--fps", type=FiniteRange(0.1, 60), default=10.0, show_default=True, help="For --watch.")
@click.option(
    "--speed",
    type=FiniteRange(min=0, min_open=True),
    metavar="X",
    help="Simulated seconds per second for --watch; default: the whole run in half a minute.",
)
@click.option("--png", metavar="FILE", help="Draw a PNG instead.")
@click.option("--ascii", "plain", is_flag=True, help="Letters only, as when the output is not a terminal.")
@click.option("--width", type=click.IntRange(20, 1000), metavar="N", help="Columns; default: the terminal's.")
@click.option("--rows", type=click.IntRange(1, 1000), metavar="N", help="Rows of blocks at most.")
@_replica
def layout(
    run: str,
    at: str | None,
    diff: tuple[str, str] | None,
    watch: bool,
    fps: float,
    speed: float | None,
    png: str | None,
    plain: bool,
    width: int | None,
    rows: int | None,
    replica: int | None,
) -> None:
    """Draw the pool of RUN at an instant, block by block.

    RUN is a folder that `run` has written, or a recording of a live vLLM (docs/live.md).
    """
    from sim.report.layout_command import LayoutOptions, show

    show(run, LayoutOptions(at, diff, watch, fps, speed, png, plain, width, rows, replica), sys.stdout)


@click.command()
@click.argument("runs", type=click.Path(), nargs=-1, required=True)
@click.option(
    "--profiles",
    metavar="A,B,...",
    help="Run the config RUNS under the rules of these vLLM releases, as 0.14,0.25,0.32, and compare those.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="With --profiles, as for `run`.")
@click.option(
    "--seeds",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="With --profiles: runs of each release, from the config's seed on.",
)
@click.option("--runs", "keep", metavar="DIR", help="With --profiles: keep the run folders here.")
@click.option("--out", metavar="DIR", help="Write compare.html, .md, .json and the curves (PNG, SVG) here.")
@click.option(
    "--format",
    "style",
    metavar="md|json|text",
    help="Of what is printed; default text.",
)
def compare(
    runs: tuple[str, ...],
    profiles: str | None,
    overrides: tuple[str, ...],
    seeds: int,
    keep: str | None,
    out: str | None,
    style: str | None,
) -> None:
    """Compare RUNS: those of one config with several seeds form a group; the first group is the baseline.

    RUNS are folders that `run` has written, or recordings of a live vLLM (docs/live.md). With --profiles it
    is one config, which is run under each release: what an upgrade changes (docs/releases.md).
    """
    from sim.report.compare import compare_runs
    from sim.report.render import render

    style = _style(style, None, ("md", "json", "text"))
    if profiles is None:
        _only_with_profiles(overrides, seeds, keep)
        document, files = compare_runs(runs, pictures=out is not None)
    else:
        document, files = _compare_profiles(runs, profiles, overrides, seeds, keep, out)
    if out is not None:
        from sim.report.files import write_folder

        write_folder(Path(out), files)
    click.echo(render(document, style), nl=False)
    if out is not None:
        click.echo(f"comparison in {out}", err=True)


def _only_with_profiles(overrides: tuple[str, ...], seeds: int, keep: str | None) -> None:
    from sim.errors import InputError

    used = [name for name, given in (("--set", overrides), ("--seeds", seeds > 1), ("--runs", keep)) if given]
    if used:
        raise InputError(f"{' and '.join(used)} is for --profiles A,B CONFIG", "compare")


def _compare_profiles(
    configs: tuple[str, ...],
    profiles: str,
    overrides: tuple[str, ...],
    seeds: int,
    keep: str | None,
    out: str | None,
) -> tuple[Document, dict[str, bytes]]:
    import contextlib
    import tempfile

    from sim.errors import InputError
    from sim.report.compare import compare_runs
    from sim.report.compare_profiles import parse_profiles, run_profiles

    if len(configs) != 1:
        raise InputError(f"--profiles compares one config, got {len(configs)}", "compare")
    names = parse_profiles(profiles)
    with contextlib.ExitStack() as stack:
        if keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvpool-profiles-")))
        else:
            folder = Path(keep)
        runs = run_profiles(configs[0], names, overrides, seeds, folder, _say(False))
        return compare_runs(runs, pictures=out is not None, within=folder if keep is None else None)
