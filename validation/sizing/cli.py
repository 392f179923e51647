"""`python -m validation sizing`: the planner against vLLM's own, and the recordings of its answers."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

RECORDED = Path("tests/recorded_vllm/sizing.json")


@click.command()
@click.option("--models", default="", metavar="NAMES", help="Only these shipped models, separated by commas.")
@click.option(
    "--mixes", type=click.IntRange(0), default=2000, show_default=True, help="Made-up mixes of layers."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="First seed of the mixes.")
@click.option("--quick", is_flag=True, help="Every fifth question about a model.")
@click.option(
    "--record",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"Write vLLM's answers to some of the questions ({RECORDED}).",
)
def sizing(models: str, mixes: int, seed: int, quick: bool, record: Path | None) -> None:
    """Compare the sizes of pools with a real vLLM's planner (needs vLLM).

    For every shipped model its layers are built by vLLM's own classes, without weights; groups, their order,
    block and page sizes, blocks, tokens and concurrency must be equal, and the weights within 1 %.

    Exit code 0: all equal; 1: something differs; 2: vLLM is missing or a name is wrong.
    """
    from sim.errors import InputError, did_you_mean
    from validation.sizing.questions import models as known
    from validation.vllm_setup import require_vllm

    chosen = [m.strip() for m in models.split(",") if m.strip()] or known()
    try:
        for name in chosen:
            if name not in known():
                raise InputError(f"unknown model '{name}'", "--models", hint=did_you_mean(name, known()))
        require_vllm()
    except InputError as e:
        click.echo(f"error: {e}", err=True)
        sys.exit(2)
    from validation.sizing.compare import WEIGHT_TOLERANCE, Tally, compare_mixes, compare_model

    if record is not None:
        from validation.sizing.recordings import record_answers

        click.echo(f"{record}: {record_answers(record, chosen, mixes, seed)} answers", err=True)
        return
    tally = Tally()
    for name in chosen:
        before, began, found = tally.compared, time.perf_counter(), len(tally.differences)
        compare_model(name, tally, quick)
        state = "equal" if len(tally.differences) == found else f"{len(tally.differences) - found} DIFFER"
        worst = max(abs(b - a) / a for k, (a, b) in tally.weights.items() if k.startswith(f"{name} x"))
        click.echo(
            f"{name:22}  {tally.compared - before:5} plans {state}, weights within {100 * worst:.2f} %"
            f"  ({time.perf_counter() - began:.1f} s)"
        )
        if worst > WEIGHT_TOLERANCE:
            tally.differences.append(f"{name}: weights differ by {100 * worst:.2f} %")
    if mixes:
        found = len(tally.differences)
        compare_mixes(seed, mixes, tally)
        state = "equal" if len(tally.differences) == found else f"{len(tally.differences) - found} DIFFER"
        click.echo(f"{'made-up mixes':22}  {mixes:5} plans {state}")
    click.echo(
        f"{tally.compared} plans, {tally.refused} of them refused by both; weights within"
        f" {100 * tally.worst_weights:.2f} %; {len(tally.differences)} differences"
    )
    for line in tally.differences[:40]:
        click.echo(f"  {line}", err=True)
    sys.exit(1 if tally.differences else 0)


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
