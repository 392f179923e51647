"""One function for each family of models: from the keys of its config.json to a `ModelShape`.

Which layers have a window follows the model classes of vLLM 0.32.0 (vllm/model_executor/models); the
numbers of parameters are those of the tensors that these classes make. `python -m validation sizing` compares
both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .parts import Tally, attention_layer, gated_delta_net, mamba1, mamba2
from .reader import BY_HAND, Reader
from .shape import CacheLayer, ModelShape, Parameters

Family = Callable[[Reader], ModelShape]

_SLIDING, _FULL = "sliding_attention", "full_attention"


def dense(r: Reader) -> ModelShape:
    """Llama, Mistral, Qwen 2 and 3, Phi 3 and what is like them; with experts: Mixtral, Qwen 3 MoE."""
    model_type = _type(r)
    qwen3 = model_type.startswith("qwen3")
    bias = r.flag("attention_bias", model_type == "qwen2")
    t, layers = Tally(), []
    n, h = r.layers(), r.number("hidden_size")
    heads, kv_heads, head_dim = _heads(r, h)
    windows = _windows(r, n)
    inner = r.number("intermediate_size")
    widest = inner
    for i in range(n):
        layers.append(attention_layer(heads, kv_heads, head_dim, windows[i]))
        t.attention(h, heads, kv_heads, head_dim, bias=bias, qk_norm=qwen3)
        t.whole += 2 * h
        width = _experts(r, t, h, i)
        if width is None:
            t.mlp(h, inner)
        else:
            widest = width
    t.whole += h
    return _decoder(r, t, layers, widest, heads, kv_heads)


def gemma(r: Reader) -> ModelShape:
    """Gemma 2 (every other layer has a window) and Gemma 3 (five of six)."""
    model_type = _type(r)
    three = model_type.startswith("gemma3")
    t, layers = Tally(), []
    n, h = r.layers(), r.number("hidden_size")
    heads, kv_heads, head_dim = _heads(r, h, 256)
    window = r.number("sliding_window", 4096)
    pattern = r.number("sliding_window_pattern", r.number("_sliding_window_pattern", 6)) if three else 2
    kinds = r.strings("layer_types", n) or [_FULL if (i + 1) % pattern == 0 else _SLIDING for i in range(n)]
    inner = r.number("intermediate_size")
    for kind in kinds:
        _known_kind(r, kind)
        layers.append(attention_layer(heads, kv_heads, head_dim, window if kind == _SLIDING else None))
        t.attention(h, heads, kv_heads, head_dim, qk_norm=three)
        t.mlp(h, inner)
        t.whole += 4 * h
    t.whole += h
    return _decoder(r, t, layers, inner, heads, kv_heads, tied_default=True)


def gpt_oss(r: Reader) -> ModelShape:
    """gpt-oss: a window in every other layer, from the first on."""
    t, layers = Tally(), []
    n, h = r.layers(), r.number("hidden_size")
    heads, kv_heads, head_dim = _heads(r, h)
    window = r.number("sliding_window", 128)
    inner, experts = r.number("intermediate_size"), r.number("num_local_experts")
    chosen = r.number("num_experts_per_tok", 4)
    for i in range(n):
        layers.append(attention_layer(heads, kv_heads, head_dim, window if i % 2 == 0 else None))
        t.attention(h, heads, kv_heads, head_dim, bias=True, out_bias=True, sinks=True)
        t.moe(h, inner, experts, chosen, router_extra=experts, bias=True)
        t.whole += 2 * h
    t.whole += h
    shape = _decoder(r, t, layers, chosen * inner, heads, kv_heads)
    # Kernels for mxfp4 hold 2944 x 3072 for 2880 x 2880 (vLLM's log: 13.72 GiB for gpt-oss-20b).
    padded = n * experts * 3 * (-(-inner // 128) * 128) * (-(-h // 256) * 256)
    return replace(shape, params=replace(shape.params, experts_padded=padded))


def llama4(r: Reader) -> ModelShape:
    """Llama 4: chunked attention where there are rotary positions, full attention in the other layers."""
    t, layers = Tally(), []
    n, h = r.layers(), r.number("hidden_size")
    heads, kv_heads, head_dim = _heads(r, h)
    chunk = r.get("attention_chunk_size")
    rope = r.get("no_rope_layers") or [int((i + 1) % 4 != 0) for i in range(n)]
    if not isinstance(rope, list) or len(rope) < n:
        r.fail("no_rope_layers", f"'no_rope_layers' must be a list of {n} numbers, one for each layer")
        rope = [1] * n
    inner, dense_inner = r.number("intermediate_size"), r.number("intermediate_size_mlp", 16384)
    experts, chosen = r.number("num_local_experts"), r.number("num_experts_per_tok", 1)
    step = r.number("interleave_moe_layer_step", 1)
    for i in range(n):
        limit = r.number("attention_chunk_size") if chunk and rope[i] else None
        layers.append(attention_layer(heads, kv_heads, head_dim, chunk=limit))
        t.attention(h, heads, kv_heads, head_dim)
        if (i + 1) % step == 0:
            t.moe(h, inner, experts, chosen)
            t.mlp(h, inner)
        else:
            t.mlp(h, dense_inner)
        t.whole += 2 * h
    t.whole += h
    return _decoder(r, t, layers, max(dense_inner if step > 1 else 0, (chosen + 1) * inner), heads, kv_heads)


def deepseek(r: Reader) -> ModelShape:
    """DeepSeek V2 and V3: multi-head latent attention, dense layers first, then experts."""
    if r.get("index_topk"):
        r.fail("index_topk", "sparse attention with an indexer's cache is not covered", BY_HAND)
    t, layers = Tally(), []
    n, h = r.layers(), r.number("hidden_size")
    heads = r.number("num_attention_heads")
    latent, rope = r.number("kv_lora_rank"), r.number("qk_rope_head_dim")
    nope, value = r.number("qk_nope_head_dim"), r.number("v_head_dim")
    inner, expert_inner = r.number("intermediate_size"), r.number("moe_intermediate_size")
    experts, shared = r.number("n_routed_experts"), r.number("n_shared_experts", 1)
    chosen, first = r.number("num_experts_per_tok", 8), r.number("first_k_dense_replace", 0, 0)
    every = r.number("moe_layer_freq", 1)
    layer = CacheLayer("mla", 1, latent + rope, 0, 2 * heads * (nope + rope + value))

    def count(t: Tally, i: int) -> None:
        t.mla(h, heads, r.number("q_lora_rank", 0, 0), latent, nope, rope, value)
        if i >= first and i % every == 0:
            t.moe(h, expert_inner, experts, chosen)
            t.mlp(h, shared * expert_inner)
        else:
            t.mlp(h, inner)
        t.whole += 2 * h

    for i in range(n):
        layers.append(layer)
        count(t, i)
    t.whole += h
    shape = _decoder(r, t, layers, max(inner, (chosen + shared) * expert_inner), heads, 1)
    more = r.number("num_nextn_predict_layers", 0, 0, 100)
    if not more or shape.model_type != "deepseek_v3":
        return shape
    m = Tally()
    for i in range(n, n + more):
        count(m, i)
        # projection of embedding and hidden state, which is not split, and the norms around it
        m.whole += 2 * h * h + 3 * h
    return _with_mtp(shape, m, [layer] * more)


def jamba(r: Reader) -> ModelShape:
    """Jamba: Mamba 1 layers, attention in one of eight, experts in every other."""
    t, layers = Tally(), []
    n, h = r.layers(), r.number("hidden_size")
    heads, kv_heads, head_dim = _heads(r, h)
    period, offset = r.number("attn_layer_period"), r.number("attn_layer_offset", 0, 0)
    moe_period, moe_offset = r.number("expert_layer_period"), r.number("expert_layer_offset", 0, 0)
    state, conv = r.number("mamba_d_state", 16), r.number("mamba_d_conv", 4)
    expand, rank = r.number("mamba_expand", 2), r.number("mamba_dt_rank", max(1, -(-h // 16)))
    inner, experts = r.number("intermediate_size"), r.number("num_experts")
    chosen, d = r.number("num_experts_per_tok", 2), expand * h
    for i in range(n):
        if i % period == offset:
            layers.append(attention_layer(heads, kv_heads, head_dim))
            t.attention(h, heads, kv_heads, head_dim)
        else:
            layers.append(mamba1(h, expand, state, conv))
            t.matrix(2 * h * d + d * (rank + 2 * state) + rank * d + d * h)
            t.linear += d * conv + d + d + d * state + d
            t.whole += rank + 2 * state
        if experts > 1 and i % moe_period == moe_offset:
            t.moe(h, inner, experts, chosen)
        else:
            t.mlp(h, inner)
        t.whole += 2 * h
    t.whole += h
    return _decoder(r, t, layers, chosen * inner, heads, kv_heads)


def mamba_2(r: Reader) -> ModelShape:
    """Mamba 2 without attention."""
    t, layers = Tally(), []
    n, h = r.layers(), r.number("hidden_size")
    d = r.number("expand", 2) * h
    heads, head_dim = r.number("num_heads", max(1, d // 64)), r.number("head_dim", 64)
    state, groups, conv = r.number("state_size", 128), r.number("n_groups", 8), r.number("conv_kernel", 4)
    width = d + 2 * groups * state
    for _ in range(n):
        layers.append(mamba2(heads, head_dim, state, groups, conv))
        t.matrix(h * (d + width + heads) + d * h)
        t.linear += width * conv + width + 3 * heads + d
        t.whole += h
    t.whole += h
    return _decoder(r, t, layers, d, 0, 0)


def qwen3_next(r: Reader) -> ModelShape:
    """Qwen3-Next: gated delta nets, gated attention in one of four layers, experts with a shared one."""
    t, layers = Tally(), []
    n, h = r.layers(), r.number("hidden_size")
    heads, kv_heads, head_dim = _heads(r, h)
    every = r.number("full_attention_interval", 4)
    kinds = r.strings("layer_types", n) or [
        _FULL if (i + 1) % every == 0 else "linear_attention" for i in range(n)
    ]
    nk, nv = r.number("linear_num_key_heads"), r.number("linear_num_value_heads")
    dk, dv = r.number("linear_key_head_dim"), r.number("linear_value_head_dim")
    conv = r.number("linear_conv_kernel_dim", 4)
    keys, values = nk * dk, nv * dv
    shared = r.number("shared_expert_intermediate_size", 0, 0)
    widest = r.number("intermediate_size", 1)

    def count_mlp(t: Tally, i: int) -> int:
        """Count a layer's feed-forward part and norms; the width that a token takes."""
        t.whole += 2 * h
        width = _experts(r, t, h, i)
        if width is None:
            t.mlp(h, r.number("intermediate_size"))
            return widest
        if shared:
            t.mlp(h, shared)
            t.whole += h
        return width + shared

    for i, kind in enumerate(kinds):
        if kind == _FULL:
            layers.append(attention_layer(heads, kv_heads, head_dim))
            t.attention(h, heads, kv_heads, head_dim, qk_norm=True, gate=True)
        elif kind == "linear_attention":
            layers.append(gated_delta_net(nk, nv, dk, dv, conv))
            t.matrix(h * (2 * keys + 2 * values) + h * 2 * nv + values * h)
            t.linear += (2 * keys + values) * conv + 2 * nv
            t.whole += dv
        else:
            _known_kind(r, kind)
        widest = count_mlp(t, i)
    t.whole += h
    shape = _decoder(r, t, layers, widest, heads, kv_heads)
    # The published configs leave the key out; vLLM takes one layer then.
    more, m = r.number("num_nextn_predict_layers", 1, 0, 100), Tally()
    for i in range(more):
        m.attention(h, heads, kv_heads, head_dim, qk_norm=True, gate=True)
        count_mlp(m, i)
    m.matrix(2 * h * h)
    m.whole += 3 * h
    return _with_mtp(shape, m, [attention_layer(heads, kv_heads, head_dim)] * more) if more else shape


def whisper(r: Reader) -> ModelShape:
    """Whisper: each decoder layer has self-attention and attention to the encoder's output."""
    d = r.number("d_model")
    enc, dec = r.layers("encoder_layers"), r.layers("decoder_layers")
    heads, inner = r.number("decoder_attention_heads"), r.number("decoder_ffn_dim")
    source, target = r.number("max_source_positions", 1500), r.number("max_target_positions", 448)
    head_dim = max(1, d // heads)
    t, layers = Tally(), []
    attention = (4 * d * d, 4 * d)
    for _ in range(dec):
        own = attention_layer(heads, heads, head_dim)
        layers += [own, CacheLayer("cross_attention", heads, head_dim, head_dim, own.pair_flops)]
        t.matrix(2 * attention[0] + 2 * d * inner)
        t.whole += 2 * attention[1] + inner + d + 3 * 2 * d
    t.whole += 2 * d
    width = r.number("encoder_ffn_dim", inner)
    # Convolutions, positions and norms are on every GPU.
    t.whole += enc * (attention[1] + width + d + 4 * d) + 2 * d
    t.whole += 3 * r.number("num_mel_bins", 128) * d + d + 3 * d * d + d + (source + target) * d
    tower = enc * (attention[0] + 2 * d * width)
    params = t.parameters(r.number("vocab_size"), d, tied=True, tower=tower)
    return ModelShape(
        name=r.name,
        model_type=_type(r),
        layers=dec,
        hidden=d,
        vocab=r.number("vocab_size"),
        intermediate=inner,
        heads=heads,
        kv_heads=heads,
        max_position=target,
        length_limit=target,
        dtype=r.dtype(),
        quantization=r.quantization(),
        cache_layers=tuple(layers),
        params=params,
        encoder_tokens=source,
        # scores and their product with V, all heads together
        encoder_pair_flops=4 * d * enc,
        notes=r.all_notes(),
    )


def mllama(r: Reader) -> ModelShape:
    """Llama 3.2 Vision: cross attention to the image in some layers, self-attention in the others."""
    t, layers = Tally(), []
    n, h = r.layers(), r.number("hidden_size")
    heads, kv_heads, head_dim = _heads(r, h)
    crossing = r.numbers("cross_attention_layers")
    inner = r.number("intermediate_size")
    for i in range(n):
        layer = attention_layer(heads, kv_heads, head_dim)
        if i in crossing:
            layer = CacheLayer("cross_attention", kv_heads, head_dim, head_dim, layer.pair_flops)
        layers.append(layer)
        t.attention(h, heads, kv_heads, head_dim, qk_norm=i in crossing)
        t.mlp(h, inner)
        t.whole += 2 * h + (2 if i in crossing else 0)
    t.whole += h
    shape = _decoder(r, t, layers, inner, heads, kv_heads)
    tiles, size, patch = (
        r.part("vision_config", k, d) or d
        for k, d in (("max_num_tiles", 4), ("image_size", 560), ("patch_size", 14))
    )
    tokens = tiles * ((size // patch) ** 2 + 1)
    note = "vLLM 0.32.0 no longer has this model; it is here for the padding that RFC #11382 counts"
    return replace(shape, encoder_tokens=tokens, notes=(*shape.notes, note))


def _type(r: Reader) -> str:
    return str(r.get("model_type", "llama"))


def _heads(r: Reader, hidden: int, head_dim: int | None = None) -> tuple[int, int, int]:
    heads = r.number("num_attention_heads")
    kv_heads = r.number("num_key_value_heads", heads)
    if not r.problems and (kv_heads > heads or heads % kv_heads):
        r.fail("num_key_value_heads", f"{heads} heads can't share {kv_heads} key-value heads evenly")
    return heads, kv_heads, r.number("head_dim", head_dim or max(1, hidden // heads))


def _known_kind(r: Reader, kind: str) -> None:
    if kind not in (_FULL, _SLIDING):
        r.fail(
            "layer_types", f"layers of type '{kind}' are not known in a model of type '{_type(r)}'", BY_HAND
        )


def _windows(r: Reader, layers: int) -> list[int | None]:
    """Window of each layer: by `layer_types`, else the same for all."""
    window = r.get("sliding_window")
    kinds = r.strings("layer_types", layers)
    if kinds is not None:
        for kind in dict.fromkeys(kinds):
            _known_kind(r, kind)
        return [r.number("sliding_window") if k == _SLIDING else None for k in kinds]
    used = r.get("use_sliding_window", not _type(r).startswith("qwen"))
    return [r.number("sliding_window") if window and used else None] * layers


def _experts(r: Reader, t: Tally, hidden: int, layer: int) -> int | None:
    """Count a layer's routed experts; the width that a token takes in them, or None for a dense layer."""
    experts = r.number("num_experts", 0, 0) or r.number("num_local_experts", 0, 0)
    if not experts or layer in r.numbers("mlp_only_layers"):
        return None
    if (layer + 1) % r.number("decoder_sparse_step", 1):
        return None
    inner = r.number("moe_intermediate_size", r.number("intermediate_size"))
    chosen = r.number("num_experts_per_tok", 2)
    t.moe(hidden, inner, experts, chosen)
    return chosen * inner


def _decoder(
    r: Reader,
    t: Tally,
    layers: list[CacheLayer],
    widest: int,
    heads: int,
    kv_heads: int,
    tied_default: bool = False,
) -> ModelShape:
    vocab, hidden = r.number("vocab_size"), r.number("hidden_size")
    params: Parameters = t.parameters(
        vocab, hidden, tied=r.flag("tie_word_embeddings", tied_default), tower=r.vision_tower()
    )
    own = _own_length(r)
    # A config that names no length (Mamba 2) gets vLLM's 2048.
    length = own or (4096 if heads else 2048)
    if _rope(r)[0] == "longrope":
        length = r.number("original_max_position_embeddings", length)
    return ModelShape(
        name=r.name,
        model_type=_type(r),
        layers=r.layers(),
        hidden=hidden,
        vocab=vocab,
        intermediate=widest,
        heads=heads,
        kv_heads=kv_heads,
        max_position=length,
        length_limit=max(own, r.number("model_max_length", own)) if own else None,
        dtype=r.dtype(),
        quantization=r.quantization(),
        cache_layers=tuple(layers),
        params=params,
        recurrent_dtype=r.state_dtype(),
        state_chunk=r.number("mamba_chunk_size", r.number("chunk_size", 2048)),
        notes=r.all_notes(),
    )


#: Types of rotary scaling whose configs name the length that is already scaled.
_SCALED = ("default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")

_LARGEST_FACTOR = 10_000


def _rope(r: Reader) -> tuple[str, float]:
    """Type and factor of the rotary scaling."""
    section = r.get("rope_parameters") or r.get("rope_scaling")
    if not isinstance(section, dict):
        return "default", 1.0
    factor = section.get("factor")
    kind = section.get("rope_type") or section.get("type") or "default"
    return str(kind), float(factor) if isinstance(factor, int | float) else 1.0


def _own_length(r: Reader) -> int | None:
    """The longest sequence by the config (vLLM 0.32.0, _get_and_verify_max_len); None if it names none."""
    if r.get("max_position_embeddings") is None:
        return None
    length = r.number("max_position_embeddings")
    kind, factor = _rope(r)
    if kind in _SCALED or _type(r).startswith("gemma3"):
        return length
    if not 0 < factor <= _LARGEST_FACTOR:
        key = "rope_parameters" if r.get("rope_parameters") else "rope_scaling"
        r.fail(key, f"'{key}.factor' must be a number above 0, to {_LARGEST_FACTOR}: got {factor}")
        return length
    return int(length * factor)


def _with_mtp(shape: ModelShape, t: Tally, layers: list[CacheLayer]) -> ModelShape:
    """The shape with its layers for multi-token prediction, which use the model's embedding and output."""
    own = replace(t.parameters(shape.vocab, shape.hidden), embedding=0, head=0)
    mtp = replace(shape, layers=len(layers), cache_layers=tuple(layers), params=own, notes=())
    return replace(shape, mtp=mtp)


#: By `model_type`, the outer one and the text model's.
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3", "mixtral", "qwen3_moe"), dense),
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text"), gemma),
    "gpt_oss": gpt_oss,
    **dict.fromkeys(("llama4", "llama4_text"), llama4),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), deepseek),
    "jamba": jamba,
    "mamba2": mamba_2,
    "qwen3_next": qwen3_next,
    "whisper": whisper,
    **dict.fromkeys(("mllama", "mllama_text_model"), mllama),
}
