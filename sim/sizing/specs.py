"""What one layer of a model keeps in the KV cache: the fields by which vLLM groups layers and sizes their
pages.

A page is one block of one layer. `LayerSpec` has the meaning of vLLM 0.32.0's KVCacheSpec classes
(kv_cache_interface.py); `kind` stands for the class:

    full              FullAttentionSpec       K and V of every token
    mla               MLAAttentionSpec        one latent vector of every token (grouped as full attention)
    sliding_window    SlidingWindowSpec       K and V of the tokens in the window
    chunked_local     ChunkedLocalAttentionSpec   K and V of the tokens of the current chunk
    cross_attention   CrossAttentionSpec      K and V of the encoder's tokens
    mamba             MambaSpec               one state, whatever the number of tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sim.profiles import DEFAULT_RELEASE, Rules, rules_of

FULL_KINDS = ("full", "mla")
DEFAULT_RULES = rules_of(DEFAULT_RELEASE)


class CannotGroup(ValueError):
    """Layers that vLLM can't put into one pool either; the text says why."""


class Refusal(CannotGroup):
    """What a release refuses before it groups layers; the text goes on from its name."""


@dataclass(frozen=True)
class LayerSpec:
    """The KV cache of one layer on one GPU.

    Attributes:
        kind: see the module's text.
        block_size: tokens of one block.
        heads: key-value heads on this GPU (1 for mla; 0 for mamba).
        head_size, head_size_v: elements of one head's K and V (mla: latent and rotary part together, and 0).
        element_bytes: bytes of one cached element.
        sliding_window: tokens (sliding_window; or full, for a window layer that is kept as full).
        attention_chunk_size: tokens (chunked_local; or full, for a chunk layer that is kept as full).
        state_bytes: bytes of the state (mamba).
        mamba_cache_mode: "none", "align" or "all" (mamba).
        speculative_blocks, checkpoint_blocks: further states of one request (mamba).
        page_size_padded: bytes of the page where it is padded; None: as large as its content.
    """

    kind: str
    block_size: int
    heads: int = 0
    head_size: int = 0
    head_size_v: int = 0
    element_bytes: int = 2
    sliding_window: int | None = None
    attention_chunk_size: int | None = None
    state_bytes: int = 0
    mamba_cache_mode: str = "none"
    speculative_blocks: int = 0
    checkpoint_blocks: int = 0
    page_size_padded: int | None = None

    @property
    def token_bytes(self) -> int:
        """Bytes of one token; 0 for a state, which does not grow."""
        return self.heads * (self.head_size + self.head_size_v) * self.element_bytes

    @property
    def content_bytes(self) -> int:
        """Bytes of what a page holds."""
        return self.state_bytes if self.kind == "mamba" else self.block_size * self.token_bytes

    @property
    def page_bytes(self) -> int:
        """Bytes of a page, padding included."""
        return self.content_bytes if self.page_size_padded is None else self.page_size_padded

    @property
    def is_full(self) -> bool:
        """Whether blocks are kept for every token."""
        return self.kind in FULL_KINDS

    def blocks_per_request(
        self,
        max_model_len: int,
        in_flight_tokens: int,
        encoder_tokens: int = 0,
        state_needs: str = DEFAULT_RULES.state_needs,
    ) -> int:
        """Blocks that a request of `max_model_len` tokens holds at most.

        As max_memory_usage_bytes and max_admission_blocks_per_request of the specs: a window holds
        window - 1 tokens and those in flight, and one block more because it need not begin at a block's edge.

        Args:
            max_model_len: tokens of the longest request.
            in_flight_tokens: tokens scheduled and not yet settled (two batches with async scheduling).
            encoder_tokens: tokens of the encoder that a request may have (cross attention).
            state_needs: the switch (mamba).
        """
        if self.kind == "mamba":
            return self._states_per_request(max_model_len, state_needs)
        if self.kind == "sliding_window":
            assert self.sliding_window is not None
            return cdiv(min(self.sliding_window - 1 + in_flight_tokens, max_model_len), self.block_size) + 1
        if self.kind == "chunked_local":
            assert self.attention_chunk_size is not None
            return cdiv(min(self.attention_chunk_size + in_flight_tokens, max_model_len), self.block_size)
        if self.kind == "cross_attention":
            return cdiv(encoder_tokens, self.block_size)
        return cdiv(max_model_len, self.block_size)

    def _states_per_request(self, max_model_len: int, state_needs: str) -> int:
        in_every_block = cdiv(max_model_len, self.block_size)
        if state_needs == "tables":
            return in_every_block
        drafts = self.speculative_blocks
        if self.mamba_cache_mode == "all":
            return in_every_block + (drafts if state_needs == "drafts" else 0)
        return 1 + drafts + (1 + self.checkpoint_blocks if self.mamba_cache_mode == "align" else 0)

    def tokens_needed(self, tokens: int, encoder_tokens: int = 0) -> int:
        """Tokens of a request that this layer can still attend to, out of `tokens` computed ones."""
        if self.kind == "cross_attention":
            return encoder_tokens
        if self.sliding_window is not None:
            return min(tokens, self.sliding_window)
        if self.attention_chunk_size is not None:
            return min(tokens, self.attention_chunk_size)
        return tokens


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def merge(specs: Sequence[LayerSpec], rules: Rules = DEFAULT_RULES) -> LayerSpec:
    """One spec for layers of one group, or CannotGroup; as the specs' own `merge`.

    Full-attention layers may differ in the window or chunk that they remember, if only one value occurs;
    everything else must be equal. Under some rules the first of several shapes of latent attention stands
    for all.
    """
    first = specs[0]
    if first.kind == "mla" and rules.latent_shapes == "first" and all(s.kind == "mla" for s in specs):
        return first
    if first.kind != "full":
        if any(s != first for s in specs):
            raise CannotGroup("layers of one group must be equal")
        return first
    plain = [replace(s, sliding_window=None, attention_chunk_size=None) for s in specs]
    if any(p != plain[0] for p in plain):
        raise CannotGroup("full-attention layers of one group must have pages of one shape")
    windows = {s.sliding_window for s in specs if s.sliding_window is not None}
    chunks = {s.attention_chunk_size for s in specs if s.attention_chunk_size is not None}
    if len(windows) + len(chunks) > 1:
        raise CannotGroup("full-attention layers of one group can remember one window or one chunk only")
    return replace(
        plain[0],
        sliding_window=next(iter(windows), None),
        attention_chunk_size=next(iter(chunks), None),
    )


def can_merge(specs: Sequence[LayerSpec], rules: Rules = DEFAULT_RULES) -> bool:
    """Whether `merge` would succeed."""
    try:
        merge(specs, rules)
    except CannotGroup:
        return False
    return True


def same_slots(specs: Sequence[LayerSpec], rules: Rules = DEFAULT_RULES) -> bool:
    """Whether the layers always need the same number of blocks, whatever their page sizes.

    As UniformTypeKVCacheSpecs.is_uniform_type. Some rules keep states of unequal size apart all the same.
    """
    first = specs[0]
    if any(s.block_size != first.block_size for s in specs):
        return False
    if first.is_full:
        return all(s.is_full for s in specs)
    if any(s.kind != first.kind for s in specs):
        return False
    if first.kind == "sliding_window":
        return all(s.sliding_window == first.sliding_window for s in specs)
    if first.kind == "chunked_local":
        return all(s.attention_chunk_size == first.attention_chunk_size for s in specs)
    if first.kind == "mamba":
        apart = rules.unequal_states == "apart"
        keys = {(s.speculative_blocks, s.checkpoint_blocks, s.page_bytes if apart else 0) for s in specs}
        return len(keys) == 1
    return True


def unread_share(specs: Sequence[LayerSpec], tokens: int, encoder_tokens: int = 0) -> float:
    """Share of one request's slots that no layer can attend to, if every layer keeps all tokens.

    A layer with a window needs the tokens of its window, one with cross attention those of the encoder, any
    other those of the text. States are left out, and so are blocks that are not full.

    Args:
        specs: of the model's layers, with their windows.
        tokens: of the text.
        encoder_tokens: of the encoder, such as those of an image.
    """
    layers = [s for s in specs if s.kind != "mamba"]
    held = sum((tokens + encoder_tokens) * s.token_bytes for s in layers)
    needed = sum(s.tokens_needed(tokens, encoder_tokens) * s.token_bytes for s in layers)
    return 1.0 - needed / held if held else 0.0
