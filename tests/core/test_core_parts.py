"""Parts of the core against naive recomputation: free-run probes, block hashes, step-time models."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.capacity import LogOptions, allocate
from sim.core import bits, spare_blocks
from sim.core.block_hash import ensure_hashes
from sim.core.engine import run_until
from sim.core.free_queue import queue_append, queue_make_room, queue_remove
from sim.core.inspect import largest_run
from sim.core.jit import entry
from sim.core.probes import fits_in_a_run, probe_free, probe_take
from sim.core.state import KVCache, Pool
from sim.core.state import StepTime as CoreStepTime
from sim.core.step_time import step_duration_ns
from sim.core.verify import INVARIANTS
from sim.coupled import empty_workload
from sim.engine_settings import EngineSettings, KVCacheGroup
from sim.step_time import BatchFeatures, StepTime, constant, duration_ns
from workloads.builder import WorkloadBuilder
from workloads.requests import Workload


def pool_of(num_blocks: int) -> Pool:
    """All blocks free."""
    engine = EngineSettings(num_gpu_blocks=num_blocks)
    return allocate(engine, empty_workload(), constant(1), LogOptions(sample_period_ns=0)).kv.pool


@entry
def move(pool: Pool, first: int, count: int, stride: int) -> None:
    """Turn blocks over, free to used and used to free."""
    b = first
    for _ in range(count):
        if pool.blocks.ref_cnt[b] == 0:
            queue_remove(pool, b)
            probe_take(pool, b)
            pool.blocks.ref_cnt[b] = 1
        else:
            pool.blocks.ref_cnt[b] = 0
            queue_make_room(pool, 1)
            queue_append(pool, b)
            probe_free(pool, b)
        b += stride


@entry
def ask_whether_fits(pool: Pool, n: int) -> bool:
    return fits_in_a_run(pool, n)


@pytest.mark.parametrize(
    ("num_blocks", "moves"), [(2, 20), (3, 40), (64, 150), (65, 150), (130, 300), (5000, 100), (300_000, 15)]
)
def test_free_runs_after_random_moves(num_blocks: int, moves: int) -> None:
    """The number of runs at any time, and the largest whenever somebody asks, now and then."""
    pool = pool_of(num_blocks)
    rng = random.Random(num_blocks)
    for _ in range(moves):
        # single blocks, stretches and combs, so that runs of all lengths come, merge and split
        stride = 1 if num_blocks > 10_000 else rng.choice([1, 1, 1, 2, 63, 64])
        first = rng.randrange(1, num_blocks)
        most = (num_blocks - 1 - first) // stride + 1
        move(pool, first, rng.choice([1, 1, 2, rng.randint(1, most), most]) if most > 1 else 1, stride)
        for name in ("INV-1", "INV-2", "INV-18"):
            assert list(INVARIANTS[name](pool)) == []
        free = "".join("x" if count else "o" for count in pool.blocks.ref_cnt[1:num_blocks])
        lengths = sorted(len(run) for run in free.split("x") if run)
        assert pool.runs.number == len(lengths)
        longest = lengths[-1] if lengths else 0
        wanted = rng.choice([longest, longest + 1, 1, 7, 64, 65])
        if rng.random() < 0.3:
            assert ask_whether_fits(pool, wanted) == (wanted <= longest)
        if rng.random() < 0.3:
            assert largest_run(pool) == longest
            assert pool.runs.length == longest >= pool.runs.bound


def test_a_long_run_grows_from_both_sides_and_joins_the_top() -> None:
    """Runs of several words on both sides of one block, the top among them."""
    for top_below in (False, True):
        settings = EngineSettings(num_gpu_blocks=1000)
        pool = allocate(settings, empty_workload(), constant(1), LogOptions(sample_period_ns=0)).kv.pool
        cut = 700 if top_below else 300
        move(pool, cut, 1, 1)
        move(pool, 900 if top_below else 100, 1, 1)
        assert largest_run(pool) == 699
        move(pool, cut, 1, 1)
        assert (pool.runs.top, pool.runs.length) == ((1, 899) if top_below else (101, 899))
        assert list(INVARIANTS["INV-18"](pool)) == []


@entry
def compare_words(array: np.ndarray, index: int, word: np.uint64, out: np.ndarray) -> None:
    out[0] = bits.leading_zeros(word)
    out[1] = bits.trailing_zeros(word)
    out[2] = bits.equal_words(array, index, word)
    out[3] = bits.equal_high_halves(array, index, word)


def test_words_as_in_plain_python() -> None:
    rng = np.random.default_rng(5)
    out = np.zeros(4, dtype=np.int64)
    for _ in range(300):
        array = rng.integers(0, 2**64, 24, dtype=np.uint64) >> np.uint64(rng.integers(0, 65) % 64)
        index = int(rng.integers(0, 17))
        word = np.uint64(rng.choice(array)) ^ np.uint64(rng.choice([0, 1, 2**31, 2**32, 2**63]))
        array[rng.integers(0, 24, 6)] = word
        for x in (word, np.uint64(0)):
            compare_words(array, index, x, out)
            assert out.tolist() == [
                bits._plain_leading_zeros(x),
                bits._plain_trailing_zeros(x),
                bits._plain_equal_words(array, index, x),
                bits._plain_equal_high_halves(array, index, x),
            ]


@entry
def hash_request(kv: KVCache, r: int, slot: int, wanted: int) -> None:
    ensure_hashes(kv, r, slot, wanted)


def random_layouts(rng: random.Random) -> Workload:
    """Requests of a few tokens whose prefixes often agree although their pieces do not."""
    builder = WorkloadBuilder(vocab_size=rng.choice([1, 2, 3, 1000]), clock="logical")
    text = [rng.randrange(builder.vocab_size) for _ in range(60)]
    shared = builder.add_tokens(text)
    for _ in range(rng.randint(2, 8)):
        pieces: list[tuple[int, int, int]] = []
        kind = rng.randrange(3)
        at = 0
        while at < 40 and (not pieces or rng.random() < 0.8):
            n = rng.randint(1, 12)
            if kind == 0:  # the same text, cut anywhere
                pieces.append((shared, at, n))
            elif kind == 1:  # a copy of it
                pieces.append((builder.add_tokens(text[at : at + n]), 0, n))
            else:
                pieces.append((rng.randrange(2), at, n))
            at += n
        builder.add(
            [seg for seg, _, _ in pieces],
            [n for _, _, n in pieces],
            seg_starts=[start for _, start, _ in pieces],
            output_len=rng.randint(1, 20),
            out_seg=rng.choice([0, 1, builder.add_tokens(text)]),
            salt=rng.choice([0, 0, 1, 2]),
            arrival=0,
        )
    return builder.build()


@given(seed=st.integers(0, 2**32 - 1), block_size=st.sampled_from([1, 2, 3, 5, 16]))
@settings(max_examples=60)
def test_keys_are_equal_where_prefixes_are(seed: int, block_size: int) -> None:
    rng = random.Random(seed)
    workload = random_layouts(rng)
    n = len(workload)
    state = allocate(
        EngineSettings(block_size=block_size, max_num_seqs=n), workload, constant(1), LogOptions()
    )
    key_of: dict[tuple[int, tuple[int, ...]], int] = {}
    for r in range(n):
        state.kv.slots.hash_piece[r] = workload.seg_ptr[r]
        tokens = np.concatenate([workload.prompt_tokens(r), workload.output_tokens(r)]).tolist()
        units, done = len(tokens) // block_size, 0
        while done < units:  # in any number of steps
            done = rng.randint(done + 1, units)
            hash_request(state.kv, r, r, done)
        for k, key in enumerate(state.kv.hashes[r, :units].tolist(), 1):
            prefix = (int(workload.salt[r]), tuple(tokens[: k * block_size]))
            assert key_of.setdefault(prefix, key) == key != 0
    assert len(set(key_of.values())) == len(key_of)


@entry
def duration(model: CoreStepTime, f: Any) -> int:
    return step_duration_ns(model, f[0], f[1], f[2], f[3], f[4], f[5], f[6])


def axis(values: list[float]) -> np.ndarray:
    return np.unique(np.array(values, dtype=np.float64))


numbers = st.floats(0.0, 1e7, allow_nan=False)
axes = st.lists(numbers, min_size=1, max_size=5).map(axis)
counts = st.integers(0, 10**6)


@given(
    kind=st.integers(0, 3),
    coef=st.lists(numbers, min_size=12, max_size=12),
    tokens_axis=axes,
    context_axis=axes,
    cells=st.lists(numbers, min_size=25, max_size=25),
    features=st.lists(st.tuples(*[counts] * 7), min_size=1, max_size=8),
)
@settings(max_examples=80)
def test_step_times_are_those_of_the_twin(
    kind: int,
    coef: list[float],
    tokens_axis: np.ndarray,
    context_axis: np.ndarray,
    cells: list[float],
    features: list[tuple[int, ...]],
) -> None:
    size = tokens_axis.size * context_axis.size
    model = StepTime(kind, np.array(coef), tokens_axis, context_axis, np.array(cells[:size]))
    core = CoreStepTime(**model._asdict())
    on_the_axes = [(int(t), 0, 0, int(x), 0, 0, 0) for t in tokens_axis for x in context_axis]
    for f in [*features, *on_the_axes, (0,) * 7]:
        assert duration(core, np.array(f)) == duration_ns(model, BatchFeatures(*f))


@entry
def take_blocks(pool: Pool, places: np.ndarray, first: int, count: int) -> None:
    spare_blocks.get_new_blocks(pool, places, 0, 0, first, count)


@entry
def give_blocks(pool: Pool, places: np.ndarray, first: int, end: int) -> None:
    spare_blocks.make_spare(pool, places, 0, 0, first, end)


@entry
def ask_within_a_step(pool: Pool, n: int) -> bool:
    return spare_blocks.fits_in_a_run(pool, n)


@entry
def end_step(pool: Pool) -> None:
    spare_blocks.settle(pool)


@pytest.mark.parametrize("num_blocks", [40, 700])
def test_whether_a_run_is_long_enough_within_a_step(num_blocks: int) -> None:
    """Blocks that are given back and taken again in a step are in runs like any others."""
    pool = pool_of(num_blocks)
    rng = random.Random(num_blocks)
    places = np.zeros((1, 1, num_blocks), dtype=np.int32)
    seen: Counter[str] = Counter()
    held = 0
    for _ in range(400):
        free = num_blocks - 1 - held
        if rng.random() < 0.5 and free:
            count = rng.randint(1, min(free, rng.choice([2, 30, 700])))
            take_blocks(pool, places, held, count)
            held += count
        elif held:
            # some are swapped first, so that not always the last ones go
            for _ in range(rng.choice([0, 0, 30])):
                i, j = rng.randrange(held), rng.randrange(held)
                places[0, 0, [i, j]] = places[0, 0, [j, i]]
            first = held - rng.randint(1, held)
            give_blocks(pool, places, first, held)
            held = first
        used = set(places[0, 0, :held].tolist())
        text = "".join("x" if b in used else "o" for b in range(1, num_blocks))
        lengths = [len(run) for run in text.split("x") if run]
        longest = max(lengths, default=0)
        for _ in range(rng.choice([0, 1, 3]) if longest else 0):
            wanted = rng.choice([1, longest - 1, longest, longest + 1, 65, 127, 128, 300])
            assert ask_within_a_step(pool, wanted) == (wanted <= longest)
            seen["known to lack"] += pool.queue.pending > 0 and pool.queue.lacks > 0
        seen["pending"] += pool.queue.pending > 0
        if rng.random() < 0.3:
            end_step(pool)
            assert pool.runs.number == len(lengths)
            assert list(INVARIANTS["INV-18"](pool)) == []
            assert largest_run(pool) == longest
    assert min(seen["pending"], seen["known to lack"]) > 20


def test_all_states_that_a_step_caches_in_mode_all_find_room() -> None:
    """One in every block: a prompt of 60 blocks in one step, in each of two groups."""
    group = KVCacheGroup("mamba", mamba_cache_mode="all")
    settings = EngineSettings(
        vllm="0.31",
        block_size=1,
        num_gpu_blocks=200,
        max_num_seqs=1,
        max_num_batched_tokens=64,
        max_model_len=64,
        prefix_cache_retention_interval=None,
        kv_cache_groups=(group, group),
    )
    builder = WorkloadBuilder(vocab_size=100)
    builder.add([0], [60], output_len=2, arrival=0)
    state = allocate(settings, builder.build(), constant(1), LogOptions(sample_period_ns=0))
    run_until(state, 1, 1)
    assert state.kv.ctl.num_step_keys == 120
    assert state.kv.step_keys.size >= 120
