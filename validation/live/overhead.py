"""What the live recorder costs the engine's thread: a real scheduler, stretches with and without it in turn.

One process, one scheduler, one workload that never ends: every request that finishes is replaced. Stretches
of equally many steps alternate between recorded and not, which of the two comes first alternates too, and
each pair of neighbours gives one ratio. Pairs of two unrecorded stretches, measured in between, show what the
machine's own noise looks like. vllm is imported inside functions only.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sim.engine_settings import EngineSettings
from validation.live.hooks import LiveRecorder
from validation.live.options import LiveOptions
from validation.live.wrappers import Wrappers
from validation.vllm_setup import require_vllm

PROMPT_TOKENS = 400
OUTPUT_TOKENS = 200
_WARM_UP_STEPS = 300


@dataclass(frozen=True)
class Overhead:
    """Figures of one measurement.

    Ratios are recorded / unrecorded, of the thread's CPU time; `low` and `high` enclose the median of the
    pairs' ratios with 95 % confidence. `control` is the same of unrecorded pairs: what the method reads as
    nothing.
    """

    schedule_us: float
    update_us: float
    schedule_ratio: float
    schedule_low: float
    schedule_high: float
    step_ratio: float
    step_low: float
    step_high: float
    control_ratio: float
    control_low: float
    control_high: float
    self_measured_share: float
    writer_share: float
    unsampled_call_us: float
    row_us: float
    state_us: float
    by_parts: float
    pairs: int
    steps_per_stretch: int
    running: int
    blocks: int
    lost: int

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def text(self) -> str:
        """For a terminal."""

        def percent(ratio: float, low: float, high: float) -> str:
            return f"{100 * (ratio - 1):+.2f} % (95 %: {100 * (low - 1):+.2f} to {100 * (high - 1):+.2f})"

        return "\n".join(
            [
                f"{self.running} running requests, {self.blocks} blocks, {self.pairs} pairs of "
                f"{self.steps_per_stretch} steps; schedule() {self.schedule_us:.0f} us, "
                f"update_from_output() {self.update_us:.0f} us",
                f"by parts: {100 * self.by_parts:.2f} % of both calls (each call "
                f"{self.unsampled_call_us:.2f} us, a row {self.row_us:.0f} us, "
                f"a state {self.state_us:.0f} us)",
                "by comparison, schedule()      "
                + percent(self.schedule_ratio, self.schedule_low, self.schedule_high),
                "by comparison, both calls      " + percent(self.step_ratio, self.step_low, self.step_high),
                "control: both without recorder "
                + percent(self.control_ratio, self.control_low, self.control_high),
                f"rows and states took {100 * self.self_measured_share:.2f} % of the calls' wall time, the "
                f"writer's thread {100 * self.writer_share:.2f} %; {self.lost} lines lost",
            ]
        )


class _Load:
    """A scheduler under a steady load, stepped without a model."""

    def __init__(self, running: int, blocks: int) -> None:
        from validation.vllm_scheduler import make_scheduler

        settings = EngineSettings(
            num_gpu_blocks=blocks,
            max_num_seqs=running,
            max_num_batched_tokens=8192,
            max_model_len=PROMPT_TOKENS + OUTPUT_TOKENS + 1,
        )
        self.scheduler, self.hasher = make_scheduler(settings)
        self.numbers = itertools.count()
        for _ in range(2 * running):
            self.add()

    def add(self) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        n = next(self.numbers)
        length = OUTPUT_TOKENS // 2 + n * 37 % OUTPUT_TOKENS // 2
        self.scheduler.add_request(
            Request(
                request_id=f"r{n}",
                # half of the prompt is shared by one request in four
                prompt_token_ids=[
                    n % 4 if k < PROMPT_TOKENS // 2 else (n + k) % 4001 for k in range(PROMPT_TOKENS)
                ],
                sampling_params=SamplingParams(max_tokens=length, ignore_eos=True),
                pooling_params=None,
                arrival_time=float(n),
                block_hasher=self.hasher,
            )
        )

    def stretch(self, steps: int) -> tuple[int, int]:
        """CPU ns of this thread in schedule() and in update_from_output(); what lies between is not
        counted."""
        from vllm.v1.outputs import ModelRunnerOutput

        scheduler = self.scheduler
        in_schedule = in_update = 0
        for _ in range(steps):
            began = time.thread_time_ns()
            batch = scheduler.schedule()
            in_schedule += time.thread_time_ns() - began
            ids = list(batch.num_scheduled_tokens)
            sampled = [[] if scheduler.requests[r].is_prefill_chunk else [7] for r in ids]
            output = ModelRunnerOutput(
                req_ids=ids, req_id_to_index={r: i for i, r in enumerate(ids)}, sampled_token_ids=sampled
            )
            before = len(scheduler.requests)
            began = time.thread_time_ns()
            scheduler.update_from_output(batch, output)
            in_update += time.thread_time_ns() - began
            for _ in range(before - len(scheduler.requests)):
                self.add()
        return in_schedule, in_update


def _median_interval(ratios: list[float]) -> tuple[float, float, float]:
    """Median and the order statistics that enclose the true median with 95 % confidence."""
    ordered = sorted(ratios)
    n = len(ordered)
    half = 0.98 * n**0.5
    low = max(0, int(n / 2 - half))
    high = min(n - 1, int(n / 2 + half))
    return statistics.median(ordered), ordered[low], ordered[high]


def _best_us(call: Callable[[], Any], times: int) -> float:
    """CPU microseconds of a call, the best of many tries, each of `times` calls."""
    tries = []
    for _ in range(30):
        began = time.thread_time_ns()
        for _ in range(times):
            call()
        tries.append(time.thread_time_ns() - began)
    return min(tries) / times / 1e3


def _idle_copy(recorder: LiveRecorder, options: LiveOptions, **values: Any) -> LiveRecorder:
    """A recorder of the same scheduler that has wrapped nothing."""
    copy = object.__new__(LiveRecorder)
    copy.__dict__ |= recorder.__dict__ | {"options": options} | values
    return copy


def _unsampled_call_us(recorder: LiveRecorder) -> float:
    """What the recorder adds to a call that it takes no row of, on a scheduler that does nothing."""

    class Nothing:
        def schedule(self) -> None:
            return None

    plain = Nothing()
    wrapped = Nothing()
    idle = _idle_copy(recorder, replace(recorder.options, row_every=1 << 40), step=0)
    Wrappers(idle._fail).call(wrapped, "schedule", idle._scheduled)
    return _best_us(wrapped.schedule, 1000) - _best_us(plain.schedule, 1000)


def _row_us(recorder: LiveRecorder, running: int) -> float:
    """What a row without a state takes."""
    idle = _idle_copy(recorder, replace(recorder.options, state_every=0))
    batch = SimpleNamespace(
        num_scheduled_tokens={f"r{i}": 1 for i in range(running)}, total_num_scheduled_tokens=running
    )
    return _best_us(lambda: idle._row("scheduled", 0, batch, 0, 1), 20)


def measure(options: LiveOptions, running: int, blocks: int, rounds: int, steps: int) -> Overhead:
    """Measure the recorder's cost. Raises InputError when vLLM is missing."""
    require_vllm()
    load = _Load(running, blocks)
    load.stretch(_WARM_UP_STEPS)
    ratios: dict[str, list[float]] = {"schedule": [], "step": [], "control": []}
    plain_schedule: list[float] = []
    plain_update: list[float] = []
    # a collection would fall into some stretches and not into others
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        with tempfile.TemporaryDirectory(prefix="kvpool-live-") as folder:
            recorder = LiveRecorder(load.scheduler, Path(folder) / "live", options)
            # the state with which every recording begins
            load.stretch(2)
            recorder.unwrap()
            before = recorder.cost_ns, recorder.busy_ns
            for round_ in range(rounds):
                gc.collect()
                results = {}
                for kind in ("off", "on", "off2") if round_ % 2 else ("off2", "on", "off"):
                    if kind == "on":
                        recorder.wrap()
                    results[kind] = load.stretch(steps)
                    recorder.unwrap()
                on, off, off2 = results["on"], results["off"], results["off2"]
                ratios["schedule"].append(2 * on[0] / (off[0] + off2[0]))
                ratios["step"].append(2 * sum(on) / (sum(off) + sum(off2)))
                ratios["control"].append(off[0] / off2[0])
                plain_schedule.append(off[0] / steps / 1e3)
                plain_update.append(off[1] / steps / 1e3)
            cost = recorder.cost_ns - before[0]
            busy = recorder.busy_ns - before[1]
            writer_cpu = recorder.writer.cpu_ns
            call_us = _unsampled_call_us(recorder)
            row_us = _row_us(recorder, running)
            state_us = _best_us(recorder._read_state, 1)
            recorder.close()
    finally:
        gc.enable()
        gc.unfreeze()
    step_us = statistics.median(plain_schedule) + statistics.median(plain_update)
    states = state_us / options.state_every / step_us if options.state_every else 0.0
    if options.budget:
        states = min(states, options.budget)
    return Overhead(
        statistics.median(plain_schedule),
        statistics.median(plain_update),
        *_median_interval(ratios["schedule"]),
        *_median_interval(ratios["step"]),
        *_median_interval(ratios["control"]),
        self_measured_share=cost / busy if busy else 0.0,
        writer_share=writer_cpu / busy if busy else 0.0,
        unsampled_call_us=call_us,
        row_us=row_us,
        state_us=state_us,
        by_parts=(2 * call_us + 2 * row_us / options.row_every) / step_us + states,
        pairs=rounds,
        steps_per_stretch=steps,
        running=running,
        blocks=blocks,
        lost=sum(recorder.writer.lost.values()),
    )
