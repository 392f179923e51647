"""The command `curve`; what it needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path

import click

from sim.option_types import FiniteRange

_FORMATS = ("auto", "mooncake", "azure", "burstgpt", "vllm", "logical", "native")
_ENDINGS = (".csv", ".parquet", ".json", ".png", ".svg")


@click.command()
@click.argument("trace", type=click.Path())
@click.option(
    "--block-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens of a block; default: the config's, the hash ids' of a Mooncake trace, or 16.",
)
@click.option(
    "--rule",
    type=click.Choice(["lru", "vllm"]),
    help="lru: plain LRU over the blocks of prompts, as in published tables (default for a trace); "
    "vllm: full blocks, outputs cached too, freed last first (default for a config).",
)
@click.option(
    "--sizes", metavar="N,N,...", help="Sizes in blocks, as in 1000,3000,10k; default: 1, 2, 5, 10, ..."
)
@click.option(
    "--sample",
    type=FiniteRange(0, 1, min_open=True),
    default=1.0,
    metavar="SHARE",
    help="Follow only this share of the blocks, chosen by hash, as in 0.01; rates then have an error.",
)
@click.option("--model", metavar="NAME", help="Mark the pools that this model has on GPUs.")
@click.option("--gpu", "gpus", multiple=True, metavar="NAME", help="Only these GPUs; may be repeated.")
@click.option("--out", multiple=True, metavar="FILE", help=f"Write {', '.join(_ENDINGS)}; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--format", "trace_format", type=click.Choice(_FORMATS), default="auto", help="Of a trace file."
)
@click.option(
    "--hash-block-size", type=click.IntRange(min=1), metavar="N", help="Tokens of a Mooncake hash id [512]."
)
@click.option("--max-requests", type=click.IntRange(min=1), metavar="N", help="Only the first N of a trace.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of a config.")
@click.option("--seed", type=click.IntRange(0), metavar="N", help="Seed of a config's workload.")
def curve(
    trace: str,
    block_size: int | None,
    rule: str | None,
    sizes: str | None,
    sample: float,
    model: str | None,
    gpus: tuple[str, ...],
    out: tuple[str, ...],
    as_json: bool,
    trace_format: str,
    hash_block_size: int | None,
    max_requests: int | None,
    overrides: tuple[str, ...],
    seed: int | None,
) -> None:
    """Hit rate of TRACE against the size of the cache, all sizes in one pass.

    TRACE is a trace file (Mooncake, Azure, vLLM, ...) or a config (.yaml).
    """
    from sim.curve import table
    from sim.curve.distances import CurveOptions, measure
    from sim.curve.source import Asked, pools, read_source
    from sim.errors import InputError

    for name in out:
        if Path(name).suffix.lower() not in _ENDINGS:
            raise InputError("unknown ending", f"--out {name}", hint=f"one of {', '.join(_ENDINGS)}")
    given = None if sizes is None else table.parse_sizes(sizes)
    asked = Asked(overrides, seed, trace_format, hash_block_size, max_requests)
    source = read_source(trace, asked)
    block = block_size or source.block_size
    marked, notes = pools(source, asked, model, gpus, block)
    options = CurveOptions(block, "vllm" if (rule or source.rule) == "vllm" else "lru", sample)
    measured = measure(source.workload, options)
    if measured.ceiling == 0:
        notes.append("no block is ever looked up twice: this traffic shares nothing")
    notes += source.workload.source.get("notes", [])
    shown = table.default_sizes(measured) if given is None else given
    dense = table.dense_sizes(measured, shown, marked)
    result = table.Result(source.name, measured, shown, dense, marked, notes)
    _write(out, result, dense if given is None else shown)
    click.echo(table.render_json(result) if as_json else table.text(result), nl=False)


def _write(out: tuple[str, ...], result: object, sizes: object) -> None:
    from typing import Any, cast

    from sim.curve import table
    from sim.report.files import write_whole

    r, s = cast("table.Result", result), cast("Any", sizes)
    for name in out:
        kind = Path(name).suffix.lower()
        if kind == ".csv":
            data = table.csv_text(r, s).encode()
        elif kind == ".parquet":
            data = table.parquet_bytes(r, s)
        elif kind == ".json":
            data = table.render_json(r).encode()
        else:
            from sim.curve.plot import draw

            data = draw(r, kind[1:])
        write_whole(Path(name), data)
        click.echo(f"written to {name}", err=True)
