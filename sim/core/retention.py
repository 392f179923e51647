"""Which full blocks of a request are worth a hash (vLLM 0.32.0, ``reachable_block_mask`` of the
sliding-window and Mamba managers): a hit in such a group needs cached blocks only where the hit ends.
"""

from __future__ import annotations

from sim.core import codes as c
from sim.core.jit import inner, leaf
from sim.core.state import KVCache


@leaf
def _in_tail(kv: KVCache, g: int, i: int, boundary: int) -> bool:
    """Whether a hit that ends at ``boundary`` tokens, rounded down to where hits may end, needs block i."""
    alignment = kv.params.scheduler_block_size
    end = boundary // alignment * alignment // kv.groups.block_size[g]
    need = 1 if kv.groups.attention[g] == c.GROUP_MAMBA else kv.specs.tail_blocks[kv.groups.spec[g]]
    return end - need <= i < end


@inner
def is_reachable(kv: KVCache, r: int, g: int, i: int) -> bool:
    """Whether a later request can need block i of request r in group g to be cached.

    With retention 0 only the blocks are kept that a hit needs which ends where this prompt, sent again, can
    resume, or where the group was found to lack a prefix that another group had; a positive interval adds the
    ends of segments of as many tokens.
    """
    kind = kv.groups.attention[g]
    if kind not in (c.GROUP_SLIDING_WINDOW, c.GROUP_MAMBA):
        return True
    interval = kv.params.retention
    if interval == c.RETAIN_ALL:
        return True
    if kind == c.GROUP_MAMBA:
        if interval == c.RETAIN_DENSE:
            return True
        need = 1
    else:
        need = kv.specs.tail_blocks[kv.groups.spec[g]]
    segment = kv.params.scheduler_block_size if interval == c.RETAIN_DENSE else interval
    if segment > 0:
        blocks = segment // kv.groups.block_size[g]
        if need >= blocks or i % blocks >= blocks - need:
            return True
    if interval == c.RETAIN_DENSE:
        return False
    if _in_tail(kv, g, i, kv.requests.prompt_len[r] - 1):
        return True
    boundary = kv.requests.shared_boundary[r]
    return boundary > 0 and _in_tail(kv, g, i, boundary)
