"""Block tables: appending, giving up places that attention has left behind, freeing.

A place that a request has given up, or never had a block for, holds the null block.
"""

from __future__ import annotations

import numpy as np

from sim.core import block_pool
from sim.core import codes as c
from sim.core.block_pool import NULL_BLOCK, touch
from sim.core.jit import inner, leaf
from sim.core.pool_rules import fits_in_a_run, get_new_blocks
from sim.core.prefetch import prefetch
from sim.core.spare_blocks import free_blocks, make_spare
from sim.core.state import KVCache

_PREFETCH_BLOCKS = 8
# So many records of the next group's table are fetched while one is freed.
_PREFETCH_TAIL = 4
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
def _runs_begin(kv: KVCache, slot: int, g: int, first: int, end: int) -> int:
    """How many blocks at the places first..end-1 do not follow the one before them in the pool."""
    runs = 0
    if first == 0 and end > 0:
        runs = int(kv.table_blocks[g, slot, 0] != NULL_BLOCK)
        first = 1
    for i in range(first, end):
        b = kv.table_blocks[g, slot, i]
        before = kv.table_blocks[g, slot, i - 1]
        runs += (b != NULL_BLOCK) & ((before == NULL_BLOCK) | (before + 1 != b))
    return runs


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
def _leave_places(kv: KVCache, slot: int, g: int, first: int, end: int) -> None:
    """Account for the blocks at the places first..end-1, which are about to be replaced by null blocks."""
    runs = _runs_begin(kv, slot, g, first, end)
    if end < kv.tables.length[g, slot] and kv.table_blocks[g, slot, end] != NULL_BLOCK:
        # the next block begins a run from now on
        runs -= 1 - _runs_begin(kv, slot, g, end, end + 1)
    kv.tables.runs[g, slot] -= runs
    kv.count.table_runs -= runs
    held = 0
    for i in range(first, end):
        held += kv.table_blocks[g, slot, i] != NULL_BLOCK
    kv.tables.nulls[g, slot] += held
    kv.count.table_blocks -= held
    kv.groups.allocated[g] -= held
    if kv.groups.token_slots[g]:
        kv.groups.held[g] -= held * kv.groups.block_size[g]


@inner
def _leave_window(kv: KVCache, slot: int, g: int, end: int) -> None:
    """Account for the first blocks of a window's table, up to the place ``end``, which become null blocks."""
    first, n = np.int64(kv.tables.nulls[g, slot]), np.int64(kv.tables.length[g, slot])
    # what is left begins a run
    runs = 1 if end == n else 0
    last: int = min(end, n - 1)
    for i in range(first + 1, last + 1):
        runs += kv.table_blocks[g, slot, i - 1] + 1 != kv.table_blocks[g, slot, i]
    kv.tables.runs[g, slot] -= runs
    kv.count.table_runs -= runs
    kv.tables.nulls[g, slot] = end
    kv.count.table_blocks -= end - first
    kv.groups.allocated[g] -= end - first
    if kv.groups.token_slots[g]:
        kv.groups.held[g] -= (end - first) * kv.groups.block_size[g]


@inner
def free_places(kv: KVCache, slot: int, g: int, first: int, end: int, last: bool) -> None:
    """Free the blocks at the places first..end-1, the last one first, see ``block_pool.free_blocks``.

    In front of a window's blocks that may have keys, and behind them, nobody else knows the blocks.
    """
    if last:
        block_pool.free_blocks(kv.pool, kv.table_blocks, g, slot, first, end, True)
        return
    keyed_first, keyed_end = first, end
    if kv.groups.attention[g] in (c.GROUP_SLIDING_WINDOW, c.GROUP_CHUNKED_LOCAL):
        keyed_first = min(max(first, np.int64(kv.keyed.first[g, slot])), end)
        keyed_end = max(keyed_first, min(end, np.int64(kv.keyed.end[g, slot])))
    make_spare(kv.pool, kv.table_blocks, g, slot, first, keyed_first)
    free_blocks(kv.pool, kv.table_blocks, g, slot, keyed_first, keyed_end)
    make_spare(kv.pool, kv.table_blocks, g, slot, keyed_end, end)


@leaf
def note_keys(kv: KVCache, slot: int, g: int, first: int, end: int) -> None:
    """The blocks at the places first..end-1 may have keys, and other owners, from now on."""
    if kv.keyed.end[g, slot] <= kv.tables.nulls[g, slot]:
        # those that had some have left the table
        kv.keyed.first[g, slot] = first
    kv.keyed.first[g, slot] = min(np.int64(kv.keyed.first[g, slot]), first)
    kv.keyed.end[g, slot] = max(np.int64(kv.keyed.end[g, slot]), end)


@inner
def replace_block(kv: KVCache, slot: int, g: int, i: int, b: int) -> None:
    """Put block b into place i of the table; references are the caller's affair."""
    end: int = min(i + 2, kv.tables.length[g, slot])
    change = -_runs_begin(kv, slot, g, i, end)
    kv.table_blocks[g, slot, i] = b
    change += _runs_begin(kv, slot, g, i, end)
    kv.tables.runs[g, slot] += change
    kv.count.table_runs += change


@inner
def move_block(kv: KVCache, slot: int, g: int, i: int) -> None:
    """Move the block at place i behind the table's end; a null block takes its place."""
    n = np.int64(kv.tables.length[g, slot])
    kv.table_blocks[g, slot, n] = kv.table_blocks[g, slot, i]
    _leave_places(kv, slot, g, i, i + 1)
    kv.table_blocks[g, slot, i] = NULL_BLOCK
    append_blocks(kv, slot, g, n, 1)


@inner
def _empty_places(kv: KVCache, slot: int, g: int, first: int, end: int, last: bool) -> None:
    """Free the blocks at the places first..end-1, which are accounted for, and leave null blocks there."""
    free_places(kv, slot, g, first, end, last)
    for i in range(first, end):
        kv.table_blocks[g, slot, i] = NULL_BLOCK


@inner
def give_up_window(kv: KVCache, slot: int, g: int, end: int) -> None:
    """Free the first blocks of a window's table, up to the place ``end``, the last one first
    (``_remove_blocks_in_range``).
    """
    # what a window has given up is the beginning of its table
    first = np.int64(kv.tables.nulls[g, slot])
    _leave_window(kv, slot, g, end)
    _empty_places(kv, slot, g, first, end, kv.params.free_order == c.FREE_APPEND)


@inner
def give_up(kv: KVCache, slot: int, g: int, first: int, end: int, last: bool) -> None:
    """Free the blocks at the places first..end-1, the last one first (``_remove_blocks_in_range``); see
    ``block_pool.free_blocks`` for ``last``.
    """
    _leave_places(kv, slot, g, first, end)
    _empty_places(kv, slot, g, first, end, last)


@inner
def adopt_hits(kv: KVCache, slot: int, g: int, skipped: int) -> None:
    """Touch the hit blocks in ascending position and make them the beginning of the table.

    The first ``skipped`` ones lie before what attention will read, and stay where they are in the free queue.
    """
    hits = kv.tables.hits[g, slot]
    first = max(skipped, kv.tables.first_hit[g, slot])
    append_nulls(kv, slot, g, max(skipped, min(first, hits)))
    for i in range(first, hits):
        if i + _PREFETCH_BLOCKS < hits:
            prefetch(kv.pool.blocks, kv.table_blocks[g, slot, i + _PREFETCH_BLOCKS])
        touch(kv.pool, kv.table_blocks[g, slot, i])
    if hits > first:
        append_blocks(kv, slot, g, first, hits - first)
        note_keys(kv, slot, g, first, hits)
    kv.tables.num_cached[g, slot] = kv.tables.length[g, slot]
    kv.due.fills[slot] = 0
    if not kv.windows_only and kv.states.shared[g, slot] >= 0:
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


@leaf
def empty_table(kv: KVCache, slot: int, g: int) -> None:
    """Forget the places of the table, whose blocks are free by now."""
    nulls = kv.tables.nulls[g, slot]
    held = kv.tables.length[g, slot] - nulls
    kv.count.table_blocks -= held
    kv.count.table_runs -= kv.tables.runs[g, slot]
    kv.groups.allocated[g] -= held
    if kv.groups.token_slots[g]:
        kv.groups.held[g] += nulls * kv.groups.block_size[g]
    kv.tables.length[g, slot] = 0
    kv.tables.num_cached[g, slot] = 0
    kv.tables.runs[g, slot] = 0
    kv.tables.nulls[g, slot] = 0


@inner
def free_table(kv: KVCache, slot: int, g: int) -> None:
    """Free the slot's blocks of the group, the tail of the table first, and empty the table."""
    # what a window has given up is the beginning of its table
    first = kv.tables.nulls[g, slot] if kv.groups.attention[g] != c.GROUP_MAMBA else 0
    last = kv.params.free_order == c.FREE_APPEND
    if kv.params.free_order == c.FREE_SPLIT_WINDOWS:
        last = kv.groups.attention[g] != c.GROUP_SLIDING_WINDOW
    if g + 1 < kv.params.num_groups:
        behind = kv.tables.length[g + 1, slot]
        for i in range(max(behind - _PREFETCH_TAIL, 0), behind):
            prefetch(kv.pool.blocks, kv.table_blocks[g + 1, slot, i])
    free_places(kv, slot, g, first, kv.tables.length[g, slot], last)
    empty_table(kv, slot, g)
    kv.keyed.end[g, slot] = 0
    if kv.groups.attention[g] == c.GROUP_MAMBA:
        kv.tables.last_state[g, slot] = -1
        kv.tables.retired[g, slot] = 0
        kv.states.shared[g, slot] = -1
        kv.states.exported_at[g, slot] = -1
