"""A plain LRU prefix cache over the blocks of prompts: the model behind published hit rates of traces.

It knows no requests in flight, no outputs and no order within a step: every block of every prompt is one
event, in order; it is found and becomes the newest, or it is put in and the oldest goes. The simulator's pool
differs in all of this, so its hit rate does too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from workloads.requests import Workload
from workloads.reuse import sequences


def block_events(workload: Workload, block_size: int) -> list[int]:
    """One number for each block of each prompt, in order; the same for equal blocks behind equal prefixes.

    A partial last block counts as a block.
    """
    numbers: dict[tuple[object, ...], int] = {}
    events: list[int] = []
    salts = workload.salt.tolist()
    for i, (prompt, _, _) in enumerate(sequences(workload, block_size)):
        # Numbers are >= 0, so the root of a salt's tree cannot be mistaken for a block.
        parent, room = -1 - salts[i], block_size
        content: list[tuple[int, int, int]] = []
        for segment, begin, size in prompt:
            start, left = begin, size
            while left:
                taken = min(left, room)
                content.append((segment, start, taken))
                start, left, room = start + taken, left - taken, room - taken
                if room == 0:
                    parent = numbers.setdefault((parent, *content), len(numbers))
                    events.append(parent)
                    content, room = [], block_size
        if content:
            events.append(numbers.setdefault((parent, *content), len(numbers)))
    return events


def lru_hit_rates(workload: Workload, block_size: int, capacities: Sequence[int]) -> dict[int, float]:
    """Hits / blocks of a plain LRU cache of so many blocks.

    Args:
        block_size: tokens of a block, >= 1.
        capacities: blocks that the cache holds, each >= 1.
    """
    events = block_events(workload, block_size)
    return {capacity: _hits(events, capacity) / len(events) for capacity in capacities}


def _hits(events: list[int], capacity: int) -> int:
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for block in events:
        if block in cache:
            hits += 1
            cache.move_to_end(block)
        else:
            cache[block] = None
            if len(cache) > capacity:
                cache.popitem(last=False)
    return hits
