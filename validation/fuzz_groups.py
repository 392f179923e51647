"""Random cases with KV-cache groups of every type, for comparing the simulator with a real vLLM.

A family names what the groups of a case are like; a seed and a family determine a case. Apart from the
groups they are the cases of `validation.fuzz_cases`: tiny pools, shared and equal prompts, ties, limits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from sim.engine_settings import EngineSettings, KVCacheGroup
from validation.fuzz_cases import Case, Draw, fit_pool, random_case, random_requests, random_settings
from validation.logical import LogicalRequest

#: The release of the family "mamba_all".
LAST_WITH_MODE_ALL = "0.31"
#: Seeds of one family and of the next never meet.
_FAMILY_SEED = 0x67726F75


def random_group_case(seed: int, family: str) -> Case:
    """The case of a seed in a family; the same on every machine. Family "full" is `random_case`.

    Raises KeyError for an unknown family.
    """
    if family == "full":
        return random_case(seed)
    if family == "any":
        return random_group_case(seed, EVERYWHERE[seed % len(EVERYWHERE)])
    make = _MAKERS[family]
    number = list(_MAKERS).index(family)
    draw = Draw(np.random.default_rng(np.random.SeedSequence([_FAMILY_SEED, number, seed])))
    pressure = draw.chance(0.6)
    settings = _with_retention(draw, make(draw, _base(draw, pressure)))
    requests = random_requests(draw, settings, pressure)
    if settings.encoder_tokens:
        requests = _with_encoder_inputs(draw, settings, requests)
    if settings.num_speculative_tokens:
        requests = tuple(_with_drafts(draw, request) for request in requests)
    slack = draw.one_of(0.0, 0.0, 0.1, 0.25, 0.5) if pressure else draw.one_of(0.0, 0.5, 1.0, 2.0, 8.0)
    return Case(f"{family}_{seed}", fit_pool(settings, requests, slack), requests)


def _base(draw: Draw, pressure: bool) -> EngineSettings:
    """Settings with small blocks and texts of several windows."""
    settings = random_settings(draw, pressure)
    length = draw.one_of(draw.between(12, 40), draw.between(24, 96), draw.between(64, 220))
    batched = settings.max_num_batched_tokens
    if not settings.enable_chunked_prefill:
        batched = max(batched, length)
    scheduled = settings.max_num_scheduled_tokens
    if scheduled is not None and not settings.enable_chunked_prefill:
        scheduled = max(scheduled, length)
    return replace(
        settings,
        block_size=draw.one_of(1, 2, 2, 3, 4, 4, 4, 8, 8, 16),
        max_model_len=length,
        max_num_batched_tokens=batched,
        max_num_scheduled_tokens=scheduled,
        long_prefill_token_threshold=min(settings.long_prefill_token_threshold, length),
        enable_prefix_caching=draw.chance(0.93),
    )


def _with_retention(draw: Draw, settings: EngineSettings) -> EngineSettings:
    """Retention none, 0, or some multiple of the scheduler's block size where the groups allow it."""
    interval = draw.one_of(0, 0, None, -1)
    if interval == -1:
        sparse = any(g.type in ("sliding_window", "mamba") for g in settings.kv_cache_groups)
        interval = scheduler_block_size(settings) * draw.between(1, 4) if sparse else 0
    return replace(settings, prefix_cache_retention_interval=interval)


def scheduler_block_size(settings: EngineSettings) -> int:
    """The least common multiple of the groups' block sizes."""
    return math.lcm(*(g.block_size or settings.block_size for g in settings.kv_cache_groups))


def _window(draw: Draw, settings: EngineSettings, size: int) -> KVCacheGroup:
    """A sliding window: tiny, about a block, some blocks, or nearly everything."""
    length = settings.max_model_len
    window = draw.one_of(
        draw.between(1, size + 1), draw.between(1, 3 * size), draw.between(1, length), size + 1, 2 * size
    )
    own = None if size == settings.block_size else size
    return KVCacheGroup(type="sliding_window", block_size=own, sliding_window=window)


def _full(settings: EngineSettings, size: int) -> KVCacheGroup:
    return KVCacheGroup(block_size=None if size == settings.block_size else size)


def _shuffled(draw: Draw, groups: list[KVCacheGroup]) -> tuple[KVCacheGroup, ...]:
    """The groups in a random order: first-occurrence order of layers may put any type first."""
    return tuple(groups[int(i)] for i in draw.rng.permutation(len(groups)))


def _sliding_window(draw: Draw, s: EngineSettings) -> EngineSettings:
    """One group, all layers with a window."""
    return replace(s, kv_cache_groups=(_window(draw, s, s.block_size),))


def _hybrid(draw: Draw, s: EngineSettings) -> EngineSettings:
    """Full attention and windows, equal or two different ones, or windows alone; one block size."""
    windows = [_window(draw, s, s.block_size) for _ in range(draw.one_of(1, 1, 2))]
    groups = [draw.one_of(*windows) for _ in range(draw.between(0, 2))] + windows
    full = draw.one_of(1, 1, 1, 2, 0)
    if full == 0 and len(groups) == 1:
        full = 1
    return replace(s, kv_cache_groups=_shuffled(draw, groups + [_full(s, s.block_size)] * full))


def _chunked_local(draw: Draw, s: EngineSettings) -> EngineSettings:
    """Chunks beside full attention, windows, or alone; one block size."""
    chunk = draw.one_of(
        s.block_size * draw.between(1, 4), draw.between(1, s.max_model_len), draw.between(1, 3 * s.block_size)
    )
    chunked = KVCacheGroup(type="chunked_local", attention_chunk_size=chunk)
    others = draw.one_of(
        [],
        [_full(s, s.block_size)],
        [_full(s, s.block_size)],
        [_full(s, s.block_size), _window(draw, s, s.block_size)],
        [_window(draw, s, s.block_size)],
    )
    return replace(s, kv_cache_groups=_shuffled(draw, [chunked] * draw.one_of(1, 1, 2) + others))


def _mamba(draw: Draw, s: EngineSettings) -> EngineSettings:
    """Mamba (align with caching, none without) beside full attention, windows, or alone; one block size."""
    state = KVCacheGroup(type="mamba")
    others = draw.one_of(
        [],
        [_full(s, s.block_size)],
        [_full(s, s.block_size)],
        [_full(s, s.block_size), _window(draw, s, s.block_size)],
        [_window(draw, s, s.block_size)],
    )
    return replace(s, kv_cache_groups=_shuffled(draw, [state] * draw.one_of(1, 1, 2, 3) + others))


def _mamba_all(draw: Draw, s: EngineSettings) -> EngineSettings:
    """Mamba with a state in every block, sometimes under drafts, in the last release that has it."""
    make = draw.one_of(_mamba, _mamba, _mamba, _partial, _uneven)
    s = replace(make(draw, s), enable_prefix_caching=True)
    groups = tuple(
        replace(g, mamba_cache_mode="all", prefill_checkpoint_alignment=None) if g.type == "mamba" else g
        for g in s.kv_cache_groups
    )
    s = replace(s, vllm=LAST_WITH_MODE_ALL, kv_cache_groups=groups)
    return _drafting(draw, s, draw.one_of(1, 2, 3)) if draw.chance(0.4) else s


def _mixed(draw: Draw, s: EngineSettings) -> EngineSettings:
    """Full attention and windows of different block sizes."""
    unit = draw.one_of(1, 1, 2, 2, 4)
    sizes = [unit * draw.one_of(1, 2, 3, 4, 8) for _ in range(draw.between(1, 3))]
    windows = [_window(draw, replace(s, block_size=0), size) for size in sizes]
    full = [KVCacheGroup(block_size=unit * draw.one_of(1, 2, 4)) for _ in range(draw.one_of(1, 1, 1, 2, 0))]
    if len(full) + len(windows) == 1:
        full = [KVCacheGroup(block_size=2 * sizes[0])]
    groups = _shuffled(draw, windows + full)
    smallest = min(g.block_size or 0 for g in groups)
    groups = tuple(replace(g, block_size=None) if g.block_size == smallest else g for g in groups)
    s = replace(s, block_size=smallest, kv_cache_groups=groups)
    if draw.chance(0.2):
        divisor = math.gcd(*(g.block_size or smallest for g in groups))
        s = replace(s, prefix_match_unit=draw.one_of(*(u for u in range(1, divisor + 1) if divisor % u == 0)))
    return s


def _partial(draw: Draw, s: EngineSettings) -> EngineSettings:
    """Mamba whose hits end inside a block: a hash unit below the block size."""
    unit = draw.one_of(1, 2, 2, 4)
    size = unit * draw.one_of(2, 2, 3, 4, 8)
    s = replace(s, block_size=size, prefix_match_unit=unit)
    others = draw.one_of(
        [KVCacheGroup()],
        [KVCacheGroup()],
        [KVCacheGroup(), KVCacheGroup()],
        [KVCacheGroup(), _window(draw, s, size)],  # a window needs whole blocks: fine-grained hits are off
        [KVCacheGroup(type="mamba")],
    )
    return replace(s, kv_cache_groups=_shuffled(draw, [KVCacheGroup(type="mamba"), *others]))


def _speculative(draw: Draw, s: EngineSettings) -> EngineSettings:
    """Drafts of every kind, on groups of every type but chunks."""
    drafts = draw.one_of(1, 1, 2, 3, 5)
    make = draw.one_of(
        None, None, _sliding_window, _hybrid, _hybrid, _mamba, _mixed, _mixed, _partial, _partial
    )
    return _drafting(draw, s if make is None else make(draw, s), drafts)


def _drafting(draw: Draw, s: EngineSettings, drafts: int) -> EngineSettings:
    """The same engine with a drafter."""
    groups = s.kv_cache_groups
    if draw.chance(0.4):
        marked = draw.between(0, len(groups) - 1)
        groups = tuple(replace(g, is_eagle_group=i == marked) for i, g in enumerate(groups))
    # A decode with all its drafts must fit a step: vLLM rather admits nothing than a part of it.
    least = 2 + drafts
    scheduled = s.max_num_scheduled_tokens
    threshold = s.long_prefill_token_threshold
    return replace(
        s,
        kv_cache_groups=groups,
        num_speculative_tokens=drafts,
        speculative_method=draw.one_of("eagle", "eagle", "mtp", "draft_model", "ngram"),
        max_num_batched_tokens=max(s.max_num_batched_tokens, least),
        max_num_scheduled_tokens=None if scheduled is None else max(scheduled, least),
        long_prefill_token_threshold=max(threshold, min(least, s.max_model_len)) if threshold > 0 else 0,
    )


def _with_drafts(draw: Draw, request: LogicalRequest) -> LogicalRequest:
    """How many drafts are right; the end token, if there is one, becomes one that occurs nowhere else."""
    pattern = tuple(draw.between(0, draw.one_of(0, 1, 5)) for _ in range(draw.between(1, 5)))
    output = request.output_token_ids
    if request.stops_by_end_token:
        output = (*output[:-1], 4095 if 4095 not in output[:-1] else 4096)
    return replace(request, accepted_drafts=pattern, output_token_ids=output)


def _checkpoint(draw: Draw, s: EngineSettings) -> EngineSettings:
    """States that the kernel exports from inside a chunk, in all Mamba groups or in some.

    Without drafts: with them and dense retention vLLM 0.32.0 fails an assertion, since a state exported from
    among drafts has no hash.
    """
    s = draw.one_of(_mamba, _partial)(draw, s)
    if not s.enable_prefix_caching:
        s = replace(s, enable_prefix_caching=True)
    everywhere = draw.chance(0.8)
    groups = tuple(
        replace(g, prefill_checkpoint_alignment=draw.one_of(1, 1, 1, 2, s.block_size))
        if g.type == "mamba" and (everywhere or draw.chance(0.5))
        else g
        for g in s.kv_cache_groups
    )
    return replace(s, kv_cache_groups=groups)


def _cross_attention(draw: Draw, s: EngineSettings) -> EngineSettings:
    """An encoder-decoder model: neither prefix caching nor chunked prefill."""
    own = KVCacheGroup()
    tokens = draw.one_of(1, draw.between(1, 40), s.max_num_batched_tokens)
    cross = KVCacheGroup(type="cross_attention", encoder_tokens=tokens)
    groups = draw.one_of([own, cross], [own, cross], [own, cross, cross], [own, own, cross])
    return replace(
        s,
        kv_cache_groups=_shuffled(draw, groups),
        enable_prefix_caching=False,
        enable_chunked_prefill=False,
        long_prefill_token_threshold=0,
        long_prefill_token_threshold_adaptive=False,
        max_num_batched_tokens=max(s.max_num_batched_tokens, s.max_model_len, tokens),
        max_num_scheduled_tokens=None,
    )


def _with_encoder_inputs(
    draw: Draw, settings: EngineSettings, requests: tuple[LogicalRequest, ...]
) -> tuple[LogicalRequest, ...]:
    """In some cases inputs of different lengths: none, short ones, or as long as they may be."""
    if draw.chance(0.5):
        return requests
    most = settings.encoder_tokens
    lengths = (None, 0, most, draw.between(0, most), draw.between(0, most))
    return tuple(replace(request, encoder_tokens=draw.one_of(*lengths)) for request in requests)


def _uneven(draw: Draw, s: EngineSettings) -> EngineSettings:
    """Mamba and full attention of unequal block sizes, so that hits may end inside the larger blocks."""
    unit = draw.one_of(1, 2, 2, 4)
    ratios = [1, draw.one_of(1, 2, 3, 4), draw.one_of(2, 2, 3, 4)]
    sizes = [unit * ratios[int(i)] for i in draw.rng.permutation(len(ratios))]
    count = draw.one_of(2, 2, 3)
    states = draw.between(1, count - 1)
    groups = tuple(
        KVCacheGroup(
            type="mamba" if i < states else "full",
            block_size=size,
            prefill_checkpoint_alignment=draw.one_of(None, None, 1) if i < states else None,
        )
        for i, size in enumerate(sizes[:count])
    )
    smallest = min(g.block_size or 0 for g in groups)
    groups = tuple(replace(g, block_size=None) if g.block_size == smallest else g for g in groups)
    s = replace(s, block_size=smallest, kv_cache_groups=_shuffled(draw, list(groups)))
    if draw.chance(0.3):
        divisor = math.gcd(*(g.block_size or smallest for g in groups))
        s = replace(s, prefix_match_unit=draw.one_of(*(u for u in range(1, divisor + 1) if divisor % u == 0)))
    return s


_MAKERS: dict[str, Callable[[Draw, EngineSettings], EngineSettings]] = {
    "sliding_window": _sliding_window,
    "hybrid": _hybrid,
    "chunked_local": _chunked_local,
    "mamba": _mamba,
    "mixed": _mixed,
    "partial": _partial,
    "speculative": _speculative,
    "cross_attention": _cross_attention,
    "checkpoint": _checkpoint,
    "uneven": _uneven,
    "mamba_all": _mamba_all,
}

#: What `python -m validation fuzz --groups` takes, beside "full" and "any".
FAMILIES = tuple(_MAKERS)
#: What "any" draws from: families that every release from the default one on has.
EVERYWHERE = tuple(family for family in FAMILIES if family != "mamba_all")
