"""KVCacheManager (vLLM 0.32.0, v1/core/kv_cache_manager.py) over the KV-cache groups."""

from __future__ import annotations

from sim.core import cache_hit, cross_attention, kv_rules, kv_tables, pool_rules
from sim.core.block_pool import get_num_free_blocks
from sim.core.jit import apart, inner, leaf
from sim.core.state import KVCache

# Outcomes of allocate_slots
ALLOCATED = 0
FAIL_RESERVE = 1  # the whole known sequence would not fit
FAIL_WATERMARK = 2  # it would fit, but for the watermark
FAIL_POOL = 3  # too few free blocks for this step
FAIL_RUNNING = 4  # a running request found none for its next tokens (event log only)
FAIL_STATE = 5  # its hit is a Mamba state that another request computes in this step


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
    cross_attention.note_encoder(kv, r, slot)
    return slot


@leaf
def release_slot(kv: KVCache, r: int) -> None:
    """Take the request's slot back; its tables are empty by now."""
    slot = kv.requests.slot[r]
    if slot < 0:
        return
    if kv.ctl.memo_req == r:
        cache_hit.forget_lookup(kv)
    kv.slots.free_stack[kv.ctl.num_free_slots] = slot
    kv.ctl.num_free_slots += 1
    kv.requests.slot[r] = -1


@leaf
def remember_lookup(kv: KVCache, r: int, slot: int) -> None:
    """The look-up of a request that could not be admitted need not start over in the next step."""
    cache_hit.remember_lookup(kv, r, slot)


@leaf
def get_computed_blocks(kv: KVCache, r: int, slot: int) -> int:
    """Tokens of the prefix hit; at least the last token is left to compute."""
    if kv.params.enable_caching == 0:
        return 0
    return kv_rules.find_longest_cache_hit(kv, r, slot, kv.requests.num_tokens[r] - 1)


@leaf
def new_step_starts(kv: KVCache) -> None:
    """A schedule() call begins: the states cached in earlier ones are written by now."""
    kv.ctl.num_step_keys = 0


@leaf
def step_ends(kv: KVCache) -> None:
    """The free runs of all that was freed are measured."""
    pool_rules.rank(kv.pool)


@leaf
def call_ends(kv: KVCache) -> None:
    """Somebody may look at the blocks: all that was freed know their places in the free queue."""
    pool_rules.settle(kv.pool)


@leaf
def _skipped_hits(kv: KVCache, g: int, hit_tokens: int) -> int:
    """Leading hits that attention will not read, and that are left where they are (>= 0.14)."""
    if kv.params.takes_skipped_hits:
        return 0
    return kv_rules.skipped_blocks(kv, g, hit_tokens)


@inner
def _free_hits(kv: KVCache, r: int, slot: int, hit_tokens: int) -> int:
    """Hit blocks that a waiting request takes out of the free queue."""
    free = 0
    for g in range(kv.params.num_groups):
        free += cache_hit.count_free_hits(kv, r, slot, g, _skipped_hits(kv, g, hit_tokens))
    return free


@inner
def _new_blocks(
    kv: KVCache, r: int, slot: int, num_tokens: int, computed: int, whole: bool, fresh: bool
) -> int:
    """Blocks that slots for ``num_tokens`` need in all groups, beyond the hits, see ``num_new_blocks``."""
    need = 0
    of_group = 0
    for g in range(kv.params.num_groups):
        if kv.groups.like_last[g] == 0:
            of_group = kv_rules.num_new_blocks(kv, r, slot, g, num_tokens, computed, whole, fresh)
        need += of_group
    return need


@leaf
def _reserved_blocks(kv: KVCache, r: int, slot: int, hit_tokens: int) -> int:
    """Blocks beyond the hits that the full-sequence reserve wants for all known tokens of a request."""
    whole = min(kv.requests.num_tokens[r], kv.params.max_model_len)
    return _new_blocks(kv, r, slot, whole, hit_tokens, True, True)


@inner
def is_refused_again(kv: KVCache, r: int, slot: int) -> bool:
    """Whether a request whose look-up is remembered is short of blocks (FAIL_RESERVE) whatever its windows
    hit, so that they need not be looked up.
    """
    if kv.ctl.memo_req != r or kv.params.foresees_refusals == 0:
        return False
    hit_tokens = kv_rules.assume_hits(kv, r, slot, kv.requests.num_tokens[r] - 1)
    need = _free_hits(kv, r, slot, hit_tokens) + _reserved_blocks(kv, r, slot, hit_tokens)
    return need > get_num_free_blocks(kv.pool)


@inner
def can_admit(kv: KVCache, r: int, slot: int, num_new_tokens: int, hit_tokens: int, has_running: bool) -> int:
    """Whether a waiting request fits (the checks of ``allocate_slots``), before anything is changed.

    Full-sequence reserve first, on all known tokens, then this step's tokens; both leave the watermark free
    when some request is running. Returns ALLOCATED or a failure code.
    """
    if kv_rules.waits_for_state(kv, slot):
        return FAIL_STATE
    watermark = kv.params.watermark_blocks if has_running else 0
    free = get_num_free_blocks(kv.pool)
    hits = _free_hits(kv, r, slot, hit_tokens)
    limit = kv.params.max_model_len
    if kv.params.reserve_full_isl:
        need = hits + _reserved_blocks(kv, r, slot, hit_tokens)
        if need + watermark > free:
            return FAIL_WATERMARK if need <= free else FAIL_RESERVE
    tokens = min(hit_tokens + num_new_tokens, limit)
    need = hits + _new_blocks(kv, r, slot, tokens, hit_tokens, False, True)
    if need + watermark > free:
        return FAIL_WATERMARK if need <= free else FAIL_POOL
    return ALLOCATED


@inner
def blocks_wanted(kv: KVCache, r: int, slot: int, num_new_tokens: int, hit_tokens: int) -> int:
    """Free blocks that the refused admission asked for: for all known tokens under the full-sequence reserve,
    else for this step's.
    """
    tokens = kv.requests.num_tokens[r] if kv.params.reserve_full_isl else hit_tokens + num_new_tokens
    whole = kv.params.reserve_full_isl != 0
    tokens = min(tokens, kv.params.max_model_len)
    return _free_hits(kv, r, slot, hit_tokens) + _new_blocks(kv, r, slot, tokens, hit_tokens, whole, True)


@leaf
def blocks_wanted_running(kv: KVCache, r: int, slot: int, num_new_tokens: int) -> int:
    """Free blocks that a running request asks for."""
    computed = kv.requests.num_computed[r]
    target = min(computed + num_new_tokens, kv.params.max_model_len)
    return _new_blocks(kv, r, slot, target, computed, False, False)


@leaf
def admit(kv: KVCache, r: int, slot: int, num_new_tokens: int, hit_tokens: int) -> None:
    """Give a waiting request its hit blocks and the new ones; all groups touch before any allocates."""
    cache_hit.forget_lookup(kv)
    if kv.params.enable_caching:
        for g in range(kv.params.num_groups):
            kv_rules.adopt_hits(kv, slot, g, _skipped_hits(kv, g, hit_tokens))
    target = min(hit_tokens + num_new_tokens, kv.params.max_model_len)
    _grow(kv, r, slot, hit_tokens, target, True)
    _cache_known(kv, r, slot, hit_tokens + num_new_tokens)


@inner
def _grow(kv: KVCache, r: int, slot: int, computed: int, target: int, fresh: bool) -> None:
    """New blocks for a request that is to have ``target`` computed tokens."""
    for g in range(kv.params.num_groups):
        kv_rules.allocate_new_blocks(kv, r, slot, g, target, computed, fresh)
    held = kv_tables.blocks_held(kv, slot)
    if held > kv.requests.peak_blocks[r]:
        kv.requests.peak_blocks[r] = held


@leaf
def _cache_known(kv: KVCache, r: int, slot: int, num_tokens: int) -> None:
    """Cache what a step fills; tokens that are only placeholders have no identity yet and stay out."""
    cache_blocks(kv, r, slot, min(num_tokens, kv.requests.num_tokens[r]))


@leaf
def allocate_running(kv: KVCache, r: int, slot: int, num_new_tokens: int) -> bool:
    """``allocate_slots`` of a running request: no hits, no reserve, no watermark; False when the pool is
    short. What has left an attention window is freed in any case.
    """
    computed = kv.requests.num_computed[r]
    if computed + num_new_tokens <= kv.requests.quiet[r]:
        return True
    kv_rules.remove_left_behind(kv, r, slot)
    target = min(computed + num_new_tokens, kv.params.max_model_len)
    if kv_rules.outgrows_tables(kv, slot, target):
        if _new_blocks(kv, r, slot, target, computed, False, False) > get_num_free_blocks(kv.pool):
            return False
        _grow(kv, r, slot, computed, target, False)
    _cache_known(kv, r, slot, computed + num_new_tokens)
    return True


@leaf
def cache_blocks(kv: KVCache, r: int, slot: int, num_tokens: int) -> None:
    """Cache what ``num_tokens`` known and computed tokens fill, group by group."""
    if kv.params.enable_caching:
        kv_rules.cache_blocks(kv, r, slot, num_tokens)
    kv.requests.quiet[r] = kv_rules.quiet_tokens(kv, r, slot)


@apart
def free(kv: KVCache, r: int) -> None:
    """Free the request's blocks, group by group, and its slot; what they cache stays cached."""
    slot = kv.requests.slot[r]
    if slot < 0:
        return
    cross_attention.drop_encoder(kv, slot)
    for g in range(kv.params.num_groups):
        kv_rules.free_table(kv, slot, g)
    release_slot(kv, r)
