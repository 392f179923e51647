"""The command line: results on stdout, talk on stderr.

Exit codes: 0 fine, 1 a run that failed, 2 bad input (and output that can't be written), 130 interrupted.
Everything heavier than click is imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from sim import __version__
from sim.startup import put_off_collection

F = TypeVar("F", bound=Callable[..., Any])

EXIT_FAILED, EXIT_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def _exits(command: F) -> F:
    """Turn the errors of a command into messages and exit codes."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        from sim.errors import InputError

        try:
            return command(*args, **kwargs)
        except InputError as e:
            for problem in e.problems:
                click.echo(str(problem), err=True)
            sys.exit(EXIT_INPUT)
        except KeyboardInterrupt:
            click.echo("interrupted: nothing was written", err=True)
            sys.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            # The reader of our output went away (`| head`): not an error of ours.
            sys.stderr.close()
            sys.exit(0)
        except OSError as e:
            # of a path that nobody has looked at before: a name too long, a folder that may not be read
            if e.filename is None or e.strerror is None:
                raise
            click.echo(f"{e.filename}: {e.strerror[:1].lower()}{e.strerror[1:]}", err=True)
            sys.exit(EXIT_INPUT)
        except MemoryError:
            click.echo("error: out of memory: a smaller pool or workload, or fewer rows, is needed", err=True)
            sys.exit(EXIT_FAILED)

    return wrapped  # type: ignore[return-value]


_set = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the config, as in --set engine.block_size=32. May be repeated.",
)
_seed = click.option("--seed", type=click.IntRange(0), metavar="N", help="Seed, in place of the config's.")


def serve_options(command: F) -> F:
    """The options that take vLLM's own command line or config file in place of the `engine:` section."""
    for option in (
        click.option("--gpu", metavar="NAME", help="The GPU, in place of the config's: h100-80gb, l40s, ..."),
        click.option(
            "--vllm-config",
            metavar="FILE",
            help="vLLM's own YAML config (vllm serve --config FILE), in place of the engine section.",
        ),
        click.option(
            "--vllm-args",
            metavar="TEXT",
            help="A `vllm serve` command line, in place of the config's engine section:"
            ' --vllm-args "serve Qwen/Qwen3-8B --max-num-seqs 64".',
        ),
    ):
        command = option(command)
    return command


#: Commands of other modules, which import nothing heavier than click at their top: name -> module:object.
_LAZY = {
    "baseline": "sim.regression.cli:baseline",
    "check": "sim.regression.cli:check",
    "compare": "sim.report.commands:compare",
    "curve": "sim.curve.cli:curve",
    "descriptors": "sim.advice.cli:descriptors",
    "export": "sim.analysis.commands:export",
    "layout": "sim.report.commands:layout",
    "recommend": "sim.advice.cli:recommend",
    "report": "sim.report.commands:report",
    "size": "sim.size_command:size",
    "sweep": "sim.sweep.cli:sweep",
}


class _Commands(click.Group):
    """A group that imports the modules of its commands when it needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_LAZY})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in _LAZY and name not in self.commands:
            module, attribute = _LAZY[name].split(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            for part in (command, *getattr(command, "commands", {}).values()):
                if part.callback is not None:
                    part.callback = _exits(part.callback)
            self.add_command(command, name)
        return super().get_command(ctx, name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kvpool")
def main() -> None:
    """kvpool: simulate the KV-cache block pool of vLLM, without a GPU."""
    put_off_collection()


@main.command()
@click.argument("config", type=click.Path(), required=False)
@serve_options
@click.option("--model", metavar="NAME", help="The model, in place of the config's: a name or a config.json.")
@_set
@_seed
@click.option("--out", metavar="DIR", help="Folder for the results; default runs/NAME-CONTENTID.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.option("--quiet", "-q", is_flag=True, help="Print errors only (with --json also the JSON).")
@click.option("--every-step", is_flag=True, help="One row of steps.parquet for every engine step.")
@click.option("--events", is_flag=True, help="Write events.parquet too.")
@click.option("--no-plots", is_flag=True, help="Draw no plots.")
@click.option(
    "--stream/--no-stream",
    default=None,
    help="Keep the requests on disk, in bounded memory; default: from 200,000 requests on.",
)
@_exits
def run(
    config: str | None,
    vllm_args: str | None,
    vllm_config: str | None,
    gpu: str | None,
    model: str | None,
    overrides: tuple[str, ...],
    seed: int | None,
    out: str | None,
    as_json: bool,
    quiet: bool,
    every_step: bool,
    events: bool,
    no_plots: bool,
    stream: bool | None,
) -> None:
    """Simulate CONFIG, a YAML file; see `docs config` for its keys.

    With --vllm-args or --vllm-config the engine is what vLLM's own options say, and CONFIG gives the rest;
    without CONFIG, which --model may stand for too, a default chat workload arrives.
    """
    from sim import runner
    from sim.report.text import render
    from sim.results import to_json
    from sim.serve_args import ServeSource

    if config is None and vllm_args is None and vllm_config is None and model is None:
        raise click.UsageError("give a CONFIG, or --model and --gpu, or vLLM's own options with --vllm-args")
    given = any(x is not None for x in (vllm_args, vllm_config, gpu, model))
    options = runner.RunOptions(
        overrides=overrides,
        seed=seed,
        out=out,
        every_step=True if every_step else None,
        events=True if events else None,
        plots=False if no_plots else None,
        stream=stream,
        quiet=quiet,
        command=sys.argv[1:],
        serve=None if not given else ServeSource(vllm_args, vllm_config, gpu, model),
    )
    outcome = runner.run(config, options)
    if as_json:
        click.echo(to_json(outcome.summary).decode(), nl=False)
    elif not quiet:
        render(outcome.summary, sys.stdout, outcome.pool_note)
    outcome.write()
    if not quiet:
        click.echo(f"results in {outcome.folder}", err=True)
    if outcome.interrupted:
        sys.exit(EXIT_INTERRUPTED)


def _check_configs(configs: tuple[str, ...], overrides: tuple[str, ...], seed: int | None) -> None:
    from sim import runner
    from sim.errors import InputError, raise_all
    from sim.report.check import describe_run

    problems: list[InputError] = []
    for config in configs:
        try:
            resolved, workload = runner.check(config, overrides, seed)
        except InputError as e:
            problems += e.problems
            continue
        click.echo(describe_run(config, resolved, workload))
    raise_all(problems)


@main.command()
@click.argument("configs", type=click.Path(), nargs=-1, required=True)
@_set
@_seed
@_exits
def validate(configs: tuple[str, ...], overrides: tuple[str, ...], seed: int | None) -> None:
    """Check CONFIGS and what they name without simulating; say what would run."""
    _check_configs(configs, overrides, seed)


@main.command()
@click.option(
    "--of",
    "what",
    type=click.Choice(["run", "sweep"]),
    default="run",
    show_default=True,
    help="Kind of config.",
)
@_exits
def schema(what: str) -> None:
    """Print the JSON schema of a config."""
    import json

    if what == "sweep":
        from sim.sweep.docs import json_schema
    else:
        from sim.config_docs import json_schema

    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


@main.group()
def docs() -> None:
    """Print generated documentation."""


@docs.command("config")
@_exits
def docs_config() -> None:
    """Print docs/config.md: every key with type, default, unit and meaning."""
    from sim.config_docs import config_page

    click.echo(config_page(), nl=False)


@docs.command("sweep")
@_exits
def docs_sweep() -> None:
    """Print docs/sweep_keys.md: every key of a sweep file, every metric."""
    from sim.sweep.docs import keys_page

    click.echo(keys_page(), nl=False)


if __name__ == "__main__":
    main()
