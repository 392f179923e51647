"""The engine's requests as a window on a spooled workload: chunks come in ahead, what is over goes out.

Two rules keep the run that of the whole workload. The engine never runs to the arrival of a request that is
not loaded. And when a request ends that has successors which are not loaded, it stops, and they are loaded
before it goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sim.capacity import LogOptions, allocate, check_encoder_inputs
from sim.core import codes as c
from sim.core.records import PIECE, REQUEST
from sim.core.state import State
from sim.core.window import admit_loaded, shift_window
from sim.engine_settings import EngineSettings
from sim.errors import InputError
from sim.request_records import FROM_WORKLOAD, SharedRequests, make_blank
from sim.simulate import Columns, request_columns
from sim.step_time import StepTime
from workloads.requests import ARRAY_FIELDS, Workload
from workloads.spool import CHUNK, NEVER, Spool


def check_streamable(engine: EngineSettings, spool: Spool) -> None:
    """Refuse what needs all requests at once.

    Raises:
        InputError: known arrivals that are not in order, logical time, names and priorities together.
    """
    if spool.clock != "time":
        raise InputError("a workload in logical time can't be streamed", hint="leave out --stream")
    if not spool.in_order:
        raise InputError(
            "the arrivals of the workload are not in order, so it can't be streamed",
            hint="leave out --stream",
        )
    if engine.policy == "priority" and spool.named:
        raise InputError(
            "requests with names of their own and policy: priority can't be streamed: ties go by name",
            hint="leave out --stream",
        )


def _head(spool: Spool) -> Workload:
    """What `allocate` must know of the workload, without a request."""
    arrays: dict[str, Any] = {
        name: np.zeros(int(length == "n+1"), dtype=dtype) for name, (dtype, length) in ARRAY_FIELDS.items()
    }
    arrays["tokens"] = spool.tokens
    if spool.has_encoder_inputs:
        arrays["encoder_tokens"] = np.zeros(0, dtype=np.int32)
    return Workload(clock=spool.clock, closed_loop=spool.closed_loop, vocab_size=spool.vocab_size, **arrays)


class Window:
    """The requests that the engine knows of; `state` is the engine's.

    Attributes:
        base: index of the first record's request.
        size: records in use.
        loaded: requests that have been loaded.
        largest: most records that were ever in use.
    """

    def __init__(self, engine: EngineSettings, spool: Spool, step_time: StepTime, log: LogOptions) -> None:
        self._spool = spool
        self._priority = engine.policy == "priority"
        check_encoder_inputs(engine, spool.longest_encoder_input)
        n = max(1, len(spool))
        # address space for all; memory only where the window lies
        requests = np.zeros(n + 2, dtype=REQUEST).view(np.recarray)
        pieces = np.zeros(max(1, spool.pieces), dtype=PIECE).view(np.recarray)
        shared = SharedRequests(requests, np.zeros(n + 1, dtype=np.int64), pieces, 0)
        self.state: State = allocate(
            engine, _head(spool), step_time, log, extra_requests=n, longest=spool.longest, shared=shared
        )
        self.state.params.closed_loop = int(spool.closed_loop)
        self._capacity = n
        self._requests = requests.view(np.ndarray)
        self._last_child = np.zeros(0, dtype=np.int64)
        self._next_chunk = 0
        self.base = self.size = self.loaded = self.largest = 0

    @property
    def complete(self) -> bool:
        """Every request has been loaded."""
        return self.loaded == len(self._spool)

    @property
    def bound(self) -> int:
        """Time (ns) before which nobody arrives at a known time who is not loaded."""
        return NEVER if self.complete else self._spool.first_arrivals[self._next_chunk]

    def load(self) -> None:
        """Load the next chunk."""
        chunk = self._spool.chunk(self._next_chunk)
        self._next_chunk += 1
        st, rq, first, n = self.state, self._requests, self.size, len(chunk)
        rows = slice(first, first + n)
        rq[rows] = np.zeros(n, dtype=REQUEST)
        make_blank(rq[rows])
        for name in FROM_WORKLOAD:
            rq[name][rows] = chunk.columns[name]
        if self._spool.has_encoder_inputs:
            own = chunk.columns["encoder_tokens"]
            st.kv.encoder_tokens[rows] = np.where(own >= 0, own, st.params.encoder_tokens)
        parent = chunk.columns["parent"].astype(np.int64)
        rq["parent"][rows] = np.where(parent >= 0, parent - self.base, -1)
        # an end with successors still on disk stops the engine
        rq["watched"][rows] = chunk.last_child >= chunk.first + n
        begin = int(st.kv.seg_ptr[first])
        ptr = chunk.columns["seg_ptr"]
        st.kv.seg_ptr[first : first + n + 1] = ptr + begin
        pieces = st.kv.pieces[begin : begin + int(ptr[-1])]
        for ours, theirs in (("seg", "seg_id"), ("start", "seg_start"), ("length", "seg_len")):
            pieces[ours] = chunk.columns[theirs]
        self.size += n
        self.loaded += n
        self.largest = max(self.largest, self.size)
        self._last_child = np.concatenate([self._last_child, chunk.last_child.astype(np.int64)])
        st.ctl.num_requests = self.size
        st.ctl.closed_end = self.size
        if self._priority:
            self._rank()
        admit_loaded(st, first, first + n)

    def load_children(self, records: np.ndarray, write: Callable[[Columns], None]) -> None:
        """Load all successors of these records, which have ended; `write` is for `retire`."""
        wanted = int(self._last_child[records].max(initial=-1))
        while self.loaded <= wanted:
            self.retire(write)
            self.load()

    def pool_left(self) -> int:
        """Loaded requests of the closed-loop pool that have not been released; those that will be refused,
        and so release the next at once, do not count.
        """
        rq = self._requests[int(self.state.ctl.closed_next) : self.size]
        served = rq["prompt_len"] < int(self.state.params.max_model_len)
        return int(np.count_nonzero((rq["arrival"] < 0) & (rq["parent"] < 0) & served))

    def retire(self, write: Callable[[Columns], None]) -> None:
        """Hand the requests at the front that are over to `write`, in order, and forget them."""
        st, rq = self.state, self._requests[: self.size]
        over = (rq["status"] >= c.S_FINISHED) & (rq["in_flight"] == 0) & (self._last_child < self.loaded)
        k = self.size if over.all() else int(np.argmin(over))
        if st.ctl.head_req >= 0:
            k = min(k, int(st.ctl.head_req))
        if st.params.closed_loop:
            k = min(k, int(st.ctl.closed_next))
        # as a rule half a chunk at least, so that the rest is not moved for little
        if k < min(CHUNK // 2, self.size) or k == 0:
            return
        self._emit(k, write)
        shift_window(st, k, self.size, int(st.kv.seg_ptr[k]), self._capacity)
        self._last_child = self._last_child[k:]
        self.base += k
        self.size -= k

    def flush(self, write: Callable[[Columns], None]) -> None:
        """Hand all requests that are left to `write`; for the end of a run."""
        self._emit(self.size, write)

    def _emit(self, k: int, write: Callable[[Columns], None]) -> None:
        columns = request_columns(self.state.requests[:k])
        columns["index"] += self.base
        write(columns)

    def _rank(self) -> None:
        """Ranks of the names "r0", "r1", ... as strings, within the window."""
        names = np.char.add("r", np.arange(self.base, self.base + self.size).astype(str))
        rank = np.empty(self.size, dtype=np.int32)
        rank[np.argsort(names, kind="stable")] = np.arange(self.size, dtype=np.int32)
        self._requests["id_rank"][: self.size] = rank
