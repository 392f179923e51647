"""The running requests of an instant: their block tables, and what follows for each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analysis.runs import consecutive_runs

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


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


@dataclass(frozen=True)
class LiveTables:
    """The running requests and their block tables, in running order; r requests, G groups.

    Attributes:
        request: int32[r], position in the workload (or any number of the caller's).
        request_id: r names.
        num_computed: int64[r], computed tokens (those of the batch in flight included).
        blocks: int32[k], block ids of all tables one behind the other; 0 is the null block.
        ptr: int64[r*G + 1]; the table of request i in group g is ``blocks[ptr[i*G+g] : ptr[i*G+g+1]]``.
        table_tokens: int64[r*G], tokens that each table holds; None: the request's computed ones. Those of
            cross attention hold encoder tokens.
    """

    request: I32
    request_id: tuple[str, ...]
    num_computed: I64
    blocks: I32
    ptr: I64
    table_tokens: I64 | None = None

    def table(self, i: int, group: int, num_groups: int = 1) -> I32:
        """Block table of the i-th running request in one group."""
        k = i * num_groups + group
        return self.blocks[self.ptr[k] : self.ptr[k + 1]]

    def entries(self, block_sizes: tuple[int, ...]) -> tuple[I64, I64, I64, I64]:
        """Entries of all tables without null blocks, in order: block, index of the request here, group, and
        tokens in the block; ``block_sizes`` by group, 0 where blocks hold states instead of tokens.
        """
        lengths = np.diff(self.ptr)
        table = np.repeat(np.arange(len(lengths)), lengths)
        index, group = np.divmod(table, max(len(block_sizes), 1))
        position = np.arange(len(self.blocks)) - self.ptr[table]
        size = np.asarray(block_sizes, dtype=np.int64)[group]
        tokens = self.num_computed[index] if self.table_tokens is None else self.table_tokens[table]
        held = np.clip(tokens - position * size, 0, size)
        real = self.blocks != 0
        return self.blocks[real].astype(np.int64), index[real], group[real], held[real]

    def rows(self, block_sizes: tuple[int, ...]) -> RequestRows:
        """Blocks, runs and slots of each request; ``block_sizes`` by group."""
        block, index, group, held = self.entries(block_sizes)
        n, groups = len(self.request), len(block_sizes)
        size = np.asarray(block_sizes, dtype=np.int64)[group]

        def total(values: NDArray[Any]) -> I64:
            return np.bincount(index, weights=values, minlength=n).astype(np.int64)

        # each null block is a run of its own, which is not counted
        null = self.blocks == 0
        ids = np.where(null, -2 * np.arange(1, len(self.blocks) + 1), self.blocks)
        nulls = np.diff(np.concatenate([[0], np.cumsum(null)])[self.ptr])
        runs = (consecutive_runs(ids, self.ptr) - nulls).reshape(n, groups).sum(axis=1)
        owners = np.bincount(block)
        allocated, tokens = total(size), total(held)
        return RequestRows(
            request=self.request,
            request_id=self.request_id,
            blocks=np.bincount(index, minlength=n).astype(np.int64),
            shared_blocks=total(owners[block] > 1),
            runs=runs.astype(np.int64),
            allocated_slots=allocated,
            held_tokens=tokens,
            wasted_slots=allocated - tokens,
        )
