"""Rows of a step log from the live objects of a vLLM scheduler.

`SchedulerRecorder` wraps the methods of one scheduler object; the scheduler of a driver without a model and
that of a whole running engine are recorded by the same code, in any release that `vllm_release` knows.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from validation.steplog import COLUMNS, PREFIX_COLUMNS, Columns, empty_log
from validation.vllm_release import waiting_requests


def _crc_int32(values: Any, start: int = 0) -> int:
    return zlib.crc32(np.asarray(values, dtype="<i4").tobytes(), start)


def free_runs(ids: Any) -> tuple[int, int]:
    """Number and largest length of the maximal runs of consecutive ids in a set of block ids."""
    if len(ids) == 0:
        return 0, 0
    ordered = np.sort(np.asarray(ids, dtype=np.int64))
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 2) != 1)
    lengths = np.diff(starts, append=len(ordered))
    return len(starts), int(lengths.max())


class SchedulerRecorder:
    """Appends a row to `log` after each schedule() and each update_from_output() of one scheduler.

    The driver sets `step`, the index of the engine loop's step, before each step. `log` has the columns of
    the step log contract. `batches` maps the id of a batch that is under way to its step.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.step = 0
        self.log: Columns = empty_log()
        self._batches: dict[int, tuple[int, Any]] = {}
        self._preempted: list[str] = []
        self._finished: list[str] = []
        self._taken_stats = [0] * 6
        self._token_holding = [_holds_tokens(m) for m in self._managers()]
        self._wrap()

    def _managers(self) -> list[Any]:
        return list(self.scheduler.kv_cache_manager.coordinator.single_type_managers)

    def _wrap(self) -> None:
        scheduler, manager = self.scheduler, self.scheduler.kv_cache_manager
        schedule, update = scheduler.schedule, scheduler.update_from_output
        preempt, free, take_stats = (
            scheduler._preempt_request,
            scheduler._free_request,
            manager.make_prefix_cache_stats,
        )

        def recorded_schedule(*args: Any, **kwargs: Any) -> Any:
            batch = schedule(*args, **kwargs)
            self._batches[id(batch)] = (self.step, batch)
            self._row("scheduled", self.step, batch)
            return batch

        def recorded_update(batch: Any, output: Any) -> Any:
            result = update(batch, output)
            batch_step, _ = self._batches.pop(id(batch))
            self._row("updated", batch_step, batch)
            return result

        def noted_preempt(request: Any, *args: Any, **kwargs: Any) -> Any:
            self._preempted.append(request.request_id)
            return preempt(request, *args, **kwargs)

        def noted_free(request: Any, *args: Any, **kwargs: Any) -> Any:
            self._finished.append(request.request_id)
            return free(request, *args, **kwargs)

        def counted_stats() -> Any:
            stats = take_stats()
            self._taken_stats = [a + b for a, b in zip(self._taken_stats, _counts(stats), strict=True)]
            return stats

        scheduler.schedule = recorded_schedule
        scheduler.update_from_output = recorded_update
        scheduler._preempt_request = noted_preempt
        scheduler._free_request = noted_free
        manager.make_prefix_cache_stats = counted_stats

    def _row(self, phase: str, batch_step: int, batch: Any) -> None:
        row = self._engine_state() | self._pool_state() | self._table_state()
        row |= {
            "step": self.step,
            "phase": phase,
            "batch_step": batch_step,
            "num_scheduled_tokens": batch.total_num_scheduled_tokens,
            "num_scheduled_reqs": len(batch.num_scheduled_tokens),
            "preempted": self._preempted,
            "finished": self._finished,
            "sched_crc": zlib.crc32(
                ",".join(f"{r}:{n}" for r, n in batch.num_scheduled_tokens.items()).encode()
            ),
        }
        self._preempted, self._finished = [], []
        for name in COLUMNS:
            self.log[name].append(row[name])

    def _engine_state(self) -> dict[str, Any]:
        s = self.scheduler
        waiting = waiting_requests(s)
        counts = [
            a + b
            for a, b in zip(self._taken_stats, _counts(s.kv_cache_manager.prefix_cache_stats), strict=True)
        ]
        return {
            "num_running": len(s.running),
            "num_waiting": len(waiting),
            "running_ids_crc": zlib.crc32("\n".join(r.request_id for r in s.running).encode()),
            "waiting_ids_crc": zlib.crc32("\n".join(r.request_id for r in waiting).encode()),
            "computed_crc": _crc_int32([r.num_computed_tokens for r in s.running]),
            **dict(zip(PREFIX_COLUMNS, counts, strict=True)),
        }

    def _pool_state(self) -> dict[str, Any]:
        pool = self.scheduler.kv_cache_manager.block_pool
        free = [block.block_id for block in pool.free_block_queue.get_all_free_blocks()]
        refs = np.fromiter((block.ref_cnt for block in pool.blocks), "<i4", pool.num_gpu_blocks)
        hashed = np.fromiter(
            (block.block_hash is not None for block in pool.blocks), np.uint8, pool.num_gpu_blocks
        )
        runs, largest = free_runs(free)
        with_null = zlib.crc32(refs.tobytes())
        refs[pool.null_block.block_id] = 0
        return {
            "num_free_blocks": pool.get_num_free_blocks(),
            "used_blocks": pool.num_gpu_blocks - 1 - pool.get_num_free_blocks(),
            "num_cached_hashes": len(pool.cached_block_hash_to_block),
            "num_cached_blocks": int(hashed.sum()),
            "free_runs": runs,
            "largest_free_run": largest,
            "free_queue_crc": _crc_int32(free),
            "refcnt_crc": with_null,
            "refcnt_crc_nonull": zlib.crc32(refs.tobytes()),
            "cached_crc": zlib.crc32(hashed.tobytes()),
        }

    def _table_state(self) -> dict[str, Any]:
        managers = self._managers()
        allocated = held = chained = 0
        wasted = [0] * len(managers)
        by_group = [0] * len(managers)
        for request in self.scheduler.running:
            for g, manager in enumerate(managers):
                table = manager.req_to_blocks.get(request.request_id, ())
                ids = np.fromiter((b.block_id for b in table), "<i4", len(table)).tobytes()
                chained = zlib.crc32(ids, chained)
                by_group[g] = zlib.crc32(ids, by_group[g])
                if not self._token_holding[g]:
                    continue
                size = manager.block_size
                for i, block in enumerate(table):
                    if not block.is_null:
                        tokens = min(max(request.num_computed_tokens - i * size, 0), size)
                        allocated += size
                        held += tokens
                        wasted[g] += size - tokens
        return {
            "allocated_slots": allocated,
            "held_tokens": held,
            "wasted_slots": allocated - held,
            "wasted_by_group": wasted,
            "tables_crc": chained,
            "tables_crc_by_group": by_group,
        }


def _holds_tokens(manager: Any) -> bool:
    """A Mamba group's blocks hold states: they have no token slots to waste."""
    from vllm.v1.kv_cache_interface import MambaSpec

    return not isinstance(manager.kv_cache_spec, MambaSpec)


def _counts(stats: Any) -> list[int]:
    if stats is None:
        return [0] * 6
    return [
        stats.requests,
        stats.queries,
        stats.hits,
        stats.preempted_requests,
        stats.preempted_queries,
        stats.preempted_hits,
    ]
