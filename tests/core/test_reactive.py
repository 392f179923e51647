"""Clients that react to the engine: impatient users and an adaptive pool, beside a real simulated engine."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import simpy

from sim.capacity import LogOptions
from sim.core.verify import verify
from sim.coupled import CoupledEngine
from sim.engine_settings import EngineSettings
from sim.step_time import constant
from workloads.clients.reactive import AdaptivePool, Aimd, Attempt, Impatience, adaptive, impatient
from workloads.clients.view import EngineView
from workloads.errors import WorkloadError
from workloads.spec import Random, parse_spec
from workloads.spec.lengths import ConstantTime

MS = 1_000_000
SECOND = 1000 * MS


def engine_of(max_num_seqs: int, num_gpu_blocks: int = 400) -> CoupledEngine:
    """An engine whose steps take 10 ms."""
    settings = EngineSettings(
        max_num_seqs=max_num_seqs, num_gpu_blocks=num_gpu_blocks, max_num_batched_tokens=512
    )
    log = LogOptions(sample_period_ns=SECOND)
    return CoupledEngine(simpy.Environment(initial_time=0), settings, constant(10 * MS), log)


def traffic(**keys: object) -> Random:
    spec = parse_spec({"kind": "random", "prompt_len": 100, "output_len": 20, "prefix_len": 32, **keys})
    assert isinstance(spec, Random)
    return spec


def impatient_run(rate: float, patience_ns: int, attempts: int = 3) -> tuple[CoupledEngine, list[Attempt]]:
    engine = engine_of(max_num_seqs=4)
    view: EngineView = engine
    made = impatient(
        view,
        traffic(arrivals={"kind": "poisson", "rate": rate}, num_requests=80),
        Impatience(ConstantTime(kind="constant", value=f"{patience_ns // MS}ms"), attempts, 500 * MS),
        seed=1,
    )
    engine.env.run()
    assert verify(engine.state) == []
    return engine, made


def test_patient_users_are_all_served() -> None:
    engine, attempts = impatient_run(rate=30.0, patience_ns=3600 * SECOND)
    assert len(attempts) == 80
    assert not any(a.hung_up or a.number for a in attempts)
    assert {a.sent.value.status for a in attempts} == {"finished"}
    assert engine.result().totals["finished"] == 80


def test_impatient_users_hang_up_come_again_and_give_up() -> None:
    _, attempts = impatient_run(rate=30.0, patience_ns=200 * MS)
    assert {a.number for a in attempts} == {0, 1, 2}
    assert {a.user for a in attempts} == set(range(80))
    for user in range(80):
        own = sorted((a for a in attempts if a.user == user), key=lambda a: a.number)
        assert [a.number for a in own] == list(range(len(own)))
        # only the last attempt can have been served
        assert all(a.hung_up for a in own[:-1])
        assert not own[-1].hung_up or len(own) == 3
        for a in own:
            outcome = a.sent.value
            assert outcome.status == ("aborted" if a.hung_up else "finished")
            waited = (outcome.finish_ns if a.hung_up else outcome.first_token_ns) - outcome.arrival_ns
            assert waited == 200 * MS if a.hung_up else waited <= 200 * MS
        for k, (a, b) in enumerate(pairwise(own)):
            assert b.sent.value.arrival_ns - a.sent.value.finish_ns == 500 * MS * 2**k


def test_hanging_up_takes_load_off_the_engine() -> None:
    patient, _ = impatient_run(rate=30.0, patience_ns=3600 * SECOND)
    hasty, _ = impatient_run(rate=30.0, patience_ns=200 * MS, attempts=1)
    assert hasty.result().totals["sampled_tokens"] < patient.result().totals["sampled_tokens"]
    waits = [e.result().time_weighted["num_waiting"]["max"] for e in (hasty, patient)]
    assert waits[0] < waits[1]


def adaptive_run(aimd: Aimd, clients: int = 1) -> tuple[CoupledEngine, AdaptivePool]:
    engine = engine_of(max_num_seqs=8)
    arrivals = {"kind": "closed_loop", "clients": clients, "think_time": "20ms"}
    pool = adaptive(engine, traffic(arrivals=arrivals, num_requests=400), aimd, seed=1)
    engine.env.run()
    assert verify(engine.state) == []
    assert len(pool.sent) == 400
    assert {s.value.status for s in pool.sent} == {"finished"}
    assert pool.in_flight == 0
    return engine, pool


def test_an_adaptive_pool_finds_what_the_engine_can_do() -> None:
    """Eight requests run at once; the ninth waits for some 200 ms, which is late."""
    _, pool = adaptive_run(Aimd(first_token_target_ns=50 * MS))
    numbers = np.array([clients for _, clients in pool.history])
    times = np.array([time for time, _ in pool.history])
    assert (np.diff(times) >= 0).all()
    assert numbers[0] == 1.0
    settled = numbers[times > times[-1] // 3]
    assert 4.0 <= settled.min() < 8.0 < settled.max() < 12.0
    falls = numbers[1:] < numbers[:-1]
    np.testing.assert_allclose(numbers[1:][falls], numbers[:-1][falls] / 2)
    np.testing.assert_allclose(numbers[1:][~falls], numbers[:-1][~falls] + 1 / numbers[:-1][~falls])


def test_the_bounds_of_an_adaptive_pool_hold() -> None:
    engine, pool = adaptive_run(Aimd(first_token_target_ns=3600 * SECOND, maximum=3.0))
    assert max(clients for _, clients in pool.history) == 3.0
    assert engine.result().time_weighted["num_running"]["max"] == 3.0
    _, pool = adaptive_run(Aimd(first_token_target_ns=1, minimum=2.0), clients=6)
    assert pool.history[-1][1] == 2.0
    _, pool = adaptive_run(Aimd(first_token_target_ns=3600 * SECOND, max_waiting=0))
    assert max(clients for _, clients in pool.history) < 12.0


def test_the_same_seed_gives_the_same_run() -> None:
    _, a = impatient_run(rate=30.0, patience_ns=200 * MS)
    _, b = impatient_run(rate=30.0, patience_ns=200 * MS)
    assert [x.sent.value for x in a] == [x.sent.value for x in b]
    assert adaptive_run(Aimd(50 * MS))[1].history == adaptive_run(Aimd(50 * MS))[1].history


def test_what_is_refused() -> None:
    engine = engine_of(4)
    loop = traffic(arrivals={"kind": "closed_loop", "clients": 2}, num_requests=4)
    free = traffic(arrivals={"kind": "poisson", "rate": 1.0}, num_requests=4)
    patience = Impatience(ConstantTime(kind="constant", value="1s"))
    with pytest.raises(WorkloadError, match="closed_loop"):
        impatient(engine, loop, patience, seed=0)
    with pytest.raises(WorkloadError, match="closed_loop"):
        adaptive(engine, free, Aimd(SECOND), seed=0)
    with pytest.raises(WorkloadError, match="max_attempts"):
        Impatience(patience.patience, max_attempts=0)
    with pytest.raises(WorkloadError, match="minimum"):
        Aimd(SECOND, minimum=3.0, maximum=2.0)
    salted = traffic(arrivals=loop.arrivals.model_dump(), num_requests=4, cache_salt="a")
    with pytest.raises(WorkloadError, match="cache_salt"):
        adaptive(engine, salted, Aimd(SECOND), seed=0)
