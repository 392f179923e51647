"""KVCacheManager (vLLM 0.32.0, v1/core/kv_cache_manager.py) over the KV-cache groups."""

from __future__ import annotations

import numpy as np

from sim.core import kv_groups
from sim.core.block_pool import get_num_free_blocks
from sim.core.jit import inner, leaf
from sim.core.state import KVCache

# Outcomes of allocate_slots
ALLOCATED = 0
FAIL_RESERVE = 1  # the whole known sequence would not fit
FAIL_WATERMARK = 2  # it would fit, but for the watermark
FAIL_POOL = 3  # too few free blocks for this step
FAIL_RUNNING = 4  # a running request found none for its next tokens (event log only)


@leaf
def acquire_slot(kv: KVCache, r: int) -> int:
    """Give the request tables and a hash chain of its own."""
    slot = kv.requests.slot[r]
    if slot >= 0:
        return slot
    top = kv.ctl.num_free_slots - 1
    kv.ctl.num_free_slots = top
    slot = kv.slots.free_stack[top]
    kv.requests.slot[r] = slot
    kv.slots.num_hashed[slot] = 0
    kv.slots.hash_piece[slot] = kv.seg_ptr[r]
    kv.slots.hash_offset[slot] = 0
    return slot


@leaf
def release_slot(kv: KVCache, r: int) -> None:
    """Take the request's slot back; its tables are empty by now."""
    slot = kv.requests.slot[r]
    if slot < 0:
        return
    if kv.ctl.memo_req == r:
        kv_groups.forget_lookup(kv)
    kv.slots.free_stack[kv.ctl.num_free_slots] = slot
    kv.ctl.num_free_slots += 1
    kv.requests.slot[r] = -1


@leaf
def remember_lookup(kv: KVCache, r: int, slot: int, num_hits: int) -> None:
    """The look-up of a request that could not be admitted need not start over in the next step."""
    kv_groups.remember_lookup(kv, r, slot, num_hits)


@leaf
def get_computed_blocks(kv: KVCache, r: int, slot: int) -> int:
    """Number of hit blocks a group; at least the last token is left to compute."""
    if kv.params.enable_caching == 0:
        return 0
    return kv_groups.find_longest_cache_hit(kv, r, slot, kv.requests.num_tokens[r] - 1)


@leaf
def _num_new_blocks(kv: KVCache, slot: int, num_tokens: int, num_hits: int) -> int:
    need = 0
    for g in range(kv.params.num_groups):
        need += kv_groups.get_num_new_blocks(kv, slot, g, num_tokens, num_hits)
    return need


@inner
def can_admit(kv: KVCache, r: int, slot: int, num_new_tokens: int, num_hits: int, has_running: bool) -> int:
    """Whether a waiting request fits (the checks of ``allocate_slots``), before anything is changed.

    Full-sequence reserve first, on all known tokens, then this step's tokens; both leave the watermark free
    when some request is running. Returns ALLOCATED or a failure code.
    """
    watermark = kv.params.watermark_blocks if has_running else 0
    free = get_num_free_blocks(kv.pool)
    limit = kv.params.max_model_len
    evictable = kv_groups.count_free_hits(kv, r, slot, num_hits)
    if kv.params.reserve_full_isl:
        need = evictable + _num_new_blocks(kv, slot, min(kv.requests.num_tokens[r], limit), num_hits)
        if need + watermark > free:
            return FAIL_WATERMARK if need <= free else FAIL_RESERVE
    computed = num_hits * kv.groups.block_size[0]
    need = evictable + _num_new_blocks(kv, slot, min(computed + num_new_tokens, limit), num_hits)
    if need + watermark > free:
        return FAIL_WATERMARK if need <= free else FAIL_POOL
    return ALLOCATED


@inner
def blocks_wanted(kv: KVCache, r: int, slot: int, num_new_tokens: int, num_hits: int) -> int:
    """Free blocks that the refused admission asked for: for all known tokens under the full-sequence reserve,
    else for this step's.
    """
    tokens = num_hits * kv.groups.block_size[0] + num_new_tokens
    if kv.params.reserve_full_isl:
        tokens = kv.requests.num_tokens[r]
    evictable = kv_groups.count_free_hits(kv, r, slot, num_hits)
    return evictable + _num_new_blocks(kv, slot, min(tokens, kv.params.max_model_len), num_hits)


@inner
def blocks_wanted_running(kv: KVCache, r: int, slot: int, num_new_tokens: int) -> int:
    """Free blocks that a running request asks for."""
    target = min(kv.requests.num_computed[r] + num_new_tokens, kv.params.max_model_len)
    return _num_new_blocks(kv, slot, target, 0)


@leaf
def admit(kv: KVCache, r: int, slot: int, num_new_tokens: int, num_hits: int) -> None:
    """Give a waiting request its hit blocks and the new ones; all groups touch before any allocates."""
    kv_groups.forget_lookup(kv)
    for g in range(kv.params.num_groups):
        kv_groups.add_local_computed_blocks(kv, slot, g, num_hits)
    computed = num_hits * kv.groups.block_size[0]
    _grow(kv, r, slot, computed, num_new_tokens)


@inner
def _grow(kv: KVCache, r: int, slot: int, computed: int, num_new_tokens: int) -> None:
    target = min(computed + num_new_tokens, kv.params.max_model_len)
    for g in range(kv.params.num_groups):
        kv_groups.allocate_new_blocks(kv, slot, g, target)
    n = kv.tables.length[0, slot]
    if n > kv.requests.peak_blocks[r]:
        kv.requests.peak_blocks[r] = n
    # tokens that are only placeholders have no identity yet and stay out of the cache
    cache_blocks(kv, r, slot, min(computed + num_new_tokens, kv.requests.num_tokens[r]))


@inner
def _note_quiet(kv: KVCache, r: int, slot: int) -> None:
    """Note up to how many computed tokens a running request will need no block and fill none.

    Until then nothing of ``allocate_slots`` and ``cache_blocks`` has an effect, and both are left out.
    """
    quiet = np.int64(kv.params.max_model_len)
    for g in range(kv.params.num_groups):
        size = kv.groups.block_size[g]
        quiet = min(quiet, kv.tables.length[g, slot] * size)
        if kv.params.enable_caching:
            quiet = min(quiet, kv.tables.num_cached[g, slot] * size + size - 1)
    kv.requests.quiet[r] = quiet


@leaf
def allocate_running(kv: KVCache, r: int, slot: int, num_new_tokens: int) -> bool:
    """``allocate_slots`` of a running request: no hits, no reserve, no watermark; False when the pool is
    short.
    """
    computed = kv.requests.num_computed[r]
    if computed + num_new_tokens <= kv.requests.quiet[r]:
        return True
    target = min(computed + num_new_tokens, kv.params.max_model_len)
    if _num_new_blocks(kv, slot, target, 0) > get_num_free_blocks(kv.pool):
        return False
    _grow(kv, r, slot, computed, num_new_tokens)
    return True


@leaf
def cache_blocks(kv: KVCache, r: int, slot: int, num_tokens: int) -> None:
    """Cache what ``num_tokens`` known and computed tokens fill, group by group."""
    if kv.params.enable_caching:
        for g in range(kv.params.num_groups):
            kv_groups.cache_blocks(kv, r, slot, g, num_tokens)
    _note_quiet(kv, r, slot)


@inner
def free(kv: KVCache, r: int) -> None:
    """Free the request's blocks, group by group, and its slot; what they cache stays cached."""
    slot = kv.requests.slot[r]
    if slot < 0:
        return
    for g in range(kv.params.num_groups):
        kv_groups.free_table(kv, slot, g)
    release_slot(kv, r)
