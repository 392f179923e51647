"""Hit rate of a plain LRU prefix cache on the Mooncake conversation trace, blocks of 512 tokens, by capacity.

Definition: the trace's hash ids in order of arrival, each one block event; an event is a hit when its block
is in the cache, and makes the block the most recently used one. The last, partly filled block of a prompt has
a hash id and counts like the others. Hit rate: hits / events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.engine_settings import EngineSettings
from sim.errors import InputError
from sim.published.data import config_path, trace_path
from sim.published.registry import Options
from sim.published.table import Row, Table

if TYPE_CHECKING:
    from workloads.requests import Workload

CONFIG = "mooncake_lru.yaml"
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
    """The trace of configs/published/mooncake_lru.yaml, with one piece a hash id.

    Raises:
        InputError: the file is missing or broken.
    """
    from sim.runner import check

    return check(str(config_path(CONFIG)), [f"workload.path={trace_path(TRACE, path)}"])[1]


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
    from sim.curve.distances import CurveOptions, measure

    workload = read_hash_trace(options.trace)
    curve = measure(workload, CurveOptions(BLOCK_SIZE))
    vllm = measure(workload, CurveOptions(BLOCK_SIZE, "vllm"))

    def others(capacity: float, replayed: str) -> tuple[str, ...]:
        token_rates = [float(c.token_hit_rates([capacity])[0]) for c in (curve, vllm)]
        return replayed, *(f"{rate:.5f}" for rate in token_rates)

    rows = []
    for capacity, published in PUBLISHED.items():
        replayed = f"{replay_hits(workload, capacity).block_rate:.5f}"
        rate = float(curve.hit_rates([capacity])[0])
        rows.append(Row(f"{capacity:,} blocks", published, rate, others(capacity, replayed)))
    shown = others(float("inf"), "")
    rows.append(Row("infinite, blocks", PUBLISHED_INFINITE_BLOCKS, curve.ceiling, shown))
    rows.append(Row("infinite, tokens", PUBLISHED_INFINITE_TOKENS, curve.token_ceiling, shown))
    return Table(
        name="mooncake-lru",
        title=(
            f"Mooncake conversation trace, plain LRU prefix cache, blocks of {BLOCK_SIZE}: "
            f"hits / {curve.lookups:,} block events"
        ),
        columns=("capacity", "published", "ours", "on the pool", "ours, tokens", "vLLM's rule, tokens"),
        rows=tuple(rows),
        met_when="within one unit of the last printed digit",
        notes=(
            "Ours: all sizes in one pass (`python -m sim curve`): every block of every prompt in order of"
            " arrival, the least recently used one is evicted. On the pool: the same trace block by block"
            " through the simulator's free queue and prefix map. Ours, tokens: tokens of hit blocks / prompt"
            " tokens. vLLM's rule: full blocks only, never a prompt's last token, outputs cached, a request's"
            " blocks freed last first."
        ),
    )
