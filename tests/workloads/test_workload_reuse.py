"""Prefix reuse: the radix tree against blocks of materialised tokens, and the published rates of a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.builder import WorkloadBuilder
from workloads.describe import describe, last_block_waste, rows
from workloads.generate import build
from workloads.lru import block_events, lru_hit_rates
from workloads.readers import read_trace
from workloads.requests import Workload
from workloads.reuse import measure
from workloads.spec import parse_spec


def by_hand(workload: Workload, block: int) -> dict[str, int]:
    """The same counts from every token, block by block."""
    cached: set[tuple[int, ...]] = set()
    ended: set[tuple[int, ...]] = set()
    counts = {"vllm": 0, "blocks": 0, "hits": 0, "hit_tokens": 0}
    for i in range(len(workload)):
        salt = int(workload.salt[i])
        prompt = workload.prompt_tokens(i).tolist()
        computed = prompt + workload.output_tokens(i).tolist()[:-1]
        full = 0
        while (full + 1) * block <= len(prompt) and (salt, *prompt[: (full + 1) * block]) in cached:
            full += 1
        counts["vllm"] += min(full, (len(prompt) - 1) // block) * block
        partial = len(prompt) % block and (salt, *prompt) in ended
        counts["hits"] += full + bool(partial)
        counts["hit_tokens"] += full * block + (len(prompt) % block if partial else 0)
        counts["blocks"] += -(-len(prompt) // block)
        ended.add((salt, *prompt))
        for end in range(block, len(computed) + 1, block):
            cached.add((salt, *computed[:end]))
    return {**counts, "distinct": len(cached)}


def check(workload: Workload, block: int) -> None:
    reuse = measure(workload, block)
    assert {
        "vllm": reuse.vllm_hit_tokens,
        "blocks": reuse.blocks,
        "hits": reuse.block_hits,
        "hit_tokens": reuse.block_hit_tokens,
        "distinct": reuse.distinct_blocks,
    } == by_hand(workload, block)


pieces = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 9))


@settings(max_examples=150)
@given(
    requests=st.lists(
        st.tuples(
            st.lists(pieces, min_size=1, max_size=4), st.integers(4, 6), st.integers(1, 9), st.integers(0, 1)
        ),
        min_size=1,
        max_size=12,
    ),
    block=st.integers(1, 7),
    explicit=st.booleans(),
)
def test_against_every_token(
    requests: list[tuple[list[tuple[int, int, int]], int, int, int]], block: int, explicit: bool
) -> None:
    builder = WorkloadBuilder(vocab_size=2**31 - 1)
    for parts, out_seg, output_len, salt in requests:
        ids, starts, lens = zip(*parts, strict=True)
        builder.add(
            ids, lens, seg_starts=starts, output_len=output_len, out_seg=out_seg, arrival=0, salt=salt
        )
    workload = builder.build()
    if explicit:
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
        workload = copy.build()
    check(workload, block)


@pytest.mark.parametrize("kind", ["chat", "agents", "code"])
def test_clients_against_every_token(kind: str) -> None:
    lengths: dict[str, Any] = {
        "chat": {"system_len": 40, "user_len": 9, "output_len": 7},
        "agents": {"prefix_len": 60, "task_len": 5, "call_len": 4, "result_len": 8, "final_len": 3},
        "code": {"context_len": 50, "file_len": 40, "output_len": 5, "repositories": 2},
    }
    arrivals = {"kind": "poisson", "rate": 1}
    w = build(parse_spec({"kind": kind, "arrivals": arrivals, "num_sessions": 12, **lengths[kind]}), 5)
    for block in (1, 4, 16):
        check(w, block)


@pytest.fixture(scope="module")
def mooncake(data_dir: Path) -> Workload:
    """The public trace."""
    return read_trace(data_dir / "mooncake_conversation.jsonl.gz")


def test_mooncake_hit_rates_are_the_published_ones(mooncake: Workload) -> None:
    reuse = measure(mooncake, 512)
    assert round(reuse.block_hit_rate, 4) == 0.3664
    assert round(reuse.token_hit_rate, 4) == 0.3736
    assert (reuse.block_hits, reuse.blocks) == (105_710, 288_500)
    assert reuse.prefixes[0].tokens == 512
    assert reuse.prefixes[0].requests == 12_031


def test_lru_hit_rates_of_mooncake_are_the_published_ones(mooncake: Workload) -> None:
    """Published to 3 or 4 decimals; a cache without limit (here: of more blocks than there are) has .3664."""
    published = {1000: ".0445", 3000: ".065", 5000: ".110", 10_000: ".211"}
    published |= {20_000: ".2875", 30_000: ".326", 50_000: ".355", 100_000: ".364", 10**6: ".3664"}
    rates = lru_hit_rates(mooncake, 512, list(published))
    assert {n: f"{rate:.{len(published[n]) - 1}f}"[1:] for n, rate in rates.items()} == published


def test_last_block_waste_of_azure_is_the_published_one(data_dir: Path) -> None:
    w = read_trace(data_dir / "azure_llm_2023_conv.csv")
    published = {8: 0.26, 16: 0.54, 32: 1.12, 64: 2.21, 128: 4.38, 256: 8.02}
    assert {size: round(100 * last_block_waste(w, size), 2) for size in published} == published


def test_lru_against_blocks_of_tokens() -> None:
    arrivals = {"kind": "poisson", "rate": 1}
    lengths = {"system_len": 40, "user_len": 9, "output_len": 7}
    w = build(parse_spec({"kind": "chat", "arrivals": arrivals, "num_sessions": 12, **lengths}), 5)
    for block in (4, 16):
        numbers: dict[tuple[int, ...], int] = {}
        expected = []
        for i in range(len(w)):
            prompt = w.prompt_tokens(i).tolist()
            ends = [*range(block, len(prompt) + 1, block), *([len(prompt)] if len(prompt) % block else [])]
            expected += [numbers.setdefault(tuple(prompt[:end]), len(numbers)) for end in ends]
        assert block_events(w, block) == expected
        hits = lru_hit_rates(w, block, [1, 10**9])
        assert hits[1] < 0.05
        assert hits[10**9] == pytest.approx((len(expected) - len(numbers)) / len(expected))


def test_lru_by_hand() -> None:
    builder = WorkloadBuilder(vocab_size=1000)
    for segment in (1, 2, 1, 3, 2, 2):
        builder.add([segment], [16], output_len=1, arrival=0)
    w = builder.build()
    assert lru_hit_rates(w, 16, [1, 2, 3]) == {1: 1 / 6, 2: 2 / 6, 3: 3 / 6}


def test_shared_prefixes() -> None:
    builder = WorkloadBuilder(vocab_size=1000)
    for i in range(6):
        builder.add([1, 2 + i % 2, 100 + i], [50, 30, 5], output_len=3, arrival=i)
    found = [(p.tokens, p.requests) for p in measure(builder.build(), 16).prefixes]
    assert found == [(50, 6), (80, 3), (80, 3)]


def test_description_of_sessions_and_pool() -> None:
    arrivals = {"kind": "poisson", "rate": 1}
    w = build(parse_spec({"kind": "chat", "arrivals": arrivals, "num_sessions": 30, "think_time": "4s"}), 1)
    summary = describe(w, 16)
    assert summary["requests"] == len(w)
    assert summary["sessions"]["sessions"] == 30
    assert summary["sessions"]["mean_turns"] == pytest.approx(len(w) / 30)
    assert summary["sessions"]["mean_think_s"] == 4.0
    assert summary["arrivals"]["after_another"] == len(w) - 30
    assert summary["trace_hash"] == w.content_hash()
    assert summary["prompt_len"]["max"] == int(w.prompt_len.max())
    assert dict(rows(summary))["sessions"] == "30"

    closed = {"kind": "closed_loop", "clients": 4}
    w = build(parse_spec({"kind": "random", "arrivals": closed, "num_requests": 9, "max_tokens": 9000}), 1)
    summary = describe(w, 16)
    assert summary["arrivals"]["closed_loop_pool"] == 5
    assert summary["stop_by_end_token"] == 9
    assert summary["arrivals"]["mean_rate_per_s"] is None
    assert summary["sessions"] is None
    assert dict(rows(summary))["wait in the pool"] == "5 (closed loop)"


def test_arrival_statistics() -> None:
    arrivals = {"kind": "gamma", "rate": 20, "cv": 2.0}
    w = build(parse_spec({"kind": "random", "arrivals": arrivals, "duration": "10min"}), 1)
    found = describe(w, 16)["arrivals"]
    assert found["mean_rate_per_s"] == pytest.approx(20, rel=0.1)
    assert found["gap_cv"] == pytest.approx(2.0, rel=0.1)
    assert found["busiest_minute_rate_per_s"] >= found["mean_rate_per_s"]
    assert np.isclose(found["span_s"], 600, rtol=0.02)
