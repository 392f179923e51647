"""A snapshot recomputes what the engine keeps incrementally, and equals that of a live pool in its state."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.analysis.from_pool import parents_of_requests
from sim.analysis.from_state import chain_reachable
from sim.analysis.runs import consecutive_runs, power_of_two_histogram, runs_of
from sim.analysis.snapshot import NULL, USED, USED_CACHED, FragmentationSnapshot
from sim.analysis.tracker import curves_of
from sim.capacity import LogOptions, allocate
from sim.core import codes as c
from sim.core.block_pool import evict_block
from sim.core.engine import advance, sample_now
from sim.core.jit import entry
from sim.engine_settings import EngineSettings
from sim.reference.block_pool import BlockPool
from sim.reference.engine import Engine
from sim.reference.settings import Settings
from tests.analysis.pools import assert_same
from tests.core.cases import FOREVER, draw_case, drive
from tests.reference.kernel import NO_TIME, to_workload
from tests.reference.random_cases import random_case


@entry
def evict(pool, b):  # type: ignore[no-untyped-def]
    """``evict_blocks`` of one id, for Python."""
    return evict_block(pool, b)


@pytest.mark.parametrize("clock", ["time", "logical"])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_sums_are_the_columns_of_the_step_log(clock: str, seed: int) -> None:
    case = draw_case(seed, clock, follow_blocks=True)
    state = case.state()

    def check() -> None:
        sample_now(state)
        row = dict(zip(c.LOG_COLUMNS, state.logs.steps[state.ctl.log_len - 1].tolist(), strict=True))
        state.ctl.log_len = 0
        s = FragmentationSnapshot.from_state(state, case.workload)
        assert s.free_order is not None
        assert s.num_free == row["num_free_blocks"] == len(s.free_order)
        assert s.num_used == row["used_blocks"]
        assert s.num_cached == row["num_cached_blocks"]
        assert s.num_duplicates is not None
        inside = state.kv.pool.partial_table[0::2]
        further = np.setdiff1d(inside[inside > 0], state.kv.pool.blocks.block_hash).size
        assert s.num_cached - s.num_duplicates == row["num_cached_hashes"] - further
        assert s.counts["free and cached"] == row["cached_free_blocks"]
        assert s.num_free_runs == row["free_runs"]
        assert s.largest_free_run == row["largest_free_run"]
        assert s.free_run_histogram[1].sum() == row["free_runs"]
        assert len(s.tables.request) == row["num_running"]
        assert s.allocated_slots == row["allocated_slots"]
        assert s.held_tokens == row["held_tokens"]
        assert s.wasted_slots == row["wasted_slots"] == s.wasted_by_group.sum()
        assert s.by_request.blocks.sum() == row["table_blocks"]
        assert s.by_request.runs.sum() == row["table_runs"]
        assert np.array_equal(s.num_owners, s.ref_cnt)
        assert np.array_equal(s.owner >= 0, (s.state == USED) | (s.state == USED_CACHED))
        # only full blocks are shared: no slot is wasted twice
        assert s.wasted_slots_once == s.wasted_slots
        curves = curves_of({name: np.array([value]) for name, value in row.items()}, s.block_sizes)
        contiguity = np.nan if s.table_contiguity is None else s.table_contiguity
        if (np.diff(s.tables.ptr) > 0).all():
            # a row does not say which tables are empty: those of requests without an encoder input
            assert curves["table_contiguity"][0] == pytest.approx(contiguity, nan_ok=True)
        if len(set(s.block_sizes)) == 1 and s.block_sizes[0]:
            assert s.token_usage == pytest.approx(curves["token_usage"][0])
        else:
            assert np.isnan(curves["token_usage"][0])
        if not state.kv.plain:
            # a window can be hit without what comes before it
            assert s.num_unreachable is None
            return
        if len(s.block_sizes) == 1:
            # a holder of a block holds its ancestors too and frees them after it: LRU never strands a block
            # (of two groups one loses its blocks first, and those of the other are left without use)
            assert s.num_unreachable == 0
        quick = FragmentationSnapshot.from_state(state, case.workload, layout_only=True)
        assert quick.num_duplicates is None
        assert quick.num_unreachable is None
        unknown = ("duplicate_blocks", "unreachable_blocks")
        assert quick.summary() == {**s.summary(), **dict.fromkeys(unknown)}

    drive(state, random.Random(seed), check)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_a_live_pool_of_the_twin_gives_the_same_snapshot(seed: int) -> None:
    case = random_case(seed)
    engine_settings = EngineSettings(**case.settings)
    workload = to_workload(case.workload)
    state = allocate(engine_settings, workload, NO_TIME, LogOptions(sample_period_ns=0, follow_blocks=True))
    parents: dict[Any, Any] = {}
    compared = 0

    def observe(engine: Engine, phase: str, step: int, *_: Any) -> None:
        nonlocal compared
        assert advance(state, FOREVER) == (c.X_SCHEDULED if phase == "scheduled" else c.X_UPDATED)
        scheduler = engine.scheduler
        manager = scheduler.kv_cache_manager
        requests = list(scheduler.requests.values())
        parents.update({h: p for h, p in parents_of_requests(requests).items() if h not in parents})
        tables = {
            r.request_id: [[b.block_id for b in group] for group in manager.get_blocks(r.request_id)]
            for r in scheduler.running
        }
        live = FragmentationSnapshot.from_block_pool(
            manager.block_pool,
            scheduler.running,
            tables,
            block_sizes=[g.block_size or engine_settings.block_size for g in engine_settings.kv_cache_groups],
            parents=parents,
        )
        assert_same(live, FragmentationSnapshot.from_state(state, workload))
        compared += 1

    Engine(Settings.from_dict(case.settings), case.workload, observe).run()
    assert compared > 1


def test_a_block_whose_parent_is_evicted_is_unreachable() -> None:
    case = random_case(0)
    config = {**case.settings, "block_size": 4, "num_gpu_blocks": 12, "max_model_len": 40}
    config |= {"enable_prefix_caching": True, "max_num_batched_tokens": 64, "max_num_seqs": 2}
    line = {"request_id": "a", "arrival_step": 0, "prompt_token_ids": [1] * 20, "output_token_ids": [1]}
    workload = to_workload([{"priority": 0, **line}])
    engine_settings = EngineSettings(**config)
    state = allocate(engine_settings, workload, NO_TIME, LogOptions(sample_period_ns=0, follow_blocks=True))
    while advance(state, FOREVER) != c.X_DONE:
        pass
    chain = [1, 2, 3, 4, 5]
    before = FragmentationSnapshot.from_state(state, workload)
    assert before.num_cached == 5
    assert before.num_unreachable == 0
    assert evict(state.kv.pool, chain[2])
    after = FragmentationSnapshot.from_state(state, workload)
    assert after.unreachable is not None
    assert np.flatnonzero(after.unreachable).tolist() == chain[3:]
    assert after.num_cached == 4


def test_unreachable_in_a_live_pool_needs_the_chains() -> None:
    class Chain:
        request_id = "a"
        block_hashes = (11, 22, 33)
        all_token_ids = (0,) * 12

    pool = BlockPool(6, True, 4)
    blocks = pool.get_new_blocks(3)
    pool.cache_full_blocks(Chain(), blocks, 0, 3, 4, 0)
    pool.free_blocks(reversed(blocks))
    unknown = FragmentationSnapshot.from_block_pool(pool, block_sizes=[4])
    assert unknown.num_unreachable is None
    parents = parents_of_requests([Chain()])
    assert FragmentationSnapshot.from_block_pool(pool, block_sizes=[4], parents=parents).num_unreachable == 0
    pool.evict_blocks([1])
    s = FragmentationSnapshot.from_block_pool(pool, block_sizes=[4], parents=parents)
    assert s.unreachable is not None
    assert np.flatnonzero(s.unreachable).tolist() == [2, 3]
    assert s.counts["free and cached"] == 2
    assert s.state[0] == NULL


@given(parents=st.lists(st.integers(0, 12), max_size=10), missing=st.sets(st.integers(0, 9)))
def test_reachability_is_a_walk_to_the_root(parents: list[int], missing: set[int]) -> None:
    # hash i + 1 with a parent of a lower number (chains have no cycles), or one that is nowhere
    up = [p if p <= i or p > len(parents) else 0 for i, p in enumerate(parents)]
    present = np.array([i not in missing for i in range(len(up))], dtype=bool)

    def walk(h: int) -> bool:
        return h == 0 or (h <= len(up) and bool(present[h - 1]) and walk(up[h - 1]))

    hashes = np.arange(1, len(up) + 1, dtype=np.uint64)
    got = chain_reachable(hashes, np.array(up, dtype=np.uint64), present)
    assert got.tolist() == [walk(h + 1) for h in range(len(up))]


@given(mask=st.lists(st.booleans(), max_size=40))
def test_runs_against_a_loop(mask: list[bool]) -> None:
    found: list[list[int]] = []
    for i, value in enumerate(mask):
        if value and (i == 0 or not mask[i - 1]):
            found.append([i, 0])
        if value:
            found[-1][1] += 1
    starts, lengths = runs_of(np.array(mask, dtype=bool))
    assert [list(pair) for pair in zip(starts.tolist(), lengths.tolist(), strict=True)] == found
    bounds, counts = power_of_two_histogram(lengths)
    assert counts.tolist() == [sum(int(b) <= n < 2 * int(b) for _, n in found) for b in bounds]
    assert counts.sum() == len(found)


@given(lists=st.lists(st.lists(st.integers(1, 6), max_size=6), max_size=5))
def test_consecutive_runs_of_lists(lists: list[list[int]]) -> None:
    ids = np.array([i for part in lists for i in part], dtype=np.int64)
    ptr = np.cumsum([0, *(len(part) for part in lists)])
    runs = [sum(i == 0 or part[i] != part[i - 1] + 1 for i in range(len(part))) for part in lists]
    assert consecutive_runs(ids, ptr).tolist() == runs
