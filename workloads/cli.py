"""Commands of `python -m workloads`. Everything heavy is imported in the command that needs it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from workloads.errors import WorkloadError

if TYPE_CHECKING:
    from workloads.requests import Workload

FORMATS = ("auto", "mooncake", "azure", "burstgpt", "vllm", "logical", "native")
EXIT_BAD_INPUT = 2

Command = TypeVar("Command", bound=Callable[..., Any])


class Group(click.Group):
    """Bad input ends a command with one message on stderr and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except WorkloadError as error:
            click.echo(str(error) if error.file else f"error: {error}", err=True)
            ctx.exit(EXIT_BAD_INPUT)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Traffic for the simulator: look into traces and workload configs, convert them."""


def source_options(command: Command) -> Command:
    """Options that say how X is read."""
    options: list[tuple[str, dict[str, Any]]] = [
        ("--format", {"type": click.Choice(FORMATS), "default": "auto", "help": "Format of a trace file."}),
        ("--seed", {"type": click.IntRange(min=0), "help": "Seed of a YAML config's workload."}),
        ("--max-requests", {"type": click.IntRange(min=1), "help": "Only the first N requests."}),
        (
            "--hash-block-size",
            {"type": click.IntRange(min=1), "default": 512, "help": "Tokens of a Mooncake trace's hash id."},
        ),
        (
            "--time-scale",
            {"type": click.FloatRange(0, min_open=True), "default": 1.0, "help": "Multiply arrival times."},
        ),
        (
            "--output-len",
            {"type": click.IntRange(min=1), "help": "Output of requests for which a vLLM file gives none."},
        ),
    ]
    for name, settings in reversed(options):
        command = click.option(name, show_default=True, **settings)(command)
    return command


@main.command()
@click.argument("source", metavar="X")
@source_options
@click.option(
    "--block-size", type=click.IntRange(min=1), default=16, show_default=True, help="Tokens of a block."
)
@click.option(
    "--top", type=click.IntRange(min=0), default=5, show_default=True, help="Shared prefixes to name."
)
@click.option(
    "--lru",
    default="",
    metavar="N,N,...",
    help="Hit rates of plain LRU caches of so many blocks (prompts only).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def describe(source: str, block_size: int, top: int, lru: str, as_json: bool, **options: Any) -> None:
    """Say what is in X: a trace file, or a YAML config with a `workload:` section."""
    from workloads.describe import describe as summarise
    from workloads.describe import rows

    capacities = [text.strip() for text in lru.split(",") if text.strip()]
    for text in capacities:
        if not text.isdecimal() or int(text) < 1:
            raise WorkloadError(f"--lru: expected numbers of blocks such as 1000,10000, got {text!r}")
    summary = summarise(load(source, **options), block_size, top, [int(text) for text in capacities])
    if as_json:
        click.echo(json.dumps(summary, indent=2))
    else:
        show(rows(summary), source)


@main.command()
@click.argument("source", metavar="A")
@click.argument("target", metavar="B")
@source_options
@click.option(
    "--to",
    type=click.Choice(["native", "logical"]),
    default="native",
    show_default=True,
    help="native: exact, replays to the same bytes (.jsonl, .jsonl.gz, .parquet); logical: explicit token "
    "ids and arrival steps, for a real vLLM (.jsonl, .jsonl.gz).",
)
@click.option("--step", default=None, help="Time that one step stands for, such as 20ms (for --to logical).")
def convert(source: str, target: str, to: str, step: str | None, **options: Any) -> None:
    """Write A (a trace file, or a YAML config with a `workload:` section) as the file B."""
    from workloads.io import export_logical, write
    from workloads.units import parse_duration

    try:
        step_ns = None if step is None else parse_duration(step)
    except ValueError as error:
        raise WorkloadError(f"--step: {error}") from error
    workload = load(source, **options)
    notes = list(workload.source.get("notes", []))
    if to == "logical":
        notes += export_logical(workload, target, step_ns)
    else:
        write(workload, target)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"{target}: {len(workload)} requests, trace hash {workload.content_hash()}")


def load(
    source: str,
    format: str,
    seed: int | None,
    max_requests: int | None,
    hash_block_size: int,
    time_scale: float,
    output_len: int | None,
) -> Workload:
    """The workload of a trace file or of a YAML config's section.

    Raises:
        WorkloadError: it cannot be used.
    """
    if format == "auto" and Path(source).suffix in {".yaml", ".yml"}:
        from workloads.generate import build
        from workloads.yaml_section import load_section

        given = (max_requests, hash_block_size, time_scale, output_len)
        if given != (None, 512, 1.0, None):
            raise WorkloadError("options of traces do not apply to a YAML config; write them into it", source)
        spec, own_seed = load_section(source)
        return build(spec, own_seed if seed is None else seed, base_dir=Path(source).parent)
    if seed is not None:
        raise WorkloadError("--seed has no meaning for a trace", source)

    from workloads.readers import read_trace
    from workloads.readers.options import ReadOptions

    options = ReadOptions(
        hash_block_size=hash_block_size,
        time_scale=time_scale,
        max_requests=max_requests,
        output_len=output_len,
    )
    return read_trace(source, format, options)


def show(lines: list[tuple[str, str]], title: str) -> None:
    """A rich table on a terminal, aligned text elsewhere."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title, show_header=False, box=None, title_justify="left")
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in lines:
            table.add_row(f"[bold]{value}" if not name else f"  {name}", "" if not name else value)
        Console().print(table)
        return
    click.echo(title)
    width = max(len(name) for name, _ in lines) + 2
    for name, value in lines:
        click.echo(f"  {name:<{width}}{value}" if name else value)
