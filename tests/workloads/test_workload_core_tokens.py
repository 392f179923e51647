"""The workload's tokens (numpy) and the core's (jitted) are the same, though neither knows the other."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.core.block_hash import content_sum
from sim.core.jit import entry
from workloads.tokens import explicit_segment, tokens_of

POOL = np.arange(7, 107, dtype=np.int32)
ONES = np.ones(1, dtype=np.uint64)


@entry
def one_token(pool: np.ndarray, ones: np.ndarray, segment: int, offset: int, vocab: np.uint64) -> np.uint64:
    """The sum over a content of one token with the weight 1."""
    return content_sum(pool, ones, segment, offset, 1, 0, vocab)


def core_token(segment: int, offset: int, vocab: int) -> int:
    """One token of the core."""
    return int(one_token(POOL, ONES, segment, offset, np.uint64(vocab)))


@settings(max_examples=200)
@given(segment=st.integers(0, 2**63 - 1), offset=st.integers(0, 2**31 - 2), vocab=st.integers(1, 2**31 - 1))
def test_synthetic(segment: int, offset: int, vocab: int) -> None:
    assert core_token(segment, offset, vocab) == int(tokens_of(segment, offset, 1, vocab, POOL)[0])


@given(begin=st.integers(0, 50), offset=st.integers(0, 49))
def test_explicit(begin: int, offset: int) -> None:
    segment = explicit_segment(begin)
    assert (
        core_token(segment, offset, 5)
        == int(tokens_of(segment, offset, 1, 5, POOL)[0])
        == POOL[begin + offset]
    )
