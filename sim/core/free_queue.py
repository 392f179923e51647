"""FreeKVCacheBlockQueue (vLLM 0.32.0, v1/core/kv_cache_utils.py) as a list linked through the blocks.

The front is the next block to be allocated. Taking more than there is, or removing a block that is not in the
queue, is the caller's error: the block pool tests before it acts.
"""

from __future__ import annotations

from sim.core.jit import leaf
from sim.core.state import Pool


@leaf
def queue_reset(pool: Pool, num_blocks: int) -> None:
    """Fill the queue with all blocks in ascending order of id."""
    for b in range(num_blocks):
        pool.blocks.prev_free[b] = b - 1
        pool.blocks.next_free[b] = b + 1
    head = num_blocks
    tail = num_blocks + 1
    pool.blocks.prev_free[0] = head
    pool.blocks.next_free[num_blocks - 1] = tail
    pool.blocks.prev_free[head] = -1
    pool.blocks.next_free[head] = 0
    pool.blocks.prev_free[tail] = num_blocks - 1
    pool.blocks.next_free[tail] = -1
    pool.meta.num_free = num_blocks


@leaf
def queue_popleft(pool: Pool, head: int) -> int:
    """Take the front block; the queue must not be empty. ``head`` is N, the sentinel."""
    b = pool.blocks.next_free[head]
    nxt = pool.blocks.next_free[b]
    pool.blocks.next_free[head] = nxt
    pool.blocks.prev_free[nxt] = head
    pool.blocks.prev_free[b] = -1
    pool.blocks.next_free[b] = -1
    pool.meta.num_free -= 1
    return b


@leaf
def queue_take(pool: Pool, head: int, b: int, count: int) -> None:
    """Make b the front block, or the tail sentinel, after the ``count`` blocks before it were taken.

    Their own links are the caller's affair.
    """
    pool.blocks.next_free[head] = b
    pool.blocks.prev_free[b] = head
    pool.meta.num_free -= count


@leaf
def queue_remove(pool: Pool, b: int) -> None:
    """Unlink a block from the middle; the order of the others stays."""
    prev = pool.blocks.prev_free[b]
    nxt = pool.blocks.next_free[b]
    pool.blocks.next_free[prev] = nxt
    pool.blocks.prev_free[nxt] = prev
    pool.blocks.prev_free[b] = -1
    pool.blocks.next_free[b] = -1
    pool.meta.num_free -= 1


@leaf
def queue_insert_after(pool: Pool, b: int, prev: int) -> None:
    """Link ``b`` behind ``prev`` (a block or the head sentinel).

    ``append`` is insertion behind the last block; ``prepend_n`` inserts each block of the list behind the one
    before, the first behind the head.
    """
    nxt = pool.blocks.next_free[prev]
    pool.blocks.prev_free[b] = prev
    pool.blocks.next_free[b] = nxt
    pool.blocks.next_free[prev] = b
    pool.blocks.prev_free[nxt] = b
    pool.meta.num_free += 1


@leaf
def queue_last(pool: Pool, tail: int) -> int:
    """The last block, or the head sentinel when the queue is empty. ``tail`` is N + 1."""
    return pool.blocks.prev_free[tail]
