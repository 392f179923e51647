"""From grouped layers and bytes to a pool: blocks, tokens and maximum concurrency, as vLLM 0.32.0 prints
them.

    block_bytes   bytes of one block in the widest group (every group has such a block)
    num_blocks    available // block_bytes, the null block included; or `num_gpu_blocks_override`
    per request   blocks of a request of max_model_len, summed over the groups
    concurrency   num_blocks / per request            "Maximum concurrency for ... tokens per request"
    tokens        int(concurrency * max_model_len)    "GPU KV cache size"

(kv_cache_utils.get_kv_cache_config_from_groups, get_max_concurrency_for_kv_cache_config,
get_kv_cache_capacity, and the start-up check in get_kv_cache_configs, which sets one block aside for the null
block.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sim.sizing.groups import PAD_UP_TO, Group, group_layers
from sim.sizing.specs import LayerSpec


@dataclass(frozen=True)
class Limits:
    """What beside the layers decides how many blocks a request needs.

    Attributes:
        max_model_len: tokens of the longest request.
        in_flight_tokens: tokens scheduled and not yet settled: `max_num_batched_tokens`, twice with async
            scheduling.
        encoder_tokens: encoder tokens of a request (cross attention): vLLM takes `max_num_batched_tokens`.
        null_block_reserved: whether the start-up check sets a block aside for the null block (since 0.29).
    """

    max_model_len: int
    in_flight_tokens: int
    encoder_tokens: int = 0
    null_block_reserved: bool = True


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
    """

    groups: tuple[Group, ...]
    limits: Limits
    available_bytes: int
    block_bytes: int
    num_blocks: int
    request_blocks: tuple[int, ...]

    @property
    def max_concurrency(self) -> float:
        """Requests of `max_model_len` that fit at once, as vLLM prints it; 0.0 without a KV cache."""
        needed = sum(self.request_blocks)
        return self.num_blocks / needed if needed else 0.0

    @property
    def tokens(self) -> int:
        """'GPU KV cache size' in tokens, as vLLM prints it."""
        return int(self.max_concurrency * self.limits.max_model_len)

    @property
    def used_bytes(self) -> int:
        """Bytes of all blocks."""
        return self.num_blocks * self.block_bytes

    @property
    def needed_bytes(self) -> int:
        """Bytes of one request of `max_model_len`, without the null block."""
        return self.block_bytes * sum(self.request_blocks)

    @property
    def starts(self) -> bool:
        """Whether vLLM starts: a request of `max_model_len` fits beside the null block."""
        return not self.groups or self.needed_bytes <= self._checked_bytes

    def with_length(self, max_model_len: int) -> PoolPlan:
        """The same pool for requests of another length."""
        limits = replace(self.limits, max_model_len=max_model_len)
        return replace(self, limits=limits, request_blocks=_needed(self.groups, limits))

    @property
    def _checked_bytes(self) -> int:
        return self.available_bytes - (self.block_bytes if self.limits.null_block_reserved else 0)

    @property
    def longest(self) -> int:
        """The largest `max_model_len`, up to the one asked, with which vLLM would start; 0: none."""
        return _longest(self.groups, self.limits, self._checked_bytes, self.block_bytes)


def plan_pool(
    specs: Sequence[LayerSpec],
    available_bytes: int,
    limits: Limits,
    *,
    hybrid_manager: bool = True,
    num_gpu_blocks_override: int | None = None,
    pad_up_to: float = PAD_UP_TO,
    mark_last: bool = False,
) -> PoolPlan:
    """The pool that vLLM makes for these layers; see the module's text.

    With `num_gpu_blocks_override` the memory is what that many blocks need, whatever is available. The other
    keywords are those of `group_layers`.

    Raises:
        CannotGroup: vLLM can't put these layers into one pool.
    """
    groups = group_layers(specs, hybrid_manager, pad_up_to, mark_last)
    if not groups:
        return PoolPlan((), limits, available_bytes, 0, 1, ())
    block_bytes = max(g.block_bytes for g in groups)
    num_blocks = max(0, available_bytes) // block_bytes
    if num_gpu_blocks_override is not None:
        num_blocks = num_gpu_blocks_override
        available_bytes = num_blocks * block_bytes
    return PoolPlan(groups, limits, available_bytes, block_bytes, num_blocks, _needed(groups, limits))


def _needed(groups: Sequence[Group], limits: Limits) -> tuple[int, ...]:
    return tuple(
        g.blocks_per_request(limits.max_model_len, limits.in_flight_tokens, limits.encoder_tokens)
        for g in groups
    )


def _longest(groups: Sequence[Group], limits: Limits, available: int, block_bytes: int) -> int:
    def fits(length: int) -> bool:
        needed = sum(
            g.blocks_per_request(length, limits.in_flight_tokens, limits.encoder_tokens) for g in groups
        )
        return needed * block_bytes <= available

    return largest_that(fits, limits.max_model_len)


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
