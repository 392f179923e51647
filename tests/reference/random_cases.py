"""Random engine settings and workloads that exercise every rule of the control plane, and can be served.

A case is a pure function of its seed. Pools are tiny, vocabularies have two or three tokens, prompts share
prefixes or are equal, lengths are often exact multiples of the block size, priorities and arrivals tie.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple


class Case(NamedTuple):
    """Settings and workload in the file formats, and aborts by step (empty unless asked for)."""

    settings: dict[str, Any]
    workload: list[dict[str, Any]]
    aborts: dict[int, list[str]]


def random_case(seed: int, with_aborts: bool = False) -> Case:
    """The case of ``seed``: every request fits the pool by itself, so the run ends."""
    rng = random.Random(seed)
    settings = _settings(rng)
    workload = _workload(rng, settings)
    aborts: dict[int, list[str]] = {}
    if with_aborts:
        for line in workload:
            if rng.random() < 0.25:
                step = line["arrival_step"] + rng.randint(0, 25)
                aborts.setdefault(step, []).append(line["request_id"])
        aborts = {step: ids[:1] for step, ids in aborts.items()}
    return Case(settings, workload, aborts)


def _settings(rng: random.Random) -> dict[str, Any]:
    block_size = rng.choice([1, 2, 3, 4, 5, 7, 8, 16, 32])
    num_gpu_blocks = rng.choice([rng.randint(3, 12), rng.randint(8, 40)])
    capacity = (num_gpu_blocks - 1) * block_size
    max_model_len = max(4, rng.choice([capacity, rng.randint(4, max(4, capacity)), 4096]))
    settings: dict[str, Any] = {
        "block_size": block_size,
        "num_gpu_blocks": num_gpu_blocks,
        "max_model_len": max_model_len,
        "max_num_seqs": rng.choice([1, rng.randint(2, 5), rng.randint(4, 12)]),
        "enable_prefix_caching": rng.random() < 0.85,
        "async_scheduling": rng.random() < 0.5,
        "policy": rng.choice(["fcfs", "priority"]),
        "arrival_time": rng.choice(["seq", "step"]),
        "scheduler_reserve_full_isl": rng.random() < 0.6,
        "watermark": rng.choice([0.0, 0.0, 0.1, 0.3]),
        "idle_steps": rng.choice(["skip", "skip", "skip", "run"]),
    }
    budget = settings["max_num_seqs"] + rng.choice([0, rng.randint(0, 16), rng.randint(0, 200)])
    if rng.random() < 0.15:
        settings["enable_chunked_prefill"] = False
        budget = max(budget, max_model_len)
    elif rng.random() < 0.2:
        settings["max_num_scheduled_tokens"] = rng.randint(1, budget + 8)
    settings["max_num_batched_tokens"] = budget
    if rng.random() < 0.2:
        settings["max_num_active_seqs"] = rng.randint(1, settings["max_num_seqs"])
    if rng.random() < 0.3:
        settings["long_prefill_token_threshold"] = min(rng.randint(1, 20), max_model_len)
        settings["long_prefill_token_threshold_adaptive"] = rng.random() < 0.5
    return settings


def _workload(rng: random.Random, settings: dict[str, Any]) -> list[dict[str, Any]]:
    block_size = settings["block_size"]
    capacity = (settings["num_gpu_blocks"] - 1) * block_size
    most_tokens = min(capacity, settings["max_model_len"])
    longest_prompt = min(most_tokens, settings["max_model_len"] - 1)
    # Half of the cases press: short prompts that grow long, all at once, so that running requests run dry.
    presses = rng.random() < 0.5
    longest_piece = max(1, longest_prompt // 5) if presses else longest_prompt
    vocabulary = rng.choice([1, 2, 3, 1000])
    prefixes = [
        [rng.randrange(vocabulary) for _ in range(_length(rng, block_size, longest_piece))] for _ in range(4)
    ]
    workload: list[dict[str, Any]] = []
    step = 0
    for i in range(rng.randint(3, 30)):
        prompt = list(rng.choice(prefixes)) if rng.random() < 0.7 else []
        if not prompt or rng.random() < 0.6:
            fresh = _length(rng, block_size, longest_piece)
            prompt += [rng.randrange(vocabulary) for _ in range(fresh)]
        prompt = prompt[:longest_prompt]
        # The output may run into max_model_len, never beyond the pool.
        room = capacity - len(prompt)
        if room < 1:
            prompt, room = prompt[:-1] or prompt, 1
        most_output = rng.choice([room, min(room, 2 * block_size + 3), min(room, 1 + capacity // 2)])
        most_output = min(most_output, 120)
        num_output = rng.randint((most_output + 1) // 2 if presses else 1, most_output)
        line: dict[str, Any] = {
            "request_id": f"r{i}",
            "arrival_step": step,
            "prompt_token_ids": prompt,
            "output_token_ids": [rng.randrange(vocabulary) for _ in range(num_output)],
            "priority": rng.randint(0, 2),
            "cache_salt": rng.choice([None, None, None, "a", "b"]),
        }
        if rng.random() < 0.25:
            line["max_tokens"] = num_output + rng.randint(1, 5)
        workload.append(line)
        step += (
            0
            if presses and rng.random() < 0.7
            else rng.choice([0, 0, 0, 0, 1, 2, rng.randint(0, 12), rng.randint(0, 60)])
        )
    if rng.random() < 0.2:
        rng.shuffle(workload)
    return workload


def _length(rng: random.Random, block_size: int, longest: int) -> int:
    blocks = rng.randint(1, max(1, longest // block_size // rng.choice([1, 2, 4])))
    length = blocks * block_size + rng.choice([0, 0, 1, -1, rng.randint(-block_size, block_size)])
    return min(max(length, 1), longest)
