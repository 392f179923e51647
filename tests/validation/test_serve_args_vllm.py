"""Command lines of `vllm serve` through vLLM's own parser and through ours. Needs vLLM: `make validate`."""

from __future__ import annotations

import argparse
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from sim.errors import InputError
from sim.serve_args.apply import _READ
from sim.serve_args.parse import parse_file, parse_line
from sim.serve_args.table import ENGINE, unclassified

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# torch and vllm warn of their own affairs, while they are imported and while they run
pytestmark = pytest.mark.filterwarnings("ignore")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip(
        "vllm.v1.core.block_pool", reason="no vLLM in this environment: `make validate` runs these tests"
    )

LINES = [
    "serve m/x --max-num-seqs 5 --block-size=32",
    "serve m/x --max_num_seqs=5 --gpu_memory_utilization .8",
    "serve m/x -tp 2 -q fp8 -O3",
    "serve m/x --no-enable-prefix-caching --enforce-eager",
    "serve m/x --enable-prefix-caching --no_enable_prefix_caching",
    "serve m/x --max-num-seqs 5 --max-num-seqs 6",
    "serve m/x --max-model-len -1",
    "serve m/x --max-model-len auto",
    "serve m/x --max-model-len 32k --max-num-batched-tokens 8K",
    "serve m/x --max-model-len 25.6k --kv-cache-memory-bytes 20g",
    "serve m/x --max-num-batched 9 --port 80",
    "serve --model m/x --port 1",
    "serve m/x --served-model-name a b --port 1",
    "serve m/x --scheduling-policy priority --watermark 0.05 --long-prefill-token-threshold 512",
    "serve m/x --prefix-cache-retention-interval None --max-num-active-seqs 3",
    "serve m/x --no-async-scheduling --no-scheduler-reserve-full-isl --disable-hybrid-kv-cache-manager",
    "serve m/x --dtype half --kv-cache-dtype fp8_e4m3 --mamba-cache-dtype float32",
    "serve m/x --performance-mode throughput --num-gpu-blocks-override 777",
    'serve m/x --speculative-config \'{"method": "ngram", "num_speculative_tokens": 2}\'',
    "serve m/x --speculative-config.method ngram --speculative-config.num_speculative_tokens 2",
]


@pytest.fixture(scope="module")
def parser() -> Any:
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    top = FlexibleArgumentParser()
    ServeSubcommand().subparser_init(top.add_subparsers())
    return top


def value_of(real: Any, name: str) -> Any:
    """The parsed value; the model is the first argument, or --model where it came from a file."""
    if name == "--model":
        return real.model_tag or real.model
    return getattr(real, name.removeprefix("--").replace("-", "_"))


def ours(name: str, text: str) -> Any:
    how = ENGINE[name][1] if name in ENGINE else "text"
    value = _READ[how](text)
    return -1 if value == "fit" else value


def same(real: Any, name: str, given: Any) -> bool:
    if isinstance(given.value, bool | list):
        return real == given.value
    if isinstance(real, dict):
        return real == json.loads(given.text)
    if name == "--dtype":
        return real == given.text
    return str(real) == str(ours(name, given.text))


@pytest.mark.parametrize("line", LINES)
def test_lines_are_read_alike(parser: Any, line: str) -> None:
    import shlex

    problems: list[InputError] = []
    found = {g.name: g for g in parse_line(line, problems)}
    assert problems == []
    real = parser.parse_args(shlex.split(line))
    for name, given in found.items():
        value = value_of(real, name)
        assert same(value, name, given), (name, value, given.text)


def test_config_files_are_read_alike(parser: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "model: m/x\nmax-num-seqs: 32\nmax_model_len: 16k\nenable-prefix-caching: false\nheadless: false\n"
        "no-async-scheduling: true\nenforce-eager: true\n"
        "served-model-name: [a, b]\nspeculative-config:\n  method: ngram\n  num_speculative_tokens: 2\n"
    )
    problems: list[InputError] = []
    found = {g.name: g for g in parse_file(path, problems, [])}
    assert problems == []
    real = parser.parse_args(["serve", "--config", str(path)])
    assert set(found) == {
        "--model",
        "--max-num-seqs",
        "--max-model-len",
        "--async-scheduling",
        "--enforce-eager",
        "--served-model-name",
        "--speculative-config",
    }
    # false has no effect: vLLM looks for the --no- form in the parser around that of `serve`.
    assert real.enable_prefix_caching is None
    for name, given in found.items():
        value = value_of(real, name)
        assert same(value, name, given), (name, value, given.text)


@pytest.mark.parametrize(
    "line", ["serve m/x --max-model-len 1.5K", "serve m/x --blok-size 3", "serve m/x --max 3"]
)
def test_both_refuse(parser: Any, line: str) -> None:
    with pytest.raises((SystemExit, argparse.ArgumentTypeError, ValueError)):
        parser.parse_args(line.split())
    problems: list[InputError] = []
    given = parse_line(line, problems)
    if not problems:
        with pytest.raises(ValueError):
            [ours(g.name, g.text) for g in given if g.name != "--model"]


def test_the_table_is_complete() -> None:
    from validation.serve_options import differences

    assert differences() == []
    assert unclassified() == []
