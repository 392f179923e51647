"""Block tables: appending, giving up places that attention has left behind, freeing.

A place that a request has given up, or never had a block for, holds the null block.
"""

from __future__ import annotations

import numpy as np

from sim.core import codes as c
from sim.core.block_pool import NULL_BLOCK, free_block, get_new_blocks, touch
from sim.core.jit import inner, leaf
from sim.core.prefetch import prefetch
from sim.core.probes import fits_in_a_run
from sim.core.state import KVCache

_PREFETCH_BLOCKS = 8
#: How far ahead of their use keys are fetched.
PREFETCH_KEYS = 12
#: Stands for the parent of a prefix's first block.
NO_PARENT = np.uint64(0)


@leaf
def cdiv(a: int, b: int) -> int:
    """Ceiling division of non-negative integers."""
    return (a + b - 1) // b


@leaf
def blocks_held(kv: KVCache, slot: int) -> int:
    """Blocks in the slot's tables, over all groups."""
    total = 0
    for g in range(kv.params.num_groups):
        total += kv.tables.length[g, slot] - kv.tables.nulls[g, slot]
    return total


@leaf
def hold_tokens(kv: KVCache, change: int) -> None:
    """A running request's computed tokens changed: each group with slots for them holds them."""
    for g in range(kv.params.num_groups):
        if kv.groups.token_slots[g] == c.SLOTS_TOKENS:
            kv.groups.held[g] += change


@leaf
def append_blocks(kv: KVCache, slot: int, g: int, n: int, count: int) -> None:
    """Account for ``count`` blocks, which stand behind the table's n places already."""
    runs = 1 if n == 0 and count > 0 else 0
    for i in range(max(n, 1), n + count):
        before = kv.table_blocks[g, slot, i - 1]
        runs += (before == NULL_BLOCK) | (before + 1 != kv.table_blocks[g, slot, i])
    kv.tables.runs[g, slot] += runs
    kv.count.table_runs += runs
    kv.tables.length[g, slot] = n + count
    kv.count.table_blocks += count
    kv.groups.allocated[g] += count


@inner
def append_nulls(kv: KVCache, slot: int, g: int, end: int) -> None:
    """Fill the table with null blocks up to ``end`` places; their tokens are computed already."""
    n = kv.tables.length[g, slot]
    if end <= n:
        return
    for i in range(n, end):
        kv.table_blocks[g, slot, i] = NULL_BLOCK
    kv.tables.length[g, slot] = end
    kv.tables.nulls[g, slot] += end - n
    if kv.groups.token_slots[g]:
        kv.groups.held[g] -= (end - n) * kv.groups.block_size[g]


@inner
def _take_from_table(kv: KVCache, slot: int, g: int, i: int) -> int:
    """Replace the block at place i by the null block; the caller frees it."""
    b = kv.table_blocks[g, slot, i]
    left = i > 0 and kv.table_blocks[g, slot, i - 1] != NULL_BLOCK
    left = left and kv.table_blocks[g, slot, i - 1] + 1 == b
    right = i + 1 < kv.tables.length[g, slot] and kv.table_blocks[g, slot, i + 1] == b + 1
    change = int(left) + int(right) - 1
    kv.tables.runs[g, slot] += change
    kv.count.table_runs += change
    kv.table_blocks[g, slot, i] = NULL_BLOCK
    kv.tables.nulls[g, slot] += 1
    kv.count.table_blocks -= 1
    kv.groups.allocated[g] -= 1
    if kv.groups.token_slots[g]:
        kv.groups.held[g] -= kv.groups.block_size[g]
    return b


@leaf
def _starts_run(kv: KVCache, slot: int, g: int, i: int) -> int:
    """1 when the block at place i does not follow the one before it in the pool, 0 for a null block."""
    b = kv.table_blocks[g, slot, i]
    if i == 0 or b == NULL_BLOCK:
        return int(b != NULL_BLOCK)
    before = kv.table_blocks[g, slot, i - 1]
    return int(before == NULL_BLOCK or before + 1 != b)


@inner
def replace_block(kv: KVCache, slot: int, g: int, i: int, b: int) -> None:
    """Put block b into place i of the table; references are the caller's affair."""
    end: int = min(i + 2, kv.tables.length[g, slot])
    change = 0
    for j in range(i, end):
        change -= _starts_run(kv, slot, g, j)
    kv.table_blocks[g, slot, i] = b
    for j in range(i, end):
        change += _starts_run(kv, slot, g, j)
    kv.tables.runs[g, slot] += change
    kv.count.table_runs += change


@inner
def move_block(kv: KVCache, slot: int, g: int, i: int) -> None:
    """Move the block at place i behind the table's end; a null block takes its place."""
    n = np.int64(kv.tables.length[g, slot])
    kv.table_blocks[g, slot, n] = _take_from_table(kv, slot, g, i)
    append_blocks(kv, slot, g, n, 1)


@inner
def give_up(kv: KVCache, slot: int, g: int, first: int, end: int, over_gaps: bool) -> None:
    """Free the blocks at the places first..end-1, the last one first (``_remove_blocks_in_range``).

    Stops at the first null block, unless the table may have gaps.
    """
    front = kv.params.num_blocks
    for i in range(end - 1, first - 1, -1):
        if kv.table_blocks[g, slot, i] == NULL_BLOCK:
            if over_gaps:
                continue
            return
        front = free_block(kv.pool, _take_from_table(kv, slot, g, i), front)


@inner
def adopt_hits(kv: KVCache, slot: int, g: int, skipped: int) -> None:
    """Touch the hit blocks in ascending position and make them the beginning of the table.

    The first ``skipped`` ones lie before what attention will read, and stay where they are in the free queue.
    """
    hits = kv.tables.hits[g, slot]
    first = max(skipped, kv.tables.first_hit[g, slot])
    append_nulls(kv, slot, g, max(skipped, min(first, hits)))
    for i in range(first, hits):
        touch(kv.pool, kv.table_blocks[g, slot, i])
    if hits > first:
        append_blocks(kv, slot, g, first, hits - first)
    kv.tables.num_cached[g, slot] = kv.tables.length[g, slot]
    if kv.states.shared[g, slot] >= 0:
        # the block in which the hit ends is not full
        kv.tables.num_cached[g, slot] -= 1


@leaf
def grow_table(kv: KVCache, slot: int, g: int, num_blocks: int) -> None:
    """Append blocks from the front of the free queue until the table has ``num_blocks``."""
    need = num_blocks - kv.tables.length[g, slot]
    if need > 0:
        kv.count.grants += 1
        if not fits_in_a_run(kv.pool, need):
            kv.count.contiguous_fit_failures += 1
        n = np.int64(kv.tables.length[g, slot])
        get_new_blocks(kv.pool, kv.table_blocks, g, slot, n, need)
        append_blocks(kv, slot, g, n, need)


@inner
def free_table(kv: KVCache, slot: int, g: int) -> None:
    """Free the slot's blocks of the group, the tail of the table first, and empty the table."""
    front = kv.params.num_blocks
    if kv.params.free_order == c.FREE_SPLIT_WINDOWS and kv.groups.attention[g] != c.GROUP_SLIDING_WINDOW:
        front = -1
    n = kv.tables.length[g, slot]
    # what a window has given up is the beginning of its table
    first = kv.tables.nulls[g, slot] if kv.groups.attention[g] != c.GROUP_MAMBA else 0
    for i in range(n - 1, first - 1, -1):
        if i >= _PREFETCH_BLOCKS:
            prefetch(kv.pool.blocks, kv.table_blocks[g, slot, i - _PREFETCH_BLOCKS])
        front = free_block(kv.pool, kv.table_blocks[g, slot, i], front)
    nulls = kv.tables.nulls[g, slot]
    kv.count.table_blocks -= n - nulls
    kv.count.table_runs -= kv.tables.runs[g, slot]
    kv.groups.allocated[g] -= n - nulls
    if kv.groups.token_slots[g]:
        kv.groups.held[g] += nulls * kv.groups.block_size[g]
    kv.tables.length[g, slot] = 0
    kv.tables.num_cached[g, slot] = 0
    kv.tables.runs[g, slot] = 0
    kv.tables.nulls[g, slot] = 0
    if kv.groups.attention[g] == c.GROUP_MAMBA:
        kv.tables.last_state[g, slot] = -1
        kv.tables.retired[g, slot] = 0
        kv.states.shared[g, slot] = -1
        kv.states.exported_at[g, slot] = -1
