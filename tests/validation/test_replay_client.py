"""Who is sent when: arrivals, sessions, closed loops, refusals, the end."""

from __future__ import annotations

import time

import numpy as np
import pytest

from tests.validation.replay_fakes import FakeClock, OneTokenEngine
from validation.replay.client import FINISHED, NEVER_ARRIVED, REJECTED, CpuClock, WallClock, drive
from workloads.builder import WorkloadBuilder
from workloads.requests import Workload


def workload(rows: list[dict[str, int]], closed_loop: bool = False) -> Workload:
    builder = WorkloadBuilder(vocab_size=100, closed_loop=closed_loop)
    for k, row in enumerate(rows):
        builder.add([k], [4], **{"output_len": 2, **row})
    return builder.build({})


def sent(w: Workload, rejected: tuple[int, ...] = (), until: int | None = None):
    clock = FakeClock()
    engine = OneTokenEngine(clock, w.output_len)
    refused = np.isin(np.arange(len(w)), rejected)
    return drive(w, refused, engine, clock, until), engine


def test_arrivals_are_seen_by_the_step_that_begins_at_or_after_them() -> None:
    out, engine = sent(workload([{"arrival": 0}, {"arrival": 5}, {"arrival": 10}, {"arrival": 100}]))
    assert out.added_ns.tolist() == [0, 10, 10, 100]
    assert out.added_step.tolist() == [0, 1, 1, 3]
    assert out.arrival_ns.tolist() == [0, 5, 10, 100]
    assert [index for index, _ in engine.added] == out.order == [0, 1, 2, 3]
    assert out.first_token_ns.tolist() == [10, 20, 20, 110]
    assert out.finish_ns.tolist() == [20, 30, 30, 120]
    assert out.status.tolist() == [FINISHED] * 4
    assert out.idle_ns == 70
    assert out.start_ns == [0, 10, 20, 100, 110]
    assert out.end_ns == [10, 20, 30, 110, 120]


def test_a_session_goes_on_after_the_answer_and_the_think_time() -> None:
    out, _ = sent(workload([{"arrival": 0}, {"parent": 0, "think_ns": 7}, {"parent": 1}]))
    assert out.arrival_ns.tolist() == [0, 27, 47]
    assert out.added_ns.tolist() == [0, 27, 47]


def test_a_closed_loop_sends_the_next_when_one_ends() -> None:
    rows = [{"arrival": 0, "output_len": 1}, {"arrival": 0, "output_len": 3}, {}, {}, {}]
    out, _ = sent(workload(rows, closed_loop=True))
    assert out.added_ns.tolist() == [0, 0, 10, 30, 30]
    assert out.finish_ns.tolist() == [10, 30, 30, 50, 50]


def test_a_refused_request_ends_as_it_arrives_and_its_session_goes_on() -> None:
    out, engine = sent(workload([{"arrival": 3}, {"parent": 0, "think_ns": 4}]), rejected=(0,))
    assert out.status.tolist() == [REJECTED, FINISHED]
    assert out.finish_ns[0] == 3
    assert out.arrival_ns[1] == 7
    assert [index for index, _ in engine.added] == [1]


def test_until_ends_the_run() -> None:
    out, _ = sent(workload([{"arrival": 0}, {"arrival": 500}]), until=100)
    assert out.status.tolist() == [FINISHED, NEVER_ARRIVED]
    out, _ = sent(workload([{"arrival": 0, "output_len": 50}]), until=100)
    assert out.finish_ns.tolist() == [-1]
    assert out.end_ns[-1] == 100


def test_the_wall_clock_waits_no_less_than_asked() -> None:
    clock = WallClock()
    target = clock.now() + 3_000_000
    clock.wait_until(target)
    assert target <= clock.now() < target + 500_000_000


def test_the_cpu_clock_counts_work_and_jumps_over_waiting() -> None:
    clock = CpuClock()
    began = time.perf_counter()
    clock.wait_until(60_000_000_000)
    assert time.perf_counter() - began < 30
    before = clock.now()
    assert before >= 60_000_000_000
    clock.wait_until(1)
    assert clock.now() >= before
    sum(range(200_000))
    assert clock.now() > before


@pytest.mark.parametrize(
    "batch", [[(1, 5, True)], [(7, 0, False)], [(1, 9, True), (3, 4, True), (1, 0, True)]]
)
def test_features_are_those_of_the_simulator(batch: list[tuple[int, int, bool]]) -> None:
    from validation.replay.engine import batch_features

    f = batch_features(batch)
    prefills = [(n, b) for n, b, _ in batch if n > 1]
    assert f["scheduled_tokens"] == f["prefill_tokens"] + f["decode_seqs"] == sum(n for n, _, _ in batch)
    assert f["decode_context"] == sum(b for n, b, _ in batch if n == 1)
    assert f["prefill_pairs"] == sum(b + k for n, b in prefills for k in range(1, n + 1))
    assert f["prefill_context"] == sum(b + n for n, b in prefills)
    assert f["context_tokens"] == f["decode_context"] + f["prefill_context"]
    assert f["sampled"] == sum(s for _, _, s in batch)


@pytest.mark.parametrize(("ids", "runs"), [([], 0), ([4], 1), ([4, 5, 6], 1), ([4, 6, 5, 9, 10], 4)])
def test_table_runs(ids: list[int], runs: int) -> None:
    from validation.replay.engine import table_runs

    assert table_runs(ids) == runs
