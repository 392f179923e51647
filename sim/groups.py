"""The KV-cache groups of an engine as the core takes them: specs, hash unit, common block size, limits.

Mirrors what vLLM 0.32.0 derives from its ``KVCacheConfig`` at start-up: ``resolve_kv_cache_block_sizes``,
``HybridKVCacheCoordinator.verify_and_split_kv_cache_groups``, ``max_admission_blocks_per_request``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sim.core import codes as c
from sim.engine_settings import EngineSettings, KVCacheGroup

_ATTENTION = {
    "full": c.GROUP_FULL,
    "sliding_window": c.GROUP_SLIDING_WINDOW,
    "chunked_local": c.GROUP_CHUNKED_LOCAL,
    "mamba": c.GROUP_MAMBA,
    "cross_attention": c.GROUP_CROSS,
}
#: Types of attention with keys of prefixes that end inside a block.
_ENDS_INSIDE = (c.GROUP_FULL, c.GROUP_MAMBA)


@dataclass(frozen=True)
class Group:
    """One group.

    Attributes:
        attention: GROUP_*.
        block_size: tokens.
        window: tokens of the window or the chunk, 0: none.
        admission_cap: blocks that the full-sequence reserve counts at most, 0: no limit.
        spec: index into `GroupLayout.specs`.
        drops: its hits lose their last block, which a drafter wants computed.
        export_alignment: tokens between the states that its kernel exports from inside a chunk, 0: none.
    """

    attention: int
    block_size: int
    window: int
    admission_cap: int
    spec: int
    drops: bool = False
    export_alignment: int = 0

    @property
    def token_slots(self) -> int:
        """SLOTS_*, what the slots of its blocks hold; a Mamba block holds a state."""
        special = {c.GROUP_MAMBA: c.SLOTS_NONE, c.GROUP_CROSS: c.SLOTS_ENCODER_TOKENS}
        return special.get(self.attention, c.SLOTS_TOKENS)

    @property
    def tail_blocks(self) -> int:
        """Cached blocks in a row that a hit in a sliding window needs."""
        return -(-(self.window - 1) // self.block_size) if self.attention == c.GROUP_SLIDING_WINDOW else 0


@dataclass(frozen=True)
class GroupLayout:
    """All groups of an engine.

    Attributes:
        groups: in vLLM's order.
        specs: the first group of each different spec, those of full attention first.
        block_size: least common multiple of the groups' block sizes: where a hit may end, tokens.
        hash_unit: tokens of one hash.
        hybrid: several groups under prefix caching.
        mamba_align: prefix caching with a Mamba group, whose table has states at the ends of chunks only.
        drafts: there is a drafter, or a group is marked as one's.
        state_tails: Mamba states inside a block may get keys.
    """

    groups: tuple[Group, ...]
    specs: tuple[Group, ...]
    block_size: int
    hash_unit: int
    hybrid: bool
    mamba_align: bool
    drafts: bool = False
    state_tails: bool = True

    @property
    def plain(self) -> bool:
        """Full attention alone, with one block size, which is hashed as a whole, and no drafts."""
        full = len(self.specs) == 1 and self.specs[0].attention == c.GROUP_FULL
        return full and not self.mixed and not self.drafts

    @property
    def windows_only(self) -> bool:
        """Full attention, windows and chunks alone, without drafts and prefixes that end inside a block.

        Groups of one spec have tables of one shape.
        """
        states = any(g.attention in (c.GROUP_MAMBA, c.GROUP_CROSS) for g in self.groups)
        return not (states or self.drafts or self.partial_width)

    @property
    def version(self) -> str:
        """Version of the core that such an engine is compiled into, see ``sim.core.switch``."""
        return "plain" if self.plain else "windows" if self.windows_only else "general"

    @property
    def partial_width(self) -> int:
        """Boundaries inside a block of full attention or of states at which a prefix may end: keys of it."""
        ratios = [g.block_size // self.hash_unit for g in self.groups if g.attention in _ENDS_INSIDE]
        return max([1, *ratios]) - 1 if self.hybrid else 0

    @property
    def slot_sizes(self) -> tuple[int, ...]:
        """Tokens of a block, by group; 0 where blocks hold states."""
        return tuple(g.block_size if g.token_slots else 0 for g in self.groups)

    @property
    def fine_grained(self) -> bool:
        """Whether hits may end inside a block: there are states of several hash units, and no window or chunk
        is (``partial_hash_hits_enabled``).
        """
        larger = [g for g in self.groups if g.block_size > self.hash_unit]
        states = any(g.attention == c.GROUP_MAMBA for g in larger)
        return (
            self.state_tails and self.hybrid and states and all(g.attention in _ENDS_INSIDE for g in larger)
        )

    @property
    def hit_alignment(self) -> int:
        """Every hit's length is a multiple of it, tokens."""
        return self.hash_unit if self.fine_grained else self.block_size

    @property
    def export_alignment(self) -> int:
        """Tokens between the states that chunks export where all Mamba kernels do so, else 0."""
        of_states = [g.export_alignment for g in self.groups if g.attention == c.GROUP_MAMBA]
        return of_states[0] if self.mamba_align and all(of_states) else 0

    @property
    def mixed(self) -> bool:
        """Some block has several hashes."""
        return any(g.block_size != self.hash_unit for g in self.groups)


def _cap(engine: EngineSettings, group: KVCacheGroup, block_size: int) -> int:
    """Blocks that one request can hold at once in a group that gives up its window, 0: all of them."""
    if engine.rules.admission_cap == "none" or group.type not in ("sliding_window", "chunked_local"):
        return 0
    batches = 2 if engine.async_scheduling and engine.rules.admission_cap == "in_flight" else 1
    beyond = batches * engine.max_num_batched_tokens
    if group.type == "sliding_window":
        tokens = min((group.sliding_window or 0) - 1 + beyond, engine.max_model_len)
        # the window may begin inside a block
        return -(-tokens // block_size) + 1
    tokens = min((group.attention_chunk_size or 0) + beyond, engine.max_model_len)
    return -(-tokens // block_size)


def _dropping_specs(engine: EngineSettings, spec_of: list[int]) -> set[int]:
    """Specs with a group whose hits lose their last block: those marked, or under eagle or mtp else all."""
    if engine.rules.draft_hits != "drop":
        return set()
    marked = {spec_of[i] for i, group in enumerate(engine.kv_cache_groups) if group.is_eagle_group}
    return marked or (set(spec_of) if engine.uses_eagle else set())


def layout_of(engine: EngineSettings) -> GroupLayout:
    """The groups of these settings."""
    found: list[tuple[KVCacheGroup, int]] = []
    for group in engine.kv_cache_groups:
        found.append((group, group.block_size or engine.block_size))
    keys = [
        (g.type, size, g.sliding_window, g.attention_chunk_size, g.prefill_checkpoint_alignment)
        for g, size in found
    ]
    different = sorted(dict.fromkeys(keys), key=lambda spec: spec[0] != "full")
    drops = _dropping_specs(engine, [different.index(spec) for spec in keys])
    groups = tuple(
        Group(
            _ATTENTION[g.type],
            size,
            g.sliding_window or g.attention_chunk_size or 0,
            _cap(engine, g, size),
            different.index(spec),
            different.index(spec) in drops,
            (g.prefill_checkpoint_alignment or 0) if engine.enable_prefix_caching else 0,
        )
        for (g, size), spec in zip(found, keys, strict=True)
    )
    sizes = [g.block_size for g in groups]
    common = math.lcm(*sizes)
    caching = engine.enable_prefix_caching
    aligned = engine.mamba_cache_mode == "align"
    unit = common
    every_state = engine.mamba_cache_mode == "all" and any(g.attention == c.GROUP_MAMBA for g in groups)
    whole = every_state and engine.rules.state_units == "common"
    if caching and len(groups) > 1 and not whole:
        unit = engine.prefix_match_unit or math.gcd(*sizes)
    return GroupLayout(
        groups=groups,
        specs=tuple(groups[keys.index(spec)] for spec in different),
        block_size=common,
        hash_unit=unit,
        hybrid=caching and len(groups) > 1,
        mamba_align=aligned and any(g.attention == c.GROUP_MAMBA for g in groups),
        drafts=engine.num_speculative_tokens > 0 or bool(drops),
        state_tails=aligned and engine.rules.state_tails != "off",
    )
