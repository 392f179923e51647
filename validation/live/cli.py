"""`python -m validation live show | export | overhead`. Heavy imports happen inside the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click


def _guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Input errors as the other commands of `validation` report them."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        from validation.cli import reports_input_errors

        return reports_input_errors(command)(*args, **kwargs)

    return wrapped


_FILE = click.argument("file", type=click.Path(path_type=Path))
_PATH = click.Path(path_type=Path)


@click.group()
def live() -> None:
    """Recordings of a running vLLM, made with KVPOOL_LIVE_RECORD=FILE (docs/live.md)."""


@live.command()
@_FILE
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@_guarded
def show(file: Path, as_json: bool) -> None:
    """Say what a recording holds, and what it lost."""
    from validation.live.reader import read
    from validation.live.show import render, summary

    found = summary(read(file))
    click.echo(json.dumps(found) if as_json else render(found, str(file)))


@live.command()
@_FILE
@click.option("--out", type=_PATH, help="Step log (.parquet, .jsonl.gz); needs a recording at full rate.")
@click.option("--curves", type=_PATH, help="Known columns of each recorded row (Parquet), at any rate.")
@click.option("--snapshots", type=_PATH, help="The recorded states (Parquet).")
@click.option("--engine", type=_PATH, help="Engine configuration (JSON); with --workload.")
@click.option("--workload", type=_PATH, help="The requests in logical time (.jsonl.gz); needs tokens=on.")
@_guarded
def export(
    file: Path,
    out: Path | None,
    curves: Path | None,
    snapshots: Path | None,
    engine: Path | None,
    workload: Path | None,
) -> None:
    """Turn a recording into files that other commands read.

    With --engine and --workload the run itself: `python -m validation record --target sim` simulates it, and
    `python -m validation diff` compares that with --out.
    """
    from sim.errors import InputError
    from validation import steplog
    from validation.live import export as exports
    from validation.live.reader import read, step_log

    if (engine is None) != (workload is None):
        raise InputError("--engine and --workload go together")
    if out is None and curves is None and snapshots is None and engine is None:
        raise InputError(
            "nothing to export", hint="give --out, --curves, --snapshots, or --engine and --workload"
        )
    recording = read(file)
    if out is not None:
        log = step_log(recording, str(file))
        click.echo(f"{steplog.write(out, log)}: {steplog.num_rows(log)} rows", err=True)
    if curves is not None:
        click.echo(f"{curves}: {exports.write_curves(recording, curves)} rows", err=True)
    if snapshots is not None:
        click.echo(f"{snapshots}: {exports.write_snapshots(recording, snapshots)} states", err=True)
    if engine is not None and workload is not None:
        click.echo(f"{workload}: {exports.write_workload(recording, engine, workload)} requests", err=True)


@live.command()
@click.option("--options", default="", help="As KVPOOL_LIVE_OPTIONS; default sampling when empty.")
@click.option("--requests", default=64, show_default=True, help="Requests that run at once.")
@click.option("--blocks", default=8192, show_default=True, help="Blocks of the pool.")
@click.option("--rounds", default=200, show_default=True, help="Pairs of stretches, one on and one off.")
@click.option("--steps", default=20, show_default=True, help="Steps of a stretch.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@_guarded
def overhead(options: str, requests: int, blocks: int, rounds: int, steps: int, as_json: bool) -> None:
    """Measure what the recorder costs schedule() of a real scheduler (needs vLLM)."""
    from validation.live.options import parse_options
    from validation.live.overhead import measure

    result = measure(parse_options(options), requests, blocks, rounds, steps)
    click.echo(json.dumps(result.to_json()) if as_json else result.text())
