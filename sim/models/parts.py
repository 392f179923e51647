"""Numbers of parameters of the parts that decoder layers are made of."""

from __future__ import annotations

from dataclasses import dataclass

from .shape import CacheLayer, Parameters, StatePart


@dataclass
class Tally:
    """Sums up parameters while a model is walked through; see `Parameters`."""

    linear: int = 0
    kv_linear: int = 0
    experts: int = 0
    whole: int = 0
    active: int = 0
    absorbed: int = 0

    def matrix(self, count: int, active: bool = True) -> None:
        """A linear layer that tensor parallelism divides."""
        self.linear += count
        self.active += count if active else 0

    def attention(
        self,
        hidden: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        bias: bool = False,
        out_bias: bool = False,
        qk_norm: bool = False,
        gate: bool = False,
        sinks: bool = False,
    ) -> None:
        """Projections of grouped-query attention."""
        kv = 2 * kv_heads * head_dim
        query = heads * head_dim * (2 if gate else 1)
        self.matrix(hidden * query + heads * head_dim * hidden)
        self.kv_linear += hidden * kv
        self.active += hidden * kv
        if bias:
            self.whole += query + kv
        if out_bias:
            self.whole += hidden
        if qk_norm:
            self.whole += 2 * head_dim
        if sinks:
            self.whole += heads

    def mla(
        self, hidden: int, heads: int, q_lora: int | None, latent: int, nope: int, rope: int, value: int
    ) -> None:
        """Projections of multi-head latent attention; those to the latents are on every GPU."""
        if q_lora:
            self.whole += hidden * q_lora + q_lora
            self.active += hidden * q_lora
            self.matrix(q_lora * heads * (nope + rope))
        else:
            self.matrix(hidden * heads * (nope + rope))
        self.whole += hidden * (latent + rope) + latent
        self.active += hidden * (latent + rope)
        self.matrix(latent * heads * (nope + value))
        self.absorbed += latent * heads * (nope + value)
        self.matrix(heads * value * hidden)

    def mlp(self, hidden: int, inner: int, gated: bool = True) -> None:
        """A dense feed-forward part."""
        self.matrix((3 if gated else 2) * hidden * inner)

    def moe(
        self, hidden: int, inner: int, experts: int, chosen: int, *, router_extra: int = 0, bias: bool = False
    ) -> None:
        """Routed experts and their router."""
        one = 3 * hidden * inner
        self.experts += experts * (one + (2 * inner + hidden if bias else 0))
        self.active += chosen * one + experts * hidden
        self.whole += experts * hidden + router_extra

    def parameters(self, vocab: int, hidden: int, *, tied: bool = False, tower: int = 0) -> Parameters:
        """All together, with embedding and output projection."""
        table = vocab * hidden
        return Parameters(
            linear=self.linear,
            kv_linear=self.kv_linear,
            experts=self.experts,
            whole=self.whole,
            embedding=table,
            head=table,
            tied=tied,
            tower=tower,
            active=self.active,
            absorbed=self.absorbed,
        )


def attention_layer(
    heads: int, kv_heads: int, head_dim: int, window: int | None = None, chunk: int | None = None
) -> CacheLayer:
    """The KV cache of grouped-query attention: all tokens, a window or a chunk."""
    kind = "sliding_window" if window else "chunked_local" if chunk else "full"
    return CacheLayer(kind, kv_heads, head_dim, head_dim, 4 * heads * head_dim, window or None, chunk or None)


def mamba1(hidden: int, expand: int, state: int, conv: int) -> CacheLayer:
    """The state of a Mamba 1 layer (MambaStateShapeCalculator.mamba1_state_shape)."""
    inner = expand * hidden
    parts = (StatePart(conv - 1, inner, False), StatePart(state, inner, True))
    return CacheLayer("mamba", 0, 0, 0, state=parts)


def mamba2(heads: int, head_dim: int, state: int, groups: int, conv: int) -> CacheLayer:
    """The state of a Mamba 2 layer (mamba2_state_shape)."""
    parts = (
        StatePart(conv - 1, heads * head_dim, False, groups, 2 * state, keeps_drafts=True),
        StatePart(head_dim * state, heads, True),
    )
    return CacheLayer("mamba", 0, 0, 0, state=parts, checkpoint=True)


def gated_delta_net(key_heads: int, value_heads: int, key_dim: int, value_dim: int, conv: int) -> CacheLayer:
    """The state of a gated delta net layer (gated_delta_net_state_shape)."""
    parts = (
        StatePart(conv - 1, 2 * key_heads * key_dim + value_heads * value_dim, False, keeps_drafts=True),
        StatePart(key_dim * value_dim, value_heads, True),
    )
    return CacheLayer("mamba", 0, 0, 0, state=parts)
