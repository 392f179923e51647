"""The numbers of the real clock: when batches run, arrivals are seen, who releases whom, what is given up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sim.capacity import LogOptions, allocate
from sim.core import codes as c
from sim.core.engine import run_until
from sim.core.verify import verify
from sim.coupled import empty_workload
from sim.engine_settings import EngineSettings, KVCacheGroup
from sim.simulate import RunResult, Simulation
from sim.step_time import StepTime, affine, constant
from workloads.builder import WorkloadBuilder

SYNC = EngineSettings(
    block_size=4, num_gpu_blocks=101, max_num_seqs=4, max_num_batched_tokens=64, max_model_len=200
)
ASYNC = replace(SYNC, async_scheduling=True)


def run(
    requests: list[dict[str, Any]],
    engine: EngineSettings = SYNC,
    step_time: StepTime | None = None,
    log: LogOptions | None = None,
    closed_loop: bool = False,
) -> RunResult:
    """Run requests given as ``{"prompt": tokens, "output": tokens, and fields of WorkloadBuilder.add}``."""
    builder = WorkloadBuilder(vocab_size=1000, closed_loop=closed_loop)
    for i, request in enumerate(requests):
        fields = {**request}
        prompt, output = fields.pop("prompt", 10), fields.pop("output", 1)
        builder.add([fields.pop("segment", i)], [prompt], output_len=output, **fields)
    workload = builder.build()
    log = log or LogOptions(sample_period_ns=0, every_step=True)
    simulation = Simulation(engine, workload, step_time or constant(100), log)
    assert simulation.run() == "finished"
    assert verify(simulation.state, workload) == []
    return simulation.result()


def times(result: RunResult, *names: str) -> list[tuple[int, ...]]:
    columns = [result.requests[f"{name}_ns"].tolist() for name in names]
    return list(zip(*columns, strict=True))


def test_synchronous_steps_follow_each_other() -> None:
    """Overhead 10, a prefill token 5, a decode 7, a context token 1: 10+50, then 17+10, 17+11.

    A last, empty step tells the workers that the request is finished, and takes no time.
    """
    step = affine(10, 5, 7, 1)
    result = run([{"prompt": 10, "output": 3, "arrival": 5}], step_time=step)
    assert times(result, "first_scheduled", "first_token", "finish") == [(5, 65, 65 + 27 + 28)]
    assert result.steps["step_duration_ns"].tolist() == [60, 27, 28, 0]
    assert result.totals["busy_ns"] == 115


def test_two_batches_in_flight_execute_one_behind_the_other() -> None:
    """Batch 1 is scheduled together with batch 0, at 5, and begins where that ends; batch 2 at its update."""
    step = affine(10, 5, 7, 1)
    alone = {"prompt": 10, "output": 3, "arrival": 5}
    result = run([alone], ASYNC, step)
    assert times(result, "first_scheduled", "first_token", "finish") == [(5, 65, 65 + 27 + 28)]
    # a second request comes while both are under way: it is scheduled when batch 0 is done, at 65, and waits
    # for batch 1, which ends at 92; then 10 prefill tokens beside a decode that reads 11: 10 + 50 + 7 + 11
    result = run([alone, {"prompt": 10, "output": 1, "arrival": 6}], ASYNC, step)
    assert times(result, "first_scheduled", "first_token") == [(5, 65), (65, 92 + 78)]
    # synchronous, it goes with the batch that begins at 65: 10 + 50 + 7 + 10
    result = run([alone, {"prompt": 10, "output": 1, "arrival": 6}], SYNC, step)
    assert times(result, "first_scheduled", "first_token") == [(5, 65), (65, 65 + 77)]


def test_an_end_token_costs_an_asynchronous_engine_one_more_step() -> None:
    request = {"prompt": 10, "output": 3, "arrival": 0}
    by_length = run([request], ASYNC)
    by_token = run([{**request, "max_tokens": 9}], ASYNC)
    assert times(by_length, "finish") == times(by_token, "finish") == [(300,)]
    assert by_length.totals["steps"] == 3
    assert by_token.totals["steps"] == 4
    assert run([{**request, "max_tokens": 9}], SYNC).totals["steps"] == 3


@pytest.mark.parametrize("engine", [SYNC, ASYNC])
def test_an_arrival_at_the_instant_of_an_update_is_seen_by_the_next_schedule(engine: EngineSettings) -> None:
    first = {"output": 4, "arrival": 0}
    for arrival, seen in ((100, 100), (101, 200), (199, 200), (200, 200)):
        result = run([first, {"arrival": arrival}], engine)
        assert times(result, "arrival", "first_scheduled")[1] == (arrival, seen)


def test_an_idle_engine_jumps_to_the_next_arrival() -> None:
    result = run([{"arrival": 7}, {"arrival": 10**15}])
    assert times(result, "first_scheduled", "finish") == [(7, 107), (10**15, 10**15 + 100)]
    assert result.totals["steps"] == 2


def test_successors_arrive_a_think_time_after_the_end() -> None:
    too_long = {"prompt": 200, "arrival": 1}
    requests = [
        {"output": 2, "arrival": 0},
        {"parent": 0, "think_ns": 0},
        {"parent": 0, "think_ns": 1000},
        too_long,
        {"parent": 3, "think_ns": 50},
        {"parent": 4, "think_ns": 5},
    ]
    result = run(requests)
    arrivals = dict(zip(result.requests["index"].tolist(), times(result, "arrival", "finish"), strict=True))
    assert arrivals[0] == (0, 200)
    assert arrivals[1][0] == 200
    assert arrivals[2][0] == 1200
    # a rejected request has ended when it arrived
    assert arrivals[3] == (1, 1)
    assert arrivals[4][0] == 51
    assert arrivals[5][0] == arrivals[4][1] + 5


def test_the_closed_loop_keeps_its_number() -> None:
    """Two at a time, ten in all: an end releases the next of the pool, a think time later."""
    pool = [{"output": 1 + i % 3, "think_ns": 10 * i} for i in range(2, 10)]
    result = run([{"output": 1, "arrival": 0}, {"output": 2, "arrival": 0}, *pool], closed_loop=True)
    assert result.requests["index"].tolist() == list(range(10))
    ends = sorted(result.requests["finish_ns"].tolist())
    released = result.requests["arrival_ns"][2:] - 10 * np.arange(2, 10)
    assert released.tolist() == ends[:8]
    assert result.steps["num_running"].max() <= 2


def test_what_cannot_be_served_is_reported_and_the_run_goes_on() -> None:
    engine = replace(SYNC, num_gpu_blocks=11)
    requests = [
        {"prompt": 200, "arrival": 0},
        {"prompt": 199, "arrival": 0},
        {"prompt": 30, "output": 2, "arrival": 0},
        {"prompt": 30, "output": 2, "parent": 1, "think_ns": 3},
    ]
    result = run(requests, engine)
    assert result.requests["status"].tolist() == [4, 5, 3, 3]
    assert result.requests["output_tokens"].tolist() == [0, 0, 2, 2]
    assert result.requests["first_scheduled_ns"].tolist()[:2] == [-1, -1]
    assert result.requests["arrival_ns"][3] == result.requests["finish_ns"][1] + 3
    assert result.totals["finished"] == 2


@pytest.mark.parametrize("engine", [SYNC, ASYNC])
def test_a_request_that_outgrows_the_pool_is_given_up(engine: EngineSettings) -> None:
    """Without the full-sequence reserve it is admitted, and preempts itself when the 40 slots are full."""
    small = replace(engine, num_gpu_blocks=11, scheduler_reserve_full_isl=False)
    result = run([{"prompt": 30, "output": 100, "arrival": 0}, {"output": 3, "arrival": 50}], small)
    assert result.requests["status"].tolist() == [5, 3]
    assert result.requests["output_tokens"][0] == 11


def test_a_last_token_in_flight_ends_a_request_that_outgrew_the_pool() -> None:
    """Its end token comes with the 41st; the step behind it finds no block and preempts it."""
    small = replace(ASYNC, num_gpu_blocks=11, scheduler_reserve_full_isl=False)
    result = run([{"prompt": 30, "output": 11, "max_tokens": 100, "arrival": 0}], small)
    assert result.requests["status"].tolist() == [3]
    assert result.requests["preemptions"].tolist() == [1]


def test_a_request_ends_at_the_length_limit_of_the_model() -> None:
    result = run([{"prompt": 190, "output": 50, "arrival": 0}])
    assert result.requests["output_tokens"].tolist() == [10]
    assert result.requests["status"].tolist() == [c.S_FINISHED]


def test_an_empty_workload_ends_at_once() -> None:
    simulation = Simulation(SYNC, empty_workload(), constant(100))
    assert simulation.run() == "finished"
    result = simulation.result()
    assert all(values.size == 0 for values in result.requests.values())
    # one row says how the run ended: nothing but free blocks
    assert result.steps["time_ns"].tolist() == [0]
    assert result.steps["num_free_blocks"].tolist() == [100]
    assert result.totals["now_ns"] == 0
    assert verify(simulation.state) == []


def test_time_weights_by_hand() -> None:
    """One request of 10 + 3 tokens in blocks of 4 for 300 ns, in a run of 500 ns without the first 100."""
    log = LogOptions(sample_period_ns=50, warmup_ns=100)
    result = run(
        [{"prompt": 10, "output": 3, "arrival": 0}, {"prompt": 4, "output": 1, "arrival": 400}], log=log
    )
    # 100..300: 3 blocks of 100 usable (11 and 12 tokens computed); 300..400 idle; 400..500: one block, full
    usage = result.time_weighted["usage"]
    assert usage["mean"] == pytest.approx((200 * 0.03 + 100 * 0.01) / 400)
    assert (usage["max"], usage["max_at_ns"]) == (0.03, 100)
    waste = result.time_weighted["internal_fragmentation"]
    assert waste["mean"] == pytest.approx((100 * 1 / 12) / 400)
    assert result.time_weighted["num_running"]["mean"] == pytest.approx(300 / 400)
    assert result.steps["time_ns"].tolist() == list(range(50, 501, 50))
    assert result.steps["used_blocks"].tolist() == [3, 3, 3, 3, 3, 3, 0, 0, 1, 1]
    # a sample at the instant of a phase shows the state before it
    assert result.steps["num_running"].tolist() == [1, 1, 1, 1, 1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize("clock", ["time", "logical"])
def test_a_request_that_an_admission_cap_lets_in_but_no_pool_holds(clock: str) -> None:
    """Chunks of 9 tokens in blocks of 16: the cap counts one block of the group, a step across 16 needs two.

    vLLM preempts the request by itself for ever.
    """
    builder = WorkloadBuilder(vocab_size=50, clock=clock)
    builder.add([1], [17], output_len=1, arrival=0)
    builder.add([2], [4], output_len=1, arrival=0)
    engine = EngineSettings(
        num_gpu_blocks=4,
        max_num_seqs=6,
        max_num_batched_tokens=7,
        max_model_len=22,
        kv_cache_groups=(KVCacheGroup("chunked_local", attention_chunk_size=9), KVCacheGroup("full")),
    )
    state = allocate(engine, builder.build(), constant(5), LogOptions(sample_period_ns=0))
    reason = run_until(state, 1 << 60, 10_000)
    if clock == "logical":
        assert reason == c.X_STUCK
    else:
        assert reason == c.X_DONE
        assert state.requests.status[:2].tolist() == [c.S_UNSERVABLE, c.S_FINISHED]
