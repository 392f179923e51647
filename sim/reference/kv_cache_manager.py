"""Prefix lookup, slot allocation and freeing for whole requests, over all KV-cache groups.

Mirrors vLLM 0.32.0, ``KVCacheManager`` (``vllm/v1/core/kv_cache_manager.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.reference.coordinator import create_coordinator
from sim.reference.managers import BlocksByGroup, SingleTypeKVCacheManager, Slots
from sim.reference.metrics import KVCacheMetricsCollector
from sim.reference.request import Request, RequestStatus
from sim.reference.settings import Settings


@dataclass
class PrefixCacheStats:
    """Cumulative counters of lookups that led to an admission; tokens.

    ``preempted_*`` counts requests that had been preempted before, the others first admissions.
    """

    requests: int = 0
    queries: int = 0
    hits: int = 0
    preempted_requests: int = 0
    preempted_queries: int = 0
    preempted_hits: int = 0

    def record(self, num_tokens: int, num_hits: int, preempted: bool) -> None:
        """Count one admission that looked up ``num_tokens`` tokens."""
        if preempted:
            self.preempted_requests += 1
            self.preempted_queries += num_tokens
            self.preempted_hits += num_hits
        else:
            self.requests += 1
            self.queries += num_tokens
            self.hits += num_hits


class KVCacheManager:
    """Block tables of all requests in all groups, over one pool.

    Args:
        settings: engine settings.
        enable_kv_cache_events: whether the pool collects events.
        metrics_collector: optional residency metrics.
    """

    def __init__(
        self,
        settings: Settings,
        enable_kv_cache_events: bool = False,
        metrics_collector: KVCacheMetricsCollector | None = None,
    ) -> None:
        self.rules = settings.rules
        self.max_model_len = settings.max_model_len
        self.enable_caching = settings.enable_prefix_caching
        self.watermark_blocks = settings.watermark_blocks
        self.prefix_cache_stats = PrefixCacheStats()
        self.coordinator = create_coordinator(settings, enable_kv_cache_events, metrics_collector)
        self.hash_block_size = self.coordinator.hash_block_size
        self.block_pool = self.coordinator.block_pool
        self.managers: tuple[SingleTypeKVCacheManager, ...] = self.coordinator.managers

    @property
    def usage(self) -> float:
        """Share of the usable blocks that requests hold, in [0, 1]."""
        return self.block_pool.get_usage()

    def get_computed_blocks(self, request: Request) -> tuple[BlocksByGroup, int, int]:
        """Longest cached prefix: its blocks by group, its length in tokens, and the shared-prefix boundary.

        At most ``num_tokens - 1`` tokens may hit: the last one is computed again to be sampled from. The
        boundary is the longest prefix that some group had cached where the hit is shorter, else 0. Nothing is
        touched.
        """
        if not self.enable_caching:
            return self._no_blocks(), 0, 0
        hit = self.coordinator.find_longest_cache_hit(request.block_hashes, request.num_tokens - 1)
        known = hit.longest > hit.length and self.rules.shared_prefix_boundary != "off"
        return hit.blocks, hit.length, hit.longest if known else 0

    def record_prefix_cache_stats(self, request: Request, num_hits: int) -> None:
        """Count the lookup of a request that is being admitted."""
        if self.enable_caching:
            self.prefix_cache_stats.record(request.num_tokens, num_hits, request.num_preemptions > 0)

    def allocate_slots(
        self,
        request: Request,
        num_new_tokens: int,
        num_new_computed_tokens: int = 0,
        new_computed_blocks: BlocksByGroup | None = None,
        full_sequence_must_fit: bool = False,
        has_scheduled_reqs: bool = True,
        num_lookahead_tokens: int = 0,
        num_encoder_tokens: int = 0,
    ) -> BlocksByGroup | None:
        """Make room for ``num_new_tokens`` more tokens, and cache the blocks that they fill.

        Args:
            request: running, or to be admitted.
            num_new_tokens: tokens that the step will compute.
            num_new_computed_tokens: prefix hit in tokens.
            new_computed_blocks: the hit's blocks by group, or None.
            full_sequence_must_fit: also refuse when all known tokens together would not fit now.
            has_scheduled_reqs: some request is running, so that the watermark applies to an admission.
            num_lookahead_tokens: slots beyond them for a drafter.
            num_encoder_tokens: encoder inputs that enter cross attention with this step.

        Returns:
            The newly allocated blocks by group (hits excluded), or None when there is no room; then the only
            possible effect is that blocks which left an attention window were freed.

        Raises:
            ValueError: nothing to compute and no hit.
        """
        if num_new_tokens == 0 and num_new_computed_tokens == 0:
            raise ValueError("a step without new tokens needs computed ones to adopt")
        hits = self._no_blocks() if new_computed_blocks is None else new_computed_blocks
        total_computed = min(request.num_computed_tokens + num_new_computed_tokens, self.max_model_len)
        waits = request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
        watermark = self.watermark_blocks if has_scheduled_reqs and waits else 0

        prefill_end = 0
        if self.rules.state_exports != "each" and self.coordinator.retention_interval == 0:
            prefill_end = max(request.num_prompt_tokens, request.num_tokens - 1)
        if full_sequence_must_fit:
            known = min(request.num_tokens, self.max_model_len)
            slots = Slots(known, known, total_computed, num_encoder_tokens, prefill_end)
            needed = self.coordinator.num_blocks_to_allocate(
                request.request_id, slots, hits, apply_admission_cap=True
            )
            if needed + watermark > self.block_pool.get_num_free_blocks():
                return None

        main = total_computed + num_new_tokens
        with_lookahead = min(main + num_lookahead_tokens, self.max_model_len)
        slots = Slots(with_lookahead, main, total_computed, num_encoder_tokens, prefill_end)
        in_flight = request.num_in_flight_tokens if self.rules.window_free_basis == "processed" else 0
        self.coordinator.remove_skipped_blocks(request.request_id, max(0, total_computed - in_flight))
        needed = self.coordinator.num_blocks_to_allocate(request.request_id, slots, hits)
        if needed + watermark > self.block_pool.get_num_free_blocks():
            return None

        if any(hits):
            self.coordinator.allocate_new_computed_blocks(request.request_id, hits, total_computed)
        new_blocks = self.coordinator.allocate_new_blocks(request.request_id, slots)
        self.cache_blocks(request, min(main, request.num_tokens))
        return new_blocks

    def cache_blocks(self, request: Request, num_tokens: int) -> None:
        """Make the request's full blocks among its first ``num_tokens`` tokens hittable."""
        if self.enable_caching:
            self.coordinator.cache_blocks(request, num_tokens)

    def free(self, request: Request) -> None:
        """Give all blocks of the request back, group by group, last block first."""
        self.coordinator.free(request.request_id)

    def new_step_starts(self) -> None:
        """A schedule call begins."""
        self.coordinator.new_step_starts()

    def release_copied_blocks(self) -> None:
        """Give up what the copies of this step's batch hold: they are made before the next step's."""
        copies = [pair for manager in self.managers for pair in manager.take_pending_copies()]
        if copies:
            self.block_pool.free_blocks([block for pair in copies for block in pair])

    def get_blocks(self, request_id: str) -> BlocksByGroup:
        """The request's block tables by group."""
        return tuple(m.req_to_blocks.get(request_id, []) for m in self.managers)

    def evict_blocks(self, block_ids: Sequence[int]) -> None:
        """Drop the cached content of these blocks."""
        self.block_pool.evict_blocks(block_ids)

    def reset_prefix_cache(self) -> bool:
        """Forget all cached content; False when a request still holds blocks."""
        return self.block_pool.reset_prefix_cache()

    def _no_blocks(self) -> BlocksByGroup:
        return tuple([] for _ in self.managers)
