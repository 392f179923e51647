"""The commands `recommend` and `descriptors`; `sim.cli` adds them to its own."""

from __future__ import annotations

import sys

import click

from sim.cli import EXIT_INTERRUPTED, _seed, _set
from sim.option_types import FiniteRange


@click.command()
@click.argument("config", type=click.Path())
@_set
@_seed
@click.option(
    "--objective",
    default="e2e_s.mean",
    show_default=True,
    metavar="METRIC",
    help="What to improve: ttft, tpot, latency, throughput, waste, hit_rate ... (docs/recommend.md).",
)
@click.option(
    "--constraint",
    "constraints",
    multiple=True,
    metavar="METRIC<=X",
    help="A bound to keep, as in --constraint 'ttft_s.p99<=2'. May be repeated.",
)
@click.option(
    "--seeds",
    type=click.IntRange(2, 1000),
    default=8,
    show_default=True,
    help="Fresh seeds on which the best setting is judged.",
)
@click.option(
    "--runs", type=click.IntRange(8), default=200, show_default=True, help="Most simulations of the search."
)
@click.option(
    "--level", type=FiniteRange(0.5, 0.9999), default=0.95, show_default=True, help="Of the intervals."
)
@click.option(
    "--min-gain",
    type=FiniteRange(0.0, 1.0),
    default=0.01,
    show_default=True,
    help="Relative gain that a change must bring.",
)
@click.option("--jobs", "-j", type=click.IntRange(1), help="Worker processes; default: one a processor.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the advice and every number behind it.")
@click.option("--out", metavar="DIR", help="Also write recommendation.json and .txt to this folder.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def recommend(
    config: str,
    overrides: tuple[str, ...],
    seed: int | None,
    objective: str,
    constraints: tuple[str, ...],
    seeds: int,
    runs: int,
    level: float,
    min_gain: float,
    jobs: int | None,
    as_json: bool,
    out: str | None,
    quiet: bool,
) -> None:
    """Find better settings for CONFIG by simulation: what to change, what it gives and what it costs."""
    from sim.advice.recommend import Options
    from sim.advice.recommend import recommend as body
    from sim.results import to_json

    options = Options(
        objective=objective,
        constraints=constraints,
        seeds=seeds,
        runs=runs,
        level=level,
        min_gain=min_gain,
        jobs=jobs,
        overrides=overrides,
        seed=seed,
        out=out,
        quiet=quiet,
        command=sys.argv[1:],
    )
    advice = body(config, options)
    click.echo(to_json(advice.data).decode() if as_json else advice.text, nl=False)
    if advice.interrupted:
        sys.exit(EXIT_INTERRUPTED)


@click.command()
@click.argument("source", metavar="CONFIG|RUN|RECORDING", type=click.Path())
@_set
@_seed
@click.option(
    "--when",
    type=click.Choice(["first-token", "finish"]),
    default="first-token",
    show_default=True,
    help="When the KV is sent: after the prefill, or at the request's end.",
)
@click.option(
    "--regions",
    default="kv",
    show_default=True,
    metavar="WHICH",
    help="Registered regions: kv (K and V of each layer), layer, packed (one), or a number.",
)
@click.option("--post-us", default=3.4, show_default=True, help="Microseconds to post one descriptor.")
@click.option(
    "--wire-us", default=1.3, show_default=True, help="Microseconds more that one descriptor takes."
)
@click.option("--bandwidth", default=50.0, show_default=True, help="GB/s of the link of one GPU.")
@click.option(
    "--latency-us", default=20.0, show_default=True, help="Microseconds of a transfer without data."
)
@click.option("--replica", type=click.IntRange(0), metavar="N", help="Of a fleet's run: which one, from 0.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def descriptors(
    source: str,
    overrides: tuple[str, ...],
    seed: int | None,
    when: str,
    regions: str,
    post_us: float,
    wire_us: float,
    bandwidth: float,
    latency_us: float,
    replica: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Transfer descriptors that each request's KV needs when it is sent elsewhere, and their cost.

    Takes a config, the folder of a run, which is simulated again, or a recording of a live vLLM
    (docs/live.md), whose states show the block tables.
    """
    from sim.analysis.descriptors import cost_model, descriptor_costs, text
    from sim.analysis.handoffs import check_source, recorded_handoffs, simulate_handoffs
    from sim.analysis.recording_file import looks_recorded
    from sim.errors import InputError
    from sim.results import to_json

    for option, value in (("--post-us", post_us), ("--wire-us", wire_us), ("--latency-us", latency_us)):
        if not 0 <= value < float("inf"):
            raise InputError(f"must be at least 0, got {value}", option)
    if not 0 < bandwidth < float("inf"):
        raise InputError(f"must be more than 0, got {bandwidth}", "--bandwidth")
    numbers = {
        "post_s": post_us / 1e6,
        "wire_s": wire_us / 1e6,
        "bandwidth": bandwidth * 1e9,
        "latency_s": latency_us / 1e6,
    }

    def say(seen: int, total: int) -> None:
        if not quiet:
            click.echo(f"{seen:,} of {total:,} requests", err=True)

    seen = ""
    if looks_recorded(source):
        from sim.analysis.recording import load
        from sim.report.recorded_report import group_names
        from sim.report.replica import refuse_replica

        if overrides or seed is not None:
            option = "--set" if overrides else "--seed"
            raise InputError("a recording can't be changed", option, hint="give a config or a run folder")
        refuse_replica(replica)
        recorded = load(source)
        model = cost_model(recorded, regions, **numbers)
        name, names = recorded.path.name, [g.name for g in group_names(recorded)]
        handoffs = recorded_handoffs(recorded, when)
        which = "first one after its prefill" if when == "first-token" else "last one before its end"
        seen = f"its tables are those of the {which} of {recorded.num_states:,} recorded states"
    else:
        from sim.report.group_table import names_of

        resolved, workload = check_source(source, overrides, seed, replica)
        model = cost_model(resolved, regions, **numbers)
        name, names = resolved.name, [g.name for g in names_of(resolved)]
        handoffs = simulate_handoffs(resolved, workload, when, say)
    costs = descriptor_costs(handoffs, model)
    if as_json:
        click.echo(to_json({"name": name, "group_names": names, **costs}).decode(), nl=False)
    else:
        click.echo(text(name, costs, names, seen), nl=False)
