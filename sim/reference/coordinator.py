"""What all groups do together: the common prefix hit, allocation and caching group by group.

Mirrors vLLM 0.32.0, ``KVCacheCoordinator`` and its subclasses (``vllm/v1/core/kv_cache_coordinator.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.reference.block_pool import BlockPool, KVCacheBlock
from sim.reference.managers import (
    MANAGERS,
    BlocksByGroup,
    Limits,
    MambaManager,
    SingleTypeKVCacheManager,
    Slots,
    cdiv,
)
from sim.reference.metrics import KVCacheMetricsCollector
from sim.reference.request import Request
from sim.reference.settings import Settings


@dataclass(frozen=True)
class Hit:
    """The result of a look-up.

    Attributes:
        blocks: by group, null where attention does not look.
        length: tokens.
        longest: tokens of the longest hit that a group had on the way; beyond ``length`` it is a prefix that
            other requests share and that the groups with sparse caching don't have.
    """

    blocks: BlocksByGroup
    length: int
    longest: int


def replay_boundaries(num_prompt_tokens: int, block_size: int, use_eagle: bool) -> tuple[int, ...]:
    """Positions at which a later request with this prompt, or one that goes on from it, can resume.

    Without a drafter the last token but one (who aligns rounds down). With one, a block is dropped from what
    matches: the same prompt matches up to its last token but one, a longer one up to its last whole block.
    """
    if not use_eagle:
        return (num_prompt_tokens - 1,)
    ends = {(n // block_size - 1) * block_size for n in (num_prompt_tokens - 1, num_prompt_tokens)}
    return tuple(sorted({max(end, 0) for end in ends}))


class KVCacheCoordinator:
    """All groups of an engine whose prefix caching is off: any number of them.

    Args:
        settings: engine settings.
        enable_kv_cache_events: whether the pool collects events.
        metrics_collector: optional residency metrics.

    Attributes:
        managers: one for each group.
        eagle_groups: indices of the groups whose hits lose their last unit.
        fine_grained: hits may end inside a block.
    """

    def __init__(
        self,
        settings: Settings,
        enable_kv_cache_events: bool = False,
        metrics_collector: KVCacheMetricsCollector | None = None,
    ) -> None:
        self.rules = settings.rules
        self.scheduler_block_size = settings.scheduler_block_size
        self.hash_block_size = settings.hash_block_size
        self.retention_interval = settings.prefix_cache_retention_interval
        self.fine_grained = False
        self.block_pool = BlockPool(
            settings.num_gpu_blocks,
            settings.enable_prefix_caching,
            settings.hash_block_size,
            enable_kv_cache_events,
            metrics_collector,
            settings.rules.free_order,
        )
        in_flight = {
            "none": None,
            "batch": settings.max_num_batched_tokens,
            "in_flight": settings.max_in_flight_tokens,
        }
        limits = Limits(
            settings.max_model_len,
            settings.scheduler_block_size,
            in_flight[self.rules.admission_cap],
            settings.num_speculative_tokens,
            self.rules,
        )
        self.managers: tuple[SingleTypeKVCacheManager, ...] = tuple(
            MANAGERS[group.type](group, self.block_pool, settings.enable_prefix_caching, i, limits)
            for i, group in enumerate(settings.groups)
        )
        marked = {i for i, group in enumerate(settings.kv_cache_groups) if group.is_eagle_group}
        if self.rules.draft_hits != "drop":
            marked = set()
        elif settings.use_eagle and not marked:
            marked = set(range(len(self.managers)))
        self.eagle_groups = frozenset(marked)
        for manager in self.managers:
            if isinstance(manager, MambaManager):
                manager.drop_eagle_checkpoint = settings.drops_hits

    def find_longest_cache_hit(self, block_hashes: Sequence[int], max_length: int) -> Hit:
        """Nothing: there is no cache."""
        return Hit(tuple([] for _ in self.managers), 0, 0)

    def num_blocks_to_allocate(
        self, request_id: str, slots: Slots, hits: BlocksByGroup, apply_admission_cap: bool = False
    ) -> int:
        """Blocks that the free queue would lose, over all groups."""
        return sum(
            m.get_num_blocks_to_allocate(request_id, slots, blocks, apply_admission_cap)
            for m, blocks in zip(self.managers, hits, strict=True)
        )

    def allocate_new_computed_blocks(
        self, request_id: str, hits: BlocksByGroup, num_computed_tokens: int
    ) -> None:
        """Give the request its hits, group by group."""
        for manager, blocks in zip(self.managers, hits, strict=True):
            manager.add_local_computed_blocks(request_id, blocks, num_computed_tokens)

    def allocate_new_blocks(self, request_id: str, slots: Slots) -> BlocksByGroup:
        """Extend the request's tables, group by group."""
        return tuple(m.allocate_new_blocks(request_id, slots) for m in self.managers)

    def num_cacheable_tokens(self, num_tokens: int, manager: SingleTypeKVCacheManager) -> int:
        """Leading tokens of ``num_tokens`` whose blocks a later hit could end in."""
        return num_tokens

    def cache_blocks(self, request: Request, num_tokens: int) -> None:
        """Make what the first ``num_tokens`` tokens fill hittable, group by group."""
        drops = bool(self.eagle_groups) and self.rules.draft_replay == "dropped"
        boundaries = replay_boundaries(request.num_prompt_tokens, self.scheduler_block_size, drops)
        for manager in self.managers:
            if manager.enable_caching:
                cacheable = self.num_cacheable_tokens(num_tokens, manager)
                manager.cache_blocks(request, cacheable, self.retention_interval, boundaries)

    def remove_skipped_blocks(self, request_id: str, num_computed_tokens: int) -> None:
        """Free what no group reads any more."""
        for manager in self.managers:
            manager.remove_skipped_blocks(request_id, num_computed_tokens)

    def free(self, request_id: str) -> None:
        """Give everything back, group by group."""
        for manager in self.managers:
            manager.free(request_id)

    def new_step_starts(self) -> None:
        """A schedule call begins."""
        for manager in self.managers:
            manager.new_step_starts()


class UnitaryKVCacheCoordinator(KVCacheCoordinator):
    """One group with a prefix cache."""

    def __init__(
        self,
        settings: Settings,
        enable_kv_cache_events: bool = False,
        metrics_collector: KVCacheMetricsCollector | None = None,
    ) -> None:
        super().__init__(settings, enable_kv_cache_events, metrics_collector)
        self.managers[0].use_eagle = bool(self.eagle_groups)

    def find_longest_cache_hit(self, block_hashes: Sequence[int], max_length: int) -> Hit:
        """The hit of the only group."""
        manager = self.managers[0]
        blocks, length = manager.find_longest_cache_hit(
            block_hashes, max_length, [0], manager.block_size, bool(self.eagle_groups)
        )
        return Hit(blocks, length, length)


@dataclass(frozen=True)
class SpecGroup:
    """Groups of equal type and shape: a block must be cached in all of them to be a hit.

    Attributes:
        manager: of the first of them.
        group_ids: ascending.
        use_eagle: one of them loses its last unit, and so they all do.
    """

    manager: SingleTypeKVCacheManager
    group_ids: tuple[int, ...]
    use_eagle: bool

    @property
    def is_full(self) -> bool:
        """Whether every prefix of a hit is a hit too."""
        return self.manager.group.type == "full"


class HybridKVCacheCoordinator(KVCacheCoordinator):
    """Several groups with a prefix cache: a hit must be one in every group."""

    def __init__(
        self,
        settings: Settings,
        enable_kv_cache_events: bool = False,
        metrics_collector: KVCacheMetricsCollector | None = None,
    ) -> None:
        super().__init__(settings, enable_kv_cache_events, metrics_collector)
        self.fine_grained = (
            self.rules.state_tails != "off"
            and any(
                isinstance(m, MambaManager) and m.aligned and m.block_size > self.hash_block_size
                for m in self.managers
            )
            and all(
                m.supports_fine_grained_lookup or m.block_size == self.hash_block_size for m in self.managers
            )
        )
        self.alignment = self.hash_block_size if self.fine_grained else self.scheduler_block_size
        for manager in self.managers:
            if self.rules.state_replay == "hits":
                manager.alignment_tokens = self.alignment
        self.spec_groups = self._spec_groups()

    def _spec_groups(self) -> list[SpecGroup]:
        alike: dict[object, list[int]] = {}
        for i, manager in enumerate(self.managers):
            alike.setdefault(manager.group, []).append(i)
        found = [
            SpecGroup(self.managers[ids[0]], tuple(ids), any(i in self.eagle_groups for i in ids))
            for ids in alike.values()
        ]
        for group in found:
            for i in group.group_ids:
                self.managers[i].use_eagle = group.use_eagle
        return sorted(found, key=lambda group: not group.is_full)

    def num_cacheable_tokens(self, num_tokens: int, manager: SingleTypeKVCacheManager) -> int:
        """Rounded down to where a hit can end; a drafter's groups keep the block that is dropped, too."""
        if self.fine_grained or self.rules.hybrid_cacheable == "all":
            return num_tokens
        aligned = num_tokens // self.scheduler_block_size * self.scheduler_block_size
        if manager.use_eagle and aligned and self.rules.hybrid_cacheable == "aligned":
            return min(num_tokens, aligned + manager.block_size)
        return aligned

    def find_longest_cache_hit(self, block_hashes: Sequence[int], max_length: int) -> Hit:
        """Ask the kinds of groups in turn, each for at most what the one before left, until none shortens it.

        Full attention comes first and is asked once: what it has cached, it has for shorter lengths too. With
        full attention and one other kind one round is enough (but in 0.14).
        """
        blocks: dict[int, list[KVCacheBlock]] = {}
        lengths: dict[int, int] = {}
        one_round = (
            self.rules.hybrid_rounds == "one" and len(self.spec_groups) == 2 and self.spec_groups[0].is_full
        )
        each_round = self.rules.draft_lookup == "each_round"
        dropped: set[int] = set()
        longest = 0
        length = max_length
        while True:
            current = length
            for number, group in enumerate(self.spec_groups):
                first = group.group_ids[0]
                if group.is_full and first in blocks:
                    current = self._shortened(current, group, lengths[first])
                    continue
                # A drafter's block is dropped once for each length that is tried (since 0.20).
                drop = group.use_eagle and (each_round or number not in dropped)
                found, reached = group.manager.find_longest_cache_hit(
                    block_hashes,
                    self._with_margin(current, group, block_hashes, max_length) if drop else current,
                    group.group_ids,
                    self.alignment,
                    drop,
                )
                if drop:
                    dropped.add(number)
                elif reached < current:
                    dropped.clear()
                current = reached
                blocks.update(zip(group.group_ids, found, strict=True))
                lengths.update(dict.fromkeys(group.group_ids, reached))
                longest = max(longest, current)
            if current >= length:
                break
            length = current
            if one_round:
                break
        trimmed = self.spec_groups if self.rules.trimmed_hits == "all" else self.spec_groups[:1]
        for group in trimmed:
            if group.is_full:
                for i in group.group_ids:
                    del blocks[i][cdiv(length, group.manager.block_size) :]
        return Hit(tuple(blocks[i] for i in range(len(self.managers))), length, longest)

    def _shortened(self, length: int, group: SpecGroup, cached: int) -> int:
        # Up to 0.25 a state behind what full attention had may make a hit longer again: what is missing is
        # allocated and never computed.
        if self.rules.draft_lookup in ("each_round", "prompt"):
            return length // group.manager.block_size * group.manager.block_size
        return min(length, cached)

    def _with_margin(
        self, length: int, group: SpecGroup, block_hashes: Sequence[int], max_length: int
    ) -> int:
        # What is dropped after the match may lie behind the candidate. A state is never dropped, but up to
        # 0.25 looked up as if it were.
        rule = self.rules.draft_lookup
        if rule == "each_round" or (rule != "prompt" and isinstance(group.manager, MambaManager)):
            return length
        fine = self.fine_grained and group.manager.supports_fine_grained_lookup
        margin = min(group.manager.block_size, self.hash_block_size) if fine else group.manager.block_size
        if rule != "behind":
            return min(length + margin, max_length)
        return min(length + margin, len(block_hashes) * self.hash_block_size)


def create_coordinator(
    settings: Settings,
    enable_kv_cache_events: bool = False,
    metrics_collector: KVCacheMetricsCollector | None = None,
) -> KVCacheCoordinator:
    """The coordinator that these settings ask for."""
    cls: type[KVCacheCoordinator] = KVCacheCoordinator
    if settings.enable_prefix_caching:
        cls = UnitaryKVCacheCoordinator if len(settings.groups) == 1 else HybridKVCacheCoordinator
    return cls(settings, enable_kv_cache_events, metrics_collector)
