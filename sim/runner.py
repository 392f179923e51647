"""One run from a config file to a run folder; the body of `python -m sim run`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sim import __version__
from sim.columns import EVENTS, REQUESTS, STEPS
from sim.compilation import NOTE, is_compiled
from sim.config import Loaded, load_config
from sim.config_workload import to_workload, to_workload_or_spool
from sim.config_yaml import KeyPath, Problem, to_input_errors
from sim.errors import InputError
from sim.fleet.columns import FLEET_EVENTS, FLEET_REQUESTS, FLEET_STEPS, REPLICA_STEPS
from sim.models import known_name
from sim.progress import reporter
from sim.report.units import blocks_text, count, plural, seconds, size
from sim.resolve import Resolved, content_id, resolve
from sim.results import check_target, run_folder, to_json, to_parquet, to_yaml, write_run
from sim.serve_args import ServeSource, serve_edit
from sim.stream.run import STREAM_FROM, Scratch, StreamedRun
from sim.summary import summarize
from workloads.spool import Spool
from workloads.units import format_duration

if TYPE_CHECKING:
    from sim.fleet.simulate import FleetResult, FleetSimulation
    from sim.simulate import LogOptions, RunResult, Simulation
    from workloads.requests import Workload

AUTO_ROWS = 2000
_PACKAGES = ("numpy", "numba", "pyarrow", "matplotlib", "pydantic", "simpy")


@dataclass(frozen=True)
class RunOptions:
    """What the command line says beside the config.

    Attributes:
        overrides: `key=value` texts of `--set`.
        seed: of `--seed`, or None.
        out: of `--out`, or None.
        every_step, events, plots: None: as the config says.
        stream: keep requests on disk: always, never, or (None) where there are many.
        quiet: nothing on stderr.
        command: the command line, for provenance.
        serve: vLLM's own options beside the config; None: there are none.
    """

    overrides: Sequence[str] = ()
    seed: int | None = None
    out: str | None = None
    every_step: bool | None = None
    events: bool | None = None
    plots: bool | None = None
    stream: bool | None = None
    quiet: bool = False
    command: Sequence[str] = ()
    serve: ServeSource | None = None


@dataclass(frozen=True)
class Outcome:
    """What a run gave: its summary, a note on the pool's size, and how to write its folder."""

    summary: dict[str, Any]
    pool_note: str
    folder: Path
    interrupted: bool
    write: Callable[[], None]


def run(config: str | None, options: RunOptions) -> Outcome:
    """Simulate a config; without one, vLLM's options in `options.serve` on a default workload.

    Raises:
        InputError: anything wrong with the config, its files or the output folder, before the run starts.
        OutputError: a streamed run could not be written.
    """
    started = time.time()
    say = _talker(options.quiet)
    edits = [] if options.serve is None else [serve_edit(options.serve)]
    loaded = load_config(config, _all_overrides(options), options.seed, edits)
    resolved = resolve(loaded)
    for note in [*(options.serve.notes if options.serve else ()), *_model_notes(loaded, resolved)]:
        say(f"note: {note}")
    if options.out is not None:
        check_target(Path(options.out))
    scratch = Scratch(run_folder(options.out, resolved.name, "streamed"))
    try:
        return _run(loaded, resolved, options, scratch, started, config)
    except BaseException:
        scratch.remove()
        raise


def _model_notes(loaded: Loaded, resolved: Resolved) -> tuple[str, ...]:
    """What was assumed about a model of the user's own; shipped ones are checked against vLLM."""
    name, model = loaded.config.model, resolved.model
    return () if name is None or model is None or known_name(name) else model.notes


def _run(
    loaded: Loaded,
    resolved: Resolved,
    options: RunOptions,
    scratch: Scratch,
    started: float,
    config: str | None,
) -> Outcome:
    clock = time.perf_counter()
    say = _talker(options.quiet)
    workload = _requests(loaded, resolved, options, scratch)
    period = resolved.sample_period_ns or auto_period(workload)
    resolved.config["output"]["sample_period"] = format_duration(period)
    digest = workload.content_hash()
    content = content_id(resolved.config, digest)
    folder = run_folder(options.out, resolved.name, content)
    check_target(folder)
    _check_clock(loaded, resolved, workload)
    say(f"{resolved.name}: {plural(len(workload), 'request')}, {_pool_text(resolved)}")

    from sim.core.jit import core_digest

    if not is_compiled(resolved.engine):
        say(NOTE)
    from sim.simulate import LogOptions

    log = LogOptions(
        sample_period_ns=period,
        every_step=resolved.every_step,
        events=resolved.events,
        warmup_ns=resolved.warmup_ns,
    )
    prepared = time.perf_counter()
    streamed: StreamedRun | None = None
    if isinstance(workload, Spool):
        streamed = StreamedRun(resolved, workload, log, scratch, _metadata(digest, content))
    simulation = streamed or simulation_of(resolved, cast("Workload", workload), log)
    interrupted = False
    with reporter(sys.stderr, resolved.until_ns, options.quiet) as progress:
        try:
            simulation.run(resolved.until_ns, progress)
        except KeyboardInterrupt:
            interrupted = True
    ran = time.perf_counter()
    if interrupted:
        say("interrupted: keeping what is done (press Ctrl-C again to drop it)")
    result = simulation.result()
    if interrupted:
        result.exit_reason = "interrupted"
    step_totals = None if streamed is None else streamed.step_totals
    summary = summarize(resolved, result, len(workload), content, __version__, step_totals)
    if streamed is not None:
        streamed.complete(summary)
    done = time.perf_counter()
    walls = {
        "prepare_s": prepared - clock,
        "simulate_s": ran - prepared,
        "summarize_s": done - ran,
    }

    def write() -> None:
        before = time.perf_counter()
        files: dict[str, bytes | Callable[[], bytes] | Path] = {
            **_files(resolved, result, summary, digest, content)
        }
        if streamed is not None:
            files |= streamed.files
        if resolved.plots:
            from sim.report.plots import draw

            steps = result.steps if streamed is None else streamed.step_rows()
            requests = result.requests if streamed is None else streamed.sample()
            files |= draw(summary, steps, requests, resolved.warmup_ns)
            if resolved.fleet is not None:
                from sim.report.fleet_plots import draw_fleet

                files |= draw_fleet(summary, cast("FleetResult", result).replica_steps)
        walls["write_s"] = time.perf_counter() - before
        provenance = _provenance(
            resolved,
            workload,
            options,
            config or loaded.document.file,
            core_digest(),
            digest,
            content,
            walls,
            started,
        )
        try:
            write_run(folder, files, provenance)
        finally:
            scratch.remove()

    speed = summary["simulated_s"] / max(ran - prepared, 1e-9)
    say(f"simulated {seconds(summary['simulated_s'])} in {seconds(ran - prepared)} ({count(round(speed))}x)")
    note = "estimated" if resolved.pool.how == "estimated" else ""
    return Outcome(summary, note, folder, interrupted, write)


def _requests(loaded: Loaded, resolved: Resolved, options: RunOptions, scratch: Scratch) -> Workload | Spool:
    """The requests: in memory, or on disk where the run is to be streamed."""
    why_not = _not_streamed(resolved)
    if options.stream and why_not:
        raise InputError(f"--stream: {why_not}", hint="leave out one of the two")
    if options.stream is False or why_not:
        return _workload(loaded, resolved)
    limit = 0 if options.stream else STREAM_FROM
    with scratch.writing():
        found = _workload(
            loaded,
            resolved,
            lambda spec, seed, base: to_workload_or_spool(spec, seed, base, scratch.folder, limit),
        )
    if isinstance(found, Spool):
        from sim.stream.window import check_streamable

        try:
            check_streamable(resolved.engine, found)
        except InputError:
            if options.stream:
                raise
            return found.load()
    return found


def _not_streamed(resolved: Resolved) -> str | None:
    """Why a run of this config is kept in memory, or None."""
    if resolved.fleet is not None:
        return "a fleet keeps its requests in memory"
    return None


def simulation_of(resolved: Resolved, workload: Workload, log: LogOptions) -> Simulation | FleetSimulation:
    """The simulation of a config: one engine, or a fleet of them."""
    if resolved.fleet is None:
        from sim.simulate import Simulation

        return Simulation(resolved.engine, workload, resolved.step_time, log)
    from sim.fleet.simulate import FleetSimulation

    return FleetSimulation(resolved.engine, workload, resolved.step_time, log, resolved.fleet, resolved.seed)


def check(config: str, overrides: Sequence[str] = (), seed: int | None = None) -> tuple[Resolved, Workload]:
    """Everything that `run` checks before it starts: config, files, workload.

    Raises:
        InputError: what `run` would say.
    """
    loaded = load_config(config, overrides, seed)
    resolved = resolve(loaded)
    workload = _workload(loaded, resolved)
    _check_clock(loaded, resolved, workload)
    return resolved, workload


def _workload(loaded: Loaded, resolved: Resolved, build: Callable[..., Any] = to_workload) -> Any:
    """The requests; a problem without a place in a trace gets the place of its key in the config."""
    try:
        return build(resolved.spec, resolved.seed, resolved.folder)
    except InputError as e:
        if e.line is not None:
            raise
        path: KeyPath = ("workload",)
        for key in loaded.document.values:
            if key[0] == "workload" and key[-1] == "path" and e.file is not None:
                value: Any = loaded.document.data
                for part in key:
                    value = value[part]
                if Path(e.file).name == Path(str(value)).name:
                    path = key
        message = e.message if e.file is None else f"{e.file}: {e.message}"
        problem = Problem(path, message, e.hint)
        raise to_input_errors([problem], loaded.document)[0] from None


def _check_clock(loaded: Loaded, resolved: Resolved, workload: Workload | Spool) -> None:
    if resolved.fleet is not None and workload.clock != "time":
        message = "the workload counts engine steps, and a fleet has no common step"
        problem = Problem(("replicas",), message, "use a workload in seconds, or replicas: 1")
        raise to_input_errors([problem], loaded.document)[0]


def _talker(quiet: bool) -> Callable[[str], None]:
    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

    return say


def _all_overrides(options: RunOptions) -> list[str]:
    """`--set` and the flags that are short for it."""
    flags = {
        "output.every_step": options.every_step,
        "output.events": options.events,
        "output.plots": options.plots,
    }
    short = [f"{k}={'true' if v else 'false'}" for k, v in flags.items() if v is not None]
    return [*options.overrides, *short]


def auto_period(workload: Workload | Spool) -> int:
    """Nanoseconds between sampled rows: 1, 2 or 5 times a power of ten, about 2000 rows over the arrivals."""
    if workload.clock != "time":
        return 10_000_000
    if isinstance(workload, Spool):
        span = workload.last_arrival
    else:
        span = int(workload.arrival.max()) if len(workload) else 0
    if span <= 0:
        return 1_000_000_000
    wanted = min(max(span // AUTO_ROWS, 1_000_000), 60_000_000_000)
    power = 10 ** (len(str(wanted)) - 1)
    return next(m * power for m in (1, 2, 5, 10) if m * power >= wanted)


def _pool_text(resolved: Resolved) -> str:
    e = resolved.engine
    text = blocks_text(e.num_gpu_blocks, e.block_size, not e.has_token_slots)
    if resolved.block_bytes_total is not None:
        text += f" ({size(resolved.block_bytes_total * e.num_gpu_blocks)})"
    return text if resolved.fleet is None else f"{resolved.fleet.replicas} replicas, each {text}"


def _metadata(digest: str, content: str) -> dict[str, str]:
    return {"format": "1", "version": __version__, "content_id": content, "workload_sha256": digest}


def _files(
    resolved: Resolved, result: RunResult, summary: dict[str, Any], digest: str, content: str
) -> dict[str, bytes | Callable[[], bytes]]:
    meta = _metadata(digest, content)
    header = f"kvpool {__version__}: {resolved.name} as resolved; running it gives the same results"
    files: dict[str, bytes | Callable[[], bytes]] = {
        "config.yaml": to_yaml(resolved.config, header),
        "summary.json": to_json(summary),
        "steps.parquet": lambda: to_parquet(result.steps, STEPS, meta),
        "requests.parquet": lambda: to_parquet(result.requests, REQUESTS, meta),
    }
    if resolved.fleet is not None:
        replica_steps: Mapping[str, np.ndarray] = cast("FleetResult", result).replica_steps
        files["steps.parquet"] = lambda: to_parquet(result.steps, FLEET_STEPS, meta)
        files["replica_steps.parquet"] = lambda: to_parquet(replica_steps, REPLICA_STEPS, meta)
        files["requests.parquet"] = lambda: to_parquet(result.requests, FLEET_REQUESTS, meta)
    if result.events is not None:
        events: Mapping[str, np.ndarray] = result.events
        known = EVENTS if resolved.fleet is None else FLEET_EVENTS
        files["events.parquet"] = lambda: to_parquet(events, known, meta)
    return files


def _provenance(
    resolved: Resolved,
    workload: Workload | Spool,
    options: RunOptions,
    config_file: str,
    core: str,
    digest: str,
    content: str,
    walls: Mapping[str, float],
    started: float,
) -> dict[str, Any]:
    import platform
    from importlib import metadata

    from sim.models import describe_model

    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    st = resolved.step_time
    return {
        "version": __version__,
        "name": resolved.name,
        "content_id": content,
        "seed": resolved.seed,
        "vllm_profile": resolved.engine.vllm,
        "vllm_switches": dict(resolved.engine.switches),
        "core_digest": core,
        "config_file": config_file,
        "command": list(options.command),
        "workload": {"sha256": digest, "requests": len(workload), "source": workload.source},
        "model": describe_model(resolved.model) if resolved.model else None,
        "gpu": resolved.gpu.model_dump(mode="json") if resolved.gpu else None,
        "pool": resolved.pool.describe(),
        "step_time": {"kind": st.kind, "coef_ns": [float(c) for c in st.coef]},
        "versions": versions,
        "platform": platform.platform(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "wall_s": {k: round(v, 4) for k, v in walls.items()},
    }
