"""One prefix for all KV-cache groups (vLLM 0.32.0, v1/core/kv_cache_coordinator.py).

A hit is a length in tokens on which every group agrees. Groups of one spec are looked up together, those of
full attention first.
"""

from __future__ import annotations

import numpy as np

from sim.core import codes as c
from sim.core import kv_groups, states
from sim.core.cache_hit import find_in_spec, set_hits
from sim.core.hits_inside import find_inside, note_shared_blocks
from sim.core.jit import inner, leaf
from sim.core.kv_tables import cdiv
from sim.core.partial_tail import cache_partial_tail
from sim.core.state import KVCache


@inner
def find_longest_cache_hit(kv: KVCache, r: int, slot: int, max_length: int) -> int:
    """Tokens of the longest prefix that every group has, and the hits of each group in its table.

    The request's ``shared_boundary`` becomes the longest prefix that some group had, if another one had less
    (``get_computed_blocks``).
    """
    if kv.params.hybrid == 0:
        size = kv.specs.block_size[0]
        drop = kv.specs.drops[0] != 0
        kv.specs.hit_tokens[0] = find_in_spec(kv, r, slot, 0, max_length, size, drop)
        return kv.specs.hit_tokens[0]
    for s in range(kv.params.num_specs):
        kv.specs.hit_tokens[s] = -1
        kv.specs.dropped[s] = 0
    # with full attention and one other spec, the other one's answer is final (but in 0.14)
    once = kv.params.hybrid_one_round and kv.params.num_specs == 2 and kv.specs.attention[0] == c.GROUP_FULL
    length = max_length
    longest = 0
    while True:
        current = length
        for s in range(kv.params.num_specs):
            if kv.specs.attention[s] == c.GROUP_FULL and kv.specs.hit_tokens[s] >= 0:
                current = _shortened(kv, s, current)
                continue
            # a drafter's block is dropped once for each length that is tried (>= 0.20)
            drop = kv.specs.drops[s] > kv.specs.dropped[s]
            limit = _with_margin(kv, r, s, current, max_length) if drop else current
            if not kv.windows_only and kv.params.fine_grained:
                found = find_inside(kv, r, slot, s, limit, drop)
            else:
                found = find_in_spec(kv, r, slot, s, limit, kv.params.hit_alignment, drop)
            if drop:
                kv.specs.dropped[s] = kv.params.draft_lookup != c.LOOKUP_EACH_ROUND
            elif found < current:
                for other in range(kv.params.num_specs):
                    kv.specs.dropped[other] = 0
            current = found
            kv.specs.hit_tokens[s] = current
            longest = max(longest, current)
        if current >= length:
            break
        length = current
        if once:
            break
    for s in range(kv.params.num_specs):
        if kv.specs.attention[s] == c.GROUP_FULL and (s == 0 or kv.params.trims_all_hits):
            set_hits(kv, slot, s, cdiv(min(length, kv.specs.hit_tokens[s]), kv.specs.block_size[s]), 0)
    if not kv.windows_only and kv.params.fine_grained:
        note_shared_blocks(kv, slot, length)
    if kv.params.shared_prefix_boundary:
        kv.requests.shared_boundary[r] = longest if longest > length else 0
    return length


@inner
def assume_hits(kv: KVCache, r: int, slot: int, max_length: int) -> int:
    """Tokens of the longest prefix that full attention has, as if every other group had it and had all of
    its blocks in use: no hit is longer, or leaves the request with fewer blocks to take.
    """
    kv.specs.hit_tokens[0] = find_in_spec(kv, r, slot, 0, max_length, kv.params.hit_alignment, False)
    for s in range(1, kv.params.num_specs):
        n = cdiv(np.int64(kv.specs.hit_tokens[0]), kv.specs.block_size[s])
        set_hits(kv, slot, s, n, n)
    return kv.specs.hit_tokens[0]


@leaf
def _shortened(kv: KVCache, s: int, length: int) -> int:
    """What full attention, which was asked before, has of ``length`` tokens: what is cached of a prefix is
    cached of its beginnings.

    Up to 0.25 a state behind what it had may make the hit longer again.
    """
    if kv.params.draft_lookup >= c.LOOKUP_ATTENTION:
        return min(length, np.int64(kv.specs.hit_tokens[s]))
    return length // kv.specs.block_size[s] * kv.specs.block_size[s]


@leaf
def _with_margin(kv: KVCache, r: int, s: int, length: int, max_length: int) -> int:
    """Tokens to look up so that the block that is dropped may lie behind ``length``; a state never is, but up
    to 0.25 looked up as if it were.
    """
    rule = kv.params.draft_lookup
    if rule == c.LOOKUP_EACH_ROUND:
        return length
    if rule != c.LOOKUP_IN_PROMPT and kv.specs.attention[s] == c.GROUP_MAMBA:
        return length
    unit = kv.hash_mult.size
    margin = unit if kv.params.fine_grained else np.int64(kv.specs.block_size[s])
    if rule != c.LOOKUP_BEHIND:
        return min(length + margin, max_length)
    return min(length + margin, kv.requests.num_tokens[r] // unit * unit)


@leaf
def _num_cacheable_tokens(kv: KVCache, g: int, num_tokens: int) -> int:
    """Known tokens that a later hit could end in (``get_num_cacheable_tokens``), and the block behind them
    where a hit loses its last one.
    """
    if kv.params.hybrid == 0 or kv.params.hybrid_aligned == 0 or kv.params.fine_grained:
        return num_tokens
    aligned = num_tokens // kv.params.scheduler_block_size * kv.params.scheduler_block_size
    if kv.groups.drops[g] and aligned > 0 and kv.params.hybrid_aligned == c.CACHES_ALIGNED:
        return min(num_tokens, aligned + kv.groups.block_size[g])
    return aligned


@inner
def cache_blocks(kv: KVCache, r: int, slot: int, num_tokens: int) -> None:
    """Offer what ``num_tokens`` known tokens fill to the prefix map, group by group."""
    if kv.windows_only and num_tokens < kv.due.fills[slot]:
        return
    for g in range(kv.params.num_groups):
        if kv.groups.like_last[g]:
            continue
        cacheable = _num_cacheable_tokens(kv, g, num_tokens)
        before = np.int64(kv.tables.num_cached[g, slot])
        kv_groups.cache_blocks(kv, r, slot, g, cacheable)
        if kv.windows_only:
            continue
        if kv.groups.attention[g] == c.GROUP_MAMBA:
            if kv.params.state_tails:
                states.cache_special_state(kv, r, slot, g, before, cacheable)
        elif kv.groups.attention[g] == c.GROUP_FULL and kv.groups.hash_ratio[g] > 1:
            if kv.params.partial_tail_keys:
                cache_partial_tail(kv, r, slot, g, cacheable)


@inner
def waits_for_state(kv: KVCache, slot: int) -> bool:
    """Whether the hit ends in a Mamba state that another request computes in this very step."""
    if kv.ctl.num_step_keys == 0:
        return False
    for g in range(kv.params.num_groups):
        hits = kv.tables.hits[g, slot]
        if kv.groups.attention[g] == c.GROUP_MAMBA and hits > 0:
            b = kv.table_blocks[g, slot, hits - 1]
            if states.is_state_of_this_step(kv, kv.pool.blocks.block_hash[b]):
                return True
    return False
