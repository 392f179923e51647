"""The cases under pytest-benchmark: ``make bench``, or ``pytest tests/benchmarks -m bench -k NAME``.

No test asserts a time. The table with targets and ratios is ``python -m tests.benchmarks.table``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import cases
from tests.benchmarks.lifecycle import LifeCycle
from tests.benchmarks.processes import first_step, vllm_python

CHAT = cases.ROOT / "configs" / "chat.yaml"
BLOCKS = 500_000


@pytest.mark.parametrize("num_blocks", [10_000, 100_000, 1_000_000])
def test_block_life_cycle(benchmark: Any, num_blocks: int) -> None:
    """Hashed, allocated (evicting), inserted, freed; ``ns_per_block`` is in the extra info."""
    pool = LifeCycle(num_blocks)
    blocks = benchmark.pedantic(pool.run, args=(BLOCKS,), rounds=5)
    benchmark.extra_info["ns_per_block"] = benchmark.stats.stats.median / blocks * 1e9


def test_ten_thousand_requests(benchmark: Any) -> None:
    """10,000 requests of 1000/200 tokens: allocation, run and result; in the time shown, their making too."""
    timing = benchmark.pedantic(cases.run_config, args=(cases.TEN_THOUSAND, []), rounds=3, warmup_rounds=1)
    assert timing.requests == 10_000
    benchmark.extra_info["simulate_cpu_s"] = timing.cpu_s


def test_mooncake_hour(benchmark: Any, data_dir: Path) -> None:
    """The Mooncake conversation trace at blocks of 16 tokens, with the reading of the trace."""
    path = (data_dir / cases.MOONCAKE).resolve()
    arguments = (cases.ROOT / "configs" / "mooncake.yaml", [f"workload.path={path}"])
    timing = benchmark.pedantic(cases.run_config, args=arguments, rounds=3, warmup_rounds=1)
    assert timing.requests == 12_031
    benchmark.extra_info["simulate_cpu_s"] = timing.cpu_s


def test_control_plane(benchmark: Any) -> None:
    """3,000 requests of 800/76 tokens on a logical clock."""
    workload = cases.control_workload(3000)
    timing = benchmark.pedantic(cases.run_control, args=(workload,), rounds=10, warmup_rounds=1)
    benchmark.extra_info["ns_per_request_step"] = timing.cpu_s / timing.request_steps * 1e9


def test_control_plane_of_the_twin(benchmark: Any) -> None:
    """The first of the same requests on the plain-Python twin, in as many steps as the simulator takes."""
    workload = cases.control_workload(cases.TWIN_REQUESTS)
    lines = cases.control_lines(workload)
    timing = benchmark.pedantic(cases.run_twin, args=(workload, lines), rounds=3)
    assert timing.steps == cases.run_control(workload).steps


def test_control_plane_of_vllm(benchmark: Any) -> None:
    """The same requests on the real vLLM scheduler, in as many steps as the simulator takes."""
    from tests.benchmarks.processes import VllmWorker

    python = vllm_python()
    if python is None:
        pytest.skip("no real vLLM: set KVPOOL_VLLM_PYTHON to a Python that has it")
    with VllmWorker(python, 3000) as worker:
        answer = benchmark.pedantic(worker.serve, rounds=2)
    assert answer["steps"] == cases.run_control(cases.control_workload(3000)).steps


def test_first_step_of_a_warm_start(benchmark: Any) -> None:
    """``python -m sim run configs/chat.yaml`` from the start of the process to its first simulated phase."""
    first_step(CHAT)
    report = benchmark.pedantic(first_step, args=(CHAT,), rounds=3)
    assert report["cached"]
