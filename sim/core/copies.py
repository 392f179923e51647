"""Private copies of blocks that a request shares and is about to write into (vLLM 0.32.0, ``_apply_cow``,
``take_mamba_copies``).

A prefix hit that ends inside a block, or a cached state that its own request goes on from, is copied by the
batch of this step. Until the batch is made both blocks are held.
"""

from __future__ import annotations

import numpy as np

from sim.core import codes as c
from sim.core.block_pool import free_blocks
from sim.core.jit import inner, leaf
from sim.core.kv_tables import replace_block
from sim.core.partial_tail import move_keys
from sim.core.spare_blocks import get_new_blocks, settle
from sim.core.state import KVCache


@inner
def _take_copy(kv: KVCache, g: int, source: int) -> int:
    """A new block for the copy of another one, noted for this step's batch."""
    kv.count.grants += 1
    n = kv.ctl.num_copies
    kv.copies[0, n, 0] = g
    kv.copies[0, n, 1] = source
    get_new_blocks(kv.pool, kv.copies, 0, n, 2, 1)
    kv.ctl.num_copies = n + 1
    return np.int64(kv.copies[0, n, 2])


@inner
def copy_shared_block(kv: KVCache, slot: int, g: int) -> None:
    """The copy takes the place of the shared block in the table of a request that is admitted.

    The request's reference of the shared block, and one more of the copy, last until the batch is made.
    """
    place = np.int64(kv.states.shared[g, slot])
    kv.states.shared[g, slot] = -1
    source = np.int64(kv.table_blocks[g, slot, place])
    copy = _take_copy(kv, g, source)
    replace_block(kv, slot, g, place, copy)
    kv.pool.blocks.ref_cnt[copy] += 1


@inner
def move_keys_to_copy(kv: KVCache, slot: int, g: int) -> np.uint64:
    """A running request's block stays where its worker knows it; what it stands for moves to the copy.

    Returns the copy's key.
    """
    place = np.int64(kv.states.shared[g, slot])
    kv.states.shared[g, slot] = -1
    source = np.int64(kv.table_blocks[g, slot, place])
    copy = _take_copy(kv, g, source)
    move_keys(kv.pool, source, copy)
    kv.pool.blocks.ref_cnt[source] += 1
    return kv.pool.blocks.block_hash[copy]


@leaf
def no_copies(kv: KVCache) -> None:
    """No block is shared in part."""


@inner
def release_copies(kv: KVCache) -> None:
    """The batch is made: give up what its copies held, group by group (``take_pending_copies``)."""
    n = kv.ctl.num_copies
    if n == 0:
        return
    kv.ctl.num_copies = 0
    settle(kv.pool)
    # blocks are freed from the last place to the first
    first = kv.held_by_copies.size
    for g in range(kv.params.num_groups):
        for i in range(n):
            if kv.copies[0, i, 0] == g:
                first -= 2
                kv.held_by_copies[0, 0, first + 1] = kv.copies[0, i, 1]
                kv.held_by_copies[0, 0, first] = kv.copies[0, i, 2]
    last = kv.params.free_order == c.FREE_APPEND
    free_blocks(kv.pool, kv.held_by_copies, 0, 0, first, kv.held_by_copies.size, last)
