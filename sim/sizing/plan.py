"""From grouped layers and bytes to a pool: blocks, tokens and maximum concurrency, as vLLM prints them.

    block_bytes   bytes of one block in the widest group (every group has such a block)
    num_blocks    available // block_bytes, the null block included; or `num_gpu_blocks_override`
    per request   blocks of a request of max_model_len, summed over the groups
    concurrency   num_blocks / per request            "Maximum concurrency for ... tokens per request"
    tokens        int(concurrency * max_model_len)    "GPU KV cache size"

(0.32.0, kv_cache_utils.get_kv_cache_config_from_groups, get_max_concurrency_for_kv_cache_config,
get_kv_cache_capacity, and the start-up check in get_kv_cache_configs, which sets one block aside for the null
block. What other releases do differently, `Limits.rules` say.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sim.profiles import Rules
from sim.sizing.groups import Group, group_layers
from sim.sizing.specs import DEFAULT_RULES, LayerSpec


@dataclass(frozen=True)
class Limits:
    """What beside the layers decides how many blocks a request needs.

    Attributes:
        max_model_len: tokens of the longest request.
        in_flight_tokens: tokens scheduled and not yet settled: `max_num_batched_tokens`, twice with async
            scheduling.
        encoder_tokens: encoder tokens of a request (cross attention): vLLM takes `max_num_batched_tokens`.
        rules: of the release.
    """

    max_model_len: int
    in_flight_tokens: int
    encoder_tokens: int = 0
    rules: Rules = DEFAULT_RULES


@dataclass(frozen=True)
class PoolPlan:
    """A pool.

    Attributes:
        groups: KV-cache groups in vLLM's order; () for a model without a KV cache.
        limits: what was asked.
        available_bytes: memory of the pool on one GPU.
        block_bytes: bytes of one block on one GPU, in all layers that share it.
        num_blocks: the null block included; 1 for a model without a KV cache.
        request_blocks: blocks of one request of `max_model_len`, for each group.
        specs: the layers, as they were before they were grouped.
        checked_bytes: memory that the start-up check counts.
    """

    groups: tuple[Group, ...]
    limits: Limits
    available_bytes: int
    block_bytes: int
    num_blocks: int
    request_blocks: tuple[int, ...]
    specs: tuple[LayerSpec, ...] = ()
    checked_bytes: int = 0

    @property
    def max_concurrency(self) -> float:
        """Requests of `max_model_len` that fit at once, as vLLM prints it; 0.0 without a KV cache."""
        needed = sum(self.request_blocks)
        return self.num_blocks / needed if needed else 0.0

    @property
    def tokens(self) -> int:
        """'GPU KV cache size' in tokens, as vLLM prints it; 0 without a KV cache."""
        if self.groups and self.limits.rules.printed_tokens == "blocks":
            return self.num_blocks // len(self.groups) * min(g.spec.block_size for g in self.groups)
        return int(self.max_concurrency * self.limits.max_model_len)

    @property
    def used_bytes(self) -> int:
        """Bytes of all blocks."""
        return self.num_blocks * self.block_bytes

    @property
    def needed_bytes(self) -> int:
        """Bytes of one request of `max_model_len` without the null block, as the start-up check counts."""
        return self._needed_for(self.limits.max_model_len)

    @property
    def starts(self) -> bool:
        """Whether vLLM starts: a request of `max_model_len` fits (since 0.29: beside the null block)."""
        return not self.groups or self._fits(self.limits.max_model_len)

    def with_length(self, max_model_len: int) -> PoolPlan:
        """The same pool for requests of another length."""
        limits = replace(self.limits, max_model_len=max_model_len)
        return replace(self, limits=limits, request_blocks=_needed(self.groups, limits))

    @property
    def longest(self) -> int:
        """The largest `max_model_len`, up to the one asked, with which vLLM would start; 0: none."""
        return largest_that(self._fits, self.limits.max_model_len)

    def _fits(self, length: int) -> bool:
        null = self.block_bytes if self.limits.rules.null_in_check == "on" else 0
        room = self.checked_bytes - null
        return min(room, self.num_blocks) > 0 and self._needed_for(length) <= room

    def _needed_for(self, length: int) -> int:
        limits = replace(self.limits, max_model_len=length)
        if limits.rules.check_needs == "layers":
            return sum(_blocks(s, limits) * s.page_bytes for s in self.specs)
        groups = self.groups[:1] if limits.rules.check_needs == "first_group" else self.groups
        return self.block_bytes * sum(_needed(groups, limits))


def plan_pool(
    specs: Sequence[LayerSpec],
    available_bytes: int | None,
    limits: Limits,
    *,
    hybrid_manager: bool = True,
    num_gpu_blocks_override: int | None = None,
    mark_last: bool = False,
) -> PoolPlan:
    """The pool that vLLM makes for these layers; see the module's text.

    Args:
        specs: of all layers with a KV cache.
        available_bytes: memory on one GPU; None: what the blocks of `num_gpu_blocks_override` need.
        limits: what else decides.
        hybrid_manager, mark_last: as `group_layers`.
        num_gpu_blocks_override: blocks, whatever the memory.

    Raises:
        CannotGroup: vLLM can't put these layers into one pool.
    """
    rules, given = limits.rules, num_gpu_blocks_override
    groups = group_layers(specs, hybrid_manager, rules, mark_last)
    if not groups:
        return PoolPlan((), limits, available_bytes or 0, 0, 1, ())
    block_bytes = max(g.block_bytes for g in groups)
    num_blocks = max(0, available_bytes or 0) // block_bytes if given is None else given
    pool_bytes = (available_bytes or 0) if given is None else num_blocks * block_bytes
    by_memory = rules.checked_memory == "available" and available_bytes is not None
    return PoolPlan(
        groups,
        limits,
        pool_bytes,
        block_bytes,
        num_blocks,
        _needed(groups, limits),
        tuple(specs),
        (available_bytes or 0) if by_memory else pool_bytes,
    )


def _blocks(layers: Group | LayerSpec, limits: Limits) -> int:
    return layers.blocks_per_request(
        limits.max_model_len, limits.in_flight_tokens, limits.encoder_tokens, limits.rules.state_needs
    )


def _needed(groups: Sequence[Group], limits: Limits) -> tuple[int, ...]:
    return tuple(_blocks(g, limits) for g in groups)


def largest_that(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` that fits, by bisection; 0 if 1 does not."""
    if most < 1 or not fits(1):
        return 0
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
