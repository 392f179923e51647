"""SimPy beside the engine: results as in bulk, the order at one instant, aborts, what clients see."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simpy

from sim.capacity import LogOptions
from sim.core.verify import verify
from sim.coupled import CapacityError, CoupledEngine
from sim.engine_settings import EngineSettings
from sim.simulate import RunResult, Simulation
from sim.step_time import affine, constant
from tests.core.cases import draw_case
from workloads import build
from workloads.requests import Workload
from workloads.spec import parse_spec

ENGINE = EngineSettings(
    block_size=16,
    num_gpu_blocks=150,
    max_num_seqs=8,
    max_num_batched_tokens=256,
    max_model_len=2048,
    async_scheduling=True,
)
STEP = affine(5e6, 2e4, 1e5, 50.0)
LOG = LogOptions(sample_period_ns=100_000_000, warmup_ns=1_000_000_000)
Process = Generator[simpy.Event, Any, None]


def pieces_of(w: Workload, i: int) -> list[tuple[int, int, int]]:
    span = range(int(w.seg_ptr[i]), int(w.seg_ptr[i + 1]))
    return [(int(w.seg_id[j]), int(w.seg_start[j]), int(w.seg_len[j])) for j in span]


def send(engine: CoupledEngine, w: Workload, i: int) -> simpy.Event:
    """Submit request i of a workload as it stands there."""
    return engine.submit(
        pieces_of(w, i),
        int(w.output_len[i]),
        out_seg=int(w.out_seg[i]),
        max_tokens=int(w.max_tokens[i]),
        priority=int(w.priority[i]),
        salt=int(w.salt[i]),
    )


def assert_same_run(coupled: RunResult, bulk: RunResult, order: np.ndarray | None = None) -> None:
    """Equal in everything; ``order[k]``: index in bulk of the k-th request of the coupled run."""
    assert coupled.exit_reason == bulk.exit_reason == "finished"
    assert coupled.totals == bulk.totals
    assert coupled.time_weighted == bulk.time_weighted
    for name, values in bulk.steps.items():
        np.testing.assert_array_equal(coupled.steps[name], values, err_msg=name)
    for name, values in bulk.requests.items():
        if order is not None and name == "index":
            continue
        wanted = values if order is None else values[order]
        np.testing.assert_array_equal(coupled.requests[name], wanted, err_msg=name)


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_an_open_loop_through_simpy_is_the_bulk_run(policy: str) -> None:
    engine = EngineSettings(**{**ENGINE.__dict__, "policy": policy, "num_gpu_blocks": 60})
    spec = {"kind": "random", "arrivals": {"kind": "poisson", "rate": 20.0}, "num_requests": 120}
    lengths = {"prefix_len": 40, "prompt_len": {"kind": "uniform", "low": 1, "high": 300}, "output_len": 30}
    workload = build(parse_spec({**spec, **lengths}), seed=3)
    bulk = Simulation(engine, workload, STEP, LOG)
    bulk.run()
    assert bulk.result().totals["preemptions"] > 0
    env = simpy.Environment(initial_time=0)
    coupled = CoupledEngine(env, engine, STEP, LOG, max_requests=150, max_pieces=400)

    def source() -> Process:
        for i, arrival in enumerate(workload.arrival.tolist()):
            if arrival > env.now:
                yield env.timeout(arrival - env.now)
            send(coupled, workload, i)

    env.process(source())
    env.run()
    assert_same_run(coupled.result(), bulk.result())
    assert verify(coupled.state) == []


def test_sessions_through_simpy_are_those_of_the_core() -> None:
    spec = {
        "kind": "chat",
        "arrivals": {"kind": "poisson", "rate": 2.0},
        "num_sessions": 25,
        "user_len": 40,
        "output_len": {"kind": "uniform", "low": 5, "high": 60},
        "think_time": {"kind": "exponential", "mean": "500ms"},
        "max_context": 1500,
    }
    workload = build(parse_spec(spec), seed=5)
    bulk = Simulation(ENGINE, workload, STEP, LOG)
    bulk.run()
    env = simpy.Environment(initial_time=0)
    coupled = CoupledEngine(env, ENGINE, STEP, LOG)
    order: list[int] = []

    def session(turns: list[int]) -> Process:
        yield env.timeout(int(workload.arrival[turns[0]]))
        for i in turns:
            if workload.parent[i] >= 0:
                yield env.timeout(int(workload.think_ns[i]))
            order.append(i)
            outcome = yield send(coupled, workload, i)
            assert outcome.status == "finished"
            assert outcome.finish_ns == env.now
            assert outcome.output_tokens == workload.output_len[i]

    for number in np.unique(workload.session):
        env.process(session(np.flatnonzero(workload.session == number).tolist()))
    env.run()
    assert len(order) == len(workload) > 40
    assert_same_run(coupled.result(), bulk.result(), np.array(order))


@pytest.mark.parametrize("seed", range(6))
def test_processes_that_only_watch_change_nothing(seed: int) -> None:
    """A workload in bulk beside SimPy events at every few ns, some of them at the instants of the engine."""
    case = draw_case(seed, "time")
    bulk = Simulation(*case)
    bulk.run()
    end = bulk.progress().now_ns
    env = simpy.Environment(initial_time=0)
    coupled = CoupledEngine(env, case.engine, case.step_time, case.log, workload=case.workload)
    seen = []

    def watch() -> Process:
        while env.now < end:
            yield env.timeout(max(1, end // 300))
            assert int(coupled.state.ctl.now) <= env.now
            seen.append((coupled.num_running, coupled.num_waiting, coupled.kv_usage))

    env.process(watch())
    env.run()
    assert any(running for running, _, _ in seen)
    assert all(0.0 <= usage <= 1.0 for _, _, usage in seen)
    a, b = coupled.result(), bulk.result()
    if env.now == b.totals["now_ns"]:
        assert_same_run(a, b)
    for name, values in b.requests.items():
        np.testing.assert_array_equal(a.requests[name], values, err_msg=name)


def test_simpy_comes_before_the_engine_at_one_instant() -> None:
    """Constant steps of 100 ns: one prefill step, then a token a step, for one request of 3 tokens at 0."""
    settings = EngineSettings(**{**ENGINE.__dict__, "async_scheduling": False})
    env = simpy.Environment(initial_time=0)
    engine = CoupledEngine(env, settings, constant(100))
    first = engine.submit(20, 3)
    late: list[simpy.Event] = []

    def client() -> Process:
        yield env.timeout(100)
        # the update at 100 has not been made, the schedule after it will see what is sent now
        assert engine.first_token_ns(first) == -1
        assert engine.num_running == 1
        late.append(engine.submit(20, 1))
        assert engine.num_waiting == 0
        outcome = yield first
        assert (env.now, outcome.finish_ns, outcome.first_token_ns) == (300, 300, 100)

    env.process(client())
    env.run()
    assert late[0].value.first_scheduled_ns == 100
    assert late[0].value.first_token_ns == 200


def test_aborts_in_every_state() -> None:
    settings = EngineSettings(**{**ENGINE.__dict__, "max_num_seqs": 1, "max_num_batched_tokens": 64})
    env = simpy.Environment(initial_time=0)
    engine = CoupledEngine(env, settings, constant(1000), LogOptions(events=True))
    at_once = engine.submit(10, 5)
    assert engine.abort(at_once)
    assert not engine.abort(at_once)
    running, waiting = engine.submit(100, 50), engine.submit(100, 50)

    def client() -> Process:
        yield env.timeout(2500)
        assert (engine.num_running, engine.num_waiting) == (1, 1)
        assert engine.kv_usage > 0
        assert engine.abort(waiting)
        assert engine.abort(running)
        assert verify(engine.state) == []
        assert engine.kv_usage == 0.0
        outcome = yield running
        assert (env.now, outcome.status, outcome.finish_ns) == (2500, "aborted", 2500)

    env.process(client())
    env.run()
    after = engine.submit(10, 2)
    env.run()
    assert [e.value.status for e in (at_once, waiting, running, after)] == [*["aborted"] * 3, "finished"]
    assert verify(engine.state) == []
    assert engine.result().requests["status"].tolist() == [6, 6, 6, 3]


def test_requests_that_cannot_be_served_end_too() -> None:
    settings = EngineSettings(**{**ENGINE.__dict__, "num_gpu_blocks": 5})
    env = simpy.Environment(initial_time=0)
    engine = CoupledEngine(env, settings, constant(1000))
    sent = [engine.submit(3000, 1), engine.submit(1000, 1), engine.submit(20, 2)]
    env.run()
    assert [e.value.status for e in sent] == ["rejected", "unservable", "finished"]
    assert engine.result().exit_reason == "finished"


def test_until_and_going_on() -> None:
    env = simpy.Environment(initial_time=0)
    engine = CoupledEngine(env, ENGINE, constant(1000))
    sent = engine.submit(10, 100)
    env.run(until=5_500)
    result = engine.result()
    assert result.time_weighted["num_running"]["mean"] == 1.0
    assert result.exit_reason == "until"
    assert result.totals["now_ns"] == 5_500
    assert not sent.triggered
    env.run()
    assert sent.value.status == "finished"
    assert engine.result().exit_reason == "finished"


def test_what_is_refused() -> None:
    env = simpy.Environment(initial_time=0)
    engine = CoupledEngine(env, ENGINE, constant(1000), max_requests=2, max_pieces=2)
    for prompt, output_len in ((0, 1), (5, 0), ([], 1), ([(1, 0, 0)], 1), ([(-1, 0, 5)], 1)):
        with pytest.raises(ValueError, match=r"prompt|output_len"):
            engine.submit(prompt, output_len)
    engine.submit(5, 1)
    with pytest.raises(CapacityError, match="max_pieces"):
        engine.submit([(1, 0, 4), (2, 0, 4)], 1)
    engine.submit(5, 1)
    with pytest.raises(CapacityError, match="max_requests"):
        engine.submit(5, 1)
    with pytest.raises(ValueError, match="an engine already"):
        CoupledEngine(env, ENGINE, constant(1000))
    with pytest.raises(ValueError, match="real clock"):
        CoupledEngine(simpy.Environment(), ENGINE, constant(1), workload=draw_case(1, "logical").workload)
    env.timeout(0.5)
    env.run(until=0.5)
    with pytest.raises(ValueError, match="whole nanoseconds"):
        engine.result()


def test_the_example_of_the_docs_runs() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "coupled.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(compile(code, "docs/coupled.md", "exec"), names)
    statuses = [status for status, _ in names["answers"]]
    assert set(statuses) == {"finished", "aborted"}
    assert len(statuses) < 100
    assert names["result"].totals["finished"] == statuses.count("finished")
