"""The block pool: worked examples, and a state machine against a model with plain lists."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sim.reference.block_pool import AllBlocksCleared, BlockPool, BlockRemoved, BlockStored, KVCacheBlock
from sim.reference.invariants import verify

SIZE = 4


class Tokens:
    """What the pool reads of a request; block i of the request has the hash ``hashes[i]``."""

    def __init__(self, hashes: Sequence[int]) -> None:
        self.request_id = "r"
        self.block_hashes = list(hashes)
        self.all_token_ids = list(range(SIZE * len(hashes)))


def ids(blocks: Sequence[KVCacheBlock]) -> list[int]:
    return [b.block_id for b in blocks]


def cached_pool(
    num_blocks: int = 8, hashes: Sequence[int] = (10, 11)
) -> tuple[BlockPool, list[KVCacheBlock]]:
    """A pool with a table whose leading blocks are cached under ``hashes``; the table has one block more."""
    pool = BlockPool(num_blocks, True, SIZE, enable_kv_cache_events=True)
    table = pool.get_new_blocks(len(hashes) + 1)
    pool.cache_full_blocks(Tokens(hashes), table, 0, len(hashes), SIZE, 0)
    return pool, table


def test_block_0_is_the_null_block_and_1_is_the_first_allocated() -> None:
    pool = BlockPool(4, True, SIZE)
    assert pool.null_block.block_id == 0
    assert ids(pool.get_new_blocks(2)) == [1, 2]
    assert pool.get_num_free_blocks() == 1
    assert pool.get_usage() == pytest.approx(2 / 3)
    assert BlockPool(1, True, SIZE).get_usage() == 0.0


def test_too_many_blocks_is_an_error_without_effect() -> None:
    pool = BlockPool(4, True, SIZE)
    with pytest.raises(ValueError, match="3 are free"):
        pool.get_new_blocks(4)
    assert pool.free_block_queue.block_ids() == [1, 2, 3]


def test_unkeyed_blocks_are_reused_first_and_cached_ones_last() -> None:
    pool, table = cached_pool()
    pool.free_blocks(reversed(table))
    assert pool.free_block_queue.block_ids() == [3, 4, 5, 6, 7, 2, 1]


def test_without_caching_a_freed_table_is_reused_last_in_first_out() -> None:
    pool = BlockPool(8, False, SIZE)
    table = pool.get_new_blocks(3)
    pool.free_blocks(reversed(table))
    assert pool.free_block_queue.block_ids() == [3, 2, 1, 4, 5, 6, 7]


def test_content_stays_until_the_block_is_handed_out_again() -> None:
    pool, table = cached_pool(4)
    pool.free_blocks(reversed(table))  # queue: 3, 2, 1
    hit = pool.get_cached_block(10, (0,))
    assert hit is not None
    assert ids(hit) == [1]
    assert ids(pool.get_new_blocks(2)) == [3, 2]
    assert pool.get_cached_block(11, (0,)) is None
    pool.touch(hit)
    assert pool.free_block_queue.block_ids() == []
    assert hit[0].ref_cnt == 1


def test_a_shared_block_is_free_only_when_the_last_holder_leaves() -> None:
    pool, table = cached_pool()
    pool.touch(table[:1])
    pool.free_blocks(table[:1])
    assert table[0].ref_cnt == 1
    assert table[0] not in pool.free_block_queue
    pool.free_blocks(table[:1])
    assert pool.free_block_queue.block_ids()[-1] == 1


def test_equal_blocks_are_not_merged_and_the_oldest_is_hit() -> None:
    pool, _ = cached_pool(8, (10,))
    twin = pool.get_new_blocks(1)
    pool.cache_full_blocks(Tokens((10,)), twin, 0, 1, SIZE, 0)
    assert ids(pool.cached_block_hash_to_block.blocks_of((10, 0))) == [1, 3]
    pool.evict_blocks([1])
    hit = pool.get_cached_block(10, (0,))
    assert hit is not None
    assert ids(hit) == [3]


def test_a_lookup_needs_every_group() -> None:
    pool, table = cached_pool()
    assert pool.get_cached_block(10, (0, 1)) is None
    other = pool.get_new_blocks(1)
    pool.cache_full_blocks(Tokens((10,)), other, 0, 1, SIZE, 1)
    hit = pool.get_cached_block(10, (0, 1))
    assert hit is not None
    assert ids(hit) == [table[0].block_id, other[0].block_id]


def test_masked_and_null_blocks_are_not_cached() -> None:
    pool = BlockPool(8, True, SIZE)
    a, b = pool.get_new_blocks(2)
    pool.cache_full_blocks(Tokens((10, 11, 12)), [pool.null_block, a, b], 0, 3, SIZE, 0, [True, False, True])
    assert [x.block_hash for x in (pool.null_block, a, b)] == [None, None, (12, 0)]


def test_a_block_is_cached_once() -> None:
    pool, table = cached_pool()
    with pytest.raises(AssertionError):
        pool.cache_full_blocks(Tokens((10, 11)), table, 0, 1, SIZE, 0)


def test_a_key_for_a_shorter_prefix_grows_into_the_full_one() -> None:
    pool, table = cached_pool(8, (10,))
    partial = table[1]
    partial.set_block_hash((55, 0), 6)
    pool.cached_block_hash_to_block.insert((55, 0), partial)
    pool.cache_full_blocks(Tokens((10, 11)), table, 1, 2, SIZE, 0)
    assert partial.block_hash == (11, 0)
    assert pool.get_cached_block(55, (0,)) is None
    verify(pool)


def test_evict_leaves_references_and_queue_alone() -> None:
    pool, table = cached_pool()
    pool.free_blocks(table[1:])
    before = pool.free_block_queue.block_ids()
    pool.evict_blocks([1, 2, 5])
    assert pool.free_block_queue.block_ids() == before
    assert len(pool.cached_block_hash_to_block) == 0
    assert table[0].ref_cnt == 1
    with pytest.raises(AssertionError):
        pool.evict_blocks([8])


def test_reset_needs_an_unused_pool_and_keeps_the_queue() -> None:
    pool, table = cached_pool()
    assert pool.reset_prefix_cache() is False
    assert table[0].block_hash == (10, 0)
    pool.free_blocks(reversed(table))
    before = pool.free_block_queue.block_ids()
    assert pool.reset_prefix_cache() is True
    assert pool.free_block_queue.block_ids() == before
    assert all(b.block_hash is None for b in pool.blocks)


def test_events_tell_what_became_cached_and_what_was_lost() -> None:
    pool, table = cached_pool(4)
    pool.free_blocks(reversed(table))
    pool.get_new_blocks(3)
    pool.free_blocks(table)
    pool.reset_prefix_cache()
    assert pool.take_events() == [
        BlockStored((10, 11), None, tuple(range(8)), SIZE, 0),
        BlockRemoved((11,), 0),
        BlockRemoved((10,), 0),
        AllBlocksCleared(),
    ]
    assert pool.take_events() == []


def test_a_later_range_names_its_parent() -> None:
    pool, table = cached_pool()
    pool.take_events()
    pool.cache_full_blocks(Tokens((10, 11, 12)), table, 2, 3, SIZE, 0)
    assert pool.take_events() == [BlockStored((12,), 11, (8, 9, 10, 11), SIZE, 0)]


class BlockPoolMachine(RuleBasedStateMachine):
    """The pool against lists: free order, counts, and (key, block) pairs in order of insertion."""

    @initialize(n=st.integers(1, 9), caching=st.booleans())
    def start(self, n: int, caching: bool) -> None:
        self.pool = BlockPool(n, caching, SIZE)
        self.free = list(range(1, n))
        self.refs = [0] * n
        self.cached: list[tuple[int, int]] = []
        self.held: list[int] = []  # one entry a reference

    def forget(self, block_id: int) -> None:
        self.cached = [(key, b) for key, b in self.cached if b != block_id]

    @rule(n=st.integers(0, 5))
    def get_new_blocks(self, n: int) -> None:
        if n > len(self.free):
            with pytest.raises(ValueError, match="free"):
                self.pool.get_new_blocks(n)
            return
        taken, self.free = self.free[:n], self.free[n:]
        assert ids(self.pool.get_new_blocks(n)) == taken
        for block_id in taken:
            self.forget(block_id)
            self.refs[block_id] = 1
        self.held += taken

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free_blocks(self, data: st.DataObject) -> None:
        order = data.draw(st.permutations(sorted(set(self.held))))
        chosen = order[: data.draw(st.integers(1, len(order)))]
        self.pool.free_blocks(self.pool.blocks[i] for i in chosen)
        keyed = {b for _, b in self.cached}
        first, last = [], []
        for block_id in chosen:
            self.held.remove(block_id)
            self.refs[block_id] -= 1
            if self.refs[block_id] == 0:
                (last if block_id in keyed else first).append(block_id)
        self.free = first + self.free + last

    @rule(key=st.integers(0, 3))
    def hit(self, key: int) -> None:
        found = self.pool.get_cached_block(key, (0,))
        wanted = [b for k, b in self.cached if k == key]
        assert (ids(found) if found else []) == wanted[:1]
        if found:
            self.pool.touch(found)
            self.held.append(wanted[0])
            self.refs[wanted[0]] += 1
            self.free = [b for b in self.free if b != wanted[0]]

    @precondition(lambda self: self.pool.enable_caching and self.held)
    @rule(data=st.data(), key=st.integers(0, 3))
    def cache_full_blocks(self, data: st.DataObject, key: int) -> None:
        chosen = data.draw(st.sampled_from(sorted(set(self.held))))
        block = [self.pool.blocks[chosen]]
        if chosen in {b for _, b in self.cached}:
            with pytest.raises(AssertionError):
                self.pool.cache_full_blocks(Tokens((key,)), block, 0, 1, SIZE, 0)
        else:
            self.pool.cache_full_blocks(Tokens((key,)), block, 0, 1, SIZE, 0)
            self.cached.append((key, chosen))

    @rule(data=st.data())
    def evict_blocks(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sets(st.integers(0, len(self.refs) - 1), max_size=3))
        self.pool.evict_blocks(chosen)
        for block_id in chosen:
            self.forget(block_id)

    @rule()
    def reset_prefix_cache(self) -> None:
        unused = not self.held
        assert self.pool.reset_prefix_cache() is unused
        if unused:
            self.cached = []

    @invariant()
    def equal(self) -> None:
        if not hasattr(self, "pool"):
            return
        assert self.pool.free_block_queue.block_ids() == self.free
        assert [b.ref_cnt for b in self.pool.blocks] == self.refs
        for key in range(4):
            blocks = self.pool.cached_block_hash_to_block.blocks_of((key, 0))
            assert ids(blocks) == [b for k, b in self.cached if k == key]
        assert len(self.pool.cached_block_hash_to_block) == len({k for k, _ in self.cached})
        verify(self.pool)


TestBlockPoolMachine = BlockPoolMachine.TestCase
