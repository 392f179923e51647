"""What is noted about a live scheduler and its block pool, call by call, and how a recording begins and ends.

`Scheduler.__init__` is the only thing that is changed in vLLM itself; all other wrappers stand on the objects
(see wrappers.py).
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import traceback
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from sim.analysis.recording_file import FORMAT, FORMAT_VERSION
from validation.live import LOGGER_NAME
from validation.live.options import LiveOptions
from validation.live.state import RawState, describe, prefix_counts, state_reader
from validation.live.wrappers import Wrappers
from validation.live.writer import Writer

_CLOSE_SECONDS = 10.0
_MIN_QUEUE_BYTES = 1 << 16
#: Operations that one line holds at most; they gather while no call ends.
_MAX_OPS = 50_000
#: Batches in flight whose step is remembered.
_MAX_BATCHES = 64

_clock = time.perf_counter_ns


class LiveRecorder:
    """Records one scheduler until `close`, or until something goes wrong.

    Attributes:
        failure: what went wrong inside the recorder, None while all is well.
        calls: schedule and update calls seen.
        state_ns: what copying the last state took.
        cost_ns: time spent on rows and states on the engine's thread.
        busy_ns: time that the recorded calls themselves took.
    """

    def __init__(self, scheduler: Any, path: str | os.PathLike[str], options: LiveOptions) -> None:
        self.options = options
        self.failure: str | None = None
        self.calls = self.rows = self.states = self.num_ops = 0
        self.cost_ns = self.busy_ns = 0
        self.step = -1
        self._scheduler = scheduler
        self._pid = os.getpid()
        self._read_state = state_reader(scheduler)
        self._next_state_call = 1
        self.state_ns = 0
        self._after_update = False
        self._batches: deque[tuple[int, int]] = deque(maxlen=_MAX_BATCHES)
        self._preempted: list[str] = []
        self._finished: list[str] = []
        self._taken_stats: list[Any] = []
        self._prefix = [0] * 6
        self._ops: list[tuple[Any, ...]] = []
        self._wrappers = Wrappers(self._fail)
        self._closed = False
        self._finalizer: Any = None
        self._lock = threading.Lock()
        self._began_ns = _clock()
        header = self._header()
        self.writer = Writer(
            Path(path),
            max(int(options.queue_mb * 2**20), _MIN_QUEUE_BYTES),
            options.flush_s,
            options.compress,
        )
        self.writer.put("header", 0, lambda: header)
        try:
            self.wrap()
        except Exception:
            self.close()
            raise

    def _header(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "vllm": getattr(sys.modules.get("vllm"), "__version__", None),
            "pid": self._pid,
            "started_unix_ns": time.time_ns(),
            "options": vars(self.options),
            **describe(self._scheduler),
        }

    # wrapping

    def wrap(self) -> None:
        """Put the wrappers on, also after `unwrap`; a closed recorder stays off."""
        if self._closed:
            return
        scheduler = self._scheduler
        manager = scheduler.kv_cache_manager
        on = self._wrappers
        on.off = False
        on.call(scheduler, "schedule", self._scheduled)
        on.call(scheduler, "update_from_output", self._updated)
        on.before(scheduler, "_preempt_request", self._note_preempted)
        on.before(scheduler, "_free_request", self._note_ended)
        on.before(scheduler, "add_request", self._note_added)
        on.before(scheduler, "shutdown", lambda *_, **__: self.close())
        on.after(manager, "make_prefix_cache_stats", self._note_stats)
        if self.options.ops:
            pool = manager.block_pool
            on.after(pool, "get_new_blocks", lambda blocks, *_, **__: self._op("new", blocks))
            on.before(pool, "touch", self._note_touch)
            on.list_argument(pool, "free_blocks", lambda blocks: self._op("free", blocks))
            on.after(pool, "cache_full_blocks", self._note_cached)
            on.after(pool, "evict_blocks", self._note_evicted)
            on.after(pool, "reset_prefix_cache", self._note_reset)

    def unwrap(self) -> None:
        """Take the wrappers off; `wrap` puts them on again."""
        self._wrappers.take_off()

    # notes

    def _op(self, name: str, blocks: Any) -> None:
        self._ops.append((name, [block.block_id for block in blocks]))
        if len(self._ops) >= _MAX_OPS:
            self._put_ops(_clock())

    def _note_touch(self, blocks: Any) -> None:
        # until 0.13 a tuple of lists, one a group
        if blocks and isinstance(blocks[0], list | tuple):
            blocks = [block for group in blocks for block in group]
        self._op("touch", blocks)

    def _note_cached(
        self,
        _: Any,
        request: Any,
        blocks: Any,
        num_cached_blocks: int,
        num_full_blocks: int,
        block_size: int,
        kv_cache_group_id: int = 0,
        block_mask: Any = None,
    ) -> None:
        ids = [
            block.block_id
            for i, block in enumerate(blocks[num_cached_blocks:num_full_blocks])
            if not block.is_null and (block_mask is None or block_mask[i])
        ]
        if ids:
            self._ops.append(("cache", ids, request.request_id, num_cached_blocks, kv_cache_group_id))

    def _note_evicted(self, _: Any, block_ids: Any) -> None:
        self._ops.append(("evict", sorted(block_ids)))

    def _note_reset(self, done: Any) -> None:
        self._ops.append(("reset", bool(done)))

    def _note_stats(self, stats: Any, *_: Any) -> None:
        # most steps look nothing up
        if stats is not None and (stats.requests or stats.preempted_requests):
            self._taken_stats.append(stats)

    def _note_preempted(self, request: Any, *_: Any, **__: Any) -> None:
        self._preempted.append(request.request_id)

    def _note_added(self, request: Any, *_: Any, **__: Any) -> None:
        line: dict[str, Any] = {
            "time_ns": _clock() - self._began_ns,
            # the next step sees it; nothing is asked of a step that is under way
            "step": self.step + 1,
            "request_id": request.request_id,
            "prompt_tokens": request.num_prompt_tokens,
            "max_tokens": request.max_tokens,
            "priority": request.priority,
            "arrival_time": request.arrival_time,
            "salted": request.cache_salt is not None,
        }
        if self.options.tokens:
            line["prompt_token_ids"] = list(request.prompt_token_ids or ())
            line["cache_salt"] = request.cache_salt
        self.writer.put("added", 28 * len(line.get("prompt_token_ids", ())), lambda: line)

    def _note_ended(self, request: Any, *_: Any, **__: Any) -> None:
        status = request.status
        line: dict[str, Any] = {
            "time_ns": _clock() - self._began_ns,
            "step": self.step,
            "request_id": request.request_id,
            "status": getattr(status, "name", str(status)),
            "output_tokens": request.num_output_tokens,
            "preemptions": request.num_preemptions,
        }
        if self.options.tokens:
            line["output_token_ids"] = list(request.all_token_ids)[request.num_prompt_tokens :]
        self._finished.append(request.request_id)
        self.writer.put("ended", 28 * len(line.get("output_token_ids", ())), lambda: line)

    def _scheduled(self, batch: Any, _: Any, began: int) -> None:
        self.step += 1
        self._after_update = False
        self._batches.append((id(batch), self.step))
        self._called("scheduled", self.step, batch, began)

    def _updated(self, _: Any, batch: Any, began: int) -> None:
        # a step makes one schedule call at the most, then one update call at the most
        if self._after_update:
            self.step += 1
        self._after_update = True
        self._called("updated", self._step_of(batch), batch, began)

    def _step_of(self, batch: Any) -> int:
        """The step that scheduled a batch, -1 if it was before the recording."""
        for i, (identity, step) in enumerate(self._batches):
            if identity == id(batch):
                del self._batches[i]
                return step
        return -1

    def _called(self, phase: str, batch_step: int, batch: Any, began: int) -> None:
        ended = _clock()
        self.busy_ns += ended - began
        self.calls += 1
        if self._ops:
            self._put_ops(ended)
        if self.step % self.options.row_every:
            return
        self._row(phase, batch_step, batch, began, ended)
        self.cost_ns += _clock() - ended
        if self.writer.failure is not None:
            self._stop(f"the writer stopped: {self.writer.failure}")

    def _put_ops(self, now: int) -> None:
        ops, self._ops = self._ops, []
        self.num_ops += len(ops)
        line = {"time_ns": now - self._began_ns, "call": self.calls, "step": self.step, "ops": ops}
        size = sum(120 + 8 * len(op[1]) for op in ops if op[0] != "reset")
        self.writer.put("ops", size, lambda: line)

    def _row(self, phase: str, batch_step: int, batch: Any, began: int, ended: int) -> None:
        scheduler = self._scheduler
        pool = scheduler.kv_cache_manager.block_pool
        scheduled = batch.num_scheduled_tokens
        state = self._state_if_due()
        num_kv_holding = len(getattr(scheduler, "kv_holding_waiting", ()))
        line: dict[str, Any] = {
            "call": self.calls,
            "time_ns": ended - self._began_ns,
            "duration_ns": ended - began,
            "step": self.step,
            "phase": phase,
            "batch_step": batch_step,
            "num_running": len(scheduler.running),
            "num_waiting": len(scheduler.waiting) + num_kv_holding,
            "num_free_blocks": pool.get_num_free_blocks(),
            "num_cached_hashes": len(pool.cached_block_hash_to_block),
            "num_scheduled_tokens": batch.total_num_scheduled_tokens,
            "num_scheduled_reqs": len(scheduled),
            "preempted": self._preempted,
            "finished": self._finished,
            "prefix": self._prefix_now(),
        }
        names = 70 * (len(self._preempted) + len(self._finished))
        self._preempted, self._finished = [], []
        if state is None:
            self.writer.put("row", names, lambda: line)
        else:
            batch_items = list(scheduled.items())
            size = names + state.size() + 100 * len(batch_items)
            self.states += self.writer.put(
                "row", size, lambda: line | {"scheduled": batch_items, "state": state.to_json()}
            )
        self.rows += 1

    def _state_if_due(self) -> RawState | None:
        """The state, when it is time for it and the budget allows one more of the last one's cost."""
        options = self.options
        if not options.state_every or self.calls < self._next_state_call:
            return None
        if options.budget and self.cost_ns + self.state_ns > options.budget * self.busy_ns and self.states:
            return None
        # two calls a step
        self._next_state_call = self.calls + (1 if options.state_every == 1 else 2 * options.state_every)
        began = _clock()
        state = self._read_state()
        self.state_ns = _clock() - began
        return state

    def _prefix_now(self) -> list[int] | None:
        for stats in self._taken_stats:
            taken = prefix_counts(stats) or (0,) * 6
            self._prefix = [a + b for a, b in zip(self._prefix, taken, strict=True)]
        self._taken_stats.clear()
        current = prefix_counts(self._scheduler.kv_cache_manager.prefix_cache_stats)
        if current is None:
            return None
        return [a + b for a, b in zip(self._prefix, current, strict=True)]

    # the end

    def _fail(self) -> None:
        """Called in an except block: note the exception, switch off, say so once."""
        with suppress(Exception):
            self._stop(traceback.format_exc(limit=-4))

    def _stop(self, why: str) -> None:
        if self.failure is not None:
            return
        self.failure = why
        self.unwrap()
        last = why.strip().splitlines()[-1]
        logging.getLogger(LOGGER_NAME).error("kvpool: the live recording ends here: %s", last)
        with suppress(Exception):
            self.writer.put("error", len(why), lambda: {"text": why})
        self.close()

    def _end_line(self) -> dict[str, Any]:
        return {
            "time_ns": _clock() - self._began_ns,
            "calls": self.calls,
            "rows": self.rows,
            "states": self.states,
            "ops": self.num_ops,
            "lost": self.writer.lost,
            "peak_queue_bytes": self.writer.peak_bytes,
            "writer_cpu_ns": self.writer.cpu_ns,
            "cost_ns": self.cost_ns,
            "busy_ns": self.busy_ns,
            "failed": self.failure is not None,
        }

    def close(self) -> None:
        """End the recording: the rest is written and the file gets its name. Safe to call again."""
        with self._lock:
            if self._closed or os.getpid() != self._pid:
                return
            self._closed = True
        self.unwrap()
        with suppress(Exception):
            if self._ops:
                self._put_ops(_clock())
        with suppress(Exception):
            self.writer.close(self._end_line, _CLOSE_SECONDS)
            atexit.unregister(self.close)
            if self._finalizer is not None:
                self._finalizer.cancel()

    def close_at_exit(self) -> None:
        """Close when the process ends. atexit does not run in a forked multiprocessing child; its finalizers
        do."""
        from multiprocessing import util

        atexit.register(self.close)
        self._finalizer = util.Finalize(None, self.close, exitpriority=100)


def record_scheduler(
    scheduler: Any, path: str | os.PathLike[str], options: LiveOptions
) -> LiveRecorder | None:
    """Record a live scheduler; None, with one line in the log, when that fails."""
    try:
        recorder = LiveRecorder(scheduler, path, options)
        recorder.close_at_exit()
        logging.getLogger(LOGGER_NAME).info("kvpool: recording the block pool into %s", recorder.writer.final)
        return recorder
    except Exception as exc:
        logging.getLogger(LOGGER_NAME).error(
            "kvpool: nothing will be recorded: %s: %s", type(exc).__name__, exc
        )
        return None


_recording: dict[str, Any] = {}


def record_new_schedulers(path: str, options: LiveOptions) -> None:
    """From now on record each vLLM scheduler that is made in this process; later calls change nothing."""
    from vllm.v1.core.sched.scheduler import Scheduler

    if "init" in _recording:
        return
    if not Path(path).resolve().parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no such folder")
    init = Scheduler.__init__
    _recording["init"] = init

    def recorded_init(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        _recording["last"] = record_scheduler(self, path, options)

    Scheduler.__init__ = recorded_init
