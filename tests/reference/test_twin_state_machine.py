"""The jitted block pool against its plain-Python twin: equal in everything after each operation."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sim.capacity import LogOptions, allocate
from sim.core import block_pool, spare_blocks
from sim.core import codes as c
from sim.core.block_pool import cache_full_block, evict_block, get_cached_block, reset_prefix_cache, touch
from sim.core.inspect import free_queue_order, largest_run
from sim.core.jit import entry
from sim.core.state import Pool
from sim.core.verify_pool import inv_1, map_places
from sim.engine_settings import EngineSettings
from sim.reference import BlockPool
from sim.reference.invariants import verify
from sim.reference.steplog import free_run_lengths
from sim.step_time import StepTime
from workloads.builder import WorkloadBuilder

NEW, TOUCH, FREE, CACHE, GET, EVICT, RESET, SETTLE = range(8)


@entry
def pool_op(pool: Pool, op: int, block: int, key: np.uint64, group: int) -> int:
    """One operation of the jitted pool on one block; compiled once for all of them."""
    if op == TOUCH:
        touch(pool, block)
    elif op == CACHE:
        cache_full_block(pool, 0, block, key, group)
    elif op == GET:
        return get_cached_block(pool, key, group)
    elif op == EVICT:
        return 1 if evict_block(pool, block) else 0
    elif op == RESET:
        return 1 if reset_prefix_cache(pool) else 0
    return 0


@entry
def list_op(pool: Pool, op: int, blocks: np.ndarray, spare: bool) -> None:
    """Take blocks into ``blocks`` (int32[1, 1, n]), or free those in it, the last one first.

    ``spare``: as within a step of an engine with windows.
    """
    n = blocks.shape[2]
    if spare:
        if op == NEW:
            spare_blocks.get_new_blocks(pool, blocks, 0, 0, 0, n)
        elif op == FREE:
            spare_blocks.free_blocks(pool, blocks, 0, 0, 0, n)
        else:
            spare_blocks.settle(pool)
    elif op == NEW:
        block_pool.get_new_blocks(pool, blocks, 0, 0, 0, n)
    elif op == FREE:
        block_pool.free_blocks(pool, blocks, 0, 0, 0, n, pool.params.free_order == c.FREE_APPEND)


def kernel_pool(num_blocks: int, caching: bool) -> Pool:
    """The pool of an engine without requests."""
    builder = WorkloadBuilder(vocab_size=8, clock="logical")
    piece = builder.add_tokens([1])
    builder.add([piece], [1], output_len=1, out_seg=piece, arrival=0)
    engine = EngineSettings(
        block_size=1, num_gpu_blocks=num_blocks, max_num_seqs=2, enable_prefix_caching=caching
    )
    constant = StepTime(0, np.zeros(12), np.zeros(1), np.zeros(1), np.zeros(1))
    return allocate(engine, builder.build({"kind": "none"}), constant, LogOptions(sample_period_ns=0)).kv.pool


class Kernel:
    """The jitted pool behind the twin's method names, with lists of ids for blocks."""

    def __init__(self, num_blocks: int, caching: bool, spare: bool = False) -> None:
        self.pool = kernel_pool(num_blocks, caching)
        self.num_blocks = num_blocks
        self.spare = spare

    def op(self, op: int, block: int = 0, key: int = 0, group: int = 0) -> int:
        with np.errstate(over="ignore"):  # hashes wrap; without JIT numpy would warn
            return int(pool_op(self.pool, op, block, np.uint64(key), group))

    def list_op(self, op: int, blocks: Sequence[int]) -> list[int]:
        places = np.array(blocks, dtype=np.int32).reshape(1, 1, -1)
        list_op(self.pool, op, places, self.spare)
        return places.ravel().tolist()

    def get_new_blocks(self, n: int) -> list[int]:
        if n > self.pool.meta.num_free:
            raise ValueError(f"{n} blocks wanted, {self.pool.meta.num_free} are free")
        return self.list_op(NEW, [0] * n)

    def touch(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self.op(TOUCH, block)

    def free_blocks(self, blocks: Sequence[int]) -> None:
        self.list_op(FREE, blocks[::-1])

    def get_cached_block(self, key: int, groups: Sequence[int]) -> list[int] | None:
        found = [self.op(GET, key=key, group=g) for g in groups]
        return None if min(found) < 0 else found

    def free_queue(self) -> list[int]:
        """Ids in queue order, at the end of a step."""
        self.list_op(SETTLE, [])
        assert list(inv_1(self.pool)) == []
        order = np.zeros(self.num_blocks, dtype=np.int32)
        return order[: free_queue_order(self.pool, order)].tolist()

    def prefix_map(self) -> list[list[int]]:
        """For each key the ids of its blocks, oldest first; sorted by the first id."""
        lists = []
        blocks = self.pool.blocks
        for _, half_key, first in map_places(self.pool):
            assert int(blocks.block_hash[first]) >> 32 == half_key
            b, ring = first, []
            while True:
                assert blocks.block_hash[b] == blocks.block_hash[first]
                assert blocks.dup_prev[blocks.dup_next[b]] == b
                ring.append(b)
                b = int(blocks.dup_next[b])
                if b == first:
                    break
            lists.append(ring)
        return sorted(lists)


class Tokens:
    """What the twin reads of a request: one block with the given hash."""

    def __init__(self, block_hash: int) -> None:
        self.request_id = "r"
        self.block_hashes = [block_hash]
        self.all_token_ids = [0]


# Few keys, so that many blocks share one, and few home slots at any table size, so that deletion has to shift
# entries, also across the end of the table.
ALL_KEYS = [home + (turn << 16) for home in (1, 2, 0xFFFF) for turn in range(1, 4)]
KEYS = st.sampled_from(ALL_KEYS)


class Twins:
    """Both pools; each operation is made on both and must have one outcome."""

    def __init__(self, num_blocks: int, caching: bool, spare: bool = False) -> None:
        self.twin = BlockPool(num_blocks, caching, 1)
        self.kernel = Kernel(num_blocks, caching, spare)
        self.held: list[int] = []  # one entry a reference

    def get_new_blocks(self, n: int) -> None:
        if n > self.twin.get_num_free_blocks():
            with pytest.raises(ValueError, match="free"):
                self.twin.get_new_blocks(n)
            with pytest.raises(ValueError, match="free"):
                self.kernel.get_new_blocks(n)
            return
        taken = [b.block_id for b in self.twin.get_new_blocks(n)]
        assert self.kernel.get_new_blocks(n) == taken
        self.held += taken

    def free_blocks(self, chosen: Sequence[int]) -> None:
        self.twin.free_blocks(self.twin.blocks[i] for i in chosen)
        self.kernel.free_blocks(chosen)
        for block in chosen:
            self.held.remove(block)

    def hit(self, key: int, groups: Sequence[int]) -> None:
        """``get_cached_block``, then ``touch`` of what it found."""
        found = self.twin.get_cached_block(key, groups)
        hits = None if found is None else [b.block_id for b in found]
        assert self.kernel.get_cached_block(key, groups) == hits
        if found is not None and hits is not None:
            self.twin.touch(found)
            self.kernel.touch(hits)
            self.held += hits

    def cache(self, block: int, key: int, group: int) -> None:
        self.twin.cache_full_blocks(Tokens(key), [self.twin.blocks[block]], 0, 1, 1, group)
        self.kernel.op(CACHE, block, key=key, group=group)

    def evict(self, block: int) -> None:
        keyed = self.twin.blocks[block].block_hash is not None
        self.twin.evict_blocks([block])
        assert self.kernel.op(EVICT, block) == keyed

    def reset(self) -> None:
        assert self.kernel.op(RESET) == self.twin.reset_prefix_cache()

    def cacheable(self) -> list[int]:
        """Held blocks that carry no key."""
        return [i for i in sorted(set(self.held)) if self.twin.blocks[i].block_hash is None]

    def compare(self) -> None:
        """Free queue, counts, keys, map with the order of duplicates, look-ups, and the kernel's gauges."""
        twin, pool = self.twin, self.kernel.pool
        n = twin.num_gpu_blocks
        verify(twin)
        queue = twin.free_block_queue.block_ids()
        assert self.kernel.free_queue() == queue
        assert pool.blocks.ref_cnt[1:n].tolist() == [b.ref_cnt for b in twin.blocks[1:]]
        cache = twin.cached_block_hash_to_block
        lists = [[b.block_id for b in cache.blocks_of(key)] for key in cache]
        assert self.kernel.prefix_map() == sorted(lists)
        for key in ALL_KEYS:
            found = twin.get_cached_block(key, (0,))
            assert self.kernel.get_cached_block(key, (0,)) == (found and [b.block_id for b in found])
        keyed = [b.block_hash is not None for b in twin.blocks]
        assert (pool.blocks.block_hash[:n] != 0).tolist() == keyed
        runs = free_run_lengths(queue, n)
        gauges = {
            "num_free": len(queue),
            "num_keys": len(lists),
            "num_cached": sum(keyed),
            "num_cached_free": sum(keyed[i] for i in queue),
        }
        assert {name: int(pool.meta[name]) for name in gauges} == gauges
        assert (int(pool.runs.number), largest_run(pool)) == (len(runs), max(runs, default=0))


@pytest.mark.parametrize("num_blocks", [2, 5, 9, 17, 40, 64, 65, 130])
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("spare", [False, True])
def test_random_walks(num_blocks: int, caching: bool, spare: bool) -> None:
    """Long walks in crowded maps: more look-ups, duplicates and deletions than a state machine reaches.

    ``spare``: as in an engine with windows, in steps of some operations.
    """
    rng = random.Random(num_blocks)
    twins = Twins(num_blocks, caching, spare)
    for _ in range(400):
        kind = rng.randrange(9)
        if kind <= 1:
            twins.get_new_blocks(rng.randint(0, 1 + twins.twin.get_num_free_blocks() // rng.randint(1, 4)))
        elif kind <= 3 and twins.held:
            chosen = list(set(twins.held))
            rng.shuffle(chosen)
            twins.free_blocks(chosen[: rng.randint(1, len(chosen))])
        elif kind <= 5 and caching:
            chosen = twins.cacheable()
            rng.shuffle(chosen)
            for block in chosen[: rng.randint(1, 12)]:
                twins.cache(block, rng.choice(ALL_KEYS), rng.choice([0, 0, 1]))
        elif kind == 6:
            twins.hit(rng.choice(ALL_KEYS), rng.choice([(0,), (1,), (0, 1)]))
        elif kind == 7:
            twins.evict(rng.randrange(num_blocks))
        else:
            twins.reset()
        if not spare or rng.random() < 0.4:
            twins.compare()


class TwinMachine(RuleBasedStateMachine):
    """Both pools through operations that hypothesis chooses, and shrinks."""

    @initialize(
        n=st.integers(2, 40) | st.sampled_from([63, 64, 65, 130]),
        caching=st.sampled_from([True, True, True, False]),
    )
    def start(self, n: int, caching: bool) -> None:
        self.twins = Twins(n, caching)

    @rule(n=st.integers(0, 20) | st.integers(0, 140))
    def get_new_blocks(self, n: int) -> None:
        self.twins.get_new_blocks(n)

    @precondition(lambda self: self.twins.held)
    @rule(data=st.data())
    def free_blocks(self, data: st.DataObject) -> None:
        order = data.draw(st.permutations(sorted(set(self.twins.held))))
        self.twins.free_blocks(order[: data.draw(st.integers(1, len(order)))])

    @rule(key=KEYS, groups=st.sampled_from([(0,), (1,), (0, 1)]))
    def get_cached_block_and_touch(self, key: int, groups: tuple[int, ...]) -> None:
        self.twins.hit(key, groups)

    @precondition(lambda self: self.twins.twin.enable_caching and self.twins.cacheable())
    @rule(data=st.data(), group=st.sampled_from([0, 0, 0, 1]))
    def cache_full_blocks(self, data: st.DataObject, group: int) -> None:
        order = data.draw(st.permutations(self.twins.cacheable()))
        for block in order[: data.draw(st.integers(1, 16))]:
            self.twins.cache(block, data.draw(KEYS), group)

    @rule(data=st.data())
    def evict_blocks(self, data: st.DataObject) -> None:
        self.twins.evict(data.draw(st.integers(0, self.twins.twin.num_gpu_blocks - 1)))

    @rule()
    def reset_prefix_cache(self) -> None:
        self.twins.reset()

    @rule()
    def free_everything(self) -> None:
        """Brings the reset, and a whole free pool, into reach."""
        while self.twins.held:
            self.twins.free_blocks(sorted(set(self.twins.held), reverse=True))

    @invariant()
    def everything_is_equal(self) -> None:
        if hasattr(self, "twins"):
            self.twins.compare()


TestTwinMachine = TwinMachine.TestCase
TestTwinMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
