"""What is timed: workloads and engines, and one run of each on the simulator, its twin and the real vLLM."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sim.engine_settings import EngineSettings
from workloads.builder import assemble
from workloads.requests import Workload

ROOT = Path(__file__).resolve().parents[2]
MOONCAKE = "mooncake_conversation.jsonl.gz"
TEN_THOUSAND = ROOT / "tests" / "benchmarks" / "ten_thousand.yaml"

#: Of the 3,000 requests, how many the plain-Python twin serves: it is slow, and its time is scaled by step.
TWIN_REQUESTS = 200

CONTROL_ENGINE = EngineSettings(
    block_size=16,
    num_gpu_blocks=20_000,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
    max_model_len=2048,
)


@dataclass(frozen=True)
class Timing:
    """One run.

    Attributes:
        cpu_s: CPU seconds of the process.
        wall_s: seconds.
        request_steps: requests in all batches: one for each request and step.
        steps: engine steps.
        requests: requests served.
        detail: whatever else is worth knowing; shown by --json.
    """

    cpu_s: float
    wall_s: float
    request_steps: int
    steps: int
    requests: int
    detail: dict[str, Any]


class Clock:
    """CPU and wall seconds since it was made."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._cpu = time.process_time()

    def read(self) -> tuple[float, float]:
        """CPU seconds, wall seconds."""
        return time.process_time() - self._cpu, time.perf_counter() - self._wall


def data_file(name: str) -> Path | None:
    """A public trace in KVPOOL_DATA or ../shared/data; None where it is absent."""
    folder = os.environ.get("KVPOOL_DATA")
    path = (Path(folder) if folder else ROOT.parent / "shared" / "data") / name
    return path.resolve() if path.is_file() else None


def control_workload(num_requests: int) -> Workload:
    """Requests of 800 / 76 tokens (uniform within 20 %), all there at step 0 of a logical clock."""
    rng = np.random.default_rng(np.random.SeedSequence(7))
    return assemble(
        clock="logical",
        vocab_size=32_000,
        arrival=np.zeros(num_requests, dtype=np.int64),
        seg_id=np.arange(num_requests, dtype=np.int64),
        seg_len=rng.integers(640, 961, num_requests),
        output_len=rng.integers(61, 92, num_requests),
        source={},
    )


def control_lines(workload: Workload) -> list[dict[str, Any]]:
    """The requests with explicit tokens, as the lines of a logical-time file."""
    return [
        {
            "request_id": workload.request_id(i),
            "arrival_step": int(workload.arrival[i]),
            "prompt_token_ids": workload.prompt_tokens(i).tolist(),
            "output_token_ids": workload.output_tokens(i).tolist(),
        }
        for i in range(len(workload))
    ]


def run_control(workload: Workload) -> Timing:
    """The control workload on the simulator: allocation, run and result."""
    from sim.simulate import LogOptions, Simulation
    from sim.step_time import constant

    clock = Clock()
    simulation = Simulation(CONTROL_ENGINE, workload, constant(1), LogOptions(sample_period_ns=0))
    simulation.run()
    totals = simulation.result().totals
    cpu, wall = clock.read()
    # a prefill chunk counts as one request-step, like a decode
    chunks = _prefill_chunks(totals, workload)
    return Timing(cpu, wall, totals["decode_tokens"] + chunks, totals["steps"], len(workload), {})


def _prefill_chunks(totals: dict[str, int], workload: Workload) -> int:
    """Sampled tokens that were not decodes came from prefills; other chunks are few and left out."""
    return int(workload.output_len.sum()) - totals["decode_tokens"]


def run_twin(workload: Workload, lines: list[dict[str, Any]]) -> Timing:
    """The control workload on the plain-Python twin."""
    from sim.reference.engine import Engine
    from sim.reference.settings import Settings

    settings = Settings(
        block_size=CONTROL_ENGINE.block_size,
        num_gpu_blocks=CONTROL_ENGINE.num_gpu_blocks,
        max_num_seqs=CONTROL_ENGINE.max_num_seqs,
        max_num_batched_tokens=CONTROL_ENGINE.max_num_batched_tokens,
        max_model_len=CONTROL_ENGINE.max_model_len,
    )
    clock = Clock()
    engine = Engine(settings, lines)
    engine.run()
    cpu, wall = clock.read()
    return Timing(cpu, wall, int(workload.output_len.sum()), engine.step_index, len(workload), {})


def run_config(path: Path, overrides: list[str]) -> Timing:
    """A config on the simulator: allocation, run and result; making the requests is not timed."""
    from sim.runner import auto_period, check
    from sim.simulate import LogOptions, Simulation

    resolved, workload = check(str(path), overrides)
    log = LogOptions(sample_period_ns=resolved.sample_period_ns or auto_period(workload))
    clock = Clock()
    simulation = Simulation(resolved.engine, workload, resolved.step_time, log)
    simulation.run()
    totals = simulation.result().totals
    cpu, wall = clock.read()
    detail = {
        "allocations": totals["allocations"],
        "evictions": totals["evictions"],
        "preemptions": totals["preemptions"],
        "scheduled_tokens": totals["scheduled_tokens"],
    }
    steps = totals["steps"]
    return Timing(cpu, wall, totals["decode_tokens"] + steps, steps, totals["finished"], detail)


def mooncake_overrides() -> list[str]:
    """Overrides of configs/mooncake.yaml that name the trace; empty where it is found without."""
    path = data_file(MOONCAKE)
    return [] if path is None else [f"workload.path={path}"]


def warm_up() -> None:
    """Compile or load everything that the cases run, on a workload of two requests."""
    run_control(control_workload(2))


def scaled(timing: Timing, request_steps: int) -> Timing:
    """The timing of a smaller sample, scaled to ``request_steps``."""
    factor = request_steps / timing.request_steps
    return replace(
        timing,
        cpu_s=timing.cpu_s * factor,
        wall_s=timing.wall_s * factor,
        request_steps=request_steps,
        detail={**timing.detail, "scaled_from_requests": timing.requests},
    )
