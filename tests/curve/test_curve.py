"""The hit curve: one pass against an ordered dict at every size, and what the command prints and writes."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import cli
from sim.curve import distances
from sim.curve.distances import CurveOptions, HitCurve, measure
from sim.curve.table import parse_sizes
from sim.errors import InputError
from sim.published.mooncake_lru import PUBLISHED, PUBLISHED_INFINITE_BLOCKS, PUBLISHED_INFINITE_TOKENS
from workloads import reuse
from workloads.builder import WorkloadBuilder
from workloads.generate import build
from workloads.lru import lru_hit_rates
from workloads.readers import read_trace
from workloads.requests import Workload
from workloads.spec import parse_spec

Requests = list[tuple[list[tuple[int, int, int]], int, int, int]]


def make(requests: Requests, explicit: bool) -> Workload:
    """A workload of (pieces, output segment, output length, salt); explicit: its tokens spelled out."""
    builder = WorkloadBuilder(vocab_size=2**31 - 1)
    for parts, out_seg, output_len, salt in requests:
        ids, starts, lens = zip(*parts, strict=True)
        builder.add(
            ids, lens, seg_starts=starts, output_len=output_len, out_seg=out_seg, arrival=0, salt=salt
        )
    workload = builder.build()
    if not explicit:
        return workload
    copy = WorkloadBuilder(vocab_size=2**31 - 1)
    for i in range(len(workload)):
        copy.add(
            [copy.add_tokens(workload.prompt_tokens(i).tolist())],
            [int(workload.prompt_len[i])],
            output_len=int(workload.output_len[i]),
            out_seg=copy.add_tokens(workload.output_tokens(i).tolist()),
            arrival=0,
            salt=int(workload.salt[i]),
        )
    return copy.build()


def twin(workload: Workload, block: int, capacity: int) -> tuple[int, int]:
    """Hit tokens and tokens looked up under the vLLM rule, from every token and an ordered dict."""
    cache: OrderedDict[tuple[int, ...], None] = OrderedDict()
    hits = looked_up = 0
    for i in range(len(workload)):
        prompt = workload.prompt_tokens(i).tolist()
        computed = prompt + workload.output_tokens(i).tolist()[:-1]
        salt = int(workload.salt[i])
        chain = [(salt, *computed[:end]) for end in range(block, len(computed) + 1, block)]
        for k, key in enumerate(chain):
            if k < (len(prompt) - 1) // block:
                looked_up += block
                # a cache that holds C blocks has the C used last; it may be asked for one of more
                hits += block * (key in list(cache)[-capacity:])
            cache[key] = None
            cache.move_to_end(key)
        for key in reversed(chain):
            cache.move_to_end(key)
    return hits, looked_up


pieces = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 9))
requests = st.lists(
    st.tuples(
        st.lists(pieces, min_size=1, max_size=4), st.integers(0, 6), st.integers(1, 9), st.integers(0, 1)
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150)
@given(requests=requests, block=st.integers(1, 7), explicit=st.booleans())
def test_lru_at_every_size(requests: Requests, block: int, explicit: bool) -> None:
    """The exact curve is what a plain LRU cache hits, at every size."""
    workload = make(requests, explicit)
    curve = measure(workload, CurveOptions(block))
    sizes = list(range(1, curve.distinct + 2))
    found = dict(zip(sizes, curve.hit_rates(sizes).tolist(), strict=True))
    assert found == pytest.approx(lru_hit_rates(workload, block, sizes))
    assert curve.missed_blocks == curve.distinct
    assert curve.distinct == round(curve.lookups * (1 - curve.ceiling))


@settings(max_examples=40)
@given(requests=requests, block=st.integers(1, 5), explicit=st.booleans())
def test_vllm_rule_at_every_size(requests: Requests, block: int, explicit: bool) -> None:
    """The same under the vLLM rule; without a limit it is what the radix tree over prefixes finds."""
    workload = make(requests, explicit)
    curve = measure(workload, CurveOptions(block, "vllm"))
    for capacity in range(1, curve.distinct + 2):
        hits, looked_up = twin(workload, block, capacity)
        assert curve.token_hit_rates([capacity])[0] * curve.tokens == pytest.approx(hits)
        assert curve.lookups * block == looked_up
    assert curve.token_ceiling == pytest.approx(reuse.measure(workload, block).vllm_hit_rate)
    assert curve.distinct == reuse.measure(workload, block).distinct_blocks


def chat(sessions: int, **more: Any) -> Workload:
    spec = {"kind": "chat", "arrivals": {"kind": "poisson", "rate": 1}, "num_sessions": sessions, **more}
    return build(parse_spec(spec), 5)


def test_cuts_of_the_pass_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that grow, and calls that return early, give the same curve; places go over many words."""
    workload = chat(40)
    whole = measure(workload, CurveOptions(16))
    assert whole.lookups > 10_000
    assert [whole.hit_rates([n])[0] for n in (10, 100, 1000)] == pytest.approx(
        list(lru_hit_rates(workload, 16, [10, 100, 1000]).values())
    )
    monkeypatch.setattr(distances, "_FIRST_TABLE", 8)
    monkeypatch.setattr(distances, "_ACCESSES_A_CALL", 100)
    done: list[int] = []
    cut = measure(workload, CurveOptions(16), done.append)
    assert len(done) > 50
    assert done[-1] == len(workload)
    np.testing.assert_array_equal(cut.distances, whole.distances)
    np.testing.assert_array_equal(cut.hit_blocks, whole.hit_blocks)
    np.testing.assert_array_equal(cut.hit_tokens, whole.hit_tokens)


def test_one_client_on_the_simulator_hits_as_the_curve_says() -> None:
    """A pool of U blocks serves one request at a time: U, or one less while a partial block takes a place."""
    from sim.engine_settings import EngineSettings
    from sim.simulate import LogOptions, Simulation
    from sim.step_time import constant

    workload = build(
        parse_spec(
            {
                "kind": "rag",
                "arrivals": {"kind": "closed_loop", "clients": 1},
                "num_requests": 150,
                "documents": 12,
                "chunks": 3,
                "chunks_per_document": 2,
                "system_len": 64,
                "chunk_len": 32,
                "question_len": 20,
                "output_len": {"kind": "uniform", "low": 1, "high": 40},
            }
        ),
        3,
    )
    curve = measure(workload, CurveOptions(16, "vllm"))
    for usable in (24, 40, 80, 160):
        engine = EngineSettings(block_size=16, num_gpu_blocks=usable + 1, max_num_seqs=1, max_model_len=512)
        simulation = Simulation(engine, workload, constant(1000), LogOptions(sample_period_ns=0))
        simulation.run()
        totals = simulation.result().totals
        rate = totals["prefix_hits"] / totals["prefix_queries"]
        low, high = curve.token_hit_rates([usable - 2, usable])
        assert low <= rate <= high, (usable, low, rate, high)


@pytest.fixture(scope="module")
def mooncake(data_dir: Path) -> Workload:
    """The public trace."""
    return read_trace(data_dir / "mooncake_conversation.jsonl.gz")


@pytest.fixture(scope="module")
def exact(mooncake: Workload) -> HitCurve:
    """Its curve in blocks of 512."""
    return measure(mooncake, CurveOptions(512))


def test_mooncake_is_the_published_table(exact: HitCurve) -> None:
    rates = exact.hit_rates(list(PUBLISHED))
    for rate, published in zip(rates, PUBLISHED.values(), strict=True):
        assert f"{rate:.{len(published) - 1}f}"[1:] == published
    assert f"{exact.ceiling:.4f}"[1:] == PUBLISHED_INFINITE_BLOCKS
    assert f"{exact.token_ceiling:.4f}"[1:] == PUBLISHED_INFINITE_TOKENS
    assert (exact.lookups, exact.distinct) == (288_500, 182_790)


def test_mooncake_at_a_smaller_block_size(mooncake: Workload) -> None:
    """Blocks of 64 tokens, whose keys are made from pieces of 512."""
    curve = measure(mooncake, CurveOptions(64))
    assert curve.lookups == int((-(-mooncake.prompt_len // 64)).sum())
    assert f"{curve.token_ceiling:.4f}"[1:] == PUBLISHED_INFINITE_TOKENS
    halves = measure(mooncake, CurveOptions(512)).token_hit_rates([5_000, 50_000])
    assert curve.token_hit_rates([40_000, 400_000]) == pytest.approx(halves, rel=0.05)


def test_samples_lie_where_their_errors_say(mooncake: Workload, exact: HitCurve) -> None:
    """Over ten samples of 5 %: no bias, and errors of the size that each of them states."""
    sizes = list(PUBLISHED)
    truth = exact.hit_rates(sizes)
    curves = [measure(mooncake, CurveOptions(512, "lru", 0.05, salt)) for salt in range(10)]
    away = np.array([c.hit_rates(sizes) - truth for c in curves])
    stated = np.array([c.errors(sizes) for c in curves])
    assert np.abs(away / stated).max() < 4
    assert 0.5 < np.sqrt((away**2).mean()) / stated.mean() < 1.6
    assert np.abs(away.mean(axis=0) / (stated.mean(axis=0) / np.sqrt(10))).max() < 4
    for curve in curves:
        # the count correction: hits and compulsory misses are all lookups
        assert curve.hit_blocks.sum() + curve.missed_blocks == pytest.approx(curve.lookups)
        assert curve.lookups == exact.lookups
        assert 0.04 < curve.sampled / curve.lookups < 0.12
    again = measure(mooncake, CurveOptions(512, "lru", 0.05, 3))
    np.testing.assert_array_equal(again.hit_rates(sizes), curves[3].hit_rates(sizes))


def test_key_figures_by_hand() -> None:
    """1 2 1 3 2 2 in blocks of one: distances 2, 3 and 1."""
    builder = WorkloadBuilder(vocab_size=1000)
    for segment in (1, 2, 1, 3, 2, 2):
        builder.add([segment], [16], output_len=1, arrival=0)
    curve = measure(builder.build(), CurveOptions(16))
    assert curve.hit_rates([0, 1, 2, 3, 9]).tolist() == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 3 / 6])
    assert curve.distances.tolist() == [1, 2, 3]
    assert (curve.largest_distance, curve.size_for(0.5), curve.size_for(1.0)) == (3, 2, 3)
    assert (curve.distinct, curve.missed_blocks) == (3, 3)
    assert curve.errors([1, 2]).tolist() == [0, 0]
    nothing = measure(make([([(1, 0, 5)], 4, 1, 0)], False), CurveOptions(4))
    assert (nothing.ceiling, nothing.knee(), nothing.size_for(0.9)) == (0.0, None, 0)


def test_knee() -> None:
    """A loop over 50 blocks and one far away: the knee is where the loop fits."""
    builder = WorkloadBuilder(vocab_size=1000)
    for segment in [*range(50), *range(50), *range(50), *range(100, 400), 0]:
        builder.add([segment], [16], output_len=1, arrival=0)
    curve = measure(builder.build(), CurveOptions(16))
    assert curve.knee() == 50
    assert curve.largest_distance == 350


def test_sizes_of_the_command_line() -> None:
    assert parse_sizes("3000, 1k,10K,1M,1.5k").tolist() == [1000, 1500, 3000, 10_000, 1_000_000]
    for text in ("", "0", "1,,2", "1.5", "ten", "-3", "2G"):
        with pytest.raises(InputError, match="is no number of blocks"):
            parse_sizes(text)


# -- the command ------------------------------------------------------------------------------------------

CONFIG = """\
name: small
model: llama-3.1-8b
gpu: l40s
engine: {num_gpu_blocks: 300, max_model_len: 4096}
workload: {kind: chat, arrivals: {kind: poisson, rate: 1}, num_sessions: 20, max_context: 4000}
"""


@pytest.fixture
def curve_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command where small.yaml and t.jsonl are."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(CONFIG)
    rows = [
        {"timestamp": i, "input_length": 1200, "output_length": 5, "hash_ids": [0, 1 + i % 3, 10 + i % 4]}
        for i in range(24)
    ]
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return lambda *args: CliRunner().invoke(cli.main, ["curve", *args])


def test_command_on_a_config(curve_of: Callable[..., Result]) -> None:
    """The config's block size, rule and pool are taken; further GPUs are marked where the model fits."""
    done = curve_of("small.yaml", "--out", "c.csv", "--out", "c.parquet", "--out", "c.json", "--out", "c.png")
    assert done.exit_code == 0, done.output
    assert "blocks of 16 tokens" in done.stdout
    assert "vLLM's rule" in done.stdout
    assert "llama-3.1-8b on 1 x l40s  " in done.stdout
    assert "no limit" in done.stdout
    data = json.loads(Path("c.json").read_text())
    assert data["pools"][0]["blocks"] == 299
    assert data["knee"]["blocks"] > 1
    assert data["compulsory_misses"] > 0
    lines = Path("c.csv").read_text().splitlines()
    assert lines[0] == "blocks,tokens,block_hit_rate,token_hit_rate,bytes"
    assert len(lines) > 100
    rates = [float(line.split(",")[2]) for line in lines[1:]]
    assert rates == sorted(rates)
    assert f"{rates[-1]:.4f}" == f"{data['ceiling']['block_hit_rate']:.4f}"
    assert Path("c.png").read_bytes().startswith(b"\x89PNG")
    import pyarrow.parquet as pq

    table = pq.read_table("c.parquet")
    assert table.column_names == ["blocks", "tokens", "bytes", "block_hit_rate", "token_hit_rate"]
    assert json.loads(table.schema.metadata[b"kvpool.curve"])["name"] == "small"

    done = curve_of("small.yaml", "--model", "llama-3.1-70b", "--rule", "lru", "--json")
    data = json.loads(done.stdout)
    assert [p["label"] for p in data["pools"]] == ["llama-3.1-70b on 1 x b200"]
    assert any("leaves no room for a KV cache on l40s" in note for note in data["notes"])


def test_models_with_groups_of_layers_are_not_marked(curve_of: Callable[..., Result]) -> None:
    done = curve_of("t.jsonl", "--model", "gemma-2-9b", "--json")
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert data["pools"] == []
    assert any("no pool of gemma-2-9b is marked" in note for note in data["notes"])


def test_command_on_a_trace(curve_of: Callable[..., Result]) -> None:
    done = curve_of(
        "t.jsonl", "--sizes", "1,4,8,20", "--out", "c.csv", "--model", "qwen2.5-7b", "--gpu", "h100"
    )
    assert done.exit_code == 0, done.output
    assert "t: 24 requests, 72 lookups of blocks of 512 tokens" in done.stdout
    assert "plain LRU" in done.stdout
    assert "qwen2.5-7b on 1 x h100-80gb" in done.stdout
    assert [line.split(",")[0] for line in Path("c.csv").read_text().splitlines()] == [
        "blocks",
        "1",
        "4",
        "8",
        "20",
    ]
    sampled = curve_of("t.jsonl", "--sample", "0.5", "--block-size", "16")
    assert sampled.exit_code == 0, sampled.output
    assert "sample: 50 % of the blocks" in sampled.stdout
    assert " ± " in sampled.stdout


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["tt.jsonl"], "tt.jsonl: no such file; did you mean t.jsonl?"),
        (["smal.yaml"], "smal.yaml: no such config"),
        (["t.jsonl", "--sizes", "1,x"], "--sizes: 'x' is no number of blocks"),
        (["t.jsonl", "--gpu", "h100"], "--gpu: which model on these GPUs?"),
        (["t.jsonl", "--model", "lama-3.1-8b"], "--model: unknown model 'lama-3.1-8b'"),
        (["t.jsonl", "--seed", "3"], "--seed: this option is for configs"),
        (["small.yaml", "--max-requests", "3"], "--max-requests: this option is for trace files"),
        (["t.jsonl", "--hash-block-size", "16"], "t.jsonl:1:60: 3 hash_ids for 1200 tokens"),
        (["t.jsonl", "--out", "c.pdf"], "--out c.pdf: unknown ending"),
        (["t.jsonl", "--sample", "1e-9"], "--sample: none of 72 blocks looked up is in the sample"),
        (["t.jsonl", "--sample", "nan"], "'nan' is not a finite number"),
    ],
)
def test_bad_input(curve_of: Callable[..., Result], args: list[str], told: str) -> None:
    done = curve_of(*args)
    assert done.exit_code == 2, done.output
    assert told in done.stderr
    assert done.stdout == ""
    assert sorted(p.name for p in Path().iterdir()) == ["small.yaml", "t.jsonl"]
