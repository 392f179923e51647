"""The command `size`. It lies outside of `sim.sizing`, so that `--help` loads nothing heavy."""

from __future__ import annotations

from pathlib import Path

import click

from sim.cli import serve_options


@click.command()
@click.argument("config", type=click.Path(), required=False)
@serve_options
@click.option("--model", metavar="NAME", help="The model, in place of the config's: a name or a config.json.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the config, as in --set engine.block_size=32. May be repeated.",
)
@click.option("--png", metavar="FILE", help="Also draw the budget and the layout of a block.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def size(
    config: str | None,
    vllm_args: str | None,
    vllm_config: str | None,
    gpu: str | None,
    model: str | None,
    overrides: tuple[str, ...],
    png: str | None,
    as_json: bool,
) -> None:
    """Show the memory budget of CONFIG: weights, KV cache by group, padding, blocks, tokens, concurrency.

    CONFIG may be left out: --model and --gpu, or --vllm-args, are enough. Groups, pages, blocks and
    concurrency are exact for the memory they are given; how much memory that is, is an estimate, unless
    engine.kv_cache_memory_bytes or engine.num_gpu_blocks says it.
    """
    from sim.serve_args import ServeSource
    from sim.sizing.report import as_data, as_text, budget_of

    if config is None and vllm_args is None and vllm_config is None and model is None:
        raise click.UsageError("give a CONFIG, or --model and --gpu, or vLLM's own options with --vllm-args")
    source = ServeSource(vllm_args, vllm_config, gpu)
    budget = budget_of(config, source, overrides, model)
    if png is not None:
        from sim.report.files import write_whole
        from sim.sizing.picture import draw

        write_whole(Path(png), draw(budget))
        click.echo(f"picture in {png}", err=True)
    for note in source.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        from sim.results import to_json

        click.echo(to_json(as_data(budget)).decode(), nl=False)
    else:
        click.echo(as_text(budget), nl=False)
