"""`python -m validation.mutations`: plant the faults, run their tests, print the table."""

from __future__ import annotations

import sys

import click

from sim.errors import InputError
from validation.mutations.check import Verdict, check, chosen, make_recordings
from validation.mutations.document import render
from validation.mutations.trees import CheckError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", multiple=True, help="Only this fault; may be given again.")
@click.option("--make", is_flag=True, help="Make the recordings anew that the tests replay (needs vLLM).")
@click.option("--document", is_flag=True, help="Print docs/mutations.md.")
def main(only: tuple[str, ...], make: bool, document: bool) -> None:
    """Plant deliberate faults in a copy of the kernel; the named test of each must fail.

    Exit code 0: all were caught; 1: some were not; 2: a fault can't be planted any more.
    """

    def say(verdict: Verdict) -> None:
        click.echo(
            f"{verdict.fault.name:<28} {verdict.fault.test:<72} "
            f"{verdict.outcome:<14} {verdict.seconds:5.1f} s"
        )
        if not verdict.caught and verdict.detail:
            click.echo(verdict.detail)

    try:
        faults = chosen(only)
        if document:
            click.echo(render(), nl=False)
            return
        if make:
            make_recordings(faults, click.echo)
            return
        verdicts = check(faults, say)
    except (InputError, CheckError) as exc:
        click.echo(f"error: {exc}", err=True)
        sys.exit(2)
    caught = sum(verdict.caught for verdict in verdicts)
    click.echo(f"{caught} of {len(verdicts)} faults caught")
    sys.exit(0 if caught == len(verdicts) else 1)


if __name__ == "__main__":
    main()
