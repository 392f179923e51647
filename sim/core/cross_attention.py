"""Block tables of cross attention (vLLM 0.32.0, ``CrossAttentionManager``): a decoder's layers that read the
encoder's output of their request.

A request has the blocks of all its encoder tokens from its admission, whose step runs the encoder, to its end
or preemption. Nothing of them is shared, so there is no prefix caching in such an engine. A
``windows_only`` engine is compiled with the ``_no_*`` versions, see ``switch``.
"""

from __future__ import annotations

from sim.core import codes as c
from sim.core.jit import inner, leaf
from sim.core.kv_tables import cdiv, grow_table
from sim.core.state import KVCache
from sim.core.switch import Switch


@leaf
def encoder_tokens(kv: KVCache, r: int) -> int:
    """Encoder tokens of a request: its own number, or what all requests of the engine have."""
    if r < kv.encoder_tokens.size:
        return kv.encoder_tokens[r]
    return kv.params.encoder_tokens


@leaf
def _no_note_encoder(kv: KVCache, r: int, slot: int) -> None:
    """There is no encoder."""


@leaf
def _note_encoder(kv: KVCache, r: int, slot: int) -> None:
    """The slot is the request's from now on: note how long its encoder input is."""
    kv.slots.encoder_tokens[slot] = encoder_tokens(kv, r)


@leaf
def num_encoder_blocks(kv: KVCache, slot: int, g: int, fresh: bool) -> int:
    """Blocks that a step takes from the pool: those of all encoder tokens at the admission, none later.

    Up to 0.16 those of the longest input that there may be, in 0.13 as many as a step has tokens.
    """
    tokens = kv.slots.encoder_tokens[slot]
    if kv.params.encoder_most > 0 and tokens > 0:
        tokens = kv.params.encoder_most
    return cdiv(tokens, kv.groups.block_size[g]) if fresh else 0


@inner
def allocate_encoder_blocks(kv: KVCache, slot: int, g: int, fresh: bool) -> None:
    """Take them; the step that follows fills them."""
    if fresh:
        grow_table(kv, slot, g, num_encoder_blocks(kv, slot, g, True))
        kv.groups.held[g] += kv.slots.encoder_tokens[slot]


@leaf
def _no_drop_encoder(kv: KVCache, slot: int) -> None:
    """There is no encoder."""


@leaf
def _drop_encoder(kv: KVCache, slot: int) -> None:
    """The slot's tables are about to be freed: its encoder tokens no longer count as held."""
    for g in range(kv.params.num_groups):
        if kv.groups.attention[g] == c.GROUP_CROSS and kv.tables.length[g, slot] > 0:
            kv.groups.held[g] -= kv.slots.encoder_tokens[slot]


@leaf
def _no_tokens_in_group(kv: KVCache, r: int, slot: int, g: int) -> int:
    """Full attention holds all computed tokens."""
    return kv.requests.num_computed[r]


@leaf
def _tokens_in_group(kv: KVCache, r: int, slot: int, g: int) -> int:
    """Tokens of a running request that its blocks of one group hold."""
    if kv.groups.attention[g] == c.GROUP_CROSS:
        return kv.slots.encoder_tokens[slot]
    return kv.requests.num_computed[r] - kv.tables.nulls[g, slot] * kv.groups.block_size[g]


note_encoder = Switch(_no_note_encoder, _note_encoder, "windows_only")
drop_encoder = Switch(_no_drop_encoder, _drop_encoder, "windows_only")
tokens_in_group = Switch(_no_tokens_in_group, _tokens_in_group)
