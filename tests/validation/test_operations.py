"""Random operations on vLLM's own BlockPool and on the kernel's: equal in everything after each of them.

Needs a real vLLM; `make validate` runs it. KVPOOL_EXAMPLES sets the number of examples.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.reference.test_twin_state_machine import ALL_KEYS, CACHE, EVICT, KEYS, RESET, Kernel

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vllm warn of their own affairs while they are imported
    pytest.importorskip(
        "vllm.v1.core.block_pool", reason="no vLLM in this environment: `make validate` runs these tests"
    )

EXAMPLES = int(os.environ.get("KVPOOL_EXAMPLES", "2000"))
NULL = 0


class HashedBlock:
    """What BlockPool.cache_full_blocks reads of a request without events: the hashes of its blocks."""

    def __init__(self, block_hash: bytes) -> None:
        self.block_hashes = [block_hash]


def to_bytes(key: int) -> bytes:
    return key.to_bytes(8, "big")


class BothPools:
    """vLLM's pool and the kernel's; each operation is made on both and must have one outcome."""

    def __init__(self, num_blocks: int, caching: bool) -> None:
        from vllm.v1.core.block_pool import BlockPool

        self.real = BlockPool(num_blocks, caching, hash_block_size=1)
        self.kernel = Kernel(num_blocks, caching)
        self.held: list[int] = []  # one entry a reference

    def get_new_blocks(self, n: int) -> None:
        if n > self.real.get_num_free_blocks():
            for pool in (self.real, self.kernel):
                with pytest.raises(ValueError, match="free"):
                    pool.get_new_blocks(n)
            return
        taken = [b.block_id for b in self.real.get_new_blocks(n)]
        assert self.kernel.get_new_blocks(n) == taken
        self.held += taken

    def free_blocks(self, chosen: Sequence[int]) -> None:
        """`chosen` may name a block once for each reference to it, and the null block."""
        self.real.free_blocks(self.real.blocks[i] for i in chosen)
        self.kernel.free_blocks(chosen)
        for block in chosen:
            if block != NULL:
                self.held.remove(block)

    def hit(self, key: int, groups: Sequence[int]) -> None:
        """`get_cached_block`, then `touch` of what it found."""
        found = self.real.get_cached_block(to_bytes(key), list(groups))
        hits = None if found is None else [b.block_id for b in found]
        assert self.kernel.get_cached_block(key, groups) == hits
        if found is not None and hits is not None:
            self.real.touch(found)
            self.kernel.touch(hits)
            self.held += hits

    def cache(self, block: int, key: int, group: int) -> None:
        self.real.cache_full_blocks(
            request=HashedBlock(to_bytes(key)),
            blocks=[self.real.blocks[block]],
            num_cached_blocks=0,
            num_full_blocks=1,
            block_size=1,
            kv_cache_group_id=group,
        )
        self.kernel.op(CACHE, block, key=key, group=group)

    def evict(self, block: int) -> None:
        keyed = self.real.blocks[block].block_hash is not None
        self.real.evict_blocks({block})
        assert self.kernel.op(EVICT, block) == keyed

    def reset(self) -> None:
        assert self.kernel.op(RESET) == self.real.reset_prefix_cache()

    def cacheable(self) -> list[int]:
        """Held blocks that carry no key."""
        return [i for i in sorted(set(self.held)) if self.real.blocks[i].block_hash is None]

    def compare(self) -> None:
        """Free queue, reference counts, which blocks are hashed, and the map with the order of duplicates."""
        real, arrays = self.real, self.kernel.pool.blocks
        n = real.num_gpu_blocks
        queue = [b.block_id for b in real.free_block_queue.get_all_free_blocks()]
        assert self.kernel.free_queue() == queue
        assert self.kernel.pool.meta.num_free == real.get_num_free_blocks() == len(queue)
        assert arrays.ref_cnt[1:n].tolist() == [b.ref_cnt for b in real.blocks[1:]]
        assert (arrays.block_hash[:n] != 0).tolist() == [b.block_hash is not None for b in real.blocks]
        entries = real.cached_block_hash_to_block._cache.values()
        lists = [list(entry) if isinstance(entry, dict) else [entry.block_id] for entry in entries]
        assert self.kernel.prefix_map() == sorted(lists)
        for key in ALL_KEYS:
            found = real.get_cached_block(to_bytes(key), [0])
            assert self.kernel.get_cached_block(key, (0,)) == (found and [b.block_id for b in found])


@pytest.mark.parametrize("num_blocks", [2, 3, 5, 9, 17, 40, 64, 65, 130])
@pytest.mark.parametrize("caching", [True, False])
def test_random_walks(num_blocks: int, caching: bool) -> None:
    """Long walks in crowded maps: more look-ups, duplicates and deletions than a state machine reaches."""
    rng = random.Random(num_blocks)
    pools = BothPools(num_blocks, caching)
    for _ in range(800):
        kind = rng.randrange(9)
        if kind <= 1:
            pools.get_new_blocks(rng.randint(0, 1 + pools.real.get_num_free_blocks() // rng.randint(1, 4)))
        elif kind <= 3 and pools.held:
            chosen = list(pools.held)
            rng.shuffle(chosen)
            pools.free_blocks(chosen[: rng.randint(1, len(chosen))])
        elif kind <= 5 and caching:
            chosen = pools.cacheable()
            rng.shuffle(chosen)
            for block in chosen[: rng.randint(1, 12)]:
                pools.cache(block, rng.choice(ALL_KEYS), rng.choice([0, 0, 1]))
        elif kind == 6:
            pools.hit(rng.choice(ALL_KEYS), rng.choice([(0,), (1,), (0, 1)]))
        elif kind == 7:
            pools.evict(rng.randrange(num_blocks))
        else:
            pools.reset()
        pools.compare()


class PoolMachine(RuleBasedStateMachine):
    """Both pools through operations that hypothesis chooses, and shrinks."""

    @initialize(
        n=st.integers(2, 40) | st.sampled_from([63, 64, 65]),
        caching=st.sampled_from([True, True, True, False]),
    )
    def start(self, n: int, caching: bool) -> None:
        self.pools = BothPools(n, caching)

    @rule(n=st.integers(0, 12) | st.integers(0, 70))
    def get_new_blocks(self, n: int) -> None:
        self.pools.get_new_blocks(n)

    @precondition(lambda self: self.pools.held)
    @rule(data=st.data(), null=st.booleans())
    def free_blocks(self, data: st.DataObject, null: bool) -> None:
        order = data.draw(st.permutations(self.pools.held))
        chosen = order[: data.draw(st.integers(1, len(order)))]
        self.pools.free_blocks([NULL, *chosen] if null else chosen)

    @rule(key=KEYS, groups=st.sampled_from([(0,), (1,), (0, 1)]))
    def get_cached_block_and_touch(self, key: int, groups: tuple[int, ...]) -> None:
        self.pools.hit(key, groups)

    @precondition(lambda self: self.pools.real.enable_caching and self.pools.cacheable())
    @rule(data=st.data(), group=st.sampled_from([0, 0, 0, 1]))
    def cache_full_blocks(self, data: st.DataObject, group: int) -> None:
        order = data.draw(st.permutations(self.pools.cacheable()))
        for block in order[: data.draw(st.integers(1, 16))]:
            self.pools.cache(block, data.draw(KEYS), group)

    @rule(data=st.data())
    def evict_blocks(self, data: st.DataObject) -> None:
        self.pools.evict(data.draw(st.integers(0, self.pools.real.num_gpu_blocks - 1)))

    @rule()
    def reset_prefix_cache(self) -> None:
        self.pools.reset()

    @rule()
    def free_everything(self) -> None:
        """Brings the reset, and a whole free pool, into reach."""
        self.pools.free_blocks(sorted(self.pools.held, reverse=True))

    @invariant()
    def everything_is_equal(self) -> None:
        if hasattr(self, "pools"):
            self.pools.compare()


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
