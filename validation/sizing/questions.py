"""What is asked of both planners: every shipped model under many arguments, and made-up mixes of layers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from sim.models import find_model, model_names
from sim.profiles import DEFAULT_RELEASE, Rules, rules_of
from sim.sizing.plan import Limits
from sim.sizing.specs import LayerSpec
from sim.switches import release_key
from validation.sizing.real_layers import Question

#: Models that vLLM 0.32.0 no longer has.
GONE = ("llama-3.2-11b-vision",)
GIB = 2**30
#: Layers of a model that does not exist: specs, bytes, limits, hybrid manager on or off, blocks given.
Mix = tuple[list[LayerSpec], int, Limits, bool, int | None]


def models() -> list[str]:
    """Shipped models that vLLM 0.32.0 has."""
    return [n for n in model_names() if n not in GONE]


def divides(model: str, tensor_parallel: int) -> bool:
    """Whether vLLM can split the model over so many GPUs."""
    shape = find_model(model)
    assert shape is not None
    kv = shape.kv_heads
    heads = not shape.heads or shape.heads % tensor_parallel == 0
    kv_fits = not kv or (kv % tensor_parallel == 0 if kv >= tensor_parallel else tensor_parallel % kv == 0)
    states = all(part.split % tensor_parallel == 0 for c in shape.cache_layers for part in c.state)
    return heads and kv_fits and states


def questions(model: str, release: str = DEFAULT_RELEASE) -> Iterator[Question]:
    """All questions about one model to a release, but for the memory."""
    shape = find_model(model)
    assert shape is not None
    length = min(shape.max_position, 65536)
    states = shape.is_hybrid or shape.is_attention_free
    for tp, dtype, block, caching in itertools.product(
        (1, 2, 4, 8), ("auto", "fp8"), (None, 32, 128), (None, True, False)
    ):
        if not divides(model, tp) or (caching is not None and not states):
            continue
        yield Question(
            model,
            tensor_parallel_size=tp,
            kv_cache_dtype=dtype,
            block_size=block,
            enable_prefix_caching=caching,
            max_model_len=length,
            max_num_batched_tokens=max(2048, length) if shape.is_encoder_decoder else 8192,
        )
    base = Question(model, max_model_len=length, max_num_batched_tokens=8192)
    yield replace(base, capability=100)
    yield replace(base, capability=100, kv_cache_dtype="fp8", block_size=64)
    yield replace(base, capability=80, kv_cache_dtype="fp8", block_size=128)
    yield replace(base, max_num_batched_tokens=2048, async_scheduling=False)
    yield replace(base, disable_hybrid_kv_cache_manager=True)
    yield replace(base, disable_hybrid_kv_cache_manager=True, block_size=128)
    if states:
        for mode in _asked_modes(release):
            yield replace(base, enable_prefix_caching=True, mamba_cache_mode=mode)
        yield replace(base, capability=100, enable_prefix_caching=True)
    for tp in (1, 4):
        if divides(model, tp):
            yield from with_drafters(replace(base, tensor_parallel_size=tp))


#: One model of each kind of layers.
KINDS = (
    "llama-3.1-8b",
    "mistral-7b-v0.1",
    "gemma-3-27b",
    "gpt-oss-20b",
    "llama-4-scout",
    "deepseek-v3",
    "jamba-mini",
    "mamba-codestral-7b",
    "qwen3-next-80b-a3b",
    "whisper-large-v3",
)


def short_list(release: str) -> Iterator[Question]:
    """A few questions about a model of each kind."""
    for name in KINDS:
        shape = find_model(name)
        assert shape is not None
        length = min(shape.max_position, 65536)
        tokens = max(2048, length) if shape.is_encoder_decoder else 8192
        base = Question(name, max_model_len=length, max_num_batched_tokens=tokens)
        yield base
        yield replace(base, capability=100, block_size=128)
        yield replace(base, capability=80, disable_hybrid_kv_cache_manager=True, block_size=128)
        drafts = replace(base, num_speculative_tokens=2, speculative_method="mtp")
        if name == "jamba-mini":
            drafts = replace(drafts, speculative_method="eagle", speculative_model="eagle-llama-3.1-8b")
        if shape.mtp is not None or drafts.speculative_method == "eagle":
            yield drafts
            yield replace(drafts, enable_prefix_caching=True)
        if shape.is_mla:
            yield replace(base, capability=100)
        if shape.is_hybrid or shape.is_attention_free:
            yield replace(base, capability=100, tensor_parallel_size=4)
            yield replace(base, enable_prefix_caching=True)
            yield replace(base, enable_prefix_caching=True, block_size=64, tensor_parallel_size=2)
            for mode in _asked_modes(release):
                yield replace(base, enable_prefix_caching=True, mamba_cache_mode=mode)
        if name == "jamba-mini" and "all" in _asked_modes(release):
            yield replace(drafts, enable_prefix_caching=True, mamba_cache_mode="all")


#: Shipped models that can draft for each other, by model.
DRAFT_MODELS = {
    "llama-3.1-70b": "llama-3.2-1b",
    "qwen3-32b": "qwen3-0.6b",
    "gemma-3-27b": "gemma-3-4b",
    "gpt-oss-120b": "gpt-oss-20b",
    "mistral-7b-v0.1": "mistral-7b-v0.1",
}
#: The heads were made for the first; on the others their layers join windows, states and other widths.
EAGLE_MODELS = (
    "llama-3.1-8b",
    "mistral-7b-v0.1",
    "gpt-oss-20b",
    "gemma-3-12b",
    "llama-3.1-70b",
    "jamba-mini",
)


def with_drafters(base: Question) -> Iterator[Question]:
    """The question with the drafters that the model can have."""
    shape = find_model(base.model)
    assert shape is not None
    drafts = replace(base, num_speculative_tokens=3)
    if shape.mtp is not None:
        yield replace(drafts, speculative_method="mtp")
        yield replace(drafts, speculative_method="mtp", kv_cache_dtype="fp8", num_speculative_tokens=1)
        yield replace(drafts, speculative_method="mtp", enable_prefix_caching=False)
    if base.model in EAGLE_MODELS:
        yield replace(drafts, speculative_method="eagle", speculative_model="eagle-llama-3.1-8b")
        yield replace(drafts, speculative_method="eagle3", speculative_model="eagle3-llama-3.1-8b")
    # vLLM's CPU kernels don't take the experts of two models that are split.
    if base.model in DRAFT_MODELS and not (shape.model_type == "gpt_oss" and base.tensor_parallel_size > 1):
        name = DRAFT_MODELS[base.model]
        yield replace(drafts, speculative_method="draft_model", speculative_model=name)
        yield replace(
            drafts,
            speculative_method="draft_model",
            speculative_model=name,
            disable_hybrid_kv_cache_manager=True,
        )


def memories(q: Question) -> Iterator[Question]:
    """The same question with several sizes of memory, one too small, and with a given number of blocks."""
    for gib in (0.25, 8, 23.7, 61.3, 512):
        yield replace(q, available_bytes=int(gib * GIB) + 12345)
    yield replace(q, num_gpu_blocks_override=70001)


def random_mix(seed: int, release: str = DEFAULT_RELEASE) -> Mix:
    """Layers of a model that does not exist, as a release may have them."""
    specs, available, limits, hybrid, override = _random_mix(seed)
    if release == DEFAULT_RELEASE:
        return specs, available, limits, hybrid, override
    rules, rng = rules_of(release), np.random.default_rng([seed, 1])
    mode = str(rng.choice(_modes(release)))
    specs = [_as_in(release, rules, s, mode) for s in specs]
    if rng.random() < 0.3:
        # full attention that remembers a window, in every other layer
        window = int(rng.choice((64, 1024)))
        specs = [
            replace(s, sliding_window=window) if s.kind == "full" and i % 2 else s
            for i, s in enumerate(specs)
        ]
    batch = limits.encoder_tokens
    in_flight = limits.in_flight_tokens if rules.admission_cap == "in_flight" else batch
    return specs, available, Limits(limits.max_model_len, in_flight, batch, rules), hybrid, override


def _asked_modes(release: str) -> tuple[str, ...]:
    """Values of `--mamba-cache-mode` with prefix caching."""
    return () if release_key(release) < (0, 15) else tuple(m for m in _modes(release) if m != "none")


def _modes(release: str) -> tuple[str, ...]:
    """How a release can keep states."""
    if release_key(release) < (0, 15):
        return ("all", "none")
    return ("all", "align", "none") if release_key(release) < (0, 32) else ("align", "none")


def _as_in(release: str, rules: Rules, s: LayerSpec, mode: str) -> LayerSpec:
    """A layer with what the release's specs have fields for."""
    if s.kind == "mamba":
        block = 4096 if mode == "none" else s.block_size
        checkpoints = s.checkpoint_blocks if rules.state_checkpoints == "on" else 0
        return replace(s, mamba_cache_mode=mode, block_size=block, checkpoint_blocks=checkpoints)
    # values of another size than keys: full attention since 0.14, windows since 0.20, all since 0.28
    since = {"full": (0, 14), "mla": (0, 13), "sliding_window": (0, 20)}.get(s.kind, (0, 28))
    return s if release_key(release) >= since else replace(s, head_size_v=s.head_size)


def _random_mix(seed: int) -> Mix:
    rng = np.random.default_rng(seed)

    def pick(values: tuple[int, ...]) -> int:
        return int(values[int(rng.integers(len(values)))])

    block = pick((8, 16, 16, 32, 48, 64))
    mode = "align" if rng.random() < 0.5 else "none"
    kinds: list[LayerSpec] = []
    mla = rng.random() < 0.2
    for _ in range(int(rng.integers(1, 5))):
        heads, size = pick((1, 2, 4, 8)), pick((64, 80, 128, 256))
        element = pick((1, 2, 2))
        kind = (
            "full",
            "full",
            "sliding_window",
            "sliding_window",
            "chunked_local",
            "mamba",
            "cross_attention",
        )[int(rng.integers(7))]
        if kind == "mamba":
            state = int(rng.integers(1, 400)) * 512
            kinds.append(
                LayerSpec(
                    "mamba",
                    block if mode == "align" else 4096,
                    state_bytes=state,
                    mamba_cache_mode=mode,
                    checkpoint_blocks=int(rng.random() < 0.3),
                    page_size_padded=state + 512 if rng.random() < 0.3 else None,
                )
            )
            continue
        if kind == "full" and mla:
            kinds.append(LayerSpec("mla", block, 1, pick((320, 576)), 0, element))
            continue
        own = block if rng.random() < 0.8 else block * pick((2, 4))
        kinds.append(
            LayerSpec(
                kind,
                own,
                heads,
                size,
                size if rng.random() < 0.9 else size // 2,
                element,
                sliding_window=pick((64, 1000, 1024, 4096)) if kind == "sliding_window" else None,
                attention_chunk_size=pick((512, 8192)) if kind == "chunked_local" else None,
            )
        )
    counts = rng.integers(1, 15, len(kinds))
    order = rng.permutation(np.repeat(np.arange(len(kinds)), counts))
    if rng.random() < 0.5:
        order = np.sort(order)
    specs = [kinds[int(i)] for i in order]
    length = pick((100, 1024, 4096, 40960))
    tokens = pick((512, 2048, 8192))
    in_flight = tokens * (2 if rng.random() < 0.5 else 1)
    available = int(rng.integers(1, 2000)) * 2**23
    override = int(rng.integers(2, 200_000)) if rng.random() < 0.2 else None
    return specs, available, Limits(length, in_flight, tokens), bool(rng.random() < 0.8), override
