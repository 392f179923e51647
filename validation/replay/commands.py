"""Commands `replay`, `replay-report`, `calibrate` and `tiny-model`; heavy imports happen inside."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from validation.cli import EXIT_DIFFERENT, reports_input_errors

if TYPE_CHECKING:
    from validation.replay.plan import Plan
    from validation.replay.recording import Recording

FIT_KINDS = ("auto", "affine", "table", "constant")


def register(group: click.Group) -> None:
    """Add the commands to `python -m validation`."""
    for command in (replay, replay_report, calibrate, tiny_model):
        group.add_command(command)


def _command() -> list[str]:
    """The command line, without folders of this machine."""
    words = ["python -m validation", *sys.argv[1:]]
    return [Path(word).name if Path(word).is_absolute() else word for word in words]


def _say(text: str) -> None:
    click.echo(text, err=True)


def _model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    fit = click.option(
        "--fit", "kind", type=click.Choice(FIT_KINDS), default="auto", show_default=True,
        help="Step-time model to fit to the recorded steps; auto: the least cross-validated error.",
    )  # fmt: skip
    file = click.option(
        "--step-time", type=click.Path(path_type=Path), default=None,
        help="Compare with the `step_time:` of this YAML (of `calibrate`) instead of a fit to the same run.",
    )  # fmt: skip
    return fit(file(command))


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True,
              help="Where the tiny model of a real engine in this process runs.")  # fmt: skip
@click.option(
    "--clock", type=click.Choice(["wall", "cpu"]), default="wall", show_default=True,
    help="What time is, with --device cpu: cpu is this process's CPU time, for a busy machine.",
)  # fmt: skip
@click.option(
    "--url", default=None, metavar="URL", help="A running `vllm serve`, such as http://127.0.0.1:8000."
)
@click.option(
    "--served-model", default=None, help="With --url: the model's name; default: the first one served."
)
@click.option(
    "--poll", default="100ms", show_default=True, help="With --url: time between readings of /metrics."
)
@click.option(
    "--force-output", is_flag=True,
    help="With --url: the server runs with `--logits-processors validation.vllm_forced_output:ForcedOutput`;"
    " give it the workload's output tokens.",
)  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the config.")
@click.option("--seed", type=int, default=None, help="Instead of the config's seed.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Report folder; default: runs/replay-NAME."
)
@_model_options
@reports_input_errors
def replay(
    config: Path, device: str, clock: str, url: str | None, served_model: str | None, poll: str,
    force_output: bool, overrides: tuple[str, ...], seed: int | None, out: Path | None, kind: str,
    step_time: Path | None,
) -> None:  # fmt: skip
    """Run a config's workload on a real vLLM in wall-clock time, simulate it too, and report the distance.

    Without --url: a whole vLLM engine in this process with a tiny random model and forced output tokens
    (needs vLLM). Exit code 0: done; 1: the rules differ; 2: the input can't be used.
    """
    from sim.results import check_target
    from validation.replay.plan import load_plan
    from validation.vllm_setup import TINY_VOCABULARY

    if clock == "cpu" and (device != "cpu" or url):
        raise click.UsageError(
            "--clock cpu is for --device cpu: elsewhere the work is not done in this process"
        )
    plan = load_plan(config, overrides, seed, None if url else TINY_VOCABULARY)
    folder = out or Path("runs") / f"replay-{plan.resolved.name}"
    check_target(folder)
    if step_time is not None:
        from validation.replay.report import read_step_time

        read_step_time(step_time)
    if url is None:
        from validation.replay.engine import replay as on_engine

        _say(f"{plan.resolved.name}: {len(plan.workload)} requests on a real vLLM engine ({device})")
        recording = on_engine(plan, device, clock)
    else:
        from validation.replay.http_replay import replay as on_server
        from workloads.units import parse_duration

        try:
            period = parse_duration(poll)
        except ValueError as e:
            raise click.BadParameter(str(e), param_hint="--poll") from None
        _say(f"{plan.resolved.name}: {len(plan.workload)} requests to {url}")
        recording = on_server(plan, url, served_model, period, force_output)
    recording.info["command"] = _command()
    _finish(plan, recording, folder, kind, step_time)


@click.command("replay-report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Another folder; default: RUN itself."
)
@_model_options
@reports_input_errors
def replay_report(run: Path, out: Path | None, kind: str, step_time: Path | None) -> None:
    """Make the report of a recorded replay again, with today's simulator (needs no vLLM).

    Exit code 0: done; 1: the rules differ; 2: the input can't be used.
    """
    from validation.replay.plan import load_plan
    from validation.replay.recording import read_recording

    recording = read_recording(run)
    plan = load_plan(run / "config.yaml")
    _finish(plan, recording, out or run, kind, step_time)


def _finish(plan: Plan, recording: Recording, folder: Path, kind: str, step_time: Path | None) -> None:
    from validation.replay.page import verdict
    from validation.replay.report import choose_model, investigate, write_report

    model = choose_model(plan, recording, kind, step_time)
    findings = investigate(plan, recording, model, _say)
    report = write_report(findings, folder, _command())
    for line in verdict(report):
        click.echo(line)
    click.echo(f"{folder}/report.html")
    wrong = [part for part in (report["rules"], report["recorded_steps"]) if part and not part["equal"]]
    sys.exit(EXIT_DIFFERENT if wrong else 0)


@click.command()
@click.argument("steps", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("step_time.yaml"), show_default=True,
              help="The YAML; a table's values go beside it as CSV.")  # fmt: skip
@click.option("--fit", "kind", type=click.Choice(FIT_KINDS), default="auto", show_default=True,
              help="Model; auto: the least cross-validated error.")  # fmt: skip
@reports_input_errors
def calibrate(steps: Path, out: Path, kind: str) -> None:
    """Fit a step-time model to recorded steps and write the `step_time:` section of a config.

    STEPS: the folder of a replay, or a CSV or Parquet file with scheduled_tokens, context_tokens and
    duration_ns (or _us, _ms, _s); an affine fit also wants prefill_tokens, decode_seqs, decode_context.
    """
    from validation.replay.calibrate import fit, read_steps, step_time_yaml
    from workloads.files import write_whole

    recorded = read_steps(steps)
    model, tried = fit(recorded, kind)
    table = out.with_name(f"{out.stem}.csv")
    if model.kind == "table":
        write_whole(table, lambda temporary: _write(temporary, model.table_file()))
    text = step_time_yaml(model, steps.name, table.name)
    write_whole(out, lambda temporary: _write(temporary, text))
    _print_fit(model, tried)
    click.echo(f"{out}: kind {model.kind}")


@click.command("tiny-model")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--max-model-len", type=click.IntRange(min=2), default=4096, show_default=True)
@reports_input_errors
def tiny_model(folder: Path, max_model_len: int) -> None:
    """Write the config.json of the tiny model, so that a server can be started with it.

    \b
    vllm serve FOLDER --load-format dummy --skip-tokenizer-init --enforce-eager --dtype float32 ...
    """
    import json

    from validation.vllm_setup import tiny_llama_config
    from workloads.files import write_whole

    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(tiny_llama_config(max_model_len), indent=2) + "\n"
    write_whole(folder / "config.json", lambda temporary: _write(temporary, text.encode()))
    click.echo(f"{folder}/config.json")


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _print_fit(model: Any, tried: dict[str, Any]) -> None:
    width = min(100, shutil.get_terminal_size().columns)
    click.echo(f"{len(model.steps)} steps, mean {model.steps.duration.mean() / 1e6:.3f} ms"[:width])
    click.echo(f"{'errors':<22}{'mean':>9}{'total':>9}{'p50':>9}{'p90':>9}{'p99':>9}{'R2':>8}")
    rows = [(f"{k}, held out", q) for k, q in tried.items()] + [(f"{model.kind}, residuals", model.residuals)]
    for name, q in rows:
        shares = "".join(f"{100 * x:>7.1f} %" for x in (q.mean_abs_error, q.total_error, q.p50, q.p90, q.p99))
        click.echo(f"{name:<22}{shares}{q.r2:>8.3f}")
    click.echo(f"scaled by {model.scale:.3f} to the recorded total")
