"""Cases that a whole engine with the tiny model can run, made from cases of the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from validation.fuzz_cases import Case, blocks_of_largest
from validation.logical import LogicalRequest
from validation.vllm_engine import CPU_BLOCK_MULTIPLE, TINY_VOCABULARY


def for_cpu_engine(case: Case, max_requests: int | None = None) -> Case | None:
    """The case with a block size that vLLM's CPU attention takes, in a pool of about as many tokens.

    None when a CPU engine can't run it in any form: several KV-cache groups, async scheduling. The engine
    checks at start that a request of max_model_len fits the pool: that limit comes down to the pool's size.
    """
    settings = case.settings
    if len(settings.kv_cache_groups) > 1 or settings.kv_cache_groups[0].type != "full":
        return None
    if settings.async_scheduling:
        return None
    requests = tuple(_in_vocabulary(case.requests[:max_requests]))
    block_size = -(-settings.block_size // CPU_BLOCK_MULTIPLE) * CPU_BLOCK_MULTIPLE
    settings = replace(settings, block_size=block_size, idle_steps="skip", prefix_match_unit=None)
    blocks = max(
        1 + blocks_of_largest(settings, requests),
        case.settings.num_gpu_blocks * case.settings.block_size // block_size,
    )
    limit = min(settings.max_model_len, (blocks - 1) * block_size)
    return Case(
        f"{case.name}_b{block_size}", replace(settings, num_gpu_blocks=blocks, max_model_len=limit), requests
    )


def _in_vocabulary(requests: Sequence[LogicalRequest]) -> list[LogicalRequest]:
    return [
        replace(
            r,
            prompt_token_ids=tuple(t % TINY_VOCABULARY for t in r.prompt_token_ids),
            output_token_ids=tuple(t % TINY_VOCABULARY for t in r.output_token_ids),
        )
        for r in requests
    ]
