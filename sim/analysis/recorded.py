"""A recording of a live vLLM as the analysis sees it: rows over time, states as snapshots, requests.

`sim.analysis.recording.load` makes it. Time zero is the first thing that was recorded, a request that was
added or a call. What a recording does not hold is None, or not-a-number in a column, and named in
`Recorded.missing`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analysis import recording_file as files
from sim.analysis.block_history import BlockHistory
from sim.analysis.recording_file import RecordedState
from sim.analysis.runs import runs_of
from sim.analysis.snapshot import FREE, NULL, FragmentationSnapshot
from sim.analysis.tables import LiveTables
from sim.errors import InputError

Columns = dict[str, NDArray[Any]]
I64 = NDArray[np.int64]

#: Columns that are known where the whole state was taken; in between the last one holds.
STATE_COLUMNS = (
    "num_cached_blocks",
    "cached_free_blocks",
    "allocated_slots",
    "held_tokens",
    "wasted_slots",
    "free_runs",
    "largest_free_run",
    "table_blocks",
    "table_runs",
)
#: What is 0 while the engine has no request.
_OF_REQUESTS = (
    "num_running",
    "num_waiting",
    "num_scheduled_tokens",
    "num_scheduled_reqs",
    "used_blocks",
    "allocated_slots",
    "held_tokens",
    "wasted_slots",
    "table_blocks",
    "table_runs",
)


@dataclass
class Recorded:
    """A recording.

    Attributes:
        path: the file.
        sha256: of its bytes.
        kind: "live" or "states".
        vllm: release of vLLM, None: not noted.
        options: of the recorder.
        settings: of the engine, vLLM's own names.
        num_blocks: N, the null block included.
        block_sizes: tokens of a block, by group; 0 for a group whose blocks hold no tokens (Mamba).
        started_unix_ns: Unix time of time zero, None: not noted.
        raw: as it was read.
        rows: one entry a recorded call: time_ns, step, updated (1 after update_from_output), call,
            duration_ns, and the counters; cumulative preemptions and finished; prefix counters where vLLM
            keeps them. int64 arrays of one length.
        requests: one entry a request: request_id, arrival_ns, finish_ns (-1: not seen), prompt_tokens,
            output_tokens (-1: not known), preemptions, status; None: not recorded.
        problems: what went wrong while recording, in words.
        missing: what a report of a simulated run has and this recording has not, and why.
    """

    path: Path
    sha256: str
    kind: str
    vllm: str | None
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    num_blocks: int
    block_sizes: tuple[int, ...]
    started_unix_ns: int | None
    raw: files.Recording | files.StateTable
    rows: Columns
    requests: Columns | None
    problems: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    _state_at: list[int] = field(default_factory=list)
    _zero_ns: int = 0
    _numbers: dict[str, int] = field(default_factory=dict)

    # ---- rows ----

    @property
    def usable_blocks(self) -> int:
        """All but the null block."""
        return self.num_blocks - 1

    @property
    def end_ns(self) -> int:
        """Time of the last row, 0 without one."""
        times = self.rows["time_ns"]
        return int(times[-1]) if len(times) else 0

    @property
    def every_call(self) -> bool:
        """Whether no call between the first row and the last one is left out."""
        calls = self.rows["call"]
        return len(calls) > 0 and bool((np.diff(calls) == 1).all())

    @cached_property
    def steps(self) -> Columns:
        """The rows as a step function of time: all columns of `rows`, used_blocks, and STATE_COLUMNS.

        Where only samples were recorded, rows after update_from_output() are left out unless they hold a
        state or are the last one: they show the pool between two steps, and would stand for the time up to
        the next sample. Then a row is added wherever the last request ends that the engine had: up to the
        next one the pool is free, which no sample shows. State columns are float64: a state's values hold
        up to the next state.
        """
        n = len(self.rows["time_ns"])
        keep = np.ones(n, dtype=np.bool_)
        if n and not self.every_call:
            keep = self.rows["updated"] == 0
            keep[self._state_at] = True
            keep[-1] = True
        out = {name: column[keep] for name, column in self.rows.items()}
        out["used_blocks"] = self.usable_blocks - out["num_free_blocks"]
        place = np.full(n, -1, dtype=np.int64)
        place[self._state_at] = np.arange(len(self._state_at))
        last = np.maximum.accumulate(place)[keep]
        for name in STATE_COLUMNS:
            values = np.append(self.state_columns[name].astype(np.float64), np.nan)
            out[name] = values[last]
        return out if self.every_call else self._with_idle_rows(out)

    def _with_idle_rows(self, rows: Columns) -> Columns:
        """A row at the beginning of each idle span; within one, every row shows a free pool."""
        starts = np.array([start for start, _ in self.idle_spans], dtype=np.int64)
        before = np.searchsorted(rows["time_ns"], starts, side="right") - 1
        starts, before = starts[before >= 0], before[before >= 0]
        if not len(starts):
            return rows
        times = np.append(rows["time_ns"], starts)
        order = np.argsort(times, kind="stable")
        out = {name: np.append(column, column[before])[order] for name, column in rows.items()}
        out["time_ns"] = times[order]
        idle = np.array([self.is_idle(time) for time in out["time_ns"].tolist()])
        usable = self.usable_blocks
        known = {"num_free_blocks": usable, "free_runs": 1, "largest_free_run": usable}
        for name, value in (known | dict.fromkeys(_OF_REQUESTS, 0)).items():
            if name in out:
                # where no state has been recorded yet nothing is known
                unknown = np.isnan(out[name]) if name in STATE_COLUMNS else False
                out[name] = np.where(idle & ~np.asarray(unknown), value, out[name]).astype(out[name].dtype)
        out["cached_free_blocks"] = np.where(idle, out["num_cached_blocks"], out["cached_free_blocks"])
        return out

    @cached_property
    def idle_spans(self) -> list[tuple[int, int]]:
        """Stretches of time in which the engine had no request, each after one that it had.

        Empty where requests are not recorded or lines about them were lost.
        """
        r, lost = self.requests, getattr(self.raw, "lost", {})
        if r is None or "added" in lost or "ended" in lost:
            return []
        finish = r["finish_ns"]
        added = np.sort(r["arrival_ns"])
        ended = np.sort(finish[finish >= 0])
        spans = []
        for time in np.unique(ended).tolist():
            gone = int(np.searchsorted(ended, time, side="right"))
            come = int(np.searchsorted(added, time, side="right"))
            if gone == come and time < self.end_ns:
                spans.append((time, int(added[come]) if come < len(added) else self.end_ns))
        return spans

    def is_idle(self, time_ns: int) -> bool:
        """Whether the engine had no request at an instant."""
        i = int(np.searchsorted(self._idle_starts, time_ns, side="right")) - 1
        return i >= 0 and (time_ns < self.idle_spans[i][1] or time_ns == self.end_ns == self.idle_spans[i][1])

    @cached_property
    def _idle_starts(self) -> I64:
        return np.array([start for start, _ in self.idle_spans], dtype=np.int64)

    # ---- states ----

    @property
    def num_states(self) -> int:
        """States in the recording."""
        return len(self._state_at)

    @property
    def state_rows(self) -> I64:
        """int64[states]: row of each state."""
        return np.array(self._state_at, dtype=np.int64)

    @property
    def state_times(self) -> I64:
        """int64[states], ns."""
        return np.asarray(self.rows["time_ns"][self.state_rows])

    def state_before(self, time_ns: int) -> int:
        """The last state at or before an instant, or the first one if there is none before.

        Raises:
            InputError: the recording has no state.
        """
        if not self._state_at:
            raise InputError(
                "the recording holds no state of the pool, only counters",
                str(self.path),
                hint="record with state_every above 0 (KVPOOL_LIVE_OPTIONS, docs/live.md)",
            )
        return max(int(np.searchsorted(self.state_times, time_ns, side="right")) - 1, 0)

    def state(self, i: int) -> RecordedState:
        """The i-th state, checked.

        Raises:
            InputError: it is not whole.
        """
        try:
            if isinstance(self.raw, files.StateTable):
                found: RecordedState | None = self.raw.states[i]
            else:
                found = files.state_of(self.raw.rows[self._state_at[i]])
            assert found is not None
            n, ids = self.num_blocks, [found.free_queue, *(t for tables in found.tables for t in tables)]
            whole = len(found.ref_cnt) == n == len(found.hashed) and len(found.running) == len(found.computed)
            whole = whole and all(len(tables) == len(self.block_sizes) for tables in found.tables)
            whole = whole and len(found.tables) == len(found.running)
            if not whole or any(len(x) and (x.min() < 0 or x.max() >= n) for x in ids):
                raise ValueError("sizes or block ids do not fit")
        except files.DAMAGED as e:
            raise InputError(f"state {i + 1} of the recording is damaged ({e})", str(self.path)) from e
        return found

    def codes(self, i: int) -> NDArray[np.uint8]:
        """uint8[N - 1]: free, free and cached, used, used and cached (0 .. 3) of the blocks 1 .. N - 1."""
        state = self.state(i)
        used = state.ref_cnt > 0
        return ((used.view(np.uint8) << 1) | (state.hashed != 0))[1:].astype(np.uint8)

    def snapshot(self, i: int, history: BlockHistory | None = None) -> FragmentationSnapshot:
        """The i-th state; with a history of the blocks also when they were allocated.

        Raises:
            InputError: the state is not whole.
        """
        s = self.state(i)
        row = self._state_at[i]
        ref_cnt = s.ref_cnt.astype(np.int32)
        ref_cnt[0] = 0
        state = (FREE + 2 * (ref_cnt > 0) + (s.hashed != 0)).astype(np.uint8)
        state[0] = NULL
        born = np.full(self.num_blocks, -1, dtype=np.int64)
        if history is not None:
            history.advance(int(self.rows["call"][row]))
            born[:] = history.born_ns
        lengths = [len(t) for tables in s.tables for t in tables]
        flat = [np.zeros(0, dtype=np.int32), *(t for tables in s.tables for t in tables)]
        return FragmentationSnapshot(
            time_ns=int(self.rows["time_ns"][row]),
            step=int(self.rows["step"][row]),
            block_sizes=self.block_sizes,
            state=state,
            ref_cnt=ref_cnt,
            key=None,
            born_ns=born,
            unreachable=None,
            free_order=s.free_queue,
            tables=LiveTables(
                request=np.array([self._number_of(name) for name in s.running], dtype=np.int32),
                request_id=tuple(s.running),
                num_computed=np.array(s.computed, dtype=np.int64),
                blocks=np.concatenate(flat).astype(np.int32),
                ptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            ),
        )

    def snapshots(self, which: Mapping[int, Any] | range | list[int] | None = None) -> Iterator[Any]:
        """Snapshots of the states with these numbers (ascending; None: all), with the ages of blocks where
        the operations were recorded.
        """
        history = self.history()
        for i in range(self.num_states) if which is None else which:
            yield self.snapshot(i, history)

    def _number_of(self, name: str) -> int:
        """A number for each request: its place in `requests`; those that only states name come behind."""
        if not self._numbers and self.requests is not None:
            self._numbers |= {str(n): i for i, n in enumerate(self.requests["request_id"].tolist())}
        return self._numbers.setdefault(name, len(self._numbers))

    @cached_property
    def _seen(self) -> tuple[Columns, dict[str, list[int]]]:
        """One pass over the states: their columns, and the most blocks and wasted slots of each request."""
        table: dict[str, list[int]] = {name: [] for name in STATE_COLUMNS}
        most: dict[str, list[int]] = {}
        for s in self.snapshots():
            lengths = runs_of(s.free_mask)[1]
            rows = s.by_request
            values = (
                s.num_cached,
                s.counts["free and cached"],
                s.allocated_slots,
                s.held_tokens,
                s.wasted_slots,
                len(lengths),
                int(lengths.max(initial=0)),
                int(rows.blocks.sum()),
                int(rows.runs.sum()),
            )
            for name, value in zip(STATE_COLUMNS, values, strict=True):
                table[name].append(value)
            columns = (rows.blocks.tolist(), rows.wasted_slots.tolist(), rows.runs.tolist())
            for name, blocks, wasted, runs in zip(rows.request_id, *columns, strict=True):
                seen = most.setdefault(name, [0, 0, 0, 0])
                seen[:] = max(seen[0], blocks), max(seen[1], wasted), max(seen[2], runs), seen[3] + 1
        return {name: np.array(values, dtype=np.int64) for name, values in table.items()}, most

    @property
    def state_columns(self) -> Columns:
        """STATE_COLUMNS of each state, int64[states]."""
        return self._seen[0]

    @property
    def seen_in_states(self) -> dict[str, list[int]]:
        """Request id -> most blocks, most wasted slots, most runs in its tables, states that show it."""
        return self._seen[1]

    # ---- operations ----

    @property
    def has_ops(self) -> bool:
        """Whether the block operations were recorded."""
        return isinstance(self.raw, files.Recording) and bool(self.options.get("ops"))

    def history(self) -> BlockHistory | None:
        """The blocks' history at the beginning of the recording; None: operations were not recorded.

        Raises:
            InputError: they do not fit the pool.
        """
        if not self.has_ops or not isinstance(self.raw, files.Recording):
            return None
        times = np.array(self.raw.op_times, dtype=np.int64) - self._zero_ns
        if (np.array(self.raw.op_times, dtype=np.int64) < 0).any():
            calls = np.array([call for call, _ in self.raw.ops])
            times = np.interp(calls, self.rows["call"], self.rows["time_ns"]).astype(np.int64)
        caching = self.settings.get("enable_prefix_caching") is not False
        try:
            return BlockHistory(self.num_blocks, self.raw.ops, times, caching)
        except files.DAMAGED as e:
            raise InputError(f"the recorded operations are damaged ({e})", str(self.path)) from e
