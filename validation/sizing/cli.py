"""`python -m validation sizing`: the planner against those of vLLM's releases, and recordings of what they
answer.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sim.errors import InputError, did_you_mean
from sim.profiles import DEFAULT_RELEASE
from validation.cli import reports_input_errors

RECORDED = Path("tests/recorded_vllm/sizing.json")
RECORDED_RELEASES = Path("tests/recorded_vllm/sizing_releases.json")


@click.command()
@click.option(
    "--release",
    "releases",
    multiple=True,
    metavar="X",
    help=f"vLLM release, as 0.25; may be repeated; all: those at hand. Default: {DEFAULT_RELEASE}.",
)
@click.option("--models", default="", metavar="NAMES", help="Only these shipped models, separated by commas.")
@click.option(
    "--mixes", type=click.IntRange(0), default=2000, show_default=True, help="Made-up mixes of layers."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="First seed of the mixes.")
@click.option("--quick", is_flag=True, help="Every fifth question about a model.")
@click.option(
    "--releases-folder",
    "folder",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder of the releases; default $KVPOOL_VLLM_RELEASES or .vllm-releases.",
)
@click.option(
    "--record",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"Write vLLM's answers to some of the questions ({RECORDED}; of several releases:"
    f" {RECORDED_RELEASES}).",
)
@reports_input_errors
def sizing(
    releases: tuple[str, ...],
    models: str,
    mixes: int,
    seed: int,
    quick: bool,
    folder: Path | None,
    record: Path | None,
) -> None:
    """Compare the sizes of pools with the planners of real vLLM releases (needs vLLM).

    For every shipped model its layers are built by the release's own classes, without weights; groups, their
    order, block and page sizes, blocks, tokens and concurrency must be equal, what one side refuses the other
    must refuse, and the weights must be within 1 %.

    Exit code 0: all equal; 1: something differs; 2: vLLM or a release is missing, or a name is wrong.
    """
    from validation.release_commands import chosen_releases
    from validation.sizing.check import check_release
    from validation.sizing.questions import models as known

    chosen = [m.strip() for m in models.split(",") if m.strip()] or known()
    for name in chosen:
        if name not in known():
            raise InputError(f"unknown model '{name}'", "--models", hint=did_you_mean(name, known()))
    names = chosen_releases(() if releases == ("all",) else releases or (DEFAULT_RELEASE,), folder)
    if record is not None:
        from validation.sizing.recordings import record_answers, record_releases

        if names == [DEFAULT_RELEASE]:
            count = record_answers(record, chosen, mixes, seed)
        else:
            count = record_releases(record, names, folder, range(seed, seed + mixes))
        click.echo(f"{record}: {count} answers", err=True)
        return
    found = [
        line
        for name in names
        for line in check_release(
            name, folder, chosen, range(seed, seed + mixes), 5 if quick else 1, click.echo
        )
    ]
    for line in found[:40]:
        click.echo(f"  {line}", err=True)
    sys.exit(1 if found else 0)


@click.command("serve-options")
@click.option(
    "--write", is_flag=True, help="Write the table (sim/serve_args/options.json) instead of comparing it."
)
def serve_options(write: bool) -> None:
    """Compare the table of `vllm serve` options with a real vLLM's parser (needs vLLM).

    Exit code 0: equal, and every option is classified; 1: something differs; 2: vLLM is missing.
    """
    from sim.errors import InputError
    from validation.vllm_setup import VLLM_VERSION, require_vllm

    try:
        require_vllm()
    except InputError as e:
        click.echo(f"error: {e}", err=True)
        sys.exit(2)
    from validation.serve_options import TABLE, as_text, differences, real_options

    if write:
        from sim.results import write_bytes

        options = real_options()
        write_bytes(TABLE, as_text(options, VLLM_VERSION).encode())
        click.echo(f"{TABLE}: {len(options)} options", err=True)
        return
    from sim.serve_args.table import unclassified

    found = differences() + [f"{name} is not classified" for name in unclassified()]
    click.echo(f"{len(real_options())} options of vllm serve, {len(found)} differences")
    for line in found:
        click.echo(f"  {line}", err=True)
    sys.exit(1 if found else 0)
