"""The state of a block pool at one instant, and every measure of fragmentation that follows from it.

The definitions are those of docs/analysis.md. Everything is recomputed from the arrays of the instant, by
other means than the incremental gauges of the engine, which a test compares with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.analysis.runs import power_of_two_histogram, runs_of
from sim.analysis.tables import LiveTables, RequestRows

if TYPE_CHECKING:
    from sim.core.state import State
    from workloads.requests import Workload

FREE, FREE_CACHED, USED, USED_CACHED, NULL = range(5)
STATE_NAMES = ("free", "free and cached", "used", "used and cached", "null")

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class FragmentationSnapshot:
    """A pool of N blocks at one instant.

    Attributes:
        time_ns: simulated (or the caller's) time.
        step: engine steps so far, -1: unknown.
        block_sizes: tokens of a block, by group.
        state: uint8[N], FREE, FREE_CACHED, USED, USED_CACHED or NULL (block 0); see STATE_NAMES.
        ref_cnt: int32[N], 0 for the null block.
        key: int64[N], equal for blocks that cache the same content in the same group; -1: not cached. None:
            not looked at.
        born_ns: int64[N], when the block was allocated last, -1: never or unknown.
        unreachable: bool[N], cached, but no look-up can reach it since an ancestor is not cached any more;
            None: the chains of the hashes are not known, or not looked at.
        free_order: int32[f], the free queue, next to be allocated first. None: not looked at.
        tables: block tables of the running requests.
    """

    time_ns: int
    step: int
    block_sizes: tuple[int, ...]
    state: NDArray[np.uint8]
    ref_cnt: I32
    key: I64 | None
    born_ns: I64
    unreachable: NDArray[np.bool_] | None
    free_order: I32 | None
    tables: LiveTables

    @classmethod
    def from_state(
        cls, state: State, workload: Workload, time_ns: int | None = None, *, layout_only: bool = False
    ) -> FragmentationSnapshot:
        """Snapshot of a simulated engine between two phases.

        Args:
            state: the engine.
            workload: what it serves.
            time_ns: if not the time of the engine's clock.
            layout_only: without ``key``, ``unreachable`` and ``free_order``, which on a pool of a million
                blocks take a hundred times as long as the rest.
        """
        from sim.analysis.from_state import snapshot_of_state

        return snapshot_of_state(state, workload, time_ns, layout_only=layout_only)

    @classmethod
    def from_block_pool(
        cls,
        pool: Any,
        requests: Iterable[Any] = (),
        tables: Mapping[str, Sequence[Sequence[int]]] | None = None,
        *,
        block_sizes: Sequence[int],
        time_ns: int = 0,
        step: int = -1,
        parents: Mapping[Any, Any] | None = None,
    ) -> FragmentationSnapshot:
        """Snapshot of a live BlockPool of vLLM, or of its twin in ``sim.reference``.

        Nothing is changed and vllm is not imported; the walk takes some microseconds a block.

        Args:
            pool: has ``blocks``, ``free_block_queue`` and ``null_block``.
            requests: the running requests in running order, with ``request_id`` and ``num_computed_tokens``.
            tables: request id -> for each group the block ids of its table.
            block_sizes: tokens of a block, by group.
            time_ns, step: copied into the snapshot.
            parents: block hash -> hash of the block before it in the prefix, None for a first block. vLLM's
                blocks do not know; requests' ``block_hashes`` or its KV events do. Without it ``unreachable``
                is None.
        """
        from sim.analysis.from_pool import snapshot_of_pool

        return snapshot_of_pool(pool, requests, tables or {}, tuple(block_sizes), time_ns, step, parents)

    # ---- blocks ----

    @property
    def num_blocks(self) -> int:
        """N, the null block included."""
        return len(self.state)

    @property
    def usable_blocks(self) -> int:
        """All but the null block."""
        return self.num_blocks - 1

    @cached_property
    def free_mask(self) -> NDArray[np.bool_]:
        """bool[N]: in the free queue."""
        return self.state <= FREE_CACHED

    @cached_property
    def counts(self) -> dict[str, int]:
        """Blocks in each state, by its name in STATE_NAMES."""
        counted = np.bincount(self.state, minlength=len(STATE_NAMES))
        return {name: int(n) for name, n in zip(STATE_NAMES, counted, strict=True)}

    @property
    def usable_slots(self) -> int:
        """Token slots of the usable blocks; with several block sizes, as if all had the largest."""
        return self.usable_blocks * max(self.block_sizes, default=1)

    @property
    def num_free(self) -> int:
        """Free blocks, evictable ones included."""
        return int(self.free_mask.sum())

    @property
    def num_used(self) -> int:
        """Usable blocks that are not free."""
        return self.usable_blocks - self.num_free

    @property
    def usage(self) -> float:
        """Used / usable blocks (vLLM's kv_cache_usage)."""
        return self.num_used / self.usable_blocks if self.usable_blocks else 0.0

    @cached_property
    def duplicate(self) -> NDArray[np.bool_] | None:
        """bool[N]: caches content that a block with a lower id caches too; None: not looked at."""
        if self.key is None:
            return None
        out = np.zeros(self.num_blocks, dtype=np.bool_)
        cached = np.flatnonzero(self.key >= 0)
        first = np.unique(self.key[cached], return_index=True)[1]
        out[cached] = True
        out[cached[first]] = False
        return out

    @property
    def num_cached(self) -> int:
        """Blocks that carry a hash."""
        return int(((self.state == FREE_CACHED) | (self.state == USED_CACHED)).sum())

    @property
    def num_duplicates(self) -> int | None:
        """Cached blocks beyond the first of each content, which vLLM does not merge; None: not looked at."""
        return None if self.duplicate is None else int(self.duplicate.sum())

    @property
    def num_unreachable(self) -> int | None:
        """Cached blocks that no look-up can reach; None: not known."""
        return None if self.unreachable is None else int(self.unreachable.sum())

    # ---- free runs ----

    @cached_property
    def free_runs(self) -> tuple[I64, I64]:
        """Maximal runs of consecutive free ids: first ids and lengths, ascending."""
        return runs_of(self.free_mask)

    @property
    def num_free_runs(self) -> int:
        """Their number."""
        return len(self.free_runs[0])

    @property
    def largest_free_run(self) -> int:
        """Length of the longest, 0 when no block is free."""
        lengths = self.free_runs[1]
        return int(lengths.max()) if len(lengths) else 0

    @property
    def mean_free_run(self) -> float:
        """Mean length, 0 when no block is free."""
        lengths = self.free_runs[1]
        return float(lengths.mean()) if len(lengths) else 0.0

    @cached_property
    def free_run_histogram(self) -> tuple[I64, I64]:
        """Runs with lengths in [1, 2), [2, 4), [4, 8) ...: lower bounds and counts."""
        return power_of_two_histogram(self.free_runs[1])

    @property
    def external_fragmentation(self) -> float:
        """1 - largest free run / free blocks; 0 when no block is free."""
        return 1.0 - self.largest_free_run / self.num_free if self.num_free else 0.0

    def contiguous_fit_fails(self, num_blocks: int) -> bool:
        """Whether a contiguous allocator would refuse that many blocks although enough are free."""
        return self.largest_free_run < num_blocks <= self.num_free

    # ---- owners ----

    @cached_property
    def _entries(self) -> tuple[I64, I64, I64, I64]:
        return self.tables.entries(self.block_sizes)

    @cached_property
    def owner(self) -> I32:
        """int32[N]: request of the first table, in running order, that holds the block; -1: none."""
        block, index, _, _ = self._entries
        out = np.full(self.num_blocks, -1, dtype=np.int32)
        out[block[::-1]] = self.tables.request[index[::-1]]
        return out

    @cached_property
    def num_owners(self) -> I32:
        """int32[N]: table entries that hold the block."""
        return np.bincount(self._entries[0], minlength=self.num_blocks).astype(np.int32)

    @cached_property
    def owner_group(self) -> NDArray[np.int16]:
        """int16[N]: KV-cache group of the first owner, -1: none."""
        block, _, group, _ = self._entries
        out = np.full(self.num_blocks, -1, dtype=np.int16)
        out[block[::-1]] = group[::-1]
        return out

    # ---- waste ----

    @cached_property
    def by_request(self) -> RequestRows:
        """Blocks, runs and slots of each running request."""
        return self.tables.rows(self.block_sizes)

    @cached_property
    def wasted_by_group(self) -> I64:
        """int64[G]: wasted slots, summed over the block tables."""
        _, _, group, held = self._entries
        size = np.asarray(self.block_sizes, dtype=np.int64)
        wasted = np.bincount(group, weights=size[group] - held, minlength=len(size))
        return wasted.astype(np.int64)

    @cached_property
    def blocks_by_group(self) -> I64:
        """int64[G]: entries of the block tables: a block in two tables counts twice, null blocks never."""
        return np.bincount(self._entries[2], minlength=len(self.block_sizes)).astype(np.int64)

    @cached_property
    def nulls_by_group(self) -> I64:
        """int64[G]: places in the block tables without a block: left of a window, or between states."""
        groups = max(len(self.block_sizes), 1)
        lengths = np.diff(self.tables.ptr).reshape(-1, groups).sum(axis=0)
        return np.asarray(lengths - self.blocks_by_group, dtype=np.int64)

    @property
    def allocated_slots(self) -> int:
        """Slots in the tables of running requests: a block in two tables counts twice."""
        return int(self.by_request.allocated_slots.sum())

    @property
    def held_tokens(self) -> int:
        """Computed tokens in those slots."""
        return int(self.by_request.held_tokens.sum())

    @property
    def wasted_slots(self) -> int:
        """Allocated minus held."""
        return self.allocated_slots - self.held_tokens

    @property
    def internal_fragmentation(self) -> float:
        """Wasted / allocated slots over the block tables; 0 when nothing is allocated."""
        return self.wasted_slots / self.allocated_slots if self.allocated_slots else 0.0

    @cached_property
    def _once(self) -> tuple[int, int]:
        """Allocated and held slots with each block counted once, as full as its fullest owner has it."""
        block, _, group, held = self._entries
        most = np.zeros(self.num_blocks, dtype=np.int64)
        np.maximum.at(most, block, held)
        size = np.zeros(self.num_blocks, dtype=np.int64)
        size[block] = np.asarray(self.block_sizes, dtype=np.int64)[group]
        return int(size.sum()), int(most.sum())

    @property
    def allocated_slots_once(self) -> int:
        """Slots of the blocks in tables, each block once."""
        return self._once[0]

    @property
    def held_tokens_once(self) -> int:
        """Computed tokens in those slots, a shared token once."""
        return self._once[1]

    @property
    def wasted_slots_once(self) -> int:
        """Allocated minus held, shared blocks once."""
        return self._once[0] - self._once[1]

    @property
    def internal_fragmentation_once(self) -> float:
        """Wasted / allocated slots with shared blocks counted once."""
        return self.wasted_slots_once / self._once[0] if self._once[0] else 0.0

    @property
    def token_usage(self) -> float:
        """Slots that hold a computed token of a running request / slots of the usable blocks.

        What vLLM #57336 asks for beside kv_cache_usage; exact with one block size.
        """
        return self.held_tokens_once / self.usable_slots if self.usable_slots else 0.0

    @property
    def table_contiguity(self) -> float | None:
        """Adjacent pairs in running requests' tables with consecutive ids / all such pairs; None: no pair."""
        block, index, group, _ = self._entries
        tables = len(np.unique(index * len(self.block_sizes) + group))
        pairs = len(block) - tables
        return None if pairs <= 0 else 1.0 - (int(self.by_request.runs.sum()) - tables) / pairs

    def summary(self) -> dict[str, Any]:
        """The scalars, as plain data for JSON."""
        bounds, counts = self.free_run_histogram
        return {
            "time_s": self.time_ns / 1e9,
            "step": self.step,
            "num_blocks": self.num_blocks,
            "blocks_by_state": self.counts,
            "usage": self.usage,
            "token_usage": self.token_usage,
            "num_running": len(self.tables.request),
            "num_free_blocks": self.num_free,
            "free_runs": self.num_free_runs,
            "largest_free_run": self.largest_free_run,
            "mean_free_run": self.mean_free_run,
            "free_run_histogram": {str(int(b)): int(n) for b, n in zip(bounds, counts, strict=True)},
            "external_fragmentation": self.external_fragmentation,
            "allocated_slots": self.allocated_slots,
            "held_tokens": self.held_tokens,
            "wasted_slots": self.wasted_slots,
            "wasted_by_group": self.wasted_by_group.tolist(),
            "blocks_by_group": self.blocks_by_group.tolist(),
            "nulls_by_group": self.nulls_by_group.tolist(),
            "internal_fragmentation": self.internal_fragmentation,
            "wasted_slots_shared_once": self.wasted_slots_once,
            "internal_fragmentation_shared_once": self.internal_fragmentation_once,
            "table_contiguity": self.table_contiguity,
            "cached_blocks": self.num_cached,
            "duplicate_blocks": self.num_duplicates,
            "unreachable_blocks": self.num_unreachable,
        }
