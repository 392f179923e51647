"""``python -m sim.published``: published tables and ours; exit 1 when one is not met, 2 on bad input."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from sim.errors import InputError

if TYPE_CHECKING:
    from sim.published.table import Table

_trace = click.option("--trace", metavar="FILE", help="The trace file, in place of the one in KVPOOL_DATA.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_seeds = click.option(
    "--seeds", type=click.IntRange(1, 1000), default=4, show_default=True, help="Seeds to run, from 0."
)


def _show(makers: list[Callable[[], Table]], as_json: bool) -> None:
    tables = []
    try:
        for make in makers:
            began = time.perf_counter()
            table = make()
            tables.append(table)
            if not as_json:
                click.echo(table.text() + "\n")
                click.echo(f"{table.name}: {time.perf_counter() - began:.1f} s", err=True)
    except InputError as e:
        for problem in e.problems:
            click.echo(str(problem), err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    if as_json:
        click.echo(json.dumps([table.as_json() for table in tables], indent=2))
    if not all(table.met for table in tables):
        sys.exit(1)


def _mooncake(trace: str | None = None) -> Table:
    from sim.published.mooncake_lru import mooncake_lru

    return mooncake_lru(trace)


def _azure(trace: str | None = None) -> Table:
    from sim.published.azure_waste import azure_waste

    return azure_waste(trace)


def _watermark(seeds: int) -> Table:
    from sim.published.watermark import watermark

    return watermark(seeds)


def _token_usage() -> Table:
    from sim.published.token_usage import token_usage

    return token_usage()


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@_json
@_seeds
@click.pass_context
def main(context: click.Context, as_json: bool, seeds: int) -> None:
    """Reproduce published results; without a command, all of them."""
    if context.invoked_subcommand is None:
        _show([_mooncake, _azure, _token_usage, lambda: _watermark(seeds)], as_json)


@main.command("mooncake-lru")
@_trace
@_json
def mooncake_lru(trace: str | None, as_json: bool) -> None:
    """Hit rate of a plain LRU prefix cache on the Mooncake conversation trace, by capacity."""
    _show([lambda: _mooncake(trace)], as_json)


@main.command("azure-waste")
@_trace
@_json
def azure_waste(trace: str | None, as_json: bool) -> None:
    """Waste in the last block at completion on the Azure conversation trace, by block size."""
    _show([lambda: _azure(trace)], as_json)


@main.command()
@_seeds
@_json
def watermark(seeds: int, as_json: bool) -> None:
    """Preemptions by watermark, as measured on a real vLLM (PR 44594)."""
    _show([lambda: _watermark(seeds)], as_json)


@main.command("token-usage")
@_json
def token_usage(as_json: bool) -> None:
    """Usage of the pool by blocks and by token slots, as measured on a real vLLM (PR 57336)."""
    _show([_token_usage], as_json)


if __name__ == "__main__":
    main(prog_name="python -m sim.published")
