"""Drafters of speculative decoding: what their own config.json says about memory.

    eagle, eagle3   a head on the model's hidden states, with layers like Llama's (eagle3: or Qwen3's)
    medusa          heads on the model's last hidden state, one a draft, without layers
    mtp             layers of the model itself: `ModelShape.mtp`
    draft_model     a model of its own

A head uses the model's embedding where both have one width, and the model's output projection unless (eagle3)
it drafts from a vocabulary of its own: published checkpoints leave these tensors out, or have them equal, and
vLLM 0.32.0 keeps one copy then (SpecDecodeBaseProposer._maybe_share_embeddings, _maybe_share_lm_head).
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache

from sim.config_yaml import Document, read_json
from sim.errors import raise_all

from . import FOLDER, find_model, is_path, load_model, name_of
from .parts import Tally, attention_layer
from .reader import Reader
from .shape import ModelShape, Parameters, padded

#: Methods whose drafter has a config of its own.
OWN_CONFIG = ("eagle", "eagle3", "medusa", "draft_model")
HEADS = FOLDER / "drafters"
#: Families of heads by method.
_FAMILIES = {"eagle": ("llama",), "eagle3": ("llama", "qwen3")}
_ALIASES = {
    "eagle3-llama3.1-instruct-8b": "eagle3-llama-3.1-8b",
    "eagle-llama3.1-instruct-8b": "eagle-llama-3.1-8b",
    "eagle-llama3-instruct-8b": "eagle-llama-3.1-8b",
}
#: Bytes of an entry in the table from a head's vocabulary to the model's.
_ID_BYTES = 8


def head_names() -> list[str]:
    """Names of the heads that come with kvpool."""
    return sorted(p.stem for p in HEADS.glob("*.json"))


def known_head(name: str) -> str | None:
    """Our name of a head that is given by a published name, such as yuhuili/EAGLE3-LLaMA3.1-Instruct-8B."""
    low = name.lower().rsplit("/", 1)[-1]
    found = _ALIASES.get(low, low)
    return found if found in head_names() else None


def find_drafter(name: str, method: str, target: ModelShape, drafts: int = 1) -> ModelShape | None:
    """The drafter of this name or at this path, None if the name is not known.

    Args:
        name: of a shipped head (eagle, eagle3) or model (draft_model), or the path of a config.json.
        method: one of `OWN_CONFIG`.
        target: the model that it drafts for.
        drafts: tokens of a step: Medusa has as many heads.

    Raises:
        InputError: a file that can't be read, keys that are wrong or of a family that is not known.
    """
    if method == "draft_model":
        shape = load_model(name) if is_path(name) else find_model(name)
        return shape and replace(shape, dtype=target.dtype)
    if is_path(name):
        document = read_json(name)
        if method == "medusa":
            return medusa(document, name_of(name, document), target, drafts)
        return head(document, name_of(name, document), method, target)
    if method == "medusa":
        return None
    found = known_head(name)
    return head(_head(found), found, method, target) if found else None


@lru_cache
def _head(name: str) -> Document:
    return Document(name, json.loads((HEADS / f"{name}.json").read_text(encoding="utf-8")))


def head(document: Document, name: str, method: str, target: ModelShape) -> ModelShape:
    """An EAGLE head (EagleLlamaForCausalLM, Eagle3LlamaForCausalLM, Eagle3Qwen3ForCausalLM).

    Its first layer has no input norm (eagle), or reads embedding and hidden state side by side (eagle3).
    """
    r = Reader(document, name)
    model_type = str(r.get("model_type", "llama"))
    if model_type not in _FAMILIES[method]:
        r.fail(
            "model_type",
            f"{method} heads of type '{model_type}' are not known",
            f"known: {', '.join(_FAMILIES[method])}; give engine.num_gpu_blocks and engine.kv_cache_groups",
        )
        raise_all(r.problems)
    three, qwen = method == "eagle3", model_type == "qwen3"
    n, h, inner = r.number("num_hidden_layers"), r.number("hidden_size"), r.number("intermediate_size")
    heads = r.number("num_attention_heads")
    kv_heads = r.number("num_key_value_heads", heads)
    head_dim = r.number("head_dim", max(1, h // heads))
    bias = r.flag("attention_bias")
    kinds = r.strings("layer_types", n) or ["full_attention"] * n
    t, layers = Tally(), []
    for i, kind in enumerate(kinds):
        window = r.number("sliding_window") if kind == "sliding_attention" else None
        layers.append(attention_layer(heads, kv_heads, head_dim, window))
        t.attention(h, heads, kv_heads, head_dim, bias=bias, out_bias=bias and not qwen, qk_norm=qwen)
        if three and i == 0:
            t.linear += h * heads * head_dim
            t.kv_linear += 2 * h * kv_heads * head_dim
        t.mlp(h, inner)
        t.whole += (3 if three else 2 if i else 1) * h
    t.whole += _joining(r, h, target) if three else 2 * h * h
    vocab = r.number("vocab_size")
    own_vocab = r.number("draft_vocab_size", vocab) if three else target.vocab
    if own_vocab != target.vocab:
        t.whole += own_vocab * _ID_BYTES // target.dtype_bytes
    quantization = r.quantization()
    raise_all(r.problems)
    params = replace(
        t.parameters(vocab, h),
        embedding=0 if h == target.hidden else vocab * h,
        head=own_vocab * h if own_vocab != target.vocab else 0,
    )
    return ModelShape(
        name=r.name,
        model_type=model_type,
        layers=n,
        hidden=h,
        vocab=vocab,
        intermediate=inner,
        heads=heads,
        kv_heads=kv_heads,
        max_position=target.max_position,
        dtype=target.dtype,
        quantization=quantization,
        cache_layers=tuple(layers),
        params=params,
    )


def medusa(document: Document, name: str, target: ModelShape, drafts: int) -> ModelShape:
    """Medusa's heads (vLLM 0.32.0, Medusa): layers that are not split, and an output projection each."""
    r = Reader(document, name)
    own = [k for k in document.data if "num" in k and "layers" in k]
    layers = r.number(own[0] if own else "num_hidden_layers", 1)
    # what old checkpoints leave out
    h = r.number("hidden_size", 4096)
    raise_all(r.problems)
    bias = h if r.flag("medusa_fc_bias") else 0
    tables = 1 if r.flag("original_lm_head") else drafts
    params = Parameters(whole=drafts * layers * (h * h + bias), head=tables * padded(target.vocab) * h)
    shape = replace(target, name=name, model_type="medusa", layers=0, hidden=h, quantization=None, mtp=None)
    return replace(shape, params=params, cache_layers=(), notes=())


def _joining(r: Reader, h: int, target: ModelShape) -> int:
    """What an eagle3 head has around its layers: the projection of the model's hidden states, and norms."""
    section = r.get("eagle_config")
    eagle = section if isinstance(section, dict) else {}
    if not eagle.get("use_aux_hidden_state", True):
        return h
    ids = eagle.get("eagle_aux_hidden_state_layer_ids") or r.get("eagle_aux_hidden_state_layer_ids")
    states = r.number("num_aux_hidden_states", len(ids) if ids else 3)
    width = states * r.number("target_hidden_size", h)
    norms = bool(eagle.get("norm_before_fc", r.get("norm_before_fc", False))) + r.flag("fc_norm")
    return width * h + norms * width + h


__all__ = ["HEADS", "OWN_CONFIG", "find_drafter", "head", "head_names", "known_head"]
