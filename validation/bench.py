"""`python -m validation bench`: the same workloads on the simulator and on a real vLLM's control plane.

Both run in this process, in turn, each several times; the median counts, in CPU seconds of the thread,
because machines are shared. What is timed on vLLM's side is what vLLM itself does: making the Request objects
(which hashes the prompts), add_request(), schedule() and update_from_output(). The harness in between, which
stands for the model, is not. On the simulator's side everything is: allocating the state and the whole run.
At the end both must agree on the number of steps, on every counter and on the free queue's order, otherwise
the comparison is void. vllm is imported inside functions only.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sim.engine_settings import EngineSettings
    from workloads.requests import Workload

GOAL = 300
AIM = 1000


@dataclass(frozen=True)
class BenchCase:
    """A named engine and workload, in logical time."""

    name: str
    what: str
    settings: EngineSettings
    workload: Workload


@dataclass(frozen=True)
class Run:
    """One run of a case: CPU seconds that count, and what the engine had done at the end."""

    seconds: float
    outcome: dict[str, int]


def cases(scale: float = 1.0) -> list[BenchCase]:
    """The benchmark's cases. scale: the share of the requests."""
    from sim.engine_settings import EngineSettings

    engine = EngineSettings(
        num_gpu_blocks=16_384, max_num_seqs=256, max_num_batched_tokens=8192, max_model_len=2048
    )
    tight = replace(engine, num_gpu_blocks=1_200, max_num_seqs=64, max_num_batched_tokens=2048)
    return [
        BenchCase(
            "plain",
            "3,000 requests of 800/76 tokens",
            engine,
            _workload(round(3000 * scale), 800, 76, per_step=2.0),
        ),
        BenchCase(
            "tight",
            "1,000 requests of 300/200 tokens in 1,200 blocks: preemptions",
            tight,
            _workload(round(1000 * scale), 300, 200, per_step=1.0),
        ),
        BenchCase(
            "shared",
            "2,000 requests of 1,100/64 tokens, the first 1,024 of 8 kinds",
            replace(engine, num_gpu_blocks=8_192),
            _workload(round(2000 * scale), 1100, 64, per_step=2.0, shared=1024, kinds=8),
        ),
    ]


def _workload(
    requests: int, prompt: int, output: int, per_step: float, shared: int = 0, kinds: int = 1
) -> Workload:
    from workloads.builder import WorkloadBuilder

    builder = WorkloadBuilder(vocab_size=32_000, clock="logical")
    for i in range(requests):
        own = [1_000 + 2 * i]
        lengths = [prompt - shared]
        if shared:
            own, lengths = [i % kinds, *own], [shared, *lengths]
        builder.add(
            own,
            lengths,
            output_len=output,
            out_seg=1_001 + 2 * i,
            arrival=int(i / per_step),
            max_tokens=output,
            request_id=f"r{i}",
        )
    return builder.build({"kind": "bench"})


@contextmanager
def _quiet_heap() -> Iterator[None]:
    """Objects made before the run are none of the collector's business; vLLM's engine core does the same."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def run_simulator(case: BenchCase) -> Run:
    """One run on the simulator, from nothing to the end."""
    import numpy as np

    from sim.capacity import LogOptions, allocate
    from sim.core import codes
    from sim.core.engine import run_until
    from sim.core.inspect import free_queue_order
    from sim.step_time import StepTime

    no_time = StepTime(0, np.zeros(12), np.zeros(1), np.zeros(1), np.zeros(1))
    with _quiet_heap():
        began = time.thread_time()
        state = allocate(case.settings, case.workload, no_time, LogOptions(sample_period_ns=0))
        reason = run_until(state, 1 << 62, 1 << 62)
        seconds = time.thread_time() - began
    if reason != codes.X_DONE:
        raise RuntimeError(f"case {case.name}: the simulator ended with exit reason {reason}")
    order = np.zeros(case.settings.num_gpu_blocks, dtype=np.int32)
    order = order[: free_queue_order(state.kv.pool, order)]
    hashed = state.kv.pool.blocks.block_hash[: case.settings.num_gpu_blocks] != 0
    count = state.count
    names = (
        "prefix_queries",
        "prefix_hits",
        "preempted_queries",
        "preempted_hits",
        "preemptions",
        "finished",
    )
    return Run(
        seconds,
        {
            "steps": int(count.steps),
            "scheduled_tokens": int(count.scheduled_tokens),
            "request_steps": int(count.sampled_tokens),
            **{name: int(count[name]) for name in names},
            "free_queue_crc": zlib.crc32(order.astype("<i4").tobytes()),
            "cached_crc": zlib.crc32(np.asarray(hashed, dtype=np.uint8).tobytes()),
        },
    )


class _Stopwatch:
    """CPU seconds spent inside the calls that it makes."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        began = time.thread_time()
        result = function(*args, **kwargs)
        self.seconds += time.thread_time() - began
        return result


class RealControlPlane:
    """vLLM's Scheduler, KVCacheManager and BlockPool, stepped as EngineCore.step does, with known outputs."""

    def __init__(self, case: BenchCase) -> None:
        from vllm.sampling_params import SamplingParams

        from validation.vllm_scheduler import make_scheduler

        w = case.workload
        self.case = case
        self.scheduler, self.hasher = make_scheduler(case.settings)
        # Tokens as the front end hands them over: plain lists, made beforehand.
        self.prompts = [w.prompt_tokens(i).tolist() for i in range(len(w))]
        self.outputs = {w.request_id(i): w.output_tokens(i).tolist() for i in range(len(w))}
        self.params = [SamplingParams(max_tokens=int(n), ignore_eos=True) for n in w.max_tokens]
        self.outcome = dict.fromkeys(
            ("steps", "scheduled_tokens", "request_steps", "preemptions", "finished"), 0
        )
        self.prefix = [0] * 4

    def run(self) -> Run:
        """One run to the end; only vLLM's own calls are timed."""
        watch = _Stopwatch()
        scheduler, arrival = self.scheduler, self.case.workload.arrival.tolist()
        step = arrived = 0
        with _quiet_heap():
            while arrived < len(arrival) or scheduler.has_unfinished_requests():
                while arrived < len(arrival) and arrival[arrived] <= step:
                    watch.call(scheduler.add_request, watch.call(self._request, arrived))
                    arrived += 1
                if scheduler.has_requests():
                    batch = watch.call(scheduler.schedule)
                    output = self._execute(batch)
                    before = len(scheduler.requests)
                    self._take_stats(watch.call(scheduler.update_from_output, batch, output))
                    self.outcome["finished"] += before - len(scheduler.requests)
                step += 1
        return Run(watch.seconds, self._final())

    def _request(self, i: int) -> Any:
        from vllm.v1.request import Request

        return Request(
            request_id=f"r{i}",
            prompt_token_ids=self.prompts[i],
            sampling_params=self.params[i],
            pooling_params=None,
            arrival_time=float(i),
            block_hasher=self.hasher,
        )

    def _execute(self, batch: Any) -> Any:
        """What the model would return."""
        from vllm.v1.outputs import ModelRunnerOutput

        live = self.scheduler.requests
        ids = list(batch.num_scheduled_tokens)
        sampled = [
            [] if live[r].is_prefill_chunk else [self.outputs[r][live[r].num_output_tokens]] for r in ids
        ]
        self.outcome["steps"] += batch.total_num_scheduled_tokens > 0
        self.outcome["scheduled_tokens"] += batch.total_num_scheduled_tokens
        self.outcome["request_steps"] += sum(map(len, sampled))
        self.outcome["preemptions"] += len(batch.preempted_req_ids or ())
        return ModelRunnerOutput(
            req_ids=ids, req_id_to_index={r: i for i, r in enumerate(ids)}, sampled_token_ids=sampled
        )

    def _take_stats(self, outputs: dict[int, Any]) -> None:
        """Counters of the step; vLLM hands them to one of its clients' outputs and begins anew."""
        for core in outputs.values():
            if core.scheduler_stats is not None:
                stats = core.scheduler_stats.prefix_cache_stats
                new = (stats.queries, stats.hits, stats.preempted_queries, stats.preempted_hits)
                self.prefix = [a + b for a, b in zip(self.prefix, new, strict=True)]

    def _final(self) -> dict[str, int]:
        import numpy as np

        pool = self.scheduler.kv_cache_manager.block_pool
        free = np.array([b.block_id for b in pool.free_block_queue.get_all_free_blocks()], dtype="<i4")
        hashed = bytes([block.block_hash is not None for block in pool.blocks])
        names = ("prefix_queries", "prefix_hits", "preempted_queries", "preempted_hits")
        return {
            **self.outcome,
            **dict(zip(names, self.prefix, strict=True)),
            "free_queue_crc": zlib.crc32(free.tobytes()),
            "cached_crc": zlib.crc32(hashed),
        }


@dataclass(frozen=True)
class Result:
    """One case: medians of the runs, and whether both sides did the same."""

    case: BenchCase
    simulator_s: list[float]
    vllm_s: list[float]
    simulator: dict[str, int]
    vllm: dict[str, int]

    @property
    def ratio(self) -> float:
        """Median seconds of vLLM over those of the simulator."""
        return statistics.median(self.vllm_s) / statistics.median(self.simulator_s)

    @property
    def differing(self) -> list[str]:
        """Counters in which the two sides differ."""
        return [name for name in self.vllm if self.vllm[name] != self.simulator.get(name)]

    def rates(self, seconds: float) -> tuple[float, float]:
        """Requests a second, and microseconds a request and step."""
        steps = self.simulator["request_steps"]
        return len(self.case.workload) / seconds, seconds / steps * 1e6

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        found: dict[str, Any] = {
            "case": self.case.name,
            "what": self.case.what,
            "ratio": self.ratio,
            "equal": not self.differing,
            "counters": self.simulator,
        }
        for name, seconds in (("simulator", self.simulator_s), ("vllm", self.vllm_s)):
            rate, per_step = self.rates(statistics.median(seconds))
            found[name] = {"seconds": seconds, "requests_per_s": rate, "us_per_request_step": per_step}
        return found

    def text(self) -> str:
        """Lines of the table."""
        sim, real = statistics.median(self.simulator_s), statistics.median(self.vllm_s)
        (sim_rate, sim_us), (real_rate, real_us) = self.rates(sim), self.rates(real)
        s = self.simulator
        equal = "equal counters" if not self.differing else f"DIFFERENT: {', '.join(self.differing)}"
        return (
            f"{self.case.name:<8} {self.ratio:>7.0f}x  "
            f"simulator {sim * 1e3:>8.1f} ms {sim_rate:>10,.0f} req/s {sim_us:>7.3f} us   "
            f"vLLM {real:>6.2f} s {real_rate:>7,.0f} req/s {real_us:>6.2f} us\n"
            f"         {self.case.what}; {s['steps']} steps, {s['request_steps']} request-steps, "
            f"{s['preemptions']} preemptions, {s['prefix_hits']} hit tokens; {equal}"
        )


def compare_speed(case: BenchCase, repeats: int, per_repeat: int = 3) -> Result:
    """Run both in turn; the simulator `per_repeat` times for each run of vLLM, because its runs are short."""
    run_simulator(case)  # compiles
    simulator: list[Run] = []
    vllm: list[Run] = []
    for _ in range(repeats):
        simulator += [run_simulator(case) for _ in range(per_repeat)]
        vllm.append(RealControlPlane(case).run())
    return Result(
        case,
        [run.seconds for run in simulator],
        [run.seconds for run in vllm],
        simulator[-1].outcome,
        vllm[-1].outcome,
    )


def _guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Input errors as the other commands of `validation` report them."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        from validation.cli import reports_input_errors

        return reports_input_errors(command)(*args, **kwargs)

    return wrapped


@click.command()
@click.option(
    "--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of vLLM a case."
)
@click.option(
    "--scale",
    type=click.FloatRange(0.001, 1.0),
    default=1.0,
    show_default=True,
    help="Share of the requests.",
)
@click.option("--case", "only", default=None, help="Only this case.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a case.")
@_guarded
def bench(repeats: int, scale: float, only: str | None, as_json: bool) -> None:
    """Time the simulator against a real vLLM's control plane on the same workloads (needs vLLM).

    us: microseconds for each request and step. Exit code 0: both did the same; 1: their counters differ, so
    the ratio means nothing; 2: vLLM is missing.
    """
    from sim.errors import InputError, did_you_mean
    from validation.vllm_setup import require_vllm

    require_vllm()
    chosen = [case for case in cases(scale) if only in (None, case.name)]
    if not chosen:
        names = [case.name for case in cases(0.001)]
        raise InputError(
            f"no case {only!r}", "--case", hint=did_you_mean(str(only), names) or ", ".join(names)
        )
    results = []
    for case in chosen:
        results.append(compare_speed(case, repeats))
        click.echo(json.dumps(results[-1].to_json()) if as_json else results[-1].text())
    if not as_json:
        lowest = min(result.ratio for result in results)
        verdict = "reaches" if lowest >= GOAL else "misses"
        click.echo(f"lowest ratio {lowest:.0f}: {verdict} the goal of {GOAL} (aim: {AIM})")
    if any(result.differing for result in results):
        raise SystemExit(1)
