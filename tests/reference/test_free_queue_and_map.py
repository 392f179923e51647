"""Order rules of the free queue and of the prefix map, against models of a few lines."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sim.reference import BlockHashToBlockMap, FreeKVCacheBlockQueue, KVCacheBlock


def blocks(n: int) -> list[KVCacheBlock]:
    return [KVCacheBlock(i) for i in range(n)]


def test_queue_starts_in_ascending_order_and_pops_from_the_front() -> None:
    b = blocks(5)
    queue = FreeKVCacheBlockQueue(b)
    assert queue.popleft() is b[0]
    assert queue.popleft_n(2) == [b[1], b[2]]
    assert queue.block_ids() == [3, 4]
    assert queue.num_free_blocks == len(queue) == 2


def test_prepend_and_append_keep_list_order() -> None:
    b = blocks(6)
    queue = FreeKVCacheBlockQueue(b)
    queue.popleft_n(5)
    queue.append_n([b[2], b[0]])
    queue.prepend_n([b[4], b[1]])
    queue.append(b[3])
    assert queue.block_ids() == [4, 1, 5, 2, 0, 3]
    assert queue.get_all_free_blocks() == [b[4], b[1], b[5], b[2], b[0], b[3]]


def test_remove_from_the_middle_keeps_the_others() -> None:
    b = blocks(4)
    queue = FreeKVCacheBlockQueue(b)
    queue.remove(b[2])
    assert queue.block_ids() == [0, 1, 3]
    assert b[2] not in queue
    with pytest.raises(RuntimeError, match="block 2"):
        queue.remove(b[2])


def test_queue_errors_change_nothing() -> None:
    b = blocks(2)
    queue = FreeKVCacheBlockQueue(b)
    with pytest.raises(AssertionError):
        queue.popleft_n(3)
    with pytest.raises(RuntimeError, match="already"):
        queue.append_n([b[1]])
    with pytest.raises(RuntimeError, match="already"):
        queue.prepend_n([b[0]])
    assert queue.block_ids() == [0, 1]
    with pytest.raises(ValueError, match="empty"):
        FreeKVCacheBlockQueue([]).popleft()
    assert FreeKVCacheBlockQueue([]).popleft_n(0) == []


def test_map_answers_with_the_oldest_block_that_is_left() -> None:
    b = blocks(4)
    key = (7, 0)
    cache = BlockHashToBlockMap()
    for i in (2, 1, 3):
        cache.insert(key, b[i])
    assert cache.get_one_block(key) is b[2]
    cache.insert(key, b[2])  # still the oldest
    assert [x.block_id for x in cache.blocks_of(key)] == [2, 1, 3]
    assert cache.pop(key, 2) is b[2]
    assert cache.get_one_block(key) is b[1]
    cache.insert(key, b[2])  # comes back last
    assert [x.block_id for x in cache.blocks_of(key)] == [1, 3, 2]
    assert len(cache) == 1
    assert cache.contain(key, 3)


def test_a_key_without_blocks_is_gone() -> None:
    b = blocks(2)
    cache = BlockHashToBlockMap()
    cache.insert((1, 0), b[1])
    assert cache.pop((1, 0), 0) is None
    assert cache.pop((2, 0), 1) is None
    assert cache.pop((1, 0), 1) is b[1]
    assert len(cache) == 0
    assert list(cache) == []
    assert cache.get_one_block((1, 0)) is None
    assert not cache.contain((1, 0), 1)


class FreeQueueMachine(RuleBasedStateMachine):
    """The queue against a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = blocks(9)
        self.queue = FreeKVCacheBlockQueue(self.blocks)
        self.model = list(range(9))

    def outside(self, data: st.DataObject) -> list[KVCacheBlock]:
        absent = [b for b in self.blocks if b.block_id not in self.model]
        return data.draw(st.lists(st.sampled_from(absent), unique=True)) if absent else []

    @rule(n=st.integers(0, 10))
    def popleft_n(self, n: int) -> None:
        if n > len(self.model):
            with pytest.raises(AssertionError):
                self.queue.popleft_n(n)
        else:
            assert [b.block_id for b in self.queue.popleft_n(n)] == self.model[:n]
            del self.model[:n]

    @rule()
    def popleft(self) -> None:
        if self.model:
            assert self.queue.popleft().block_id == self.model.pop(0)
        else:
            with pytest.raises(ValueError, match="empty"):
                self.queue.popleft()

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.model))
        self.queue.remove(self.blocks[chosen])
        self.model.remove(chosen)

    @rule(data=st.data())
    def append_n(self, data: st.DataObject) -> None:
        chosen = self.outside(data)
        self.queue.append_n(chosen)
        self.model += [b.block_id for b in chosen]

    @rule(data=st.data())
    def prepend_n(self, data: st.DataObject) -> None:
        chosen = self.outside(data)
        self.queue.prepend_n(chosen)
        self.model = [b.block_id for b in chosen] + self.model

    @invariant()
    def same_order(self) -> None:
        assert self.queue.block_ids() == self.model
        assert self.queue.num_free_blocks == len(self.model)


TestFreeQueueMachine = FreeQueueMachine.TestCase
