"""The invariants hold after every call of random runs, and each of them notices what it is there for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sim.reference import Engine, KVCacheBlock, Scheduler, SchedulerOutput, Settings
from sim.reference.engine import Phase
from sim.reference.invariants import POOL_INVARIANTS, STATE_INVARIANTS, InvariantError, verify
from tests.reference.random_cases import random_case
from validation.fuzz_groups import FAMILIES, random_group_case
from validation.record import reference_settings


def verify_call(engine: Engine, phase: Phase, step: int, batch: SchedulerOutput, finished: list[str]) -> None:
    """Observer: the batch just scheduled is under way, though the engine has not queued it yet."""
    under_way = [(step, batch)] if phase == "scheduled" else []
    engine.batch_queue.extend(under_way)
    verify(engine)
    for _ in under_way:
        engine.batch_queue.pop()


@given(seed=st.integers(0, 2**32 - 1), with_aborts=st.booleans())
@hypothesis_settings(max_examples=25)
def test_invariants_hold_after_every_call(seed: int, with_aborts: bool) -> None:
    case = random_case(seed, with_aborts)
    Engine(Settings.from_dict(case.settings), case.workload, verify_call, case.aborts).run(5_000)


@pytest.mark.parametrize("family", FAMILIES)
def test_invariants_hold_with_groups_of_every_type(family: str) -> None:
    for seed in range(4):
        case = random_group_case(seed, family)
        lines = [request.to_json() for request in case.requests]
        Engine(reference_settings(case.settings), lines, verify_call).run(300)


def busy_engine() -> Engine:
    """An engine in the middle of things: running, waiting and preempted requests, cached and free blocks."""
    settings = {
        "block_size": 2,
        "num_gpu_blocks": 14,
        "max_num_seqs": 3,
        "policy": "priority",
        "async_scheduling": True,
    }
    workload = [
        {
            "request_id": f"r{i}",
            "arrival_step": 0,
            "prompt_token_ids": [i % 2, 1, 2, 3, i],
            "output_token_ids": [4] * 20,
        }
        for i in range(5)
    ]
    engine = Engine(Settings.from_dict(settings), workload)
    engine.run(4)
    verify(engine)
    assert engine.batch_queue
    assert len(engine.scheduler.running) > 1
    assert len(engine.scheduler.waiting) > 1
    return engine


def blocks(engine: Engine) -> list[KVCacheBlock]:
    return engine.scheduler.kv_cache_manager.block_pool.blocks


def held_block(engine: Engine) -> KVCacheBlock:
    return next(b for b in blocks(engine) if b.ref_cnt > 0)


def tables(engine: Engine) -> dict[str, list[KVCacheBlock]]:
    return engine.scheduler.kv_cache_manager.managers[0].req_to_blocks


def spoil_count(engine: Engine) -> None:
    held_block(engine).ref_cnt = 0


def spoil_negative(engine: Engine) -> None:
    held_block(engine).ref_cnt = -1


def spoil_null(engine: Engine) -> None:
    blocks(engine)[3].is_null = True


def spoil_key(engine: Engine) -> None:
    next(b for b in blocks(engine) if b.block_hash is not None).reset_hash()


def spoil_caching(engine: Engine) -> None:
    engine.scheduler.kv_cache_manager.block_pool.enable_caching = False


def spoil_reference(engine: Engine) -> None:
    held_block(engine).ref_cnt += 1


def spoil_table(engine: Engine) -> None:
    table = tables(engine)[engine.scheduler.running[0].request_id]
    table[1] = table[0]


def spoil_length(engine: Engine) -> None:
    tables(engine)[engine.scheduler.running[0].request_id].pop()


def spoil_waiting(engine: Engine) -> None:
    next(iter(engine.scheduler.waiting)).num_computed_tokens = 2


def spoil_membership(engine: Engine) -> None:
    engine.scheduler.running.append(engine.scheduler.waiting.peek_request())


def spoil_counter(engine: Engine) -> None:
    manager = engine.scheduler.kv_cache_manager.managers[0]
    manager.num_cached_block[engine.scheduler.running[0].request_id] += 1


def spoil_in_flight(engine: Engine) -> None:
    engine.scheduler.running[0].num_in_flight_tokens += 1


def spoil_output(engine: Engine) -> None:
    engine.scheduler.running[0].all_token_ids[-1] = 99


def spoil_hash(engine: Engine) -> None:
    engine.scheduler.running[0].block_hashes.pop()


def spoil_statistics(engine: Engine) -> None:
    engine.scheduler.kv_cache_manager.prefix_cache_stats.hits += 1


def spoil_order(engine: Engine) -> None:
    engine.scheduler.waiting.peek_request().priority = 99


def spoil_batch(engine: Engine) -> None:
    batch = engine.batch_queue[0][1]
    batch.num_scheduled_tokens[next(iter(batch.num_scheduled_tokens))] = 0


def spoil_room(engine: Engine) -> None:
    setattr(engine.scheduler.kv_cache_manager.managers[0], "admission_cap", lambda: 1)  # noqa: B010


def spoil_encoder_cache(engine: Engine) -> None:
    engine.scheduler.encoder_cache.budget = -1


def spoil_encoder_slots(engine: Engine) -> None:
    engine.scheduler.encoder_cache.free_slots -= 1


def spoil_further_key(engine: Engine) -> None:
    pool = engine.scheduler.kv_cache_manager.block_pool
    pool.secondary_keys[held_block(engine).block_id] = {(-7, 0): None}


def spoil_with_null(engine: Engine) -> None:
    table = tables(engine)[engine.scheduler.running[0].request_id]
    table[0] = engine.scheduler.kv_cache_manager.block_pool.null_block


SPOILERS: dict[str, Callable[[Engine], None]] = {
    "INV-1": spoil_count,
    "INV-2": spoil_negative,
    "INV-3": spoil_null,
    "INV-4": spoil_key,
    "INV-5": spoil_caching,
    "INV-6": spoil_reference,
    "INV-7": spoil_table,
    "INV-8": spoil_length,
    "INV-9": spoil_waiting,
    "INV-10": spoil_membership,
    "INV-11": spoil_counter,
    "INV-12": spoil_in_flight,
    "INV-13": spoil_output,
    "INV-14": spoil_hash,
    "INV-15": spoil_statistics,
    "INV-16": spoil_order,
    "INV-17": spoil_batch,
    "INV-30": spoil_room,
    "INV-31": spoil_encoder_cache,
}
MORE_SPOILERS = [
    ("INV-4", spoil_further_key),
    ("INV-7", spoil_with_null),
    ("INV-31", spoil_encoder_slots),
]


@pytest.mark.parametrize(("name", "spoil"), [*SPOILERS.items(), *MORE_SPOILERS])
def test_a_spoiled_state_is_noticed(name: str, spoil: Callable[[Engine], None]) -> None:
    engine = busy_engine()
    spoil(engine)
    with pytest.raises(InvariantError, match=rf"(?m)^{name}: "):
        verify(engine)


def test_every_invariant_is_numbered_documented_and_has_a_spoiler() -> None:
    checks: dict[str, Any] = {**POOL_INVARIANTS, **STATE_INVARIANTS}
    assert list(checks) == [*(f"INV-{i}" for i in range(1, 18)), "INV-30", "INV-31"] == list(SPOILERS)
    for name, check in checks.items():
        assert check.__doc__.startswith(f"{name}: ")


def test_a_fresh_scheduler_is_sound() -> None:
    verify(Scheduler(Settings()))
    verify(Scheduler(Settings()).kv_cache_manager.block_pool)
