"""From a model's shape to the spec of each layer: block sizes, heads on one GPU, states and their padding.

What decides a block size in vLLM 0.32.0 when the user gives none is the attention backend that the GPU gets
(Platform.update_block_size_for_backend), and in models with states the size of the state: a block of
attention must be as large as a state (Platform._align_hybrid_block_size).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sim.models import CacheLayer, ModelShape
from sim.sizing.specs import LayerSpec, cdiv

DEFAULT_BLOCK_SIZE = 16
#: Bytes of one cached element.
KV_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}
#: Kernels that decode MLA need their blocks in units of this many tokens where states are beside them.
MLA_HYBRID_ALIGNMENT = 128


@dataclass(frozen=True)
class Backend:
    """The attention backend that vLLM takes by default, as far as block sizes go.

    Attributes:
        name: vLLM's name.
        sizes: block sizes of its kernels; an exact size, or (multiples=True) the unit.
        multiples: whether any multiple of `sizes[0]` is a kernel's size.
    """

    name: str
    sizes: tuple[int, ...]
    multiples: bool = True

    @property
    def smallest(self) -> int:
        return min(self.sizes)

    @property
    def preferred(self) -> int:
        """The block size without `--block-size` (AttentionBackend.get_preferred_block_size)."""
        return DEFAULT_BLOCK_SIZE if DEFAULT_BLOCK_SIZE % self.smallest == 0 else self.smallest

    def largest_within(self, tokens: int) -> int:
        """The largest kernel block of at most so many tokens, else the smallest.

        As _largest_kernel_block_within.
        """
        if self.multiples:
            return max(self.sizes[0], tokens // self.sizes[0] * self.sizes[0])
        return max((s for s in self.sizes if s <= tokens), default=self.smallest)


_FLASHINFER_SIZES = (16, 32, 64)
_FLASHINFER_LARGE = (*_FLASHINFER_SIZES, 128, 256, 512, 1024)


#: Block sizes of the kernels for multi-head latent attention (get_supported_kernel_block_sizes).
_LATENT = {
    b.name: b
    for b in (
        Backend("FLASH_ATTN_MLA", (16,)),
        Backend("FLASHMLA", (64,), False),
        Backend("FLASHINFER_MLA", (32, 64), False),
        Backend("TOKENSPEED_MLA", (32, 64), False),
        Backend("CUTLASS_MLA", (128,), False),
        Backend("TRITON_MLA", (16,)),
    )
}
_PLAIN = ("FLASH_ATTN", "FLASHINFER", "TRITON_ATTN", "FLEX_ATTENTION")


def backend_names(latent: bool) -> tuple[str, ...]:
    """Backends that a user may choose for a model with, or without, multi-head latent attention."""
    return tuple(_LATENT) if latent else _PLAIN


def backend_of(model: ModelShape, capability: int, kv_cache_dtype: str, chosen: str = "auto") -> Backend:
    """The backend that is chosen, by default vLLM's choice on a GPU of this compute capability.

    (platforms/cuda.py, _get_backend_priorities.)

    Args:
        model: its attention decides the list.
        capability: compute capability times ten: 80, 89, 90, 100.
        kv_cache_dtype: not every backend reads FP8.
        chosen: one of `backend_names`, or "auto".
    """
    fp8, blackwell = kv_cache_dtype.startswith("fp8"), capability // 10 == 10
    if model.is_mla:
        if chosen == "auto" and blackwell:
            chosen = "FLASHINFER_MLA"
        elif chosen == "auto" and capability // 10 == 9:
            chosen = "FLASHMLA" if fp8 else "FLASH_ATTN_MLA"
        return _LATENT["TRITON_MLA" if chosen == "auto" else chosen]
    if chosen == "auto":
        chosen = "FLASHINFER" if blackwell or (fp8 and capability // 10 != 9) else "FLASH_ATTN"
    if chosen == "FLASHINFER":
        return Backend(chosen, _FLASHINFER_LARGE if blackwell else _FLASHINFER_SIZES, False)
    return Backend(chosen, (16,))


@dataclass(frozen=True)
class CacheLayout:
    """All layers of one GPU, and the block size of the engine.

    Attributes:
        specs: of each layer with a KV cache, in the model's order.
        block_size: `cache_config.block_size` after all adjustments.
        asked_block_size: before the adjustment to states.
        backend: the attention backend whose block sizes were taken; None without attention.
    """

    specs: tuple[LayerSpec, ...]
    block_size: int
    asked_block_size: int
    backend: Backend | None


@dataclass(frozen=True)
class CacheArgs:
    """The engine's arguments that shape the layers' caches.

    Attributes:
        block_size: of the user, or None.
        tensor_parallel: GPUs over which each layer is split.
        kv_cache_dtype: "auto": as `dtype`.
        dtype: of the activations.
        enable_prefix_caching: decides how states are kept.
        max_model_len: with prefix caching off, the tokens that one block of states covers.
        capability: compute capability of the GPU times ten.
        attention_backend: of the user, or "auto".
        mamba_block_size: of the user, or None.
        mamba_cache_dtype, mamba_ssm_cache_dtype: types of the states' two parts; "auto": as `dtype`, as the
            first.
        num_speculative_tokens: further states of one request, and inputs that a state's convolution keeps.
    """

    block_size: int | None
    tensor_parallel: int = 1
    kv_cache_dtype: str = "auto"
    dtype: str = "bfloat16"
    enable_prefix_caching: bool = True
    max_model_len: int = 4096
    capability: int = 90
    attention_backend: str = "auto"
    mamba_block_size: int | None = None
    mamba_cache_dtype: str = "auto"
    mamba_ssm_cache_dtype: str = "auto"
    num_speculative_tokens: int = 0


def element_bytes(kv_cache_dtype: str, dtype: str) -> int:
    """Bytes of one cached element; `auto` is the model's dtype."""
    return KV_BYTES[dtype if kv_cache_dtype == "auto" else kv_cache_dtype]


def state_bytes(layer: CacheLayer, args: CacheArgs, recurrent_dtype: str | None) -> int:
    """Bytes of one state on one GPU."""
    conv = element_bytes(args.mamba_cache_dtype, args.dtype)
    chosen = args.mamba_ssm_cache_dtype
    if chosen == "auto":
        chosen = recurrent_dtype or "auto"
    recurrent = conv if chosen == "auto" else KV_BYTES[chosen]
    return sum(
        part.elements(args.tensor_parallel, args.num_speculative_tokens)
        * (recurrent if part.recurrent else conv)
        for part in layer.state
    )


def cache_layout(model: ModelShape, args: CacheArgs, drafter: ModelShape | None = None) -> CacheLayout:
    """The spec of each layer, with block sizes as vLLM chooses them: by the model alone.

    A drafter's layers come behind the model's: it is loaded later (vLLM 0.32.0, GPUModelRunner.load_model).
    Those without a window of their own take the model's, if all its layers have one (CacheConfig).
    """
    attention = any(c.kind != "mamba" for c in model.cache_layers)
    chosen = args.attention_backend
    backend = backend_of(model, args.capability, args.kv_cache_dtype, chosen) if attention else None
    asked = args.block_size or (backend.preferred if backend else DEFAULT_BLOCK_SIZE)
    element = element_bytes(args.kv_cache_dtype, args.dtype)
    mode = "align" if args.enable_prefix_caching else "none"
    states = [state_bytes(c, args, model.recurrent_dtype) for c in model.cache_layers if c.kind == "mamba"]
    block_size, padded = asked, None
    if backend is not None and states:
        token = max(_token_bytes(c, args, element) for c in model.cache_layers if c.kind != "mamba")
        block_size = _aligned_block_size(asked, max(states), token, backend, model.is_mla)
        if block_size * token != max(states):
            padded = block_size * token
    mamba_block = args.mamba_block_size or (args.max_model_len if mode == "none" else asked)
    if mode == "align" and backend is not None:
        mamba_block = block_size
    specs = tuple(
        _spec(c, args, element, block_size, backend, mode, mamba_block, padded, model.recurrent_dtype)
        for c in (*model.cache_layers, *_drafter_layers(model, drafter))
    )
    return CacheLayout(specs, block_size, asked, backend)


def _drafter_layers(model: ModelShape, drafter: ModelShape | None) -> tuple[CacheLayer, ...]:
    if drafter is None:
        return ()
    windows = {c.window for c in model.cache_layers if c.kind != "mamba"}
    window = next(iter(windows)) if len(windows) == 1 else None
    if window is None:
        return drafter.cache_layers
    return tuple(
        replace(c, kind="sliding_window", window=window) if c.kind == "full" else c
        for c in drafter.cache_layers
    )


def _token_bytes(layer: CacheLayer, args: CacheArgs, element: int) -> int:
    return layer.heads_on_gpu(args.tensor_parallel) * (layer.head_size + layer.head_size_v) * element


def _aligned_block_size(asked: int, state: int, token: int, backend: Backend, mla: bool) -> int:
    """The smallest block size whose attention page holds a state; never below the one asked for."""
    unit = max(backend.smallest, asked)
    if mla:
        unit = max(unit, MLA_HYBRID_ALIGNMENT)
    needed = unit * cdiv(state, unit * token)
    return max(asked, backend.smallest * cdiv(needed, backend.smallest))


def _spec(
    c: CacheLayer,
    args: CacheArgs,
    element: int,
    block_size: int,
    backend: Backend | None,
    mode: str,
    mamba_block: int,
    padded: int | None,
    recurrent_dtype: str | None,
) -> LayerSpec:
    if c.kind == "mamba":
        return LayerSpec(
            "mamba",
            mamba_block,
            state_bytes=state_bytes(c, args, recurrent_dtype),
            mamba_cache_mode=mode,
            speculative_blocks=args.num_speculative_tokens,
            checkpoint_blocks=int(c.checkpoint),
            page_size_padded=padded,
        )
    # A window layer takes the largest kernel block whose page is not above that of a full layer of its shape.
    size = backend.largest_within(block_size) if c.kind == "sliding_window" and backend else block_size
    return LayerSpec(
        c.kind,
        size,
        heads=c.heads_on_gpu(args.tensor_parallel),
        head_size=c.head_size,
        head_size_v=c.head_size_v,
        element_bytes=element,
        sliding_window=c.window,
        attention_chunk_size=c.chunk,
    )
