"""From a model's shape to the spec of each layer: block sizes, heads on one GPU, states and their padding.

What decides a block size in vLLM when the user gives none is the attention backend that the GPU gets (0.32.0,
Platform.update_block_size_for_backend), and in models with states the size of the state: a block of
attention must be as large as a state (Platform._align_hybrid_block_size). Where releases differ,
`CacheArgs.rules` say how.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import lcm

from sim.models import CacheLayer, ModelShape
from sim.profiles import Rules
from sim.sizing.specs import DEFAULT_RULES, LayerSpec, Refusal, cdiv
from sim.sizing.states import mamba_cache_mode, prefix_caching

DEFAULT_BLOCK_SIZE = 16
#: Bytes of one cached element.
KV_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}
#: Kernels that decode MLA need their blocks in units of this many tokens where states are beside them.
MLA_HYBRID_ALIGNMENT = 128
#: The same before 0.20, and of kernels for other attention; for heads of 256 on Blackwell until 0.17.
OLD_LATENT_UNIT, OLD_UNIT, OLD_WIDE_UNIT = 64, 16, 32
#: Drafters that read the model's hidden states (SpeculativeConfig.use_eagle).
HIDDEN_STATE_DRAFTERS = ("eagle", "eagle3", "mtp")
#: Elements of a head for which Blackwell has kernels of their own.
WIDE_HEAD = 256
#: Type of the models with states whose drafters 0.13 to 0.16 take.
DRAFTED_EARLY = "qwen3_next"


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


def backend_of(
    model: ModelShape,
    capability: int,
    kv_cache_dtype: str,
    chosen: str = "auto",
    rules: Rules = DEFAULT_RULES,
) -> Backend:
    """The backend that is chosen, by default vLLM's choice on a GPU of this compute capability.

    (platforms/cuda.py, _get_backend_priorities.)

    Args:
        model: its attention decides the list.
        capability: compute capability times ten: 80, 89, 90, 100.
        kv_cache_dtype: not every backend reads FP8.
        chosen: one of `backend_names`, or "auto".
        rules: latent_blocks counts.
    """
    fp8, blackwell = kv_cache_dtype.startswith("fp8"), capability // 10 == 10
    if model.is_mla:
        if chosen == "auto" and blackwell:
            chosen = "CUTLASS_MLA" if rules.latent_blocks == "cutlass" else "FLASHINFER_MLA"
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
        enable_prefix_caching: as the release has it in the end.
    """

    specs: tuple[LayerSpec, ...]
    block_size: int
    asked_block_size: int
    backend: Backend | None
    enable_prefix_caching: bool = True


@dataclass(frozen=True)
class CacheArgs:
    """The engine's arguments that shape the layers' caches.

    Attributes:
        block_size: of the user, or None.
        tensor_parallel: GPUs over which each layer is split.
        kv_cache_dtype: "auto": as `dtype`.
        dtype: of the activations.
        enable_prefix_caching: decides how states are kept; None: the release's default for the model.
        max_model_len: with prefix caching off, the tokens that one block of states covers.
        capability: compute capability of the GPU times ten.
        attention_backend: of the user, or "auto".
        mamba_block_size: of the user, or None.
        mamba_cache_dtype, mamba_ssm_cache_dtype: types of the states' two parts; "auto": as `dtype`, as the
            first.
        num_speculative_tokens: further states of one request, and inputs that a state's convolution keeps.
        mamba_cache_mode: of the user, or None: the release's default for the model.
        rules: of the release.
    """

    block_size: int | None
    tensor_parallel: int = 1
    kv_cache_dtype: str = "auto"
    dtype: str = "bfloat16"
    enable_prefix_caching: bool | None = True
    max_model_len: int = 4096
    capability: int = 90
    attention_backend: str = "auto"
    mamba_block_size: int | None = None
    mamba_cache_dtype: str = "auto"
    mamba_ssm_cache_dtype: str = "auto"
    num_speculative_tokens: int = 0
    mamba_cache_mode: str | None = None
    rules: Rules = DEFAULT_RULES


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

    Raises:
        Refusal: the release ends with an error before it groups the layers.
    """
    attention = any(c.kind != "mamba" for c in model.cache_layers)
    backend = None
    if attention:
        backend = backend_of(model, args.capability, args.kv_cache_dtype, args.attention_backend, args.rules)
    asked = _asked_block_size(model, args, backend)
    element = element_bytes(args.kv_cache_dtype, args.dtype)
    caching = prefix_caching(model, args.enable_prefix_caching, args.rules)
    drafts = args.num_speculative_tokens > 0
    mode = mamba_cache_mode(model, caching, args.rules, args.mamba_cache_mode, drafts)
    states = [state_bytes(c, args, model.recurrent_dtype) for c in model.cache_layers if c.kind == "mamba"]
    if states and drafts:
        _check_drafted(model, mode, args.rules)
    block_size, mamba_block, padded = asked, asked, None
    if states and (backend is None or mode == "none"):
        mamba_block = _free_mamba_block(args, mode)
    if backend is not None and states:
        token = max(_token_bytes(c, args, element) for c in model.cache_layers if c.kind != "mamba")
        aligned = _aligned_block_size(model, args, asked, max(states), token, backend, mode)
        block_size = max(asked, aligned)
        if block_size * token != max(states):
            padded = block_size * token
        if mode != "none":
            mamba_block = aligned if mode == "all" else block_size
    specs = tuple(
        _spec(c, args, element, block_size, backend, mode, mamba_block, padded, model.recurrent_dtype)
        for c in (*model.cache_layers, *_drafter_layers(model, drafter))
    )
    return CacheLayout(specs, block_size, asked, backend, caching)


def hybrid_manager(model: ModelShape, disabled: bool, drafter: str | None, rules: Rules) -> bool:
    """Whether the hybrid KV-cache manager is on (VllmConfig.__post_init__).

    Args:
        model: chunked local attention turns it off by itself in some cases.
        disabled: by the user.
        drafter: method of speculative decoding.
        rules: chunked_hybrid counts.
    """
    if any(c.kind == "chunked_local" for c in model.cache_layers):
        disabled = disabled or rules.chunked_hybrid == "off" or drafter in HIDDEN_STATE_DRAFTERS
    return not disabled


def _check_drafted(model: ModelShape, mode: str, rules: Rules) -> None:
    """MambaBase.get_kv_cache_spec and MambaModelConfig of 0.13 to 0.16."""
    if rules.states_drafted == "all":
        return
    if model.model_type != DRAFTED_EARLY:
        raise Refusal("has no speculative decoding for models with states of this type")
    if rules.states_drafted == "gated_unless_align" and mode == "align":
        raise Refusal("has no speculative decoding with prefix caching of states: turn one of them off")


def _asked_block_size(model: ModelShape, args: CacheArgs, backend: Backend | None) -> int:
    """The block size before states raise it: the user's, or what the backend prefers.

    Before 0.18 the platform sets it (CudaPlatformBase.check_and_update_config): 16, and for latent attention
    what the kernel wants even if the user says otherwise.
    """
    if args.rules.latent_blocks == "preferred":
        return args.block_size or (backend.preferred if backend else DEFAULT_BLOCK_SIZE)
    size = args.block_size or DEFAULT_BLOCK_SIZE
    if not model.is_mla or backend is None:
        return size
    chosen, hopper = args.attention_backend, args.capability // 10 == 9
    if chosen == "auto":
        chosen = "FLASHMLA" if hopper else backend.name
    if chosen == "FLASHMLA" and hopper:
        return size if size % 64 == 0 else 64
    if chosen == "CUTLASS_MLA":
        return size if size % 128 == 0 else 128
    if chosen == "FLASHINFER_MLA":
        return size if size == 32 or size % 64 == 0 else 64
    return size


def _free_mamba_block(args: CacheArgs, mode: str) -> int:
    """Block size of states that no attention is beside (MambaModelConfig)."""
    if args.mamba_block_size:
        return args.mamba_block_size
    if mode == "none":
        return args.max_model_len
    if args.block_size is None and args.rules.free_state_blocks != "engine":
        if args.rules.free_state_blocks == "unset":
            raise Refusal("fails to cache states without a block size: give engine.block_size")
        return args.max_model_len
    return args.block_size or DEFAULT_BLOCK_SIZE


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


def _aligned_block_size(
    model: ModelShape, args: CacheArgs, asked: int, state: int, token: int, backend: Backend, mode: str
) -> int:
    """The smallest block size whose attention page holds a state.

    With a state in every block it is a multiple of the chunk that the Mamba kernels take at once, too.
    """
    unit = _state_unit(model, args, asked, backend)
    if mode == "all":
        chunk = lcm(args.mamba_block_size or model.state_chunk, unit)
        return chunk * cdiv(cdiv(state, token), chunk)
    needed = unit * cdiv(state, unit * token)
    return backend.smallest * cdiv(needed, backend.smallest)


def _state_unit(model: ModelShape, args: CacheArgs, asked: int, backend: Backend) -> int:
    """What the block size of attention beside states is a multiple of."""
    rule = args.rules.state_blocks
    if rule in ("asked", "asked_latent"):
        unit = max(backend.smallest, asked)
        return max(unit, MLA_HYBRID_ALIGNMENT) if model.is_mla and rule == "asked_latent" else unit
    if model.is_mla:
        return MLA_HYBRID_ALIGNMENT if args.attention_backend == "CUTLASS_MLA" else OLD_LATENT_UNIT
    wide = any(c.head_size == WIDE_HEAD for c in model.cache_layers)
    blackwell = args.capability // 10 == 10 and args.attention_backend in ("auto", "FLASHINFER")
    return OLD_WIDE_UNIT if rule == "kernel_wide" and wide and blackwell else OLD_UNIT


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
            checkpoint_blocks=int(c.checkpoint and args.rules.state_checkpoints == "on"),
            page_size_padded=padded,
        )
    size = block_size
    if c.kind == "sliding_window" and backend is not None:
        size = _window_block(block_size, backend, args.rules)
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


def _window_block(block_size: int, backend: Backend, rules: Rules) -> int:
    """A window layer's block: since 0.25 it has one of its own.

    Now the largest kernel block whose page is not above that of a full layer of its shape.
    """
    if rules.window_blocks == "engine":
        return block_size
    return backend.smallest if rules.window_blocks == "smallest" else backend.largest_within(block_size)
