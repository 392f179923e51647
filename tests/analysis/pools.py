"""What several tests of the analysis need: comparison of snapshots, small engines with known ends."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.analysis.snapshot import FragmentationSnapshot
from sim.capacity import LogOptions
from sim.engine_settings import EngineSettings
from sim.simulate import Simulation
from sim.step_time import constant
from workloads.builder import WorkloadBuilder
from workloads.requests import Workload

STEP = 1000
"""Nanoseconds of a step in these engines."""


def renumbered(key: np.ndarray) -> list[int]:
    """Content numbers in order of first occurrence, so that two numberings of one partition are equal."""
    numbers: dict[int, int] = {}
    return [-1 if k < 0 else numbers.setdefault(int(k), len(numbers)) for k in key]


def assert_same(a: FragmentationSnapshot, b: FragmentationSnapshot) -> None:
    """Every field but births, times and the numbers of requests; and the scalars that follow."""
    assert a.block_sizes == b.block_sizes
    assert a.state.tolist() == b.state.tolist()
    assert a.ref_cnt.tolist() == b.ref_cnt.tolist()
    assert a.key is not None
    assert b.key is not None
    assert renumbered(a.key) == renumbered(b.key)
    assert a.free_order is not None
    assert b.free_order is not None
    assert a.free_order.tolist() == b.free_order.tolist()
    assert a.tables.request_id == b.tables.request_id
    assert a.tables.num_computed.tolist() == b.tables.num_computed.tolist()
    assert a.tables.blocks.tolist() == b.tables.blocks.tolist()
    assert a.tables.ptr.tolist() == b.tables.ptr.tolist()
    assert a.unreachable is not None
    assert b.unreachable is not None
    assert a.unreachable.tolist() == b.unreachable.tolist()
    left, right = a.summary(), b.summary()
    for name in ("time_s", "step"):
        del left[name], right[name]
    assert left == right


def engine(**settings: Any) -> EngineSettings:
    """A synchronous engine with room for everything unless ``settings`` say otherwise."""
    base: dict[str, Any] = {"block_size": 16, "max_num_seqs": 64, "max_num_batched_tokens": 4096}
    return EngineSettings(**{**base, **settings})


def simulation(settings: EngineSettings, workload: Workload, **log: Any) -> Simulation:
    """A simulation that follows blocks and requests, with steps of STEP ns."""
    options: dict[str, Any] = {"sample_period_ns": 500, "request_events": True, "follow_blocks": True}
    return Simulation(settings, workload, constant(STEP), LogOptions(**{**options, **log}))


def builder() -> WorkloadBuilder:
    """A builder of requests on the real clock."""
    return WorkloadBuilder(vocab_size=1000)


def snapshot(sim: Simulation, time_ns: int) -> FragmentationSnapshot:
    """Run up to a time and take a snapshot."""
    sim.run(time_ns)
    return FragmentationSnapshot.from_state(sim.state, sim.workload, time_ns)
