"""A snapshot of a live block pool of a real vLLM 0.32.0 equals the simulator's for the same state.

`make validate` runs this in the environment that has vLLM.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm", reason="no vLLM in this environment: `make validate` runs these tests")

from sim.analysis.from_pool import parents_of_requests
from sim.analysis.snapshot import FragmentationSnapshot
from sim.capacity import LogOptions, allocate
from sim.core import codes as c
from sim.core.engine import advance
from tests.analysis.pools import assert_same
from tests.core.cases import FOREVER
from tests.reference.kernel import NO_TIME
from validation.fuzz_cases import random_case
from validation.logical import LogicalRequest
from validation.record import to_workload
from validation.vllm_scheduler import SchedulerLoop

# torch and vLLM warn about themselves while they are imported
pytestmark = pytest.mark.filterwarnings("ignore")


def follow(loop: SchedulerLoop, check: Any) -> None:
    """Call ``check("scheduled" | "updated")`` behind each call of the loop's scheduler."""
    scheduler = loop.scheduler
    schedule, update = scheduler.schedule, scheduler.update_from_output

    def checked_schedule(*args: Any, **kwargs: Any) -> Any:
        batch = schedule(*args, **kwargs)
        check(c.X_SCHEDULED)
        return batch

    def checked_update(*args: Any, **kwargs: Any) -> Any:
        result = update(*args, **kwargs)
        check(c.X_UPDATED)
        return result

    scheduler.schedule, scheduler.update_from_output = checked_schedule, checked_update


def live_snapshot(scheduler: Any, block_size: int, parents: dict[Any, Any]) -> FragmentationSnapshot:
    """Snapshot of the pool of a running scheduler."""
    managers = scheduler.kv_cache_manager.coordinator.single_type_managers
    tables = {
        r.request_id: [[b.block_id for b in m.req_to_blocks.get(r.request_id, ())] for m in managers]
        for r in scheduler.running
    }
    pool = scheduler.kv_cache_manager.block_pool
    sizes = [m.block_size or block_size for m in managers]
    return FragmentationSnapshot.from_block_pool(
        pool, scheduler.running, tables, block_sizes=sizes, parents=parents
    )


@pytest.mark.parametrize("seed", [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233])
def test_the_snapshot_of_a_real_pool_is_the_simulators(seed: int) -> None:
    case = random_case(seed)
    requests: tuple[LogicalRequest, ...] = case.requests
    workload = to_workload(requests)
    log = LogOptions(sample_period_ns=0, follow_blocks=True)
    state = allocate(case.settings, workload, NO_TIME, log)
    loop = SchedulerLoop(case.settings, requests)
    parents: dict[Any, Any] = {}
    compared = 0

    def check(reason: int) -> None:
        nonlocal compared
        assert advance(state, FOREVER) == reason
        parents.update(parents_of_requests(loop.scheduler.requests.values()))
        live = live_snapshot(loop.scheduler, case.settings.block_size, parents)
        assert_same(live, FragmentationSnapshot.from_state(state, workload))
        compared += 1

    follow(loop, check)
    loop.run()
    assert compared > 10
