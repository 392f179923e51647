"""The command `export`; what it needs is imported when it runs."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import click

_FORMATS = ("parquet", "csv", "prometheus", "chrome-trace")
_ENDINGS = {"prometheus": ".om", "chrome-trace": ".trace.json", "parquet": "-parquet", "csv": "-csv"}


def _start(text: str | None) -> float:
    """Unix seconds of an ISO date, UTC where it names no zone."""
    from sim.errors import InputError

    if text is None:
        return 0.0
    try:
        when = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as e:
        hint = "write it as 2026-01-31T12:00:00Z"
        raise InputError(f"'{text}' is not a date and time", "--start", hint=hint) from e
    return (when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp()


@click.command()
@click.argument("run", type=click.Path())
@click.option("--format", "style", required=True, metavar="|".join(_FORMATS))
@click.option("--out", metavar="PATH", help="File, or folder of tables; - for stdout. Default: beside RUN.")
@click.option(
    "--points",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="prometheus: scrapes, spread over the rows of the step log.",
)
@click.option("--start", metavar="DATE", help="prometheus: real time at which the run begins; default 1970.")
def export(run: str, style: str, out: str | None, points: int, start: str | None) -> None:
    """Write RUN, a folder of results, in the format of another tool.

    \b
    parquet, csv   tables: steps with ratios, requests, allocation failures, samples of
                   running requests, residency histograms
    prometheus     OpenMetrics text with vLLM's metric names and time stamps
    chrome-trace   requests as tracks and counters of the pool, for Perfetto
    """
    from sim.errors import InputError, did_you_mean

    if style not in _FORMATS:
        hint = did_you_mean(style, _FORMATS) or f"use one of {', '.join(_FORMATS)}"
        raise InputError(f"unknown format '{style}'", "--format", hint=hint)
    folder = Path(run)
    target = Path(out) if out is not None else folder.with_name(folder.resolve().name + _ENDINGS[style])
    start_s = _start(start)
    from sim.analysis import export as e

    if style in ("parquet", "csv"):
        if out == "-":
            raise InputError("tables are several files", "--out", hint="name a folder")
        from sim.report.files import write_folder

        write_folder(target, e.export_tables(folder, style))
    else:
        if style == "prometheus":
            data = e.export_prometheus(folder, points, start_s)
        else:
            data = e.export_chrome_trace(folder)
        if out == "-":
            click.echo(data, nl=False)
            return
        from sim.report.files import write_whole

        write_whole(target, data)
    click.echo(f"written to {target}", err=True)
