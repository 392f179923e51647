"""What is read from the live objects of a vLLM scheduler, on the engine's thread: raw ids, nothing computed.

Only attribute names are relied on, those of vLLM 0.32.0: Scheduler, KVCacheManager, BlockPool.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from validation.live.writer import pack

#: Names under SchedulerConfig and CacheConfig that a simulation of the recording needs.
SCHEDULER_KEYS = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_num_scheduled_tokens",
    "max_num_active_seqs",
    "enable_chunked_prefill",
    "long_prefill_token_threshold",
    "long_prefill_token_threshold_adaptive",
    "async_scheduling",
    "policy",
    "scheduler_reserve_full_isl",
    "watermark",
)
CACHE_KEYS = (
    "block_size",
    "enable_prefix_caching",
    "prefix_cache_retention_interval",
    "prefix_match_unit",
)
_SPEC_KEYS = ("block_size", "sliding_window", "attention_chunk_size", "mamba_cache_mode")


def managers_of(scheduler: Any) -> list[Any]:
    """One manager a KV-cache group."""
    return list(scheduler.kv_cache_manager.coordinator.single_type_managers)


def describe(scheduler: Any) -> dict[str, Any]:
    """The engine's settings, as far as they can be read; what a release does not have is left out."""
    found: dict[str, Any] = {}
    for source, keys in (("scheduler_config", SCHEDULER_KEYS), ("cache_config", CACHE_KEYS)):
        config = getattr(scheduler, source, None)
        found |= {key: getattr(config, key) for key in keys if hasattr(config, key)}
    # policy may be an enum of str
    settings = {k: v if v is None or type(v) in (bool, int, float, str) else str(v) for k, v in found.items()}
    pool = scheduler.kv_cache_manager.block_pool
    settings["num_gpu_blocks"] = pool.num_gpu_blocks
    settings["max_model_len"] = getattr(scheduler, "max_model_len", None)
    groups = []
    for manager in managers_of(scheduler):
        spec = getattr(manager, "kv_cache_spec", None)
        group = {"spec": type(spec).__name__, "block_size": manager.block_size}
        groups.append(
            group | {k: getattr(spec, k) for k in _SPEC_KEYS if type(getattr(spec, k, None)) in (int, str)}
        )
    parallel = getattr(getattr(scheduler, "vllm_config", None), "parallel_config", None)
    return {
        "settings": settings,
        "groups": groups,
        "null_block": pool.null_block.block_id,
        "data_parallel_rank": getattr(parallel, "data_parallel_index", None),
    }


def prefix_counts(stats: Any) -> tuple[int, ...] | None:
    """The six counters of a PrefixCacheStats; None when the engine keeps no statistics."""
    if stats is None:
        return None
    return (
        stats.requests,
        stats.queries,
        stats.hits,
        stats.preempted_requests,
        stats.preempted_queries,
        stats.preempted_hits,
    )


def waiting_of(scheduler: Any) -> list[Any]:
    """Waiting requests: those that hold blocks first, then the queue in its order."""
    return [*getattr(scheduler, "kv_holding_waiting", ()), *scheduler.waiting]


@dataclass(frozen=True)
class RawState:
    """A copy of the whole state after a call, in bytes, as little-endian int32 but for `hashed` (one byte a
    block)."""

    free_queue: bytes
    ref_cnt: bytes
    hashed: bytes
    running: list[str]
    computed: list[int]
    waiting: list[str]
    table_lengths: list[list[int]]
    tables: bytes

    def size(self) -> int:
        """Bytes in memory, roughly."""
        names = 70 * (len(self.running) + len(self.waiting))
        return len(self.free_queue) + len(self.ref_cnt) + len(self.hashed) + len(self.tables) + names

    def to_json(self) -> dict[str, Any]:
        """The object that stands in the file."""
        return {
            "free_queue": pack(self.free_queue),
            "ref_cnt": pack(self.ref_cnt),
            "hashed": pack(self.hashed),
            "running": self.running,
            "computed": self.computed,
            "waiting": self.waiting,
            "table_lengths": self.table_lengths,
            "tables": pack(self.tables),
        }


def state_reader(scheduler: Any) -> Callable[[], RawState]:
    """A function that copies the state of this scheduler."""
    pool = scheduler.kv_cache_manager.block_pool
    managers = managers_of(scheduler)

    def read() -> RawState:
        running = scheduler.running
        tables = array("i")
        lengths: list[list[int]] = []
        for request in running:
            of_request = []
            for manager in managers:
                table = manager.req_to_blocks.get(request.request_id, ())
                tables.extend([block.block_id for block in table])
                of_request.append(len(table))
            lengths.append(of_request)
        return RawState(
            free_queue=array(
                "i", [b.block_id for b in pool.free_block_queue.get_all_free_blocks()]
            ).tobytes(),
            ref_cnt=array("i", [b.ref_cnt for b in pool.blocks]).tobytes(),
            hashed=bytes([b.block_hash is not None for b in pool.blocks]),
            running=[r.request_id for r in running],
            computed=[r.num_computed_tokens for r in running],
            waiting=[r.request_id for r in waiting_of(scheduler)],
            table_lengths=lengths,
            tables=tables.tobytes(),
        )

    return read
