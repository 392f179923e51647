"""Commands: `python -m validation record | diff | fuzz | run`. Heavy imports happen inside the commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click

TARGETS = ("sim", "scheduler", "engine")
HIDDEN_TARGETS = ("reference",)
GROUP_FAMILIES = (
    "full",
    "sliding_window",
    "hybrid",
    "chunked_local",
    "mamba",
    "mixed",
    "partial",
    "speculative",
    "cross_attention",
    "checkpoint",
    "uneven",
    "mamba_all",
    "any",
)
EXIT_DIFFERENT = 1
EXIT_INPUT = 2
EXIT_STUCK = 3


def _fail(message: str) -> NoReturn:
    click.echo(f"error: {message}", err=True)
    sys.exit(EXIT_INPUT)


def reports_input_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Print an input error once and exit with code 2."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        from sim.errors import InputError
        from workloads.errors import WorkloadError

        try:
            return command(*args, **kwargs)
        except (InputError, WorkloadError) as exc:
            _fail(str(exc))

    return wrapped


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Compare the simulator with a real vLLM, step by step."""


@main.command()
@click.option(
    "--target",
    type=click.Choice([*TARGETS, *HIDDEN_TARGETS]),
    metavar="|".join(TARGETS),
    required=True,
    help="The simulator; a real vLLM's scheduler with no model; a whole real vLLM.",
)
@click.option("--engine", type=click.Path(path_type=Path), required=True, help="Engine configuration (JSON).")
@click.option("--workload", type=click.Path(path_type=Path), required=True, help="Logical-time workload.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A .parquet or .jsonl.gz file.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="For target engine.")
@reports_input_errors
def record(target: str, engine: Path, workload: Path, out: Path, device: str) -> None:
    """Run a workload step by step and write the step log.

    Exit code 0: done; 2: the input can't be used; 3: a request can never be served, so the log ends early.
    """
    from validation import steplog
    from validation.record import record_file

    recording = record_file(target, engine, workload, device)
    steplog.write(out, recording.log)
    click.echo(f"{out}: {steplog.num_rows(recording.log)} rows", err=True)
    if recording.stuck is not None:
        click.echo(f"stuck: {recording.stuck}", err=True)
        sys.exit(EXIT_STUCK)


@main.command()
@click.option("--minutes", type=float, default=1.0, show_default=True, help="How long.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, other cases.")
@click.option(
    "--target", type=click.Choice(["sim", "reference"]), default="sim", help="What to compare with vLLM."
)
@click.option(
    "--regressions",
    type=click.Path(path_type=Path),
    default=Path("tests/recorded_vllm/regressions"),
    show_default=True,
    help="Folder for the cases that differ, made small.",
)
@click.option(
    "--groups",
    type=click.Choice(GROUP_FAMILIES),
    metavar="FAMILY",
    default="full",
    show_default=True,
    help=f"What the cases' KV-cache groups are like: {', '.join(GROUP_FAMILIES)}.",
)
@click.option(
    "--release",
    default=None,
    help="Another vLLM release, as 0.25 or 0.25.1, and its rules; default: the vLLM installed here.",
)
@click.option(
    "--releases",
    "folder",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder of the releases; default $KVPOOL_VLLM_RELEASES or .vllm-releases.",
)
@click.option("--cases", type=click.IntRange(1), default=None, help="End after so many compared cases.")
@reports_input_errors
def fuzz(
    minutes: float,
    seed: int,
    target: str,
    regressions: Path,
    groups: str,
    release: str | None,
    folder: Path | None,
    cases: int | None,
) -> None:
    """Compare the simulator with a real vLLM's scheduler on random cases (needs vLLM).

    A case that differs is made as small as possible and saved, with the real log, as a regression test.
    Exit code 0: no difference; 1: differences were found and saved; 2: vLLM or the release is missing.
    """
    from validation.fuzz import fuzz as run_fuzz
    from validation.vllm_setup import require_vllm

    require_vllm()
    tally = run_fuzz(
        minutes,
        seed,
        target,
        regressions,
        click.echo,
        groups=groups,
        release=release,
        folder=folder,
        max_cases=cases,
    )
    click.echo(tally.text())
    sys.exit(EXIT_DIFFERENT if tally.differences else 0)


@main.command(hidden=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the recordings.")
@click.option("--seeds", type=int, default=300, show_default=True, help="Random cases to choose from.")
@click.option("--keep", type=int, default=25, show_default=True, help="Recordings to keep.")
@click.option("--groups", type=click.Choice(GROUP_FAMILIES), default="full", help="As in `fuzz`.")
@click.option("--min-requests", type=int, default=0, help="Leave out cases with fewer requests.")
@reports_input_errors
def corpus(out: Path, seeds: int, keep: int, groups: str, min_requests: int) -> None:
    """Record random cases on a real vLLM scheduler and keep the most distinctive short ones.

    Cases of an earlier run in the same folder are left alone; delete them first to replace them.
    """
    from validation.corpus import choose, write_case
    from validation.fuzz_groups import random_group_case
    from validation.record import record

    cases = (random_group_case(seed, groups) for seed in range(seeds))
    recorded = ((case, record("scheduler", case.settings, case.requests)) for case in cases)
    for case, recording in choose(recorded, keep, min_requests=min_requests):
        click.echo(f"{write_case(out, case, recording.log)}: {len(recording.log['step'])} rows")


@main.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--columns", default=None, help="Compare only these, separated by commas.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@reports_input_errors
def diff(a: Path, b: Path, columns: str | None, as_json: bool) -> None:
    """Compare two step logs row by row.

    Exit code 0: equal; 1: different (the first differing row and column are printed); 2: unreadable file.
    """
    from validation import steplog
    from validation.diff import compare, render

    chosen = None if columns is None else [name.strip() for name in columns.split(",") if name.strip()]
    comparison = compare(steplog.read(a), steplog.read(b), chosen)
    click.echo(json.dumps(comparison.to_json()) if as_json else render(comparison, str(a), str(b)))
    sys.exit(0 if comparison.equal else EXIT_DIFFERENT)


@main.command()
@click.option(
    "--conformance",
    type=click.Path(path_type=Path),
    envvar="KVPOOL_CONFORMANCE",
    default=Path("../shared/conformance"),
    show_default=True,
    help="Folder of the long recordings; it may be absent.",
)
@click.option(
    "--recorded",
    type=click.Path(path_type=Path),
    default=Path("tests/recorded_vllm"),
    show_default=True,
    help="Folder of the short recordings.",
)
@click.option("--random-cases", type=int, default=200, show_default=True, help="Random cases to compare.")
@click.option("--engines/--no-engines", default=True, help="Also run whole engines on this machine's CPU.")
@reports_input_errors
def run(conformance: Path, recorded: Path, random_cases: int, engines: bool) -> None:
    """Compare everything with a real vLLM, as a table (needs vLLM; `make validate` builds its environment).

    Exit code 0: all equal; 1: something differs, repeated below the table; 2: vLLM is missing.
    """
    from validation.suite import run as run_suite
    from validation.vllm_setup import require_vllm

    require_vllm()
    sys.exit(0 if run_suite(conformance, recorded, random_cases, engines, click.echo) else EXIT_DIFFERENT)


# At the end: these modules use what is above.
main.add_command(import_module("validation.live.cli").live)
main.add_command(import_module("validation.bench").bench)
main.add_command(import_module("validation.sizing.cli").sizing)
main.add_command(import_module("validation.sizing.cli").serve_options)
import_module("validation.replay.commands").register(main)
import_module("validation.release_commands").register(main)
