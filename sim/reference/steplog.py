"""Rows of the step log, every column computed from the state as it is.

Nothing is kept between rows: the columns are the definitions of the step-log format, written down once.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sim.reference.engine import Engine, Phase
from sim.reference.scheduler import Scheduler
from sim.reference.scheduler_output import SchedulerOutput
from sim.reference.settings import Settings

Row = dict[str, Any]


def record(
    engine_settings: Mapping[str, Any] | Settings,
    workload_lines: Iterable[Mapping[str, Any]],
    aborts: Mapping[int, Sequence[str]] | None = None,
    max_steps: int | None = None,
) -> list[Row]:
    """Run the reference engine on a logical-time workload and return its step log.

    Args:
        engine_settings: the mapping of an engine configuration file, or resolved settings.
        workload_lines: one mapping a request, in file order.
        aborts: request ids to abort before a step's schedule, by step index.
        max_steps: stop after this many steps.

    Raises:
        ValueError: bad settings or workload.
        EngineStuck: the workload can never be served to its end.
    """
    settings = (
        engine_settings if isinstance(engine_settings, Settings) else Settings.from_dict(engine_settings)
    )
    log = StepLog()
    Engine(settings, workload_lines, observer=log, aborts=aborts).run(max_steps)
    return log.rows


class StepLog:
    """Observer of an engine that collects one row a call."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def __call__(
        self, engine: Engine, phase: Phase, batch_step: int, batch: SchedulerOutput, finished: list[str]
    ) -> None:
        """Append the row of the call that just ended."""
        self.rows.append(
            {
                "step": engine.step_index,
                "phase": phase,
                "batch_step": batch_step,
                **state_columns(engine.scheduler),
                "num_scheduled_tokens": batch.total_num_scheduled_tokens,
                "num_scheduled_reqs": len(batch.num_scheduled_tokens),
                "preempted": list(batch.preempted) if phase == "scheduled" else [],
                "finished": list(finished),
                "sched_crc": crc_text(",".join(f"{i}:{n}" for i, n in batch.num_scheduled_tokens.items())),
            }
        )


def state_columns(scheduler: Scheduler) -> Row:
    """The columns that depend on the state alone."""
    manager = scheduler.kv_cache_manager
    pool = manager.block_pool
    stats = manager.prefix_cache_stats
    free_ids = pool.free_block_queue.block_ids()
    runs = free_run_lengths(free_ids, pool.num_gpu_blocks)
    num_running, num_waiting = scheduler.get_request_counts()
    groups = [slots_of_group(scheduler, g) for g in range(len(manager.managers))]
    allocated, held = sum(a for a, _ in groups), sum(h for _, h in groups)
    tables = [[manager.get_blocks(r.request_id)[g] for r in scheduler.running] for g in range(len(groups))]
    table_ids = [[[b.block_id for b in table] for table in group] for group in tables]
    return {
        "num_running": num_running,
        "num_waiting": num_waiting,
        "num_free_blocks": len(free_ids),
        "used_blocks": pool.num_gpu_blocks - 1 - len(free_ids),
        "num_cached_hashes": len(pool.cached_block_hash_to_block),
        "num_cached_blocks": sum(b.block_hash is not None for b in pool.blocks),
        "prefix_requests": stats.requests,
        "prefix_queries": stats.queries,
        "prefix_hits": stats.hits,
        "preempted_requests": stats.preempted_requests,
        "preempted_queries": stats.preempted_queries,
        "preempted_hits": stats.preempted_hits,
        "allocated_slots": allocated,
        "held_tokens": held,
        "wasted_slots": allocated - held,
        "wasted_by_group": [a - h for a, h in groups],
        "free_runs": len(runs),
        "largest_free_run": max(runs, default=0),
        "free_queue_crc": crc_int32(free_ids),
        "tables_crc": crc_int32(
            i for per_request in zip(*table_ids, strict=True) for ids in per_request for i in ids
        ),
        "tables_crc_by_group": [crc_int32(i for ids in group for i in ids) for group in table_ids],
        "refcnt_crc_nonull": crc_int32(0 if b.is_null else b.ref_cnt for b in pool.blocks),
        "cached_crc": zlib.crc32(bytes(b.block_hash is not None for b in pool.blocks)),
        "computed_crc": crc_int32(r.num_computed_tokens for r in scheduler.running),
        "running_ids_crc": crc_text("\n".join(r.request_id for r in scheduler.running)),
        "waiting_ids_crc": crc_text("\n".join(r.request_id for r in scheduler.waiting)),
    }


def slots_of_group(scheduler: Scheduler, group: int) -> tuple[int, int]:
    """(allocated slots, tokens held) of the running requests in one group.

    Null blocks have no slots, and the blocks of states have none for tokens.
    """
    manager = scheduler.kv_cache_manager.managers[group]
    if not manager.holds_tokens:
        return 0, 0
    size = manager.block_size
    allocated = held = 0
    for request in scheduler.running:
        for i, block in enumerate(manager.req_to_blocks.get(request.request_id, ())):
            if not block.is_null:
                allocated += size
                held += min(max(request.num_computed_tokens - i * size, 0), size)
    return allocated, held


def free_run_lengths(free_ids: Iterable[int], num_blocks: int) -> list[int]:
    """Lengths of the maximal runs of consecutive ids in the free set, by ascending id."""
    is_free = bytearray(num_blocks)
    for block_id in free_ids:
        is_free[block_id] = 1
    return [len(run) for run in is_free.split(b"\0") if run]


def crc_int32(values: Iterable[int]) -> int:
    """CRC-32 of the values as little-endian int32; chaining over parts gives the CRC of the whole."""
    words = array("i", values)
    assert words.itemsize == 4
    return zlib.crc32(words.tobytes() if _LITTLE_ENDIAN else _swapped(words))


def crc_text(text: str) -> int:
    """CRC-32 of the text in UTF-8."""
    return zlib.crc32(text.encode())


_LITTLE_ENDIAN = array("i", [1]).tobytes()[0] == 1


def _swapped(words: array[int]) -> bytes:
    words.byteswap()
    return words.tobytes()
