"""Random engines and workloads on both clocks, and the loop that drives a state phase by phase.

The settings, prompts and lengths are those of ``tests.reference.random_cases`` (tiny pools, shared and equal
prompts, ties); added here are the real clock with its sessions, closed loops and step times, synthetic
segments, and requests that cannot be served.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from sim.capacity import LogOptions, allocate
from sim.core import codes as c
from sim.core.engine import run_until
from sim.core.state import State
from sim.engine_settings import EngineSettings, KVCacheGroup
from sim.step_time import StepTime, affine, constant
from tests.reference.random_cases import random_case
from workloads.builder import WorkloadBuilder
from workloads.requests import Workload

FOREVER = 1 << 62


class Case(NamedTuple):
    """Everything that a run is made of."""

    engine: EngineSettings
    workload: Workload
    step_time: StepTime
    log: LogOptions

    def state(self) -> State:
        """A fresh state of the case."""
        return allocate(self.engine, self.workload, self.step_time, self.log)


def draw_case(seed: int, clock: str, **log: Any) -> Case:
    """The case of a seed on the "time" or the "logical" clock; ``log`` are fields of LogOptions."""
    base = random_case(seed)
    rng = random.Random(seed + 1)
    engine = EngineSettings(**{**base.settings, "idle_steps": rng.choice(["skip", "skip", "run"])})
    if seed % 3 == 1:
        engine = with_groups(random.Random(seed + 2), engine)
    if seed % 4 == 2:
        engine = with_drafts(random.Random(seed + 3), engine, clock)
    if seed % 5 == 4:
        engine = with_encoder(random.Random(seed + 4), engine)
    log = {"follow_blocks": seed % 3 == 0, **log}
    if clock == "logical":
        workload = _workload(rng, engine, base.workload, "logical")
        return Case(engine, workload, constant(0), LogOptions(**{"sample_period_ns": 0, **log}))
    step_time = rng.choice([constant(1), constant(1000), affine(700.5, 3.25, 11, 0.5)])
    options = {
        "sample_period_ns": rng.choice([0, 50, 777, 10_000]),
        "warmup_ns": rng.choice([0, 0, 5_000]),
        **log,
    }
    workload = _workload(rng, engine, base.workload, "time")
    return Case(engine, workload, step_time, LogOptions(**options))


def with_groups(rng: random.Random, engine: EngineSettings) -> EngineSettings:
    """The engine with random KV-cache groups, and a pool that is as tight as before."""
    size = engine.block_size

    def group() -> KVCacheGroup:
        kind = rng.choice(["full", "sliding_window", "chunked_local", "mamba"])
        window = rng.randint(1, 6 * size) if kind == "sliding_window" else None
        chunk = rng.randint(1, 4) * size if kind == "chunked_local" else None
        return KVCacheGroup(kind, sliding_window=window, attention_chunk_size=chunk)

    groups = tuple(group() for _ in range(rng.randint(1, 4)))
    if len(groups) > 1 and all(g.type in ("full", "sliding_window") for g in groups):
        groups = tuple(replace(g, block_size=size * rng.choice([1, 1, 2, 3])) for g in groups)
    retention = 0
    if any(g.type in ("sliding_window", "mamba") for g in groups):
        retention = rng.choice([0, None, 6 * size * rng.randint(1, 2)])
    engine = replace(
        engine,
        kv_cache_groups=groups,
        num_gpu_blocks=1 + (engine.num_gpu_blocks - 1) * len(groups),
        prefix_cache_retention_interval=retention,
    )
    return with_special_states(rng, engine) if rng.random() < 0.6 else engine


def with_special_states(rng: random.Random, engine: EngineSettings) -> EngineSettings:
    """The engine with states that are exported from inside chunks, and with hits that end inside a block."""
    groups = engine.kv_cache_groups
    if not any(g.type == "mamba" for g in groups):
        return engine
    ratio = rng.choice([1, 2, 3, 4]) if len(groups) > 1 else 1
    if ratio > 1 and rng.random() < 0.7:
        # windows and chunks need whole blocks: without them hits may end inside
        groups = tuple(g if g.type == "mamba" else KVCacheGroup() for g in groups)
    if rng.random() < 0.6:
        exported = rng.choice([1, 1, engine.block_size])
        groups = tuple(
            replace(g, prefill_checkpoint_alignment=exported if g.type == "mamba" else None) for g in groups
        )
    size, interval = engine.block_size * ratio, engine.prefix_cache_retention_interval
    return replace(
        engine,
        block_size=size,
        prefix_match_unit=engine.block_size if ratio > 1 else None,
        kv_cache_groups=groups,
        prefix_cache_retention_interval=interval * ratio if interval else interval,
    )


def with_encoder(rng: random.Random, engine: EngineSettings) -> EngineSettings:
    """The engine with cross attention beside its groups: no caching, no chunks, a pool as tight as before."""
    length = rng.choice([1, rng.randint(1, 40), engine.max_num_batched_tokens])
    cross = [KVCacheGroup("cross_attention", encoder_tokens=length)] * rng.choice([1, 1, 2])
    groups = [*(g for g in engine.kv_cache_groups if g.type != "mamba"), *cross]
    rng.shuffle(groups)
    return replace(
        engine,
        kv_cache_groups=tuple(groups),
        num_gpu_blocks=engine.num_gpu_blocks + 2 * len(cross) * -(-length // engine.block_size),
        enable_prefix_caching=False,
        enable_chunked_prefill=False,
        long_prefill_token_threshold=0,
        max_num_batched_tokens=max(engine.max_num_batched_tokens, engine.max_model_len, length),
        max_num_scheduled_tokens=None,
    )


def with_drafts(rng: random.Random, engine: EngineSettings, clock: str) -> EngineSettings:
    """The engine with a drafter, and steps that hold a decode with all its drafts."""
    n = rng.choice([1, 1, 2, 3, 5])
    chunked = any(g.type == "chunked_local" for g in engine.kv_cache_groups)
    groups = engine.kv_cache_groups
    if not chunked and rng.random() < 0.3:
        marked = rng.randrange(len(groups))
        groups = tuple(replace(g, is_eagle_group=i == marked) for i, g in enumerate(groups))
    scheduled, threshold = engine.max_num_scheduled_tokens, engine.long_prefill_token_threshold
    return replace(
        engine,
        kv_cache_groups=groups,
        num_speculative_tokens=n,
        speculative_method=rng.choice(["ngram", "draft_model", *([] if chunked else ["eagle", "mtp"])]),
        draft_acceptance=rng.choice([0.0, 0.5, 0.9, 1.0]) if clock == "time" else None,
        max_num_batched_tokens=max(engine.max_num_batched_tokens, n + 2),
        max_num_scheduled_tokens=None if scheduled is None else max(scheduled, n + 2),
        long_prefill_token_threshold=max(threshold, n + 2) if threshold else 0,
    )


def _workload(
    rng: random.Random, engine: EngineSettings, lines: list[dict[str, Any]], clock: str
) -> Workload:
    on_time = clock == "time"
    vocab = 1 + max(max(*line["prompt_token_ids"], *line["output_token_ids"]) for line in lines)
    closed = on_time and rng.random() < 0.2
    builder = WorkloadBuilder(vocab_size=vocab, clock=clock, closed_loop=closed)
    unit = rng.choice([1, 300, 4001])
    for i, line in enumerate(lines):
        prompt, output = line["prompt_token_ids"], line["output_token_ids"]
        arrival, parent = line["arrival_step"] * (unit if on_time else 1), -1
        if on_time and i and rng.random() < 0.25:
            parent, arrival = rng.randrange(i), -1
        elif closed and i and rng.random() < 0.6:
            arrival = -1
        if on_time and rng.random() < 0.05:
            # too long for the model or, where that is long enough, for the pool
            prompt = (prompt * 200)[: engine.usable_blocks * engine.block_size + rng.randint(1, 40)]
        pieces = _pieces(rng, builder, prompt)
        builder.add(
            [seg for seg, _, _ in pieces],
            [n for _, _, n in pieces],
            seg_starts=[start for _, start, _ in pieces],
            output_len=len(output),
            out_seg=builder.add_tokens(output) if rng.random() < 0.8 else rng.randrange(3),
            arrival=arrival,
            parent=parent,
            think_ns=rng.choice([0, 0, 1, 5_000]) if arrival < 0 else 0,
            max_tokens=line.get("max_tokens"),
            priority=line["priority"],
            salt={None: 0, "a": 1, "b": 2}[line["cache_salt"]],
            request_id=line["request_id"],
            accepted_drafts=() if on_time else _accepted_drafts(rng, engine),
            encoder_tokens=_encoder_tokens(rng, engine),
        )
    return builder.build()


def _encoder_tokens(rng: random.Random, engine: EngineSettings) -> int | None:
    if not engine.encoder_tokens:
        return None
    return rng.choice([None, 0, engine.encoder_tokens, rng.randint(0, engine.encoder_tokens)])


def _accepted_drafts(rng: random.Random, engine: EngineSettings) -> list[int]:
    if not engine.num_speculative_tokens or rng.random() < 0.3:
        return []
    return [rng.randint(0, engine.num_speculative_tokens) for _ in range(rng.randint(1, 4))]


def _pieces(rng: random.Random, builder: WorkloadBuilder, prompt: list[int]) -> list[tuple[int, int, int]]:
    """(segment, start, length) of a prompt: its own tokens, or as many of a few synthetic segments."""
    if rng.random() < 0.5:
        return [(builder.add_tokens(prompt), 0, len(prompt))]
    cut = rng.randint(0, len(prompt))
    pieces = [(rng.randrange(3), 0, cut), (rng.randrange(3), rng.choice([0, cut]), len(prompt) - cut)]
    return [piece for piece in pieces if piece[2]]


def drain(state: State) -> None:
    """Empty the logs, as the shell does between two calls."""
    state.ctl.log_len = 0
    state.ctl.num_events = 0


def drive(state: State, rng: random.Random, after: Callable[[], None]) -> int:
    """Drive the state to its end with ``after`` between phases; returns the last exit reason.

    At first ``after`` is called behind every phase, later behind ever longer stretches.
    """
    steps = 0
    for _ in range(100_000):
        reason = run_until(state, FOREVER, 1 if steps < 60 else rng.randint(1, steps))
        drain(state)
        if reason in (c.X_DONE, c.X_STUCK):
            return reason
        steps += reason == c.X_MAX_STEPS
        after()
        if state.ctl.step > 100_000:
            break
    return c.X_MAX_STEPS


def snapshot(state: State) -> dict[str, list[Any]]:
    """Everything that a run leaves behind, the logs' rows apart."""
    names = [name for name in state.ctl.dtype.names if name not in ("log_len", "num_events")]
    return {
        "control": [(name, int(state.ctl[name])) for name in names],
        "counters": state.count.tolist(),
        "pool": state.kv.pool.meta.tolist(),
        "blocks": state.kv.pool.blocks[: state.params.num_blocks].tolist(),
        "requests": state.requests[: state.ctl.num_requests].tolist(),
        "tables": state.kv.tables.tolist(),
        "residency": [*state.kv.pool.residency.tolist(), *state.kv.pool.residency_buckets.tolist()],
        "weighted": state.logs.weighted.tolist(),
        "histogram": np.argwhere(state.logs.histogram).tolist(),
        "weights": state.logs.histogram[state.logs.histogram > 0].tolist(),
    }
