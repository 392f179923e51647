"""Residency metrics of sampled blocks: how long a block lived, idled, and was reused.

Formulas of vLLM 0.32.0, ``KVCacheMetricsCollector`` (``vllm/v1/core/kv_cache_metrics.py``), with the clock
and the sampler injected, so that a run in simulated time gives the same numbers every time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sim.reference.block_pool import KVCacheBlock

NS_PER_SECOND = 1e9
HISTORY = 4
"""Accesses that are remembered per block: at most HISTORY - 1 reuse gaps come out."""


class KVCacheEvictionEvent(NamedTuple):
    """One closed record; seconds."""

    lifetime_seconds: float
    idle_seconds: float
    reuse_gaps_seconds: tuple[float, ...]


class BlockMetricsState:
    """Open record of one block.

    Args:
        now_ns: time of the allocation.
    """

    def __init__(self, now_ns: int) -> None:
        self.birth_time_ns = now_ns
        self.last_access_ns = now_ns
        self.access_history: deque[int] = deque(maxlen=HISTORY)

    def record_access(self, now_ns: int) -> None:
        """Note one prefix hit at ``now_ns``."""
        self.last_access_ns = now_ns
        self.access_history.append(now_ns)

    def close(self, now_ns: int) -> KVCacheEvictionEvent:
        """The event for an eviction at ``now_ns``."""
        times = list(self.access_history)
        gaps = tuple((b - a) / NS_PER_SECOND for a, b in pairwise(times))
        lifetime = (now_ns - self.birth_time_ns) / NS_PER_SECOND
        idle = (now_ns - self.last_access_ns) / NS_PER_SECOND
        return KVCacheEvictionEvent(lifetime, idle, gaps)


class KVCacheMetricsCollector:
    """Follows a sample of blocks from allocation to re-allocation.

    Args:
        clock: returns the current time in integer nanoseconds.
        sample_rate: share of allocations that are followed, in (0, 1].
        random: returns a float in [0, 1); an allocation is followed when it is below ``sample_rate``.
    """

    def __init__(
        self, clock: Callable[[], int], sample_rate: float = 0.01, random: Callable[[], float] | None = None
    ) -> None:
        assert 0 < sample_rate <= 1.0, f"sample_rate must be in (0, 1], got {sample_rate}"
        if random is None and sample_rate < 1.0:
            raise ValueError("a sample rate below 1 needs a seeded random function")
        self.sample_rate = sample_rate
        self.block_metrics: dict[int, BlockMetricsState] = {}
        self._clock = clock
        self._random = random
        self._eviction_events: list[KVCacheEvictionEvent] = []

    def should_sample_block(self) -> bool:
        """Draw whether to follow the next allocation."""
        return self._random is None or self._random() < self.sample_rate

    def on_block_allocated(self, block: KVCacheBlock) -> None:
        """A block left the free queue for new content; an older open record of it is replaced."""
        if self.should_sample_block():
            self.block_metrics[block.block_id] = BlockMetricsState(self._clock())

    def on_block_accessed(self, block: KVCacheBlock) -> None:
        """A prefix hit on the block."""
        state = self.block_metrics.get(block.block_id)
        if state is not None:
            state.record_access(self._clock())

    def on_block_evicted(self, block: KVCacheBlock) -> None:
        """The block's content is dropped: close its record, if it has one."""
        state = self.block_metrics.pop(block.block_id, None)
        if state is not None:
            self._eviction_events.append(state.close(self._clock()))

    def reset(self) -> None:
        """Forget open records and undrained events (prefix cache reset)."""
        self.block_metrics.clear()
        self._eviction_events.clear()

    def drain_events(self) -> list[KVCacheEvictionEvent]:
        """The events since the last call, oldest first."""
        events, self._eviction_events = self._eviction_events, []
        return events
