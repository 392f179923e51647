"""Random small engine configurations and workloads, for comparing the simulator with a real vLLM.

A seed determines a case. Every request fits the pool alone, so that no case gets stuck; apart from that the
cases seek trouble: tiny pools, block size 1, ties in priority, prompts at exact multiples of the block size,
duplicates, limits of every kind, async scheduling with preemption, idle gaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from sim.engine_settings import EngineSettings, KVCacheGroup
from validation.logical import LogicalRequest

_DEFAULTS = EngineSettings()


@dataclass(frozen=True)
class Case:
    """A named engine configuration and workload."""

    name: str
    settings: EngineSettings
    requests: tuple[LogicalRequest, ...]


def settings_to_json(settings: EngineSettings, name: str | None = None) -> str:
    """The engine configuration file of these settings: only what differs from the defaults."""
    values: dict[str, Any] = {} if name is None else {"name": name}
    none_by_release = () if settings.rules.retention == "boundary" else ("prefix_cache_retention_interval",)
    for field in fields(EngineSettings):
        value = getattr(settings, field.name)
        if value == (None if field.name in none_by_release else getattr(_DEFAULTS, field.name)):
            continue
        if field.name == "switches":
            value = dict(value)
        if field.name == "kv_cache_groups":
            value = [
                {k: v for k, v in asdict(group).items() if v is not None and v is not False}
                for group in value
            ]
        values[field.name] = value
    return json.dumps(values, indent=1) + "\n"


def random_case(seed: int) -> Case:
    """The case of a seed; the same on every machine."""
    rng = np.random.default_rng(np.random.SeedSequence([0x6B76, seed]))
    draw = Draw(rng)
    pressure = draw.chance(0.6)
    settings = random_settings(draw, pressure)
    requests = random_requests(draw, settings, pressure)
    slack = draw.one_of(0.0, 0.0, 0.1, 0.25, 0.5) if pressure else draw.one_of(0.0, 0.5, 1.0, 2.0, 8.0)
    return Case(f"fuzz_{seed}", fit_pool(settings, requests, slack), requests)


def blocks_of_largest(settings: EngineSettings, requests: Sequence[LogicalRequest]) -> int:
    """Blocks that the largest of the requests may hold at once, alone, over all groups."""
    tokens = max(len(r.prompt_token_ids) + len(r.output_token_ids) for r in requests)
    tokens = min(tokens, settings.max_model_len)
    return sum(_most_blocks(settings, group, tokens) for group in settings.kv_cache_groups)


def _most_blocks(settings: EngineSettings, group: KVCacheGroup, tokens: int) -> int:
    """Blocks of one group that a request of so many tokens may hold at once (vLLM's admission caps)."""
    size = group.block_size or settings.block_size
    in_flight = settings.max_num_batched_tokens * (2 if settings.async_scheduling else 1)
    drafts = settings.num_speculative_tokens
    tokens, in_flight = min(tokens + 3 * drafts, settings.max_model_len), in_flight + 3 * drafts
    if group.type == "cross_attention" and group.encoder_tokens is not None:
        return -(-group.encoder_tokens // size)
    blocks = -(-tokens // size) + (drafts if group.type == "mamba" else 0)
    copied = _hits_end_inside(settings, size)
    if group.type == "sliding_window" and group.sliding_window is not None:
        reach = min(group.sliding_window - 1 + in_flight, settings.max_model_len)
        return min(blocks, -(-reach // size) + 1)
    if group.type == "chunked_local" and group.attention_chunk_size is not None:
        reach = min(group.attention_chunk_size + in_flight, settings.max_model_len)
        return min(blocks, -(-reach // size))
    if group.type == "mamba" and settings.mamba_cache_mode == "align":
        exported = group.prefill_checkpoint_alignment is not None
        # States of the last steps, the next one, an exported one, copies of partial hits.
        return min(blocks, 3 + drafts) + 2 + exported + copied
    return blocks + (copied if group.type == "full" else 0)


def _hits_end_inside(settings: EngineSettings, size: int) -> bool:
    """Whether a hit may end inside a block of so many tokens, so that it is copied first."""
    sizes = [group.block_size or settings.block_size for group in settings.kv_cache_groups]
    unit = settings.prefix_match_unit or math.gcd(*sizes)
    return size > unit and any(group.type == "mamba" for group in settings.kv_cache_groups)


def fit_pool(settings: EngineSettings, requests: Sequence[LogicalRequest], slack: float) -> EngineSettings:
    """A pool with room for the largest request and `slack` times as many blocks more, and the null block."""
    largest = blocks_of_largest(settings, requests)
    return replace(settings, num_gpu_blocks=1 + largest + round(slack * largest))


class Draw:
    """Short names for the draws that the cases are made of."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def between(self, low: int, high: int) -> int:
        """low <= n <= high."""
        return int(self.rng.integers(low, high + 1))

    def one_of(self, *values: Any) -> Any:
        return values[int(self.rng.integers(len(values)))]

    def tokens(self, count: int, vocab: int) -> tuple[int, ...]:
        return tuple(int(t) for t in self.rng.integers(0, vocab, count))


def random_settings(draw: Draw, pressure: bool) -> EngineSettings:
    block_size = draw.one_of(1, 1, 2, 3, 4, 4, 5, 8, 8, 16, 16, 32)
    max_model_len = draw.one_of(draw.between(3, 24), draw.between(16, 80), draw.between(64, 200))
    max_num_seqs = draw.one_of(4, 6, 8, 12) if pressure else draw.one_of(1, 2, 3, 4, 6, 8, 12)
    chunked = draw.chance(0.8)
    batched = max(
        max_num_seqs, draw.one_of(draw.between(1, 12), draw.between(8, 64), draw.between(32, 256), 512)
    )
    if not chunked:
        batched = max(batched, max_model_len)
    scheduled = None
    if draw.chance(0.15):
        scheduled = draw.between(1, batched) if chunked else draw.between(max_model_len, batched)
    policy = draw.one_of("fcfs", "fcfs", "priority")
    threshold = draw.between(1, max_model_len) if draw.chance(0.2) else 0
    asynchronous = draw.chance(0.45)
    return EngineSettings(
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=batched,
        max_num_scheduled_tokens=scheduled,
        max_num_active_seqs=draw.between(1, max_num_seqs) if draw.chance(0.12) else None,
        max_model_len=max_model_len,
        enable_prefix_caching=draw.chance(0.85),
        enable_chunked_prefill=chunked,
        long_prefill_token_threshold=threshold,
        long_prefill_token_threshold_adaptive=bool(threshold) and draw.chance(0.4),
        async_scheduling=asynchronous,
        policy=policy,
        scheduler_reserve_full_isl=draw.chance(0.6),
        watermark=draw.one_of(0.0, 0.0, 0.0, 0.0, 0.01, 0.1, 0.3),
        prefix_cache_retention_interval=draw.one_of(0, 0, 0, None),
        kv_cache_groups=(KVCacheGroup(),),
        arrival_time="step" if policy == "priority" and draw.chance(0.6) else "seq",
        idle_steps="run" if draw.chance(0.15) and not asynchronous else "skip",
    )


def random_requests(draw: Draw, settings: EngineSettings, pressure: bool) -> tuple[LogicalRequest, ...]:
    """`pressure`: many requests at once, short prompts and long outputs, so that they outgrow the pool."""
    count = draw.one_of(draw.between(2, 8), draw.between(6, 20), draw.between(12, 30))
    vocab = draw.one_of(2, 10, 4096)
    shared = [draw.tokens(settings.max_model_len, vocab) for _ in range(draw.between(1, 3))]
    salts = draw.one_of((None,), (None,), (None, "a"), ("a", "b"))
    past_limit = draw.chance(0.2)
    eos_share = draw.one_of(0.0, 0.0, 0.3, 1.0)
    spread = draw.one_of(0, 0, 1, 2) if pressure else draw.one_of(0, 1, 3, 10)
    priorities = draw.one_of((0,), (0, 1), (-1, 0, 0, 2), (0, 1, 2, 3, 4))
    requests: list[LogicalRequest] = []
    step = draw.between(0, 3)
    for i in range(count):
        if i:
            step += draw.between(0, spread) if not draw.chance(0.04) else draw.between(20, 120)
        longest = max(1, settings.max_model_len // 3) if pressure else settings.max_model_len - 1
        prompt = _random_prompt(draw, settings, longest, requests, shared, vocab)
        room = settings.max_model_len - len(prompt)
        half = max(1, settings.max_model_len // 2)
        length = draw.between(half, room) if pressure and half < room else draw.between(1, half)
        length = draw.one_of(1, draw.between(1, 6), length, length, length)
        length = draw.between(room, room + 3) if past_limit and draw.chance(0.3) else min(length, room)
        output = draw.tokens(length, vocab)
        if requests and draw.chance(0.15):
            # The same continuation as another request's: duplicate blocks are made while decoding.
            output = (requests[draw.between(0, len(requests) - 1)].output_token_ids + output)[:length]
        requests.append(
            LogicalRequest(
                request_id=f"r{i}",
                arrival_step=step,
                prompt_token_ids=prompt,
                output_token_ids=output,
                priority=draw.one_of(*priorities),
                cache_salt=draw.one_of(*salts),
                max_tokens=length + draw.between(1, 40) if draw.chance(eos_share) else None,
            )
        )
    return tuple(requests)


def _random_prompt(
    draw: Draw,
    settings: EngineSettings,
    longest: int,
    before: Sequence[LogicalRequest],
    shared: Sequence[tuple[int, ...]],
    vocab: int,
) -> tuple[int, ...]:
    length = draw.one_of(draw.between(1, longest), draw.between(1, min(longest, 24)))
    if draw.chance(0.35):  # an exact multiple of the block size
        length = max(settings.block_size, length // settings.block_size * settings.block_size)
    length = min(length, longest)
    kind = draw.one_of("new", "shared", "shared", "twin", "turn")
    if before and kind == "twin":
        return before[draw.between(0, len(before) - 1)].prompt_token_ids[:longest]
    if before and kind == "turn":
        parent = before[draw.between(0, len(before) - 1)]
        text = parent.prompt_token_ids + parent.output_token_ids + draw.tokens(draw.between(1, 8), vocab)
        return text[:longest]
    if kind == "shared":
        common = draw.between(0, length)
        return draw.one_of(*shared)[:common] + draw.tokens(length - common, vocab)
    return draw.tokens(length, vocab)
