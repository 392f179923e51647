"""The running requests of an instant: their block tables, and what follows for each of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class LiveTables:
    """The running requests and their block tables, in running order; r requests, G groups.

    Attributes:
        request: int32[r], position in the workload (or any number of the caller's).
        request_id: r names.
        num_computed: int64[r], computed tokens (those of the batch in flight included).
        blocks: int32[k], block ids of all tables one behind the other; 0 is the null block.
        ptr: int64[r*G + 1]; the table of request i in group g is ``blocks[ptr[i*G+g] : ptr[i*G+g+1]]``.
    """

    request: I32
    request_id: tuple[str, ...]
    num_computed: I64
    blocks: I32
    ptr: I64

    def table(self, i: int, group: int, num_groups: int = 1) -> I32:
        """Block table of the i-th running request in one group."""
        k = i * num_groups + group
        return self.blocks[self.ptr[k] : self.ptr[k + 1]]


@dataclass(frozen=True)
class RequestRows:
    """One entry a running request, in running order; sums over the groups.

    Attributes:
        request: int32[r], as in LiveTables.
        request_id: r names.
        blocks: int64[r], blocks in its tables, null blocks not counted.
        shared_blocks: int64[r], of these, held by another request too.
        runs: int64[r], maximal runs of consecutive ids in its tables.
        allocated_slots, held_tokens, wasted_slots: int64[r], token slots.
    """

    request: I32
    request_id: tuple[str, ...]
    blocks: I64
    shared_blocks: I64
    runs: I64
    allocated_slots: I64
    held_tokens: I64
    wasted_slots: I64

    @property
    def contiguity(self) -> NDArray[np.float64]:
        """float64[r], adjacent pairs of blocks with consecutive ids / all such pairs; 1 without a pair."""
        pairs = self.blocks - 1
        return np.where(pairs > 0, 1 - (self.runs - 1) / np.maximum(pairs, 1), 1.0)
