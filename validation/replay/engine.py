"""Replay on a whole real engine in this process: vLLM's engine core with the tiny model, in real time."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sim.engine_settings import EngineSettings
from sim.errors import InputError
from validation.live_state import SchedulerRecorder
from validation.logical import LogicalRequest
from validation.replay.client import CLOCKS, Clock, Sent, Token, drive
from validation.replay.hardware import describe_load, describe_machine, describe_vllm
from validation.replay.plan import Plan, logical_request
from validation.replay.recording import Recording, Table, request_table
from validation.vllm_engine import (
    WholeEngineLoop,
    make_engine,
    refuse_what_an_engine_cannot_do,
)
from validation.vllm_setup import TINY_VOCABULARY, require_vllm

_WARM_UP_BATCHES = 20
_SAME_NAME = (
    "num_running", "num_waiting", "num_free_blocks", "used_blocks", "num_cached_hashes", "num_cached_blocks",
    "num_scheduled_tokens", "num_scheduled_reqs", "allocated_slots", "held_tokens", "wasted_slots",
    "free_runs", "largest_free_run", "prefix_queries", "prefix_hits", "preempted_queries", "preempted_hits",
)  # fmt: skip
_FEATURES = (
    "scheduled_tokens", "context_tokens", "prefill_tokens", "decode_seqs", "decode_context", "prefill_pairs",
    "prefill_context", "sampled",
)  # fmt: skip


def table_runs(ids: Sequence[int]) -> int:
    """Maximal runs of consecutive block ids in a block table."""
    return sum(b != a + 1 for a, b in pairwise(ids)) + (1 if ids else 0)


def batch_features(work: Sequence[tuple[int, int, bool]]) -> dict[str, int]:
    """What the simulator's step-time models know of a batch.

    Args:
        work: for each request of the batch its scheduled tokens, the tokens computed before, and whether it
            samples.
    """
    total = sum(n for n, _, _ in work)
    decodes = [before for n, before, _ in work if n == 1]
    prefills = [(n, before) for n, before, _ in work if n != 1]
    prefill_context = sum(before + n for n, before in prefills)
    return {
        "scheduled_tokens": total,
        "context_tokens": sum(decodes) + prefill_context,
        "prefill_tokens": total - len(decodes),
        "decode_seqs": len(decodes),
        "decode_context": sum(decodes),
        "prefill_pairs": sum(n * before + n * (n + 1) // 2 for n, before in prefills),
        "prefill_context": prefill_context,
        "sampled": sum(samples for _, _, samples in work),
    }


class ReplayLoop(Protocol):
    """An engine loop of a logical-time recording that also says what each step yielded."""

    scheduler: Any
    recorder: SchedulerRecorder
    new_tokens: dict[str, int]

    def add(self, request: LogicalRequest, arrival_time: float) -> None:
        """Hand over one request."""

    def step(self) -> bool:
        """One step; fills `new_tokens`, output tokens by request."""

    def batches_in_flight(self) -> list[Any]:
        """Batches whose update is still to come."""


class _Loop(WholeEngineLoop):
    """The loop around a whole engine."""

    def __init__(self, settings: EngineSettings, requests: Sequence[LogicalRequest], engine: Any) -> None:
        super().__init__(settings, requests, engine)
        self.new_tokens: dict[str, int] = {}

    def check_tokens(self, request_id: str, new: list[int]) -> None:
        super().check_tokens(request_id, new)
        self.new_tokens[request_id] = self.new_tokens.get(request_id, 0) + len(new)


class EnginePort:
    """A real engine as something that requests can be sent to; records each schedule and update call."""

    def __init__(self, requests: Sequence[LogicalRequest], loop: ReplayLoop, clock: Clock) -> None:
        self.clock = clock
        self.requests = requests
        self.index = {r.request_id: i for i, r in enumerate(requests)}
        self.loop = loop
        self.added = self.steps = 0
        self.recorder_ns = 0
        self.more: dict[str, list[int]] = {k: [] for k in ("wall_ns", "table_blocks", "table_runs")}
        self.batches: dict[str, list[int]] = {k: [] for k in ("loop_step", *_FEATURES)}
        self.first_step = np.full(len(requests), -1, np.int64)
        self.hit_tokens = np.zeros(len(requests), np.int64)
        self.preemptions = np.zeros(len(requests), np.int64)
        self._row = self.loop.recorder._row
        self.loop.recorder._row = self._timed_row  # type: ignore[method-assign]

    def add(self, index: int, arrival_ns: int) -> None:
        """Hand over one request. Its stamp, which decides between requests of one priority, is its place in
        the order of arrival: a server's clock stamps no two requests alike."""
        self.loop.add(self.requests[index], float(self.added))
        self.added += 1

    def busy(self) -> bool:
        """Whether the engine core would make a step."""
        return bool(self.loop.scheduler.has_requests() or self.loop.batches_in_flight())

    def step(self) -> list[Token]:
        """One step of the engine core's loop."""
        log = self.loop.recorder.log
        self.loop.recorder.step = self.steps
        self.loop.new_tokens = {}
        rows = len(log["step"])
        self.loop.step()
        self.steps += 1
        ended = {name for names in log["finished"][rows:] for name in names}
        for name in (name for names in log["preempted"][rows:] for name in names):
            self.preemptions[self.index[name]] += 1
        names = [*self.loop.new_tokens, *(name for name in ended if name not in self.loop.new_tokens)]
        return [Token(self.index[n], self.loop.new_tokens.get(n, 0), n in ended) for n in names]

    def _timed_row(self, phase: str, batch_step: int, batch: Any) -> None:
        """Take the row of the step log and, beside it, what a replay in time wants to know."""
        began = self.clock.now()
        self._row(phase, batch_step, batch)
        self.more["wall_ns"].append(began)
        self._note_tables()
        if phase == "scheduled":
            self._note_batch(batch)
        self.recorder_ns += self.clock.now() - began

    def _note_tables(self) -> None:
        scheduler = self.loop.scheduler
        blocks = runs = 0
        for manager in scheduler.kv_cache_manager.coordinator.single_type_managers:
            for request in scheduler.running:
                ids = [b.block_id for b in manager.req_to_blocks.get(request.request_id, ())]
                blocks += len(ids)
                runs += table_runs(ids)
        self.more["table_blocks"].append(blocks)
        self.more["table_runs"].append(runs)

    def _note_batch(self, batch: Any) -> None:
        live = self.loop.scheduler.requests
        work = []
        for name, n in batch.num_scheduled_tokens.items():
            request = live[name]
            # schedule() has already advanced the computed tokens by what it gave out.
            before = request.num_computed_tokens - n
            work.append((n, before, not request.is_prefill_chunk))
            i = self.index[name]
            if self.first_step[i] < 0:
                self.first_step[i] = self.steps
                self.hit_tokens[i] = before
        self.batches["loop_step"].append(self.steps)
        for key, value in batch_features(work).items():
            self.batches[key].append(value)

    def tables(self, sent: Sent) -> tuple[Table, Table, Table]:
        """Timeline, batches and requests of what was sent."""
        log = self.loop.recorder.log
        start, end = np.array(sent.start_ns, np.int64), np.array(sent.end_ns, np.int64)
        step = np.array(log["step"], np.int64)
        updated = np.array([phase == "updated" for phase in log["phase"]], np.int64)
        timeline: Table = {"time_ns": np.where(updated == 1, end[step], start[step]), "step": step}
        timeline |= {name: np.array(log[name], np.int64) for name in _SAME_NAME}
        timeline["preemptions"] = np.cumsum([len(names) for names in log["preempted"]], dtype=np.int64)
        timeline["finished"] = np.cumsum([len(names) for names in log["finished"]], dtype=np.int64)
        timeline |= {name: np.array(values, np.int64) for name, values in self.more.items()}
        timeline["updated"] = updated
        batches = self._batch_table(log, start, end)
        requests = request_table(
            {
                "arrival_ns": sent.arrival_ns,
                "first_scheduled_ns": _at(start, self.first_step),
                "first_token_ns": sent.first_token_ns,
                "finish_ns": sent.finish_ns,
                "prompt_tokens": np.array([len(r.prompt_token_ids) for r in self.requests], np.int64),
                "output_tokens": sent.produced,
                "hit_tokens": self.hit_tokens,
                "preemptions": self.preemptions,
                "status": sent.status,
                "added_ns": sent.added_ns,
                "added_step": sent.added_step,
            }
        )
        return timeline, batches, requests

    def _batch_table(self, log: dict[str, list[Any]], start: Any, end: Any) -> Table:
        batches: Table = {name: np.array(values, np.int64) for name, values in self.batches.items()}
        done_step = {
            b: s
            for s, b, phase in zip(log["step"], log["batch_step"], log["phase"], strict=True)
            if phase == "updated"
        }
        steps = batches["loop_step"].tolist()
        done = _at(end, np.array([done_step.get(s, -1) for s in steps], np.int64))
        began = start[batches["loop_step"]]
        before = np.concatenate([[0], np.maximum.accumulate(done)[:-1]]) if len(done) else done
        duration = np.where(done >= 0, done - np.maximum(began, before), -1)
        return {
            "loop_step": batches.pop("loop_step"),
            "start_ns": began,
            "done_ns": done,
            "duration_ns": duration,
        } | batches


def _at(times: Any, steps: Any) -> Any:
    """times[step], -1 where the step is -1."""
    return np.where(steps >= 0, times[np.maximum(steps, 0)] if len(times) else -1, -1)


def replay(plan: Plan, device: str = "cpu", clock_kind: str = "wall") -> Recording:
    """Run a plan on a real engine by the wall clock, or by the CPU time of this process ("cpu").

    Raises:
        InputError: vLLM is missing, an engine on this device can't have these settings, or vLLM refuses them.
    """
    refuse_what_an_engine_cannot_do(plan.settings, device)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if device == "cpu":
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        # Threads that wait for each other cost the tiny model more than they give: 15 ms a step on two
        # shared cores against 2 ms with one thread.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    else:
        # The logits processor is written for the V1 model runner, which a CPU always has.
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    numba_loaded = "llvmlite.binding.ffi" in sys.modules
    require_vllm()
    if numba_loaded:
        raise InputError("no engine starts in a process that has loaded Numba: replay in one of its own")
    if plan.workload.vocab_size > TINY_VOCABULARY:
        raise InputError(f"the tiny model knows token ids below {TINY_VOCABULARY}")
    rejected = np.array([plan.is_rejected(i) for i in range(len(plan.workload))])
    before = describe_load()
    with tempfile.TemporaryDirectory(prefix="kvpool-model-") as folder:
        engine = make_engine(plan.settings, device, Path(folder))
        try:
            for _ in range(_WARM_UP_BATCHES):
                engine.execute_dummy_batch()
            clock = CLOCKS[clock_kind]()
            requests = [logical_request(plan.workload, i) for i in range(len(plan.workload))]
            port = EnginePort(requests, _Loop(plan.settings, requests, engine), clock)
            gc.collect()
            gc.freeze()
            began = time.time()
            port.clock = clock = CLOCKS[clock_kind]()
            sent = drive(plan.workload, rejected, port, clock, plan.resolved.until_ns)
        finally:
            gc.unfreeze()
            engine.shutdown()
    timeline, batches, table = port.tables(sent)
    end = int(sent.end_ns[-1]) if sent.end_ns else 0
    info = {
        "device": device,
        "clock": clock_kind,
        "machine": describe_machine(device),
        "software": describe_vllm(),
        "load_before": before,
        "load_after": describe_load(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "seconds": end / 1e9,
        "idle_s": sent.idle_ns / 1e9,
        "loop_steps": len(sent.start_ns),
        "recorder_s": port.recorder_ns / 1e9,
    }
    return Recording("engine", timeline, table, batches, port.loop.recorder.log, sent.order, info)
