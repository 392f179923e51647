"""The command `sweep`; what it needs is imported when it runs."""

from __future__ import annotations

import sys

import click

from sim.cli import EXIT_FAILED, EXIT_INTERRUPTED, _set


@click.command()
@click.argument("file", metavar="SWEEP", type=click.Path())
@_set
@click.option(
    "--seeds", type=click.IntRange(1, 10_000), metavar="N", help="Seeds a point, in place of the file's."
)
@click.option(
    "--jobs",
    "-j",
    type=click.IntRange(1),
    metavar="N",
    help="Worker processes; default: one a processor, or none where there is little to do.",
)
@click.option(
    "--cluster",
    metavar="URL",
    help="Run on an existing cluster: dask://HOST:PORT or ray://HOST:PORT.",
)
@click.option("--out", metavar="DIR", help="Folder for the results; default runs/sweep-NAME.")
@click.option("--dry-run", is_flag=True, help="List the points and check them; simulate nothing.")
@click.option(
    "--format", "style", metavar="text|md|json", default="text", help="Of what is printed; default text."
)
@click.option("--no-plots", is_flag=True, help="Draw no plots and write no page.")
@click.option("--quiet", "-q", is_flag=True, help="Print errors only.")
def sweep(
    file: str,
    overrides: tuple[str, ...],
    seeds: int | None,
    jobs: int | None,
    cluster: str | None,
    out: str | None,
    dry_run: bool,
    style: str,
    no_plots: bool,
    quiet: bool,
) -> None:
    """Simulate every point of SWEEP, a YAML file with a base config and axes over its keys.

    The same command goes on where an earlier one was stopped, and repeats nothing. See docs/sweep.md.
    """
    from sim.errors import InputError, did_you_mean
    from sim.sweep import command

    styles = ("text", "md", "json")
    if style not in styles:
        hint = did_you_mean(style, styles) or f"use one of {', '.join(styles)}"
        raise InputError(f"unknown format '{style}'", "--format", hint=hint)
    if cluster is not None and jobs is not None:
        raise InputError("--jobs is for one machine; a cluster has its own workers", "--cluster")
    options = command.Options(
        overrides=overrides,
        seeds=seeds,
        jobs=jobs,
        cluster=cluster,
        out=out,
        plots=not no_plots,
        quiet=quiet,
        command=sys.argv[1:],
    )
    if dry_run:
        click.echo(command.dry_run(file, options), nl=False)
        return
    try:
        finished = command.run_sweep(file, options)
    except command.Interrupted as e:
        click.echo(str(e), err=True)
        sys.exit(EXIT_INTERRUPTED if e.by_user else EXIT_FAILED)
    if not quiet:
        from sim.report.render import render
        from sim.sweep.page import terminal

        text = terminal(finished.document) if style == "text" else render(finished.document, style)
        click.echo(text, nl=False)
        page = "index.html" if options.plots else "points.parquet"
        click.echo(f"results in {finished.folder} ({page})", err=True)
    if finished.failed:
        sys.exit(EXIT_FAILED)
