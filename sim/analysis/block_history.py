"""What the block operations of a live recording say about each block: when it was allocated, what it caches
since when, and how long blocks live (vLLM's residency formulas with every allocation followed).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analysis.residency import Residency, ResidencyHistogram

I64 = NDArray[np.int64]
HISTORY = 4
"""Hits of a block that are remembered: at most three reuse gaps come out."""


class BlockHistory:
    """Applies the operations of a recording in order, up to a call.

    Attributes:
        born_ns: int64[N], when a block was allocated last, -1: not since the recording began.
        content: int64[N], a number for what it caches (unlike all before), 0: nothing.
        evicted: cached blocks that lost their content.
        evicted_unused: of these, without a hit since they were cached.

    Args:
        num_blocks: N, the null block included.
        ops: (call, operation) in order.
        times_ns: of each operation.
        caching: whether the prefix cache is on; without it vLLM closes no record of a block's life.

    Raises:
        ValueError: an operation names a block that the pool has not.
    """

    def __init__(
        self, num_blocks: int, ops: Sequence[tuple[int, list[Any]]], times_ns: I64, caching: bool = True
    ) -> None:
        for _, op in ops:
            if op[0] != "reset" and op[1] and not 0 <= min(op[1]) <= max(op[1]) < num_blocks:
                raise ValueError(f"an operation on block {max(op[1])}")
        self.born_ns = np.full(num_blocks, -1, dtype=np.int64)
        self.content = np.zeros(num_blocks, dtype=np.int64)
        self.evicted = self.evicted_unused = self.allocations = 0
        self._ops = ops
        self._caching = caching
        self._times = times_ns
        self._at = self._contents = 0
        self._hit = np.zeros(num_blocks, dtype=np.bool_)
        self._hits: dict[int, list[int]] = {}
        self._durations: tuple[list[int], list[int], list[int]] = ([], [], [])

    def advance(self, call: int | None = None) -> None:
        """Apply what happened up to the end of a call; None: everything."""
        ops = self._ops
        while self._at < len(ops) and (call is None or ops[self._at][0] <= call):
            self._apply(ops[self._at][1], int(self._times[self._at]))
            self._at += 1

    def _apply(self, op: list[Any], now: int) -> None:
        name = op[0]
        if name == "new":
            for block in op[1]:
                self._drop(block, now)
                self.born_ns[block] = now
                self._hits[block] = []
            self.allocations += len(op[1])
        elif name == "touch":
            for block in op[1]:
                self._hit[block] = True
                if block in self._hits:
                    self._hits[block].append(now)
        elif name == "cache":
            for block in op[1]:
                self._contents += 1
                self.content[block] = self._contents
                self._hit[block] = False
        elif name == "evict":
            for block in op[1]:
                self._drop(block, now)
        elif name == "reset" and op[1]:
            self.content[:] = 0
            self._hits.clear()

    def _drop(self, block: int, now: int) -> None:
        """The content of a block is lost: its record is closed."""
        if self.content[block]:
            self.evicted += 1
            self.evicted_unused += not self._hit[block]
            self.content[block] = 0
        hits = self._hits.pop(block, None)
        if hits is None or not self._caching:
            return
        lifetime, idle, gaps = self._durations
        born = int(self.born_ns[block])
        lifetime.append(now - born)
        idle.append(now - (hits[-1] if hits else born))
        last = hits[-HISTORY:]
        gaps += [b - a for a, b in pairwise(last)]

    def residency(self) -> Residency:
        """Of all blocks that were allocated again up to now."""
        lifetime, idle, gaps = (_histogram(durations) for durations in self._durations)
        return Residency(1.0, lifetime, idle, gaps, open_records=len(self._hits))


def _histogram(durations_ns: list[int]) -> ResidencyHistogram:
    from sim.capacity import RESIDENCY_BOUNDS_NS

    bounds = np.array(RESIDENCY_BOUNDS_NS, dtype=np.int64)
    ns = np.array(durations_ns, dtype=np.int64)
    fine, counts = np.unique(ns, return_counts=True)
    return ResidencyHistogram(
        count=len(ns),
        total_s=int(ns.sum()) / 1e9,
        max_s=int(ns.max(initial=0)) / 1e9,
        bounds_s=bounds / 1e9,
        counts=np.bincount(np.searchsorted(bounds, ns, side="left"), minlength=len(bounds) + 1),
        fine_s=fine / 1e9,
        fine_counts=counts.astype(np.int64),
    )
