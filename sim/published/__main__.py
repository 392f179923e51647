"""``python -m sim.published``: published tables and ours; exit 1 when a figure is missed, 2 on bad input."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from sim.errors import InputError
from sim.published.registry import DEFAULT_SEEDS, ENTRIES, Entry, Options

if TYPE_CHECKING:
    from sim.published.table import Table

_OPTIONS = {
    "trace": click.Option(
        ["--trace"], metavar="FILE", help="The trace file, in place of the one in KVPOOL_DATA."
    ),
    "seeds": click.Option(
        ["--seeds"],
        type=click.IntRange(1, 1000),
        default=DEFAULT_SEEDS,
        show_default=True,
        help="Seeds to run, from 0.",
    ),
}
_JSON = click.Option(["--json", "as_json"], is_flag=True, help="Print JSON.")
_EXIT_MISSED, _EXIT_INPUT, _EXIT_INTERRUPTED = 1, 2, 130


def _summary(tables: Sequence[Table], not_run: Sequence[str]) -> str:
    rows = [row for table in tables for row in table.rows]
    met = sum(row.met for row in rows)
    lines = [f"{met} of {len(rows)} published figures met, in {len(tables)} tables"]
    for table in tables:
        missed = [f"{row.label} ({row.published}, ours {row.ours_text})" for row in table.rows if not row.met]
        if missed:
            lines.append(f"NOT MET  {table.name}: {', '.join(missed)}")
    return "\n".join([*lines, *(f"NOT RUN  {name}" for name in not_run)])


def _show(entries: Sequence[Entry], options: Options, as_json: bool, *, every: bool) -> None:
    tables: list[Table] = []
    not_run: list[str] = []
    try:
        for entry in entries:
            began = time.perf_counter()
            try:
                table = entry.make(options)
            except InputError as e:
                not_run.append(entry.name)
                for problem in e.problems:
                    click.echo(f"{entry.name}: {problem}" if every else str(problem), err=True)
                continue
            tables.append(table)
            if not as_json:
                click.echo(table.text() + "\n")
                click.echo(f"{table.name}: {time.perf_counter() - began:.1f} s", err=True)
    except KeyboardInterrupt:
        sys.exit(_EXIT_INTERRUPTED)
    if as_json and tables:
        click.echo(json.dumps([table.as_json() for table in tables], indent=2))
    if every and not as_json:
        click.echo(_summary(tables, not_run))
    if not all(table.met for table in tables):
        sys.exit(_EXIT_MISSED)
    if not_run:
        sys.exit(_EXIT_INPUT)


def _options(values: dict[str, Any]) -> Options:
    return Options(**{name: value for name, value in values.items() if name in _OPTIONS})


def _command(entry: Entry) -> click.Command:
    def run(as_json: bool, **values: Any) -> None:
        _show([entry], _options(values), as_json, every=False)

    params: list[click.Parameter] = [*(_OPTIONS[name] for name in entry.takes), _JSON]
    return click.Command(entry.name, callback=run, params=params, help=entry.about)


@click.pass_context
def _all(context: click.Context, /, as_json: bool, **values: Any) -> None:
    """Reproduce published results; without a command, all of them.

    Exit code 1: a figure is missed; 2: a table could not be made (a trace is missing).
    """
    if context.invoked_subcommand is None:
        _show(ENTRIES, _options(values), as_json, every=True)


main = click.Group(
    "published",
    callback=_all,
    help=_all.__doc__,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[_JSON, _OPTIONS["seeds"]],
    commands=[_command(entry) for entry in ENTRIES],
)


if __name__ == "__main__":
    main(prog_name="python -m sim.published")
