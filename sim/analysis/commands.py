"""The command `export`; what it needs is imported when it runs."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import click

from sim.option_types import FiniteRange

_FORMATS = ("parquet", "csv", "prometheus", "metrics", "chrome-trace")
_ENDINGS = {
    "prometheus": ".om",
    "metrics": ".prom",
    "chrome-trace": ".trace.json",
    "parquet": "-parquet",
    "csv": "-csv",
}


def _start(text: str | None) -> float | None:
    """Unix seconds of an ISO date, UTC where it names no zone."""
    from sim.errors import InputError

    if text is None:
        return None
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
@click.option(
    "--start",
    metavar="DATE",
    help="prometheus: real time at which the run begins; default 1970, of a recording when it was made.",
)
@click.option(
    "--residency-sample",
    "sample",
    type=FiniteRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Share of the allocations whose residency is measured; vLLM's --kv-cache-metrics-sample has 0.01.",
)
@click.option("--replica", type=click.IntRange(0), metavar="N", help="Of a fleet: which one, from 0.")
def export(
    run: str,
    style: str,
    out: str | None,
    points: int,
    start: str | None,
    sample: float,
    replica: int | None,
) -> None:
    """Write RUN in the format of another tool.

    RUN is a folder that `run` has written, or a recording of a live vLLM (docs/live.md), of which only what
    it knows is written.

    \b
    parquet, csv   tables: steps with ratios, requests, allocation failures, samples of
                   running requests, residency histograms
    prometheus     OpenMetrics text with vLLM's metric names and time stamps, for
                   `promtool tsdb create-blocks-from openmetrics`
    metrics        the end of the run as a server's /metrics would show it
    chrome-trace   requests as tracks and counters of the pool, for Perfetto
    """
    from sim.errors import InputError, did_you_mean

    if style not in _FORMATS:
        hint = did_you_mean(style, _FORMATS) or f"use one of {', '.join(_FORMATS)}"
        raise InputError(f"unknown format '{style}'", "--format", hint=hint)
    folder = Path(run)
    own = "" if replica is None else f"-replica-{replica}"
    beside = folder.with_name(folder.resolve().name + own + _ENDINGS[style])
    target = beside if out is None else Path(out)
    made = _files(folder, style, points, _start(start), sample, replica)
    if isinstance(made, bytes):
        if out == "-":
            click.echo(made, nl=False)
            return
        from sim.report.files import write_whole

        write_whole(target, made)
    else:
        if out == "-":
            raise InputError("tables are several files", "--out", hint="name a folder")
        from sim.report.files import write_folder

        write_folder(target, made)
    click.echo(f"written to {target}", err=True)


def _files(
    run: Path, style: str, points: int, start_s: float | None, sample: float, replica: int | None
) -> bytes | dict[str, bytes]:
    """What is to be written: one file, or several by name."""
    from sim.analysis.openmetrics import last_scrape
    from sim.analysis.recording_file import is_recording
    from sim.errors import InputError

    if is_recording(run):
        from sim.analysis import recording_export as r
        from sim.analysis.recording import load

        if replica is not None:
            raise InputError("a recording is that of one engine", "--replica", hint="leave it out")
        if sample < 1:
            hint = "leave it out: every allocation in the recording is measured"
            raise InputError("a recording is not simulated again", "--residency-sample", hint=hint)
        recorded = load(run)
        if style == "metrics":
            return last_scrape(r.export_prometheus(recorded, 1, start_s).decode()).encode()
        if style == "prometheus":
            return r.export_prometheus(recorded, points, start_s)
        return (
            r.export_chrome_trace(recorded) if style == "chrome-trace" else r.export_tables(recorded, style)
        )
    from sim.analysis import export as e

    if style == "metrics":
        return last_scrape(e.export_prometheus(run, 1, start_s or 0.0, sample, replica).decode()).encode()
    if style == "prometheus":
        return e.export_prometheus(run, points, start_s or 0.0, sample, replica)
    if style == "chrome-trace":
        return e.export_chrome_trace(run, replica=replica)
    return e.export_tables(run, style, residency_sample=sample, replica=replica)
