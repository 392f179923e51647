"""Private copies of blocks that a request shares and is about to write into (vLLM 0.32.0, ``_apply_cow``,
``take_mamba_copies``).

A prefix hit that ends inside a block, or a cached state that its own request goes on from, is copied by the
batch of this step. Until the batch is made both blocks are held.
"""

from __future__ import annotations

import numpy as np

from sim.core.block_pool import free_block, get_new_block
from sim.core.jit import inner, leaf
from sim.core.kv_tables import replace_block
from sim.core.partial_tail import move_keys
from sim.core.state import KVCache


@inner
def _take_copy(kv: KVCache, g: int, source: int) -> int:
    """A new block for the copy of another one, noted for this step's batch."""
    kv.count.grants += 1
    copy = get_new_block(kv.pool)
    n = kv.ctl.num_copies
    kv.copies[n, 0] = g
    kv.copies[n, 1] = source
    kv.copies[n, 2] = copy
    kv.ctl.num_copies = n + 1
    return copy


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
    front = kv.params.num_blocks
    for g in range(kv.params.num_groups):
        for i in range(n):
            if kv.copies[i, 0] == g:
                front = free_block(kv.pool, kv.copies[i, 1], front)
                front = free_block(kv.pool, kv.copies[i, 2], front)
