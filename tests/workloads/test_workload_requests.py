"""Workload, builder, token function: rules, names of the offending request, hash, tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.builder import WorkloadBuilder
from workloads.errors import WorkloadError
from workloads.requests import Workload
from workloads.tokens import (
    MIX_MULTIPLIER,
    OFFSET_MULTIPLIER,
    SEGMENT_MULTIPLIER,
    explicit_segment,
    synthetic_tokens,
    tokens_of,
)

MASK = 2**64 - 1


def token_by_hand(segment: int, offset: int, vocab_size: int) -> int:
    """The token rule in plain Python integers."""
    x = (segment * SEGMENT_MULTIPLIER + (offset + 1) * OFFSET_MULTIPLIER) & MASK
    x ^= x >> 32
    x = (x * MIX_MULTIPLIER) & MASK
    x ^= x >> 32
    return ((x >> 32) * vocab_size) >> 32


def three_requests() -> Workload:
    builder = WorkloadBuilder(vocab_size=1000)
    first = builder.add([7, 8], [20, 5], output_len=4, arrival=10, out_seg=9)
    builder.add([7, 8, 9, 10], [20, 5, 4, 3], output_len=2, parent=first, think_ns=50)
    explicit = builder.add_tokens([5, 6, 7, 8])
    builder.add([explicit], [3], seg_starts=[1], output_len=1, max_tokens=6, arrival=11, salt=2, priority=-1)
    return builder.build({"kind": "test"})


@given(
    segment=st.integers(0, 2**62),
    start=st.integers(0, 2**31 - 64),
    n=st.integers(0, 40),
    vocab=st.integers(1, 2**31 - 1),
)
def test_tokens_follow_the_rule(segment: int, start: int, n: int, vocab: int) -> None:
    got = synthetic_tokens(segment, start, n, vocab)
    assert got.dtype == np.int32
    assert got.tolist() == [token_by_hand(segment, start + k, vocab) for k in range(n)]


def test_tokens_are_spread_over_the_vocabulary() -> None:
    tokens = np.concatenate([synthetic_tokens(s, 0, 1000, 50) for s in range(100)])
    counts = np.bincount(tokens, minlength=50)
    assert len(counts) == 50
    assert counts.min() > 1800
    assert counts.max() < 2200


def test_segments_are_distinct_from_their_first_token_on() -> None:
    first = np.array([synthetic_tokens(s, 0, 4, 2**31 - 1) for s in range(2000)])
    assert len(np.unique(first, axis=0)) == 2000


def test_explicit_tokens_come_from_the_pool() -> None:
    pool = np.arange(100, 110, dtype=np.int32)
    assert tokens_of(explicit_segment(2), 3, 4, 7, pool).tolist() == [105, 106, 107, 108]
    with pytest.raises(IndexError, match="outside the pool of 10"):
        tokens_of(explicit_segment(2), 3, 6, 7, pool)


def test_vocab_size_is_checked() -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        synthetic_tokens(0, 0, 1, 0)


def test_materialised_prompt_is_the_pieces_in_order() -> None:
    w = three_requests()
    follow = w.prompt_tokens(1)
    assert len(follow) == w.prompt_len[1] == 32
    assert follow[:25].tolist() == w.prompt_tokens(0).tolist()
    assert follow[25:29].tolist() == w.output_tokens(0).tolist()
    assert w.prompt_tokens(2).tolist() == [6, 7, 8]
    assert [w.request_id(i) for i in range(len(w))] == ["r0", "r1", "r2"]


def test_hash_depends_on_content_only() -> None:
    a, b = three_requests(), three_requests()
    assert a.content_hash() == b.content_hash()
    assert dataclasses.replace(b, source={"kind": "other"}).content_hash() == a.content_hash()
    assert dataclasses.replace(b, vocab_size=1001).content_hash() != a.content_hash()
    assert dataclasses.replace(b, request_ids=("a", "b", "c")).content_hash() != a.content_hash()
    changed = a.think_ns.copy()
    changed[1] += 1
    assert dataclasses.replace(b, think_ns=changed).content_hash() != a.content_hash()


def test_hash_is_pinned() -> None:
    """A change here changes every stored trace hash: raise the version in `content_hash` with it."""
    expected = "ecd4bab30f9198be1db59547306dee6310b0943a405f2fbbef3c082e87e98f85"
    assert three_requests().content_hash() == expected


def altered(name: str, index: int, value: int) -> Workload:
    w = three_requests()
    array = getattr(w, name).copy()
    array[index] = value
    return dataclasses.replace(w, **{name: array})


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("arrival", 0, -2, r"request 0 \('r0'\): the arrival is negative"),
        ("arrival", 0, -1, r"request 0 \('r0'\): has neither an arrival nor a parent"),
        ("arrival", 1, 5, r"request 1 \('r1'\): has both a parent and an arrival"),
        ("parent", 1, 1, r"request 1 .*parent must be an earlier request"),
        ("parent", 1, -7, r"request 1 .*parent must be an earlier request"),
        ("think_ns", 1, -1, r"request 1 .*think time is negative"),
        ("think_ns", 2, 1, r"request 2 .*both an arrival and a think time"),
        ("output_len", 2, 0, r"request 2 .*output_len must be at least 1"),
        ("max_tokens", 0, 3, r"request 0 .*max_tokens is less than output_len"),
        ("prompt_len", 1, 31, r"request 1 .*prompt_len is not the sum"),
        ("seg_len", 3, 0, r"request 1 \('r1'\): piece 1 of the prompt has no tokens"),
        ("seg_start", 0, -1, r"request 0 .*piece 0 of the prompt begins before its segment"),
        ("seg_start", 6, 2, r"request 2 .*piece 0 of the prompt lies outside the pool of 4"),
        ("seg_ptr", 1, 0, r"request 0 .*prompt is empty"),
        ("seg_ptr", 3, 6, r"seg_ptr must begin at 0 and end at 7"),
        ("out_seg", 2, -5, r"request 2 .*output tokens lie outside the pool"),
        ("salt", 0, -1, r"request 0 .*cache salt"),
        ("session", 0, -2, r"request 0 .*session"),
        ("tokens", 1, -1, r"explicit token 1 of the pool is negative"),
    ],
)
def test_validate_names_the_request(name: str, index: int, value: int, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        altered(name, index, value).validate()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clock": "wall"}, "clock must be one of time, logical"),
        ({"clock": "logical"}, "request 1 .*arrival step for every request"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"request_ids": ("a", "b", "a")}, "request 2 .'a'.: the id is already that of request 0"),
        ({"request_ids": ("a",)}, "1 request ids for 3 requests"),
        ({"arrival": np.array([1, 2, 3], dtype=np.int32)}, r"array arrival must be a contiguous int64\[3\]"),
        ({"salt": np.zeros(2, dtype=np.int64)}, r"array salt must be"),
    ],
)
def test_validate_whole_workload(change: dict[str, object], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        dataclasses.replace(three_requests(), **change).validate()


def test_empty_and_never_released_workloads_are_refused() -> None:
    with pytest.raises(WorkloadError, match="no requests"):
        WorkloadBuilder(10).build()
    pool = WorkloadBuilder(10, closed_loop=True)
    pool.add([1], [5], output_len=1)
    with pytest.raises(WorkloadError, match="none would ever be released"):
        pool.build()


def test_builder_refuses_numbers_that_do_not_fit() -> None:
    builder = WorkloadBuilder(10)
    builder.add([1], [2**31], output_len=1, arrival=0)
    with pytest.raises(WorkloadError, match=r"seg_len\[0\] = 2147483648 does not fit 32 bits"):
        builder.build()


def test_builder_wants_all_ids_or_none() -> None:
    builder = WorkloadBuilder(10)
    builder.add([1], [2], output_len=1, arrival=0, request_id="a")
    builder.add([1], [2], output_len=1, arrival=0)
    with pytest.raises(WorkloadError, match="1 of 2 requests have an id"):
        builder.build()


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.lists(
                st.tuples(st.integers(0, 9), st.integers(0, 5), st.integers(1, 20)), min_size=1, max_size=4
            ),
            st.integers(1, 9),
            st.integers(0, 10**12),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_builder_keeps_what_it_is_given(rows: list[tuple[list[tuple[int, int, int]], int, int]]) -> None:
    builder = WorkloadBuilder(vocab_size=100)
    for pieces, output_len, arrival in rows:
        ids, starts, lens = zip(*pieces, strict=True)
        builder.add(ids, lens, seg_starts=starts, output_len=output_len, arrival=arrival)
    w = builder.build()
    assert len(w) == len(rows)
    for i, (pieces, output_len, arrival) in enumerate(rows):
        expected = [token_by_hand(s, start + k, 100) for s, start, n in pieces for k in range(n)]
        assert w.prompt_tokens(i).tolist() == expected
        assert w.output_len[i] == w.max_tokens[i] == output_len
        assert w.arrival[i] == arrival
