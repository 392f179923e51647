"""Rules of the manager, the scheduler and the engine loop, one small story each."""

from __future__ import annotations

from typing import Any

import pytest

from sim.reference import Engine, EngineStuck, Request, RequestStatus, Settings, record
from sim.reference.async_scheduler import AsyncScheduler
from sim.reference.block_hash import BlockHasher
from sim.reference.kv_cache_manager import KVCacheManager
from sim.reference.scheduler import Scheduler
from sim.reference.scheduler_output import SchedulerOutput

HASHER = BlockHasher(4)


def settings(**changed: Any) -> Settings:
    return Settings.from_dict(
        {"block_size": 4, "num_gpu_blocks": 16, "max_num_batched_tokens": 64, **changed}
    )


def request(
    name: str, prompt: int | list[int], output: int = 1, hasher: BlockHasher | None = HASHER, **changed: Any
) -> Request:
    """A request with a prompt of its own tokens, or the given ones."""
    tokens = (
        [1000 + sum(name.encode()) * 100 + i for i in range(prompt)] if isinstance(prompt, int) else prompt
    )
    return Request(name, tokens, [7] * output, block_hasher=hasher, **changed)


def line(name: str, step: int, prompt: int | list[int], output: int = 1, **changed: Any) -> dict[str, Any]:
    tokens = request(name, prompt, hasher=None).all_token_ids
    return {
        "request_id": name,
        "arrival_step": step,
        "prompt_token_ids": tokens,
        "output_token_ids": [7] * output,
        **changed,
    }


def step(scheduler: Scheduler) -> SchedulerOutput:
    """One synchronous engine step."""
    batch = scheduler.schedule()
    scheduler.update_from_output(batch)
    return batch


def queue_of(scheduler: Scheduler) -> list[int]:
    return scheduler.kv_cache_manager.block_pool.free_block_queue.block_ids()


def table_of(scheduler: Scheduler, name: str) -> list[int]:
    return [b.block_id for b in scheduler.kv_cache_manager.get_blocks(name)[0]]


def keyed(scheduler: Scheduler) -> list[int]:
    return [b.block_id for b in scheduler.kv_cache_manager.block_pool.blocks if b.block_hash is not None]


# ---- worked examples ---------------------------------------------------------------------------------------


def test_worked_example_of_ten_tokens() -> None:
    scheduler = Scheduler(settings())
    scheduler.add_request(request("a", 10, 3))
    step(scheduler)
    assert table_of(scheduler, "a") == [1, 2, 3]
    assert keyed(scheduler) == [1, 2]
    assert queue_of(scheduler) == list(range(4, 16))
    step(scheduler)
    assert keyed(scheduler) == [1, 2]
    step(scheduler)  # computes the 12th token, samples the 13th and ends
    assert keyed(scheduler) == [1, 2, 3]
    assert queue_of(scheduler) == [*range(4, 16), 3, 2, 1]


def test_a_partial_last_block_goes_to_the_front() -> None:
    scheduler = Scheduler(settings())
    scheduler.add_request(request("a", 10, 2))
    step(scheduler)
    step(scheduler)
    assert queue_of(scheduler) == [3, *range(4, 16), 2, 1]


def test_twins_of_an_exact_multiple_share_all_but_the_last_block() -> None:
    scheduler = Scheduler(settings())
    prompt = list(range(16))
    scheduler.add_request(request("a", prompt, 9))
    scheduler.add_request(request("b", prompt, 9))
    batch = step(scheduler)
    assert batch.num_scheduled_tokens == {"a": 16, "b": 4}
    assert table_of(scheduler, "a") == [1, 2, 3, 4]
    assert table_of(scheduler, "b") == [1, 2, 3, 5]
    scheduler.add_request(request("c", [*prompt, 99], 9))
    step(scheduler)
    # The fourth block has two copies by now; the first is hit.
    assert table_of(scheduler, "c") == [1, 2, 3, 4, 8]
    stats = scheduler.kv_cache_manager.prefix_cache_stats
    assert (stats.requests, stats.queries, stats.hits) == (3, 16 + 16 + 17, 12 + 16)


# ---- allocate_slots ----------------------------------------------------------------------------------------


def manager(**changed: Any) -> KVCacheManager:
    return KVCacheManager(settings(num_gpu_blocks=6, **changed))


def test_hits_without_a_reference_use_up_free_capacity() -> None:
    kv = manager()
    first = request("a", 12)
    assert kv.allocate_slots(first, 12) is not None
    kv.free(first)
    again = request("b", [*first.all_token_ids, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    hits, num_hits, _ = kv.get_computed_blocks(again)
    assert num_hits == 12
    assert kv.block_pool.get_num_free_blocks() == 5
    assert kv.allocate_slots(again, 9, num_hits, hits) is None  # 3 hits and 3 new blocks
    assert kv.allocate_slots(again, 8, num_hits, hits) is not None
    assert kv.block_pool.get_num_free_blocks() == 0


def test_the_reserve_looks_at_the_whole_prompt() -> None:
    kv = manager()
    long = request("a", 21)
    assert kv.allocate_slots(long, 4, full_sequence_must_fit=True) is None
    assert kv.block_pool.get_num_free_blocks() == 5
    assert kv.allocate_slots(long, 4, full_sequence_must_fit=False) is not None


def test_the_watermark_counts_for_admissions_while_something_runs() -> None:
    kv = manager(watermark=0.34)  # int(0.34 * 6) = 2 blocks
    assert kv.watermark_blocks == 2
    waiting = request("a", 16)
    assert kv.allocate_slots(waiting, 16, has_scheduled_reqs=True) is None
    assert kv.allocate_slots(waiting, 16, has_scheduled_reqs=False) is not None
    running = request("b", 4)
    running.status = RequestStatus.RUNNING
    assert kv.allocate_slots(running, 4, has_scheduled_reqs=True) is not None


def test_nothing_to_compute_is_refused() -> None:
    with pytest.raises(ValueError, match="computed"):
        manager().allocate_slots(request("a", 4), 0)


def test_the_lookup_leaves_one_token_and_touches_nothing() -> None:
    kv = manager()
    first = request("a", 8)
    kv.allocate_slots(first, 8)
    before = [b.ref_cnt for b in kv.block_pool.blocks]
    assert kv.get_computed_blocks(request("b", first.all_token_ids))[1] == 4
    assert kv.get_computed_blocks(request("c", [*first.all_token_ids, 1]))[1] == 8
    assert [b.ref_cnt for b in kv.block_pool.blocks] == before
    assert manager(enable_prefix_caching=False).get_computed_blocks(first) == (([],), 0, 0)


# ---- schedule ----------------------------------------------------------------------------------------------


def test_running_requests_come_first_and_share_the_budget() -> None:
    scheduler = Scheduler(settings(max_num_batched_tokens=10, max_num_seqs=4))
    scheduler.add_request(request("a", 14, 9))
    assert step(scheduler).num_scheduled_tokens == {"a": 10}
    scheduler.add_request(request("b", 9, 9))
    assert step(scheduler).num_scheduled_tokens == {"a": 4, "b": 6}
    assert step(scheduler).num_scheduled_tokens == {"a": 1, "b": 3}


def test_the_input_budget_binds_below_a_larger_token_budget() -> None:
    scheduler = Scheduler(settings(max_num_batched_tokens=6, max_num_seqs=4, max_num_scheduled_tokens=9))
    scheduler.add_request(request("a", 4, 9))
    scheduler.add_request(request("b", 4, 9))
    assert step(scheduler).num_scheduled_tokens == {"a": 4, "b": 2}


def test_without_chunks_a_prompt_waits_for_the_whole_budget() -> None:
    scheduler = Scheduler(settings(max_num_batched_tokens=64, max_num_seqs=4, enable_chunked_prefill=False))
    scheduler.add_request(request("a", 40, 9))
    scheduler.add_request(request("b", 30, 9))
    scheduler.add_request(request("c", 4, 9))
    assert step(scheduler).num_scheduled_tokens == {"a": 40}
    assert step(scheduler).num_scheduled_tokens == {"a": 1}  # b does not fit the pool, c stays behind it
    assert [r.request_id for r in scheduler.waiting] == ["b", "c"]


def test_the_long_prefill_threshold_spares_a_request_that_is_alone() -> None:
    scheduler = Scheduler(settings(long_prefill_token_threshold=8))
    scheduler.add_request(request("a", 30, 9))
    assert step(scheduler).num_scheduled_tokens == {"a": 30}
    scheduler.add_request(request("b", 20, 9))
    assert step(scheduler).num_scheduled_tokens == {"a": 1, "b": 8}


def test_the_adaptive_threshold_is_at_least_a_fair_share() -> None:
    scheduler = Scheduler(
        settings(
            long_prefill_token_threshold=8, long_prefill_token_threshold_adaptive=True, num_gpu_blocks=64
        )
    )
    scheduler.add_request(request("a", 60, 9))
    scheduler.add_request(request("b", 60, 9))
    assert step(scheduler).num_scheduled_tokens == {"a": 32, "b": 32}


def test_the_number_of_running_requests_is_limited() -> None:
    scheduler = Scheduler(settings(max_num_seqs=3, max_num_active_seqs=2))
    for name in "abc":
        scheduler.add_request(request(name, 4, 9))
    step(scheduler)
    assert [r.request_id for r in scheduler.running] == ["a", "b"]


def test_an_id_in_use_is_refused() -> None:
    scheduler = Scheduler(settings())
    scheduler.add_request(request("a", 4))
    with pytest.raises(ValueError, match="in use"):
        scheduler.add_request(request("a", 4))


def fill(scheduler: Scheduler, *names: str, **changed: Any) -> None:
    """Requests of exactly two blocks each, so that the next step needs a block for each."""
    for i, name in enumerate(names):
        scheduler.add_request(request(name, 8, 20, arrival_time=i, **changed))
    step(scheduler)


def test_first_come_first_served_preempts_the_last_and_admits_nobody_in_that_step() -> None:
    scheduler = Scheduler(settings(num_gpu_blocks=8))
    fill(scheduler, "a", "b", "c")  # 6 of 7 blocks
    scheduler.add_request(request("d", 2))
    batch = step(scheduler)
    assert batch.preempted == ["c"]
    assert batch.num_scheduled_tokens == {"a": 1, "b": 1}
    assert [r.request_id for r in scheduler.waiting] == ["c", "d"]
    victim = scheduler.requests["c"]
    assert (victim.status, victim.num_computed_tokens, victim.num_output_tokens) == (
        RequestStatus.PREEMPTED,
        0,
        1,
    )


def test_a_resumed_request_hits_its_own_surviving_blocks() -> None:
    scheduler = Scheduler(settings(num_gpu_blocks=8))
    fill(scheduler, "a", "b", "c")
    step(scheduler)  # c is preempted; one of its two blocks is reused
    scheduler.finish_requests(["a"])
    batch = step(scheduler)
    assert batch.scheduled_resumed == ["c"]
    stats = scheduler.kv_cache_manager.prefix_cache_stats
    assert (stats.preempted_requests, stats.preempted_queries, stats.preempted_hits) == (1, 9, 4)


def test_the_request_itself_may_be_the_victim() -> None:
    scheduler = Scheduler(settings(num_gpu_blocks=5))
    fill(scheduler, "a", "b")
    step(scheduler)
    assert [r.request_id for r in scheduler.running] == ["a"]
    scheduler = Scheduler(settings(num_gpu_blocks=3, scheduler_reserve_full_isl=False))
    fill(scheduler, "a")
    batch = step(scheduler)
    assert batch.preempted == ["a"]
    assert batch.num_scheduled_tokens == {}


def test_priority_preempts_the_worst_and_refunds_what_it_was_given() -> None:
    scheduler = Scheduler(settings(num_gpu_blocks=8, policy="priority", max_num_batched_tokens=64))
    for i, (name, priority) in enumerate([("bad", 9), ("good", 0), ("fair", 5)]):
        scheduler.add_request(request(name, 8, 20, priority=priority, arrival_time=i))
    step(scheduler)
    # Served by priority, so the worst was admitted last.
    assert [r.request_id for r in scheduler.running] == ["good", "fair", "bad"]
    batch = step(scheduler)
    assert batch.preempted == ["bad"]
    assert batch.num_scheduled_tokens == {"good": 1, "fair": 1}


def test_a_priority_victim_that_was_scheduled_leaves_the_batch() -> None:
    scheduler = Scheduler(settings(num_gpu_blocks=6, policy="priority"))
    scheduler.add_request(request("bad", 8, 20, priority=9, arrival_time=0))
    step(scheduler)
    scheduler.add_request(request("good", 7, 20, priority=0, arrival_time=1))
    step(scheduler)  # bad takes a third block, good two: all five are held
    step(scheduler)
    assert [r.request_id for r in scheduler.running] == ["bad", "good"]
    batch = step(scheduler)  # bad is scheduled, then good needs a third block
    assert batch.preempted == ["bad"]
    assert batch.num_scheduled_tokens == {"good": 1}
    assert batch.scheduled_running == ["good"]


def test_equal_priorities_and_arrivals_preempt_the_first_in_running_order() -> None:
    scheduler = Scheduler(settings(num_gpu_blocks=8, policy="priority"))
    for name in ("x", "y", "z"):
        scheduler.add_request(request(name, 8, 20, priority=1, arrival_time=5))
    step(scheduler)
    assert step(scheduler).preempted == ["x"]


def test_a_priority_queue_breaks_ties_by_id() -> None:
    scheduler = Scheduler(settings(policy="priority", max_num_seqs=1))
    for name in ("r10", "r9", "r2"):
        scheduler.add_request(request(name, 2, arrival_time=3))
    assert [r.request_id for r in scheduler.waiting] == ["r10", "r2", "r9"]


# ---- output, aborts, reset ---------------------------------------------------------------------------------


def test_several_requests_end_in_scheduling_order() -> None:
    scheduler = Scheduler(settings())
    scheduler.add_request(request("a", 2))
    scheduler.add_request(request("b", 2))
    batch = scheduler.schedule()
    assert scheduler.update_from_output(batch) == ["a", "b"]
    assert queue_of(scheduler)[:2] == [2, 1]  # the later one's partial block is nearer the front
    assert scheduler.has_requests()
    assert scheduler.schedule().finished_req_ids == ["a", "b"]
    assert not scheduler.has_requests()


def test_max_model_len_ends_a_request() -> None:
    scheduler = Scheduler(settings(max_model_len=6))
    scheduler.add_request(request("a", 4, 20))
    step(scheduler)
    batch = scheduler.schedule()
    assert scheduler.update_from_output(batch) == ["a"]
    assert batch.num_scheduled_tokens == {"a": 1}


def test_aborts_free_in_the_order_given_and_ignore_the_unknown() -> None:
    scheduler = Scheduler(settings(max_num_seqs=2))
    for name in "abc":
        scheduler.add_request(request(name, 2, 9))
    step(scheduler)
    assert scheduler.finish_requests(["c", "b", "zz", "b", "a"]) == ["c", "b", "a"]
    assert queue_of(scheduler)[:2] == [1, 2]
    assert not scheduler.has_unfinished_requests()


def test_output_of_an_aborted_request_is_ignored() -> None:
    scheduler = Scheduler(settings())
    scheduler.add_request(request("a", 2, 9))
    batch = scheduler.schedule()
    scheduler.finish_requests(["a"])
    assert scheduler.update_from_output(batch) == []


def test_a_reset_may_preempt_what_runs() -> None:
    scheduler = Scheduler(settings())
    scheduler.add_request(request("a", 8, 9))
    scheduler.add_request(request("b", 8, 9))
    step(scheduler)
    assert scheduler.reset_prefix_cache() is False
    assert scheduler.reset_prefix_cache(reset_running_requests=True) is True
    assert [r.request_id for r in scheduler.waiting] == ["a", "b"]
    assert keyed(scheduler) == []
    batch = step(scheduler)
    assert batch.num_scheduled_tokens == {"a": 9, "b": 9}


def test_a_reset_drops_tokens_in_flight() -> None:
    scheduler = AsyncScheduler(settings(async_scheduling=True))
    scheduler.add_request(request("a", 8, 9))
    old = scheduler.schedule()
    scheduler.reset_prefix_cache(reset_running_requests=True)
    new = scheduler.schedule()  # resumed in spite of the stale token, which is thrown away
    assert new.num_scheduled_tokens == {"a": 8}
    scheduler.update_from_output(old)
    assert scheduler.requests["a"].num_output_tokens == 0
    scheduler.update_from_output(new)
    assert scheduler.requests["a"].num_output_tokens == 1


# ---- async scheduling --------------------------------------------------------------------------------------


def test_a_stale_token_is_delivered_to_a_preempted_request() -> None:
    scheduler = AsyncScheduler(settings(num_gpu_blocks=6, async_scheduling=True))
    for name in "ab":
        scheduler.add_request(request(name, 8, 20))
    first = scheduler.schedule()
    second = scheduler.schedule()
    assert second.preempted == ["b"]
    victim = scheduler.requests["b"]
    assert (victim.num_stale_output_tokens, victim.num_output_placeholders) == (8, 0)
    scheduler.update_from_output(first)
    assert (victim.num_stale_output_tokens, victim.num_tokens) == (0, 9)
    assert victim.status == RequestStatus.PREEMPTED


def test_a_request_with_stale_output_is_passed_over() -> None:
    scheduler = AsyncScheduler(settings(num_gpu_blocks=6, async_scheduling=True))
    for name in "ab":
        scheduler.add_request(request(name, 8, 20))
    scheduler.schedule()
    scheduler.schedule()
    scheduler.finish_requests(["a"])
    scheduler.add_request(request("c", 2))
    third = scheduler.schedule()
    assert third.num_scheduled_tokens == {"c": 2}
    assert [r.request_id for r in scheduler.waiting] == ["b"]


def test_the_step_after_the_last_token_is_scheduled_only_for_an_end_token() -> None:
    def batches(max_tokens: int) -> list[int]:
        scheduler = AsyncScheduler(settings(async_scheduling=True))
        scheduler.add_request(request("a", 4, 2, max_tokens=max_tokens))
        first, second = scheduler.schedule(), scheduler.schedule()
        assert scheduler.update_from_output(first) == []
        third = scheduler.schedule()
        assert scheduler.update_from_output(second) == ["a"]
        assert scheduler.update_from_output(third) == []
        return [b.total_num_scheduled_tokens for b in (first, second, third)]

    assert batches(max_tokens=2) == [4, 1, 0]
    assert batches(max_tokens=3) == [4, 1, 1]


# ---- engine loop -------------------------------------------------------------------------------------------

ENGINE = {"block_size": 4, "num_gpu_blocks": 16, "max_num_batched_tokens": 64}


def calls(workload: list[dict[str, Any]], **changed: Any) -> list[tuple[int, str, int]]:
    """(step, S or U, step of the batch) of each row."""
    rows = record({**ENGINE, **changed}, workload)
    return [(r["step"], r["phase"][0].upper(), r["batch_step"]) for r in rows]


def test_sync_steps_skip_idle_indices_and_flush_the_finished() -> None:
    workload = [line("a", 3, 4), line("b", 9, 4)]
    assert calls(workload) == [
        *[(3, "S", 3), (3, "U", 3)],
        *[(4, "S", 4), (4, "U", 4)],  # tells the workers that a ended
        *[(9, "S", 9), (9, "U", 9)],  # nothing comes after it: no flush
    ]


def test_sync_steps_may_run_through_idle_indices() -> None:
    assert calls([line("a", 1, 4), line("b", 4, 4)], idle_steps="run") == [
        (k, phase, k) for k in range(5) for phase in "SU"
    ]


def test_an_idle_step_that_runs_schedules_only_when_nothing_is_under_way() -> None:
    workload = [line("a", 0, 4), line("b", 4, 4)]
    assert calls(workload, async_scheduling=True, idle_steps="run") == [
        (0, "S", 0),
        *[(1, "S", 1), (1, "U", 0)],  # a ends; batch 1 is empty
        *[(2, "S", 2), (2, "U", 1)],  # tells the workers that a ended
        (3, "U", 2),
        (4, "S", 4),
        *[(5, "S", 5), (5, "U", 4)],
        *[(6, "S", 6), (6, "U", 5)],
        (7, "U", 6),
    ]
    workload[1] = line("b", 6, 4)
    assert calls(workload, async_scheduling=True, idle_steps="run")[6:10] == [
        *[(4, "S", 4), (4, "U", 4)],  # nothing to do: scheduled, and processed at once
        *[(5, "S", 5), (5, "U", 5)],
    ]


def test_async_steps_keep_two_batches_under_way() -> None:
    assert calls([line("a", 0, 4, 2)], async_scheduling=True) == [
        (0, "S", 0),
        *[(1, "S", 1), (1, "U", 0)],
        *[(2, "S", 2), (2, "U", 1)],  # a ends
        *[(3, "S", 3), (3, "U", 2)],
        (4, "U", 3),
    ]


def test_a_workload_file_need_not_be_sorted_but_arrivals_of_one_step_keep_its_order() -> None:
    rows = record(ENGINE, [line("late", 2, 4), line("x", 0, 4), line("b", 0, 4), line("a", 0, 4)])
    assert rows[1]["finished"] == ["x", "b", "a"]
    assert rows[-1]["finished"] == ["late"]


def test_aborts_are_reported_in_the_next_row() -> None:
    rows = record(ENGINE, [line("a", 0, 4, 9), line("b", 0, 4, 3)], aborts={2: ["a"]})
    ended = [(r["step"], r["phase"], r["finished"]) for r in rows if r["finished"]]
    assert ended == [(2, "scheduled", ["a"]), (2, "updated", ["b"])]


def test_a_request_that_can_never_be_admitted_is_reported() -> None:
    with pytest.raises(EngineStuck, match=r"'a' with 80 tokens.* 15 usable blocks of 4"):
        record(ENGINE, [line("a", 0, 80)])


def test_a_request_that_outgrows_the_pool_is_reported() -> None:
    with pytest.raises(EngineStuck, match="'a'"):
        record({**ENGINE, "num_gpu_blocks": 3}, [line("a", 0, 6, 9)])


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_request_that_comes_back_for_ever_is_reported(asynchronous: bool) -> None:
    changed = {"num_gpu_blocks": 3, "scheduler_reserve_full_isl": False, "async_scheduling": asynchronous}
    changed |= {"max_num_batched_tokens": 2, "max_num_seqs": 1}
    with pytest.raises(EngineStuck, match="'a'"):
        record({**ENGINE, **changed}, [line("a", 0, 6, 9)])


def test_a_prompt_that_leaves_no_room_is_rejected() -> None:
    engine = Engine(settings(max_model_len=8), [line("a", 0, 8), line("b", 0, 7)])
    engine.run()
    assert engine.rejected == ["a"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line("a", 0, 4), line("a", 1, 4)], r"line 2: .*'a' occurs twice"),
        ([{**line("a", 0, 4), "prio": 1}], r"line 1: unknown key 'prio'"),
        ([{**line("a", 0, 4), "prompt_token_ids": []}], "must not be empty"),
        ([{**line("a", 0, 4, 3), "max_tokens": 2}], "max_tokens"),
    ],
)
def test_bad_workloads_are_refused(lines: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record(ENGINE, lines)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"blok_size": 4}, "did you mean 'block_size'"),
        ({"policy": "lifo"}, "policy"),
        ({"arrival_time": "now"}, "arrival_time"),
        ({"idle_steps": "walk"}, "idle_steps"),
        ({"max_num_batched_tokens": 8, "max_num_seqs": 9}, "below max_num_seqs"),
        ({"max_num_seqs": 2, "max_num_active_seqs": 3}, "max_num_active_seqs"),
        ({"prefix_match_unit": 2}, "prefix_match_unit"),
        ({"kv_cache_groups": [{"type": "full", "windows": 3}]}, "'windows'"),
    ],
)
def test_bad_settings_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**changed)
