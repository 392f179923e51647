"""Which full blocks of a request are worth a hash (vLLM 0.32.0, ``reachable_block_mask`` of the
sliding-window and Mamba managers): a hit in such a group needs cached blocks only where the hit ends.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from sim.core import codes as c
from sim.core.jit import inner, leaf
from sim.core.state import KVCache

Selection: TypeAlias = tuple[int, int, int, int, int, int]
# see ``next_selected``
_ALL: Selection = (1, 1, 0, 0, 0, 0)
_NONE: Selection = (0, 0, 0, 0, 0, 0)


@leaf
def _end_of_boundary(kv: KVCache, g: int, boundary: int) -> int:
    """Blocks before ``boundary`` tokens, rounded down to where a hit may end."""
    alignment = kv.params.mask_alignment
    return boundary // alignment * alignment // kv.groups.block_size[g]


@inner
def selected(kv: KVCache, r: int, g: int) -> Selection:
    """Which blocks of request r in group g a later request can need to be cached; see ``next_selected``.

    With retention 0 only the blocks are kept that a hit needs which ends where this prompt, sent again, can
    resume, or where the group was found to lack a prefix that another group had; a positive interval adds the
    ends of segments of as many tokens.
    """
    kind = kv.groups.attention[g]
    interval = kv.params.retention
    if kind not in (c.GROUP_SLIDING_WINDOW, c.GROUP_MAMBA) or interval == c.RETAIN_ALL:
        return _ALL
    need = 1
    shift = 0
    uneven = interval == c.RETAIN_UNEVEN
    if uneven:
        if kv.params.mask_alignment <= kv.groups.block_size[g]:
            return _ALL
        interval = np.int64(c.RETAIN_DENSE)
    if kind == c.GROUP_SLIDING_WINDOW:
        # a block that is dropped lies behind the window (0.22 forgets it)
        shift = 0 if uneven else np.int64(kv.groups.drops[g])
        need = kv.specs.tail_blocks[kv.groups.spec[g]] + shift
    elif interval == c.RETAIN_DENSE or kv.params.state_retention == 0:
        return _ALL
    segment = kv.params.mask_alignment if interval == c.RETAIN_DENSE else interval
    blocks = segment // kv.groups.block_size[g]
    if 0 < blocks <= need:
        return _ALL
    if need == 0:
        # a window of one token: a hit needs no block of it
        return _NONE
    if interval == c.RETAIN_DENSE:
        return blocks, need, shift, 0, 0, 0
    shared = 0
    if kv.requests.shared_boundary[r] > 0 and kv.params.shared_prefix_boundary == c.SHARED_KEPT:
        shared = _end_of_boundary(kv, g, kv.requests.shared_boundary[r]) + shift
    prompt = kv.requests.prompt_len[r]
    if kv.params.replays_dropped == 0:
        return blocks, need, shift, _end_of_boundary(kv, g, prompt - 1) + shift, 0, shared
    # a block is dropped from what matches: the same prompt matches up to its last token but one, a longer
    # one up to its last whole block
    unit = kv.params.scheduler_block_size
    same = _end_of_boundary(kv, g, max((prompt - 1) // unit - 1, 0) * unit) + shift
    longer = _end_of_boundary(kv, g, max(prompt // unit - 1, 0) * unit) + shift
    return blocks, need, shift, same, longer, shared


@leaf
def keeps_multiple(kv: KVCache, g: int, num_tokens: int) -> bool:
    """Whether the retention interval alone keeps a Mamba state after so many tokens."""
    size = kv.groups.block_size[g]
    interval = kv.params.retention if kv.params.state_retention else c.RETAIN_DENSE
    if num_tokens % size != 0 or interval == 0:
        return False
    return interval < 0 or interval <= size or num_tokens % interval == 0


@leaf
def selects_all(selection: Selection) -> bool:
    """Whether every block is selected."""
    return 0 < selection[0] <= selection[1] and selection[2] == 0


@leaf
def next_selected(selection: Selection, i: int, end: int) -> int:
    """The first selected block from i on, ``end`` when there is none before it.

    ``selection`` is (blocks of a segment or 0, blocks that a hit needs before its end, how far behind the
    segment's that end lies, and three places where hits end or 0).
    """
    segment, need, shift, replay, longer, shared = selection
    first = end
    if segment > 0:
        k = max(i, shift)
        first = k + max(segment - need - (k - shift) % segment, 0)
    if i < replay:
        first = min(first, max(i, replay - need))
    if i < longer:
        first = min(first, max(i, longer - need))
    if i < shared:
        first = min(first, max(i, shared - need))
    return min(first, end)
