"""KV memory that holds nothing of use where all layers keep all tokens, as vLLM RFC #11382 counts it.

Before vLLM had a manager for hybrid models every layer kept a slot for every token, also those with a
window or with attention to an image only. The share of slots that no layer can attend to follows from the
model's layers and the length of the request alone; nothing is simulated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.models import find_model
from sim.published.data import config_path
from sim.published.table import Row, Table
from sim.sizing import CacheArgs, LayerSpec, cache_layout, group_layers, unread_share

if TYPE_CHECKING:
    from sim.published.registry import Options

#: per cent
PUBLISHED = {"mllama": "79.6", "Ministral": "56.25", "Gemma-2": "25"}
CONFIGS = {"Ministral": "padding_ministral.yaml", "Gemma-2": "padding_gemma2.yaml"}
#: Text of one request beside an image of four tiles; the RFC does not say how long its requests were.
TEXT_TOKENS = 43


def lengths(name: str) -> tuple[tuple[LayerSpec, ...], int, int]:
    """Layers of a model, tokens of text and of the image in one request."""
    if name in CONFIGS:
        from sim.config import load_config
        from sim.resolve import resolve

        resolved = resolve(load_config(config_path(CONFIGS[name])))
        assert resolved.pool.layout is not None
        return resolved.pool.layout.specs, resolved.engine.max_model_len, 0
    model = find_model("llama-3.2-11b-vision")
    assert model is not None
    return cache_layout(model, CacheArgs(block_size=16)).specs, TEXT_TOKENS, model.encoder_tokens


def hybrid_share(specs: tuple[LayerSpec, ...], tokens: int, encoder_tokens: int) -> float:
    """The same with the manager of today: blocks of a decoding request, the groups' padding included."""
    groups = group_layers(specs)
    block = max(g.block_bytes for g in groups)
    held = block * sum(g.blocks_per_request(tokens, 1, encoder_tokens) for g in groups)
    needed = sum(s.tokens_needed(tokens, encoder_tokens) * s.token_bytes for s in specs)
    return 1.0 - needed / held


def make(options: Options) -> Table:
    """The published shares with ours beside them."""
    del options
    rows = []
    for name, figure in PUBLISHED.items():
        specs, tokens, encoder = lengths(name)
        ours = 100.0 * unread_share(specs, tokens, encoder)
        now = 100.0 * hybrid_share(specs, tokens, encoder)
        rows.append(Row(name, figure, ours, (f"{tokens + encoder:,}", f"{now:.2f}")))
    return Table(
        name="padding",
        title="vLLM RFC #11382: KV memory without use where all layers keep all tokens, per cent",
        columns=("model", "published", "ours", "tokens", "with today's hybrid manager"),
        rows=tuple(rows),
        met_when="within one unit of the last printed digit",
        notes=(
            "mllama: Llama 3.2 11B Vision, 43 tokens of text and an image of four tiles (the RFC does not say"
            " how many); the others: one request of the model's longest length. The last column counts whole"
            " blocks of a request that is decoding, with the padding of the groups."
        ),
    )


__all__ = ["PUBLISHED", "hybrid_share", "make"]
