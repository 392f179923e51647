"""The shape of a model: what its layers keep in the KV cache, and how many parameters it has where."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from .quantization import Quantization

DTYPE_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}
#: Vocabularies are padded to a multiple of this (VocabParallelEmbedding).
VOCAB_UNIT = 64


def padded(vocab: int) -> int:
    """Rows of a table over a vocabulary."""
    return -(-vocab // VOCAB_UNIT) * VOCAB_UNIT


@dataclass(frozen=True)
class StatePart:
    """One tensor of a recurrent state, as a product of `sizes`, of which tensor parallelism divides `split`.

    Attributes:
        fixed: product of the sizes that each GPU has whole.
        split: size that is divided by the number of GPUs.
        groups, group_size: further elements of the divided size in groups; each GPU has whole groups, so that
            there are at least as many as GPUs (Mamba 2).
        recurrent: the recurrent part, whose type `mamba_ssm_cache_dtype` may set; else the convolution's.
        keeps_drafts: `fixed` grows by one for each draft token of a step, so that rejected ones can be taken
            back (the convolution's inputs; not in Mamba 1).
    """

    fixed: int
    split: int
    recurrent: bool
    groups: int = 0
    group_size: int = 0
    keeps_drafts: bool = False

    def elements(self, tensor_parallel: int, drafts: int = 0) -> int:
        """Elements on one GPU, where a step verifies so many draft tokens."""
        fixed = self.fixed + (drafts if self.keeps_drafts else 0)
        groups = self.groups
        if groups % tensor_parallel:
            groups = tensor_parallel
        return fixed * ((self.split + groups * self.group_size) // tensor_parallel)


@dataclass(frozen=True)
class CacheLayer:
    """One layer that has a KV cache; a decoder layer with cross attention has two of them.

    Attributes:
        kind: as `sim.sizing.specs.LayerSpec`.
        heads: key-value heads of the whole model (1 for mla, 0 for mamba).
        head_size, head_size_v: elements of one head's K and V; mla: the latent with its rotary part, and 0.
        pair_flops: FLOPs of one query-key pair in this layer, all heads together.
        window, chunk: tokens, of such layers.
        state: parts of a mamba layer's state.
        checkpoint: whether the layer can export its state in the middle of a prefill, for which vLLM sets
            one more block aside (Mamba 2).
    """

    kind: str
    heads: int
    head_size: int
    head_size_v: int
    pair_flops: int = 0
    window: int | None = None
    chunk: int | None = None
    state: tuple[StatePart, ...] = ()
    checkpoint: bool = False

    def heads_on_gpu(self, tensor_parallel: int) -> int:
        """Key-value heads on one GPU: at least one (ModelConfig.get_num_kv_heads)."""
        if self.kind in ("mla", "mamba"):
            return self.heads
        return max(1, self.heads // tensor_parallel)


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters by what happens to them.

    Attributes:
        linear: the layers' linear layers, which tensor parallelism divides; without the next two.
        kv_linear: projections to K and V: with more GPUs than heads, heads are repeated.
        experts: routed experts.
        whole: what every GPU holds whole: norms, routers, MLA's projections to the latent.
        embedding: the token embedding; 0 in a drafter that uses the model's.
        head: the output projection; the embedding itself if `tied`; 0 in a drafter that uses the model's.
        tied: whether embedding and output projection are one tensor.
        tower: encoder of images or sound, estimated from its config.
        active: parameters of linear layers that one token is multiplied with.
        experts_padded: elements that the experts take in mxfp4 kernels, padded; 0: as `experts`.
        absorbed: elements of MLA's absorbed projections, which vLLM keeps beside the original ones.
    """

    linear: int = 0
    kv_linear: int = 0
    experts: int = 0
    whole: int = 0
    embedding: int = 0
    head: int = 0
    tied: bool = False
    tower: int = 0
    active: int = 0
    absorbed: int = 0
    experts_padded: int = 0

    @property
    def total(self) -> int:
        """All parameters."""
        layers = self.linear + self.kv_linear + self.experts + self.whole
        return layers + self.embedding + (0 if self.tied else self.head) + self.tower


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model, in elements; `dtype` is of weights and activations.

    Attributes:
        name: as given, or the folder's or file's name.
        model_type: of the Hugging Face config.
        layers: decoder layers.
        hidden, vocab: sizes.
        intermediate: width that a token takes in the widest MLP (of all experts that it goes to).
        heads, kv_heads: attention heads (0 if the model has none).
        max_position: longest sequence without `max_model_len`.
        dtype: of weights and activations.
        quantization: of the checkpoint, None: its weights are of type `dtype`.
        cache_layers: layers with a KV cache, in the order in which vLLM makes them.
        params: numbers of parameters.
        recurrent_dtype: type of recurrent states that the config asks for; None: as the convolution's.
        encoder_tokens: tokens of a full encoder input (Whisper: 1500); 0 for decoder-only models.
        encoder_pair_flops: FLOPs of one query-key pair in all layers of the encoder.
        notes: what the numbers leave out.
        length_limit: longest sequence that vLLM lets a user ask for; None: any, since the config names none.
        state_chunk: tokens that the kernels for recurrent states take at once
            (ModelConfig.get_mamba_chunk_size).
        mtp: the model's layers for multi-token prediction, as a drafter that shares embedding and output
            projection with it; None if it has none.
    """

    name: str
    model_type: str
    layers: int
    hidden: int
    vocab: int
    intermediate: int
    heads: int
    kv_heads: int
    max_position: int
    dtype: str
    quantization: Quantization | None
    cache_layers: tuple[CacheLayer, ...]
    params: Parameters
    recurrent_dtype: str | None = None
    encoder_tokens: int = 0
    encoder_pair_flops: int = 0
    notes: tuple[str, ...] = ()
    length_limit: int | None = None
    mtp: ModelShape | None = None
    state_chunk: int = 2048

    @property
    def dtype_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def num_params(self) -> int:
        """All parameters."""
        return self.params.total

    @property
    def is_mla(self) -> bool:
        """Whether its attention is multi-head latent attention."""
        return any(c.kind == "mla" for c in self.cache_layers)

    @property
    def is_hybrid(self) -> bool:
        """Whether it has both states and attention."""
        kinds = {c.kind for c in self.cache_layers}
        return "mamba" in kinds and len(kinds) > 1

    @property
    def is_attention_free(self) -> bool:
        """Whether it has states only."""
        return all(c.kind == "mamba" for c in self.cache_layers)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether its decoder attends to an encoder's output."""
        return any(c.kind == "cross_attention" for c in self.cache_layers)

    def kv_bytes_per_token(
        self, tensor_parallel: int, kv_dtype_bytes: int, typical_context: int | None = None
    ) -> float:
        """Bytes of one token's K and V in all layers on one GPU, states left out.

        With `typical_context` tokens a window or chunk layer counts by the share of them that it reads.
        """
        return sum(
            c.heads_on_gpu(tensor_parallel)
            * (c.head_size + c.head_size_v)
            * kv_dtype_bytes
            * read_share(c, typical_context)
            for c in self.cache_layers
            if c.kind != "mamba"
        )

    def kinds(self) -> dict[str, int]:
        """Number of layers by kind, in order of occurrence."""
        return dict(Counter(c.kind for c in self.cache_layers))


def read_share(layer: CacheLayer, typical_context: int | None) -> float:
    """Share of a context of so many tokens that the layer reads; 1 if no context is given."""
    limit = layer.window or layer.chunk
    if limit is None or typical_context is None:
        return 1.0
    return min(1.0, limit / typical_context)


def describe_model(shape: ModelShape) -> dict[str, Any]:
    """The shape with its derived numbers, for provenance."""
    return {
        "name": shape.name,
        "model_type": shape.model_type,
        "layers": shape.layers,
        "cache_layers": shape.kinds(),
        "hidden": shape.hidden,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_dim": max((c.head_size for c in shape.cache_layers), default=0),
        "intermediate": shape.intermediate,
        "vocab": shape.vocab,
        "tie_embeddings": shape.params.tied,
        "dtype": shape.dtype,
        "quantization": shape.quantization.method if shape.quantization else None,
        "num_params": shape.num_params,
    }
