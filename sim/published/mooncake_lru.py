"""Hit rate of a plain LRU prefix cache on the Mooncake conversation trace, blocks of 512 tokens, by capacity.

Definition: the trace's hash ids in order of arrival, each one block event; an event is a hit when its block
is in the cache, and makes the block the most recently used one. The last, partly filled block of a prompt has
a hash id and counts like the others. Hit rate: hits / events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.config_engine import EngineSettings
from sim.errors import InputError
from sim.published.data import trace_path
from sim.published.registry import Options
from sim.published.table import Row, Table

if TYPE_CHECKING:
    from workloads.requests import Workload

TRACE = "mooncake_conversation.jsonl.gz"
BLOCK_SIZE = 512

#: capacity in blocks -> published hit rate over block events
PUBLISHED = {
    1_000: ".0445",
    3_000: ".065",
    5_000: ".110",
    10_000: ".211",
    20_000: ".2875",
    30_000: ".326",
    50_000: ".355",
    100_000: ".364",
}
PUBLISHED_INFINITE_BLOCKS = ".3664"
PUBLISHED_INFINITE_TOKENS = ".3736"


@dataclass(frozen=True)
class Hits:
    """Outcome of one replay: hits over all events, block events or prompt tokens."""

    events: int
    tokens: int
    hit_blocks: int
    hit_tokens: int
    leading_blocks: int  # hits with no miss in front of them in their request

    @property
    def block_rate(self) -> float:
        """Hits / block events."""
        return self.hit_blocks / self.events

    @property
    def token_rate(self) -> float:
        """Tokens of hit blocks / prompt tokens."""
        return self.hit_tokens / self.tokens


def read_hash_trace(path: str | None = None) -> Workload:
    """The trace with one piece a hash id.

    Raises:
        InputError: the file is missing or broken.
    """
    from workloads.errors import WorkloadError
    from workloads.readers import read_trace
    from workloads.readers.options import ReadOptions

    try:
        return read_trace(trace_path(TRACE, path), "mooncake", ReadOptions(hash_block_size=BLOCK_SIZE))
    except WorkloadError as e:
        raise InputError(e.message, file=e.file, line=e.line, column=e.column) from e


def replay_hits(workload: Workload, capacity: int, *, tail_first: bool = False) -> Hits:
    """Hits of a cache of ``capacity`` blocks; ``tail_first``: freed in vLLM's order instead of LRU.

    ``workload``: pieces are blocks, their segment ids hash ids.

    Raises:
        InputError: the capacity is less than the longest request, which holds all its blocks at once; or
            pieces are shorter than a block.
    """
    from sim.capacity import LogOptions, allocate
    from sim.published.lru import COUNTS, HIT_BLOCKS, HIT_TOKENS, LEADING_BLOCKS, replay
    from sim.step_time import constant

    longest = int(np.diff(workload.seg_ptr).max())
    if capacity < longest:
        raise InputError(f"a cache of {capacity} blocks is smaller than the longest request ({longest})")
    engine = EngineSettings(
        block_size=BLOCK_SIZE,
        num_gpu_blocks=capacity + 1,
        max_num_seqs=1,
        max_model_len=int((workload.prompt_len.astype(np.int64) + workload.output_len).max()),
    )
    state = allocate(engine, workload, constant(1), LogOptions())
    if state.kv.table_blocks.shape[2] < longest:
        raise InputError(f"a request names {longest} blocks, more than its tokens fill")
    counts = np.zeros(COUNTS, dtype=np.int64)
    replay(state.kv, len(workload), tail_first, counts)
    return Hits(
        events=int(workload.seg_ptr[-1]),
        tokens=int(workload.prompt_len.sum()),
        hit_blocks=int(counts[HIT_BLOCKS]),
        hit_tokens=int(counts[HIT_TOKENS]),
        leading_blocks=int(counts[LEADING_BLOCKS]),
    )


def make(options: Options) -> Table:
    """The published table with ours beside it.

    Raises:
        InputError: the trace is missing or broken.
    """
    workload = read_hash_trace(options.trace)
    rows = []
    orphans = 0
    for capacity, published in PUBLISHED.items():
        lru = replay_hits(workload, capacity)
        tail = replay_hits(workload, capacity, tail_first=True)
        orphans += lru.hit_blocks - lru.leading_blocks
        rows.append(
            Row(
                f"{capacity:,} blocks",
                published,
                lru.block_rate,
                (f"{tail.block_rate:.5f}", f"{lru.token_rate:.5f}"),
            )
        )
    everything = replay_hits(workload, len(np.unique(workload.seg_id)))
    shown = (f"{everything.block_rate:.5f}", f"{everything.token_rate:.5f}")
    rows.append(Row("infinite, blocks", PUBLISHED_INFINITE_BLOCKS, everything.block_rate, shown))
    rows.append(Row("infinite, tokens", PUBLISHED_INFINITE_TOKENS, everything.token_rate, shown))
    return Table(
        name="mooncake-lru",
        title=(
            f"Mooncake conversation trace, plain LRU prefix cache, blocks of {BLOCK_SIZE}: "
            f"hits / {everything.events:,} block events"
        ),
        columns=("capacity", "published", "ours", "vLLM's order", "ours, tokens"),
        rows=tuple(rows),
        met_when="within one unit of the last printed digit",
        notes=(
            "Ours: every hash id of every request in order of arrival; the least recently used block is"
            " evicted. vLLM's order: the same, but the blocks are freed tail first, so that the end of a"
            " chain is evicted before its beginning. Ours, tokens: tokens of hit blocks / prompt tokens."
            f" Hits behind a miss of the same request, which vLLM would not take: {orphans} over all"
            " capacities."
        ),
    )
