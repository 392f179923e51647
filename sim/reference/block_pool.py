"""The pool of KV-cache blocks: allocation, reference counts, prefix cache, lazy eviction.

Mirrors vLLM 0.32.0, ``BlockPool`` (``vllm/v1/core/block_pool.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sim.reference.block_hash import resolve_block_hashes
from sim.reference.free_queue import FreeKVCacheBlockQueue
from sim.reference.prefix_map import BlockHashToBlockMap

if TYPE_CHECKING:
    from sim.reference.block_hash import BlockKey
    from sim.reference.metrics import KVCacheMetricsCollector


class HashedTokens(Protocol):
    """What the pool reads of a request."""

    @property
    def request_id(self) -> str:
        """Unique name."""
        ...

    @property
    def block_hashes(self) -> Sequence[int]:
        """Chain hashes of the request's full blocks, at the pool's hash unit."""
        ...

    @property
    def all_token_ids(self) -> Sequence[int]:
        """Prompt and output tokens so far."""
        ...


class KVCacheBlock:
    """One block of the pool.

    Attributes:
        block_id: position in the pool, 0 is the null block.
        ref_cnt: requests that hold it; of the null block not maintained.
        block_hash: key under which it is cached, or None.
        block_hash_num_tokens: prefix length in tokens that the key stands for, or None.
        is_null: whether it is the placeholder for skipped positions.
    """

    __slots__ = ("block_hash", "block_hash_num_tokens", "block_id", "is_null", "ref_cnt")

    def __init__(self, block_id: int) -> None:
        self.block_id = block_id
        self.ref_cnt = 0
        self.block_hash: BlockKey | None = None
        self.block_hash_num_tokens: int | None = None
        self.is_null = False

    def set_block_hash(self, key: BlockKey, num_tokens: int | None) -> None:
        """Attach the key; the block must carry none."""
        assert self.block_hash is None, f"block {self.block_id} already carries a key"
        self.block_hash = key
        self.block_hash_num_tokens = num_tokens

    def reset_hash(self) -> None:
        """Forget the key."""
        self.block_hash = None
        self.block_hash_num_tokens = None

    def __repr__(self) -> str:
        return f"KVCacheBlock({self.block_id}, ref={self.ref_cnt}, key={self.block_hash})"


class BlockStored(NamedTuple):
    """Blocks of one group became cached; ``token_ids`` spans the whole range of positions."""

    block_hashes: tuple[int, ...]
    parent_block_hash: int | None
    token_ids: tuple[int, ...]
    block_size: int
    group_idx: int


class BlockRemoved(NamedTuple):
    """One copy of a cached block is gone."""

    block_hashes: tuple[int, ...]
    group_idx: int


class AllBlocksCleared(NamedTuple):
    """The prefix cache was reset."""


KVCacheEvent = BlockStored | BlockRemoved | AllBlocksCleared


class BlockPool:
    """All blocks, the free queue and the prefix map of one engine.

    Args:
        num_gpu_blocks: number of blocks, the null block included.
        enable_caching: whether prefix caching is on.
        hash_block_size: tokens per hash in ``HashedTokens.block_hashes``.
        enable_kv_cache_events: whether to collect events (``take_events``).
        metrics_collector: optional observer of residency.
        free_order: rule of ``free_blocks``, a value of the switch (``sim.switches``).

    Attributes:
        secondary_keys: further keys by block id, for parts of a block; vLLM keeps a set, whose order (of
            events only) depends on the process.
    """

    def __init__(
        self,
        num_gpu_blocks: int,
        enable_caching: bool,
        hash_block_size: int,
        enable_kv_cache_events: bool = False,
        metrics_collector: KVCacheMetricsCollector | None = None,
        free_order: str = "split",
    ) -> None:
        assert isinstance(num_gpu_blocks, int)
        assert num_gpu_blocks > 0
        self.num_gpu_blocks = num_gpu_blocks
        self.enable_caching = enable_caching
        self.hash_block_size = hash_block_size
        self.blocks = [KVCacheBlock(i) for i in range(num_gpu_blocks)]
        self.free_block_queue = FreeKVCacheBlockQueue(self.blocks)
        self.cached_block_hash_to_block = BlockHashToBlockMap()
        self.secondary_keys: dict[int, dict[BlockKey, None]] = {}
        self.null_block = self.free_block_queue.popleft()
        self.null_block.is_null = True
        self.enable_kv_cache_events = enable_kv_cache_events
        self.kv_event_queue: list[KVCacheEvent] = []
        self.metrics_collector = metrics_collector
        self.splits = free_order == "split" or (free_order == "split_if_caching" and enable_caching)
        self.splits_windows = free_order == "append_window_split"

    def get_cached_block(
        self, block_hash: int, kv_cache_group_ids: Sequence[int]
    ) -> list[KVCacheBlock] | None:
        """One cached block for each group, or None as soon as one group has none."""
        found: list[KVCacheBlock] = []
        for group_id in kv_cache_group_ids:
            block = self.cached_block_hash_to_block.get_one_block((block_hash, group_id))
            if block is None:
                return None
            found.append(block)
        return found

    def cache_full_blocks(
        self,
        request: HashedTokens,
        blocks: Sequence[KVCacheBlock],
        num_cached_blocks: int,
        num_full_blocks: int,
        block_size: int,
        kv_cache_group_id: int,
        block_mask: Sequence[bool] | None = None,
    ) -> None:
        """Make the blocks ``num_cached_blocks .. num_full_blocks - 1`` of a request hittable.

        Null blocks and blocks whose mask is False stay out of the map. Identical content that is cached
        already is not merged: the block joins its twins under the same key.

        Args:
            request: gives hashes and tokens.
            blocks: the request's whole table in this group.
            num_cached_blocks: leading blocks dealt with before.
            num_full_blocks: leading blocks that are full now.
            block_size: tokens per block of this group.
            kv_cache_group_id: index of the group.
            block_mask: optional, one flag for each block of the range.

        Raises:
            AssertionError: a block of the range already carries a key for at least as many tokens.
        """
        if num_cached_blocks >= num_full_blocks:
            return
        assert block_mask is None or len(block_mask) == num_full_blocks - num_cached_blocks
        hashes = resolve_block_hashes(request.block_hashes, self.hash_block_size, block_size)
        stored: list[int] = []
        for i in range(num_cached_blocks, num_full_blocks):
            block = blocks[i]
            if block.is_null or (block_mask is not None and not block_mask[i - num_cached_blocks]):
                continue
            num_tokens = (i + 1) * block_size
            if block.block_hash is not None:
                # A key for a shorter prefix may grow into the full one; anything else is a caller's mistake.
                assert block.block_hash_num_tokens is not None
                assert block.block_hash_num_tokens < num_tokens
                self._remove_keys(block)
            self._insert_key((hashes[i], kv_cache_group_id), block, num_tokens)
            stored.append(hashes[i])
        if self.enable_kv_cache_events:
            first, last = num_cached_blocks * block_size, num_full_blocks * block_size
            parent = hashes[num_cached_blocks - 1] if num_cached_blocks else None
            tokens = tuple(request.all_token_ids[first:last])
            event = BlockStored(tuple(stored), parent, tokens, block_size, kv_cache_group_id)
            self.kv_event_queue.append(event)

    def cache_partial_block(
        self,
        request: HashedTokens,
        block: KVCacheBlock,
        num_tokens: int,
        kv_cache_group_id: int,
        replace: bool = False,
    ) -> BlockKey | None:
        """Make a block hittable at a prefix that ends inside it, or at its end.

        The key replaces those of shorter prefixes, and joins that of a longer one.

        Args:
            request: gives hashes and tokens.
            block: the block in which the prefix ends.
            num_tokens: length of the prefix, a multiple of the hash unit.
            kv_cache_group_id: index of the group.
            replace: the block's content is new: whatever it stood for before, it stands for this prefix only.

        Returns:
            The key, or None for the null block.
        """
        if block.is_null:
            return None
        unit = self.hash_block_size
        assert num_tokens % unit == 0
        assert 0 < num_tokens <= len(request.block_hashes) * unit
        last = num_tokens // unit - 1
        key = (request.block_hashes[last], kv_cache_group_id)
        if replace:
            self._remove_keys(block)
        if self.cached_block_hash_to_block.contain(key, block.block_id):
            return key
        if block.block_hash_num_tokens is not None and block.block_hash_num_tokens < num_tokens:
            self._remove_keys(block)
        self._insert_key(key, block, num_tokens)
        if self.enable_kv_cache_events:
            parent = request.block_hashes[last - 1] if last else None
            tokens = tuple(request.all_token_ids[last * unit : num_tokens])
            self.kv_event_queue.append(BlockStored((key[0],), parent, tokens, unit, kv_cache_group_id))
        return key

    def move_block_hashes(self, source: KVCacheBlock, target: KVCacheBlock) -> None:
        """Let a block without keys stand for what another one stood for; nobody is told."""
        assert not self.keys_of(target)
        num_tokens = source.block_hash_num_tokens
        for key in self._remove_keys(source, silent=True):
            self._insert_key(key, target, num_tokens)

    def get_new_blocks(self, num_blocks: int) -> list[KVCacheBlock]:
        """Take ``num_blocks`` from the front of the free queue, evicting what they cached.

        Raises:
            ValueError: fewer are free; nothing changes.
        """
        if num_blocks > self.get_num_free_blocks():
            raise ValueError(f"cannot get {num_blocks} blocks: {self.get_num_free_blocks()} are free")
        taken = self.free_block_queue.popleft_n(num_blocks)
        for block in taken:
            if self.enable_caching:
                self._maybe_evict_cached_block(block)
            assert block.ref_cnt == 0, f"free block {block.block_id} has {block.ref_cnt} references"
            block.ref_cnt = 1
            if self.metrics_collector is not None:
                self.metrics_collector.on_block_allocated(block)
        return taken

    def touch(self, blocks: Sequence[KVCacheBlock]) -> None:
        """Add one reference to each block; those that were free leave the queue."""
        for block in blocks:
            if block.ref_cnt == 0 and not block.is_null:
                self.free_block_queue.remove(block)
            block.ref_cnt += 1
            if self.metrics_collector is not None:
                self.metrics_collector.on_block_accessed(block)

    def free_blocks(self, ordered_blocks: Iterable[KVCacheBlock], windows: bool = False) -> None:
        """Drop one reference of each block, in order; those with none left join the free queue.

        Blocks without content that could be hit go to the front, in list order, and are reused next; cached
        ones go to the tail, in list order. With caching off every block counts as one without content.
        Before 0.24, and in 0.27 with caching off, all go to the tail; in 0.23 not those that left a window,
        and those of a group with a sliding window (``windows``).
        """
        splits = self.splits or (windows and self.splits_windows)
        reuse_first: list[KVCacheBlock] = []
        reuse_last: list[KVCacheBlock] = []
        for block in ordered_blocks:
            block.ref_cnt -= 1
            if block.ref_cnt == 0 and not block.is_null:
                hittable = not splits or (self.enable_caching and block.block_hash is not None)
                (reuse_last if hittable else reuse_first).append(block)
        self.free_block_queue.prepend_n(reuse_first)
        self.free_block_queue.append_n(reuse_last)

    def evict_blocks(self, block_ids: Iterable[int]) -> None:
        """Drop the cached content of these blocks; references and queue positions stay.

        vLLM takes a set; here the order given is the order of the events.

        Raises:
            AssertionError: an id is not in the pool.
        """
        for block_id in block_ids:
            assert 0 <= block_id < self.num_gpu_blocks, f"no block {block_id} in this pool"
            self._maybe_evict_cached_block(self.blocks[block_id])

    def reset_prefix_cache(self) -> bool:
        """Forget all cached content; the order of the free queue stays.

        Returns:
            False, without effect, when a block other than the null block is in use.
        """
        if self.num_gpu_blocks - self.get_num_free_blocks() != 1:
            return False
        self.cached_block_hash_to_block = BlockHashToBlockMap()
        self.secondary_keys.clear()
        for block in self.blocks:
            block.reset_hash()
        if self.metrics_collector is not None:
            self.metrics_collector.reset()
        if self.enable_kv_cache_events:
            self.kv_event_queue.append(AllBlocksCleared())
        return True

    def get_num_free_blocks(self) -> int:
        """Blocks in the free queue, evictable ones included."""
        return self.free_block_queue.num_free_blocks

    def get_usage(self) -> float:
        """Share of the usable blocks (all but the null block) that are held, in [0, 1]."""
        usable = self.num_gpu_blocks - 1
        return 1.0 - self.get_num_free_blocks() / usable if usable else 0.0

    def take_events(self) -> list[KVCacheEvent]:
        """The events since the last call, oldest first."""
        events, self.kv_event_queue = self.kv_event_queue, []
        return events

    def _maybe_evict_cached_block(self, block: KVCacheBlock) -> bool:
        # The collector hears of every block, cached or not, before the key is looked at.
        if self.metrics_collector is not None:
            self.metrics_collector.on_block_evicted(block)
        return bool(self._remove_keys(block))

    def keys_of(self, block: KVCacheBlock) -> list[BlockKey]:
        """All keys of a block, its primary one first."""
        primary = [] if block.block_hash is None else [block.block_hash]
        return [*primary, *self.secondary_keys.get(block.block_id, ())]

    def _insert_key(self, key: BlockKey, block: KVCacheBlock, num_tokens: int | None) -> None:
        if self.cached_block_hash_to_block.contain(key, block.block_id):
            return
        if block.block_hash is None:
            block.set_block_hash(key, num_tokens)
        else:
            self.secondary_keys.setdefault(block.block_id, {})[key] = None
        self.cached_block_hash_to_block.insert(key, block)

    def _remove_keys(self, block: KVCacheBlock, silent: bool = False) -> list[BlockKey]:
        keys = self.keys_of(block)
        self.secondary_keys.pop(block.block_id, None)
        for key in keys:
            self.cached_block_hash_to_block.pop(key, block.block_id)
            if self.enable_kv_cache_events and not silent:
                self.kv_event_queue.append(BlockRemoved((key[0],), key[1]))
        block.reset_hash()
        return keys
