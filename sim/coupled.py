"""SimPy beside the engine: processes that send requests, wait for their ends and react to the engine's state.

Time is the environment's, in integer nanoseconds. At one instant all SimPy events come first and the engine
last. The engine runs in one call up to the next SimPy event (``run_until(state, env.peek(), ...)``) and stops
early only when a request that somebody sent has ended. A workload that does not react to the engine is
cheaper in bulk (``sim.simulate``), gives the same result, and may be served beside the processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakSet

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.core import EventPriority

from sim.capacity import LogOptions, allocate
from sim.core import codes as c
from sim.core.engine import abort_request, add_arrival, run_until, settle
from sim.engine_settings import EngineSettings
from sim.simulate import RunResult, Simulation
from sim.step_time import StepTime
from workloads.builder import AUTO_OUTPUT_BASE
from workloads.clients.view import Outcome, Piece, Sent
from workloads.requests import ARRAY_FIELDS, Workload
from workloads.spec.base import DEFAULT_VOCAB_SIZE

__all__ = ["CapacityError", "CoupledEngine", "Outcome", "Sent", "empty_workload"]

_FOREVER = 1 << 62
_STEPS_A_CALL = 1_000_000
#: Environments that have an engine; two would wait for each other at the end of an instant.
_TAKEN: WeakSet[simpy.Environment] = WeakSet()
#: Behind URGENT (0) and NORMAL (1): the last at its instant.
_LAST = EventPriority(2)
#: Segments of prompts that are given by their length alone.
_AUTO_PROMPT_BASE = AUTO_OUTPUT_BASE + (1 << 61)
_STATUS_NAMES = {int(status): status.name.lower() for status in c.Status}
_OUTCOME_FIELDS = (
    "status",
    "arrival",
    "first_scheduled",
    "first_token",
    "finish",
    "prompt_len",
    "num_tokens",
    "hit_tokens",
    "preemptions",
)


class CapacityError(RuntimeError):
    """More requests were sent than room was made for."""


class _Wake(simpy.Event):
    """An event at the end of an instant."""

    def __init__(self, env: simpy.Environment, delay: float) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        env.schedule(self, priority=_LAST, delay=delay)


def empty_workload(vocab_size: int = DEFAULT_VOCAB_SIZE) -> Workload:
    """A workload on the real clock without requests."""
    arrays: dict[str, Any] = {
        name: np.zeros(int(length == "n+1"), dtype=dtype) for name, (dtype, length) in ARRAY_FIELDS.items()
    }
    return Workload(clock="time", closed_loop=False, vocab_size=vocab_size, **arrays)


def _fields(records: Any) -> dict[str, NDArray[Any]]:
    """Views of the fields of a record array; an element of one costs a tenth of an attribute of a record."""
    plain = records.view(np.ndarray)
    return {name: plain[name] for name in plain.dtype.names}


class CoupledEngine:
    """The engine of a SimPy environment; implements ``workloads.clients.view.EngineView``.

    Args:
        env: its environment, whose times are integers (nanoseconds).
        engine, step_time, log: as for a ``Simulation``.
        workload: requests that arrive by themselves, on the real clock; None: none.
        max_requests: requests that can be submitted, in all.
        max_pieces: pieces of their prompts, in all.

    Raises:
        ValueError: the workload's clock is not the real one, or the environment has an engine already.
    """

    def __init__(
        self,
        env: simpy.Environment,
        engine: EngineSettings,
        step_time: StepTime,
        log: LogOptions | None = None,
        *,
        workload: Workload | None = None,
        max_requests: int = 100_000,
        max_pieces: int = 1_000_000,
    ) -> None:
        workload = empty_workload() if workload is None else workload
        if workload.clock != "time":
            raise ValueError("a coupled run needs a workload on the real clock")
        if env in _TAKEN:
            raise ValueError("the environment has an engine already")
        _TAKEN.add(env)
        log = log or LogOptions()
        self._env = env
        self.state = allocate(
            engine,
            workload,
            step_time,
            log,
            extra_requests=max_requests,
            extra_pieces=max_pieces,
            longest=engine.max_model_len,
        )
        self._simulation = Simulation(engine, workload, step_time, log, state=self.state)
        self._usable = engine.usable_blocks
        self._ctl = _fields(self.state.ctl.base)
        self._num_free = _fields(self.state.kv.pool.meta.base)["num_free"]
        self._requests = _fields(self.state.requests)
        self._pieces = self.state.kv.pieces.view(np.ndarray)
        self._open: dict[int, Sent] = {}
        self._idle = False
        self._reason = c.X_TIME
        self._wake_after(0)

    @property
    def env(self) -> simpy.Environment:
        """The environment."""
        return self._env

    @property
    def num_waiting(self) -> int:
        """Requests in the waiting queue, those of this very instant not yet among them."""
        return int(self._ctl["num_waiting"][0])

    @property
    def num_running(self) -> int:
        """Requests that hold blocks."""
        return int(self._ctl["num_running"][0])

    @property
    def kv_usage(self) -> float:
        """Used blocks as a fraction of all that can be used (vLLM's kv_cache_usage)."""
        return 1.0 - int(self._num_free[0]) / self._usable

    def submit(
        self,
        prompt: int | Sequence[Piece],
        output_len: int,
        *,
        out_seg: int | None = None,
        max_tokens: int | None = None,
        priority: int = 0,
        salt: int = 0,
    ) -> Sent:
        """Send a request now; the returned event happens when it has ended, with an ``Outcome`` as value.

        Args:
            prompt: pieces (segment, offset, tokens) as in a Workload, or the length of a prompt that shares
                no token with any other.
            output_len: tokens after which it stops, >= 1.
            out_seg: segment of its output; None: one of its own.
            max_tokens: more than output_len: it stops by an end token; None: by length.
            priority, salt: as in a Workload.

        Raises:
            ValueError: a length, a piece or the environment's time cannot be.
            CapacityError: max_requests or max_pieces is exceeded; nothing has changed.
        """
        st, rq = self.state, self._requests
        r = int(self._ctl["num_requests"][0])
        pieces = [(_AUTO_PROMPT_BASE + r, 0, prompt)] if isinstance(prompt, int) else list(prompt)
        limit = output_len if max_tokens is None else max_tokens
        if not 1 <= output_len <= limit < 2**31:
            raise ValueError(f"output_len {output_len} must be from 1 to max_tokens {limit}")
        self._check_pieces(pieces)
        arrival = max(self._now(), int(self._ctl["now"][0]))
        first = int(st.kv.seg_ptr[r])
        end = first + len(pieces)
        if r >= st.queues.wait_heap.size or end > st.kv.pieces.size:
            raise CapacityError(
                f"no room for request {r} with {len(pieces)} pieces: raise max_requests or max_pieces"
            )
        for i, piece in enumerate(pieces, first):
            self._pieces[i] = piece
        st.kv.seg_ptr[r + 1] = end
        rq["prompt_len"][r] = sum(length for _, _, length in pieces)
        rq["output_len"][r] = output_len
        rq["max_tokens"][r] = limit
        rq["out_seg"][r] = AUTO_OUTPUT_BASE + r if out_seg is None else out_seg
        rq["priority"][r] = priority
        rq["salt"][r] = salt
        rq["watched"][r] = 1
        # a run that has ended may be ahead of the environment's last event
        rq["arrival"][r] = arrival
        self._ctl["num_requests"][0] = r + 1
        add_arrival(st, r)
        self._open[r] = Sent(self._env, r)
        self._rouse()
        return self._open[r]

    def abort(self, sent: Sent) -> bool:
        """Abort a request now, as a client that hangs up does; False when it has ended already."""
        if sent.index not in self._open:
            return False
        self._settle()
        aborted = bool(abort_request(self.state, sent.index))
        self._deliver()
        self._rouse()
        return aborted

    def first_token_ns(self, sent: Sent) -> int:
        """When the request's first token came, -1: not yet."""
        return int(self._requests["first_token"][sent.index])

    def result(self) -> RunResult:
        """What the run has given so far; the exit reason is "finished" when no request is left."""
        self._settle()
        reason = "finished" if self._reason == c.X_DONE else "until"
        return replace(self._simulation.result(), exit_reason=reason)

    def _check_pieces(self, pieces: list[Piece]) -> None:
        """Refuse what a Workload may not hold either."""
        if not pieces or sum(length for _, _, length in pieces) >= 2**31:
            raise ValueError("a prompt has from 1 to 2**31 - 1 tokens")
        for segment, start, length in pieces:
            outside = segment < 0 and -(segment + 1) + start + length > self.state.kv.tokens.size
            if length < 1 or start < 0 or start + length >= 2**31 or outside:
                raise ValueError(f"a prompt cannot have {length} tokens from {start} of segment {segment}")

    def _now(self) -> int:
        now = int(self._env.now)
        if now != self._env.now:
            raise ValueError(f"the clock counts whole nanoseconds, a process made it {self._env.now!r}")
        return now

    def _settle(self) -> None:
        """Let the engine's state last until the environment's time."""
        time = max(self._now(), int(self._ctl["now"][0]))
        while settle(self.state, time) == c.X_LOG_FULL:
            self._simulation.drain(c.X_LOG_FULL)

    def _wake_after(self, delay: float) -> None:
        self._idle = False
        _Wake(self._env, delay).callbacks.append(self._run)

    def _rouse(self) -> None:
        """An idle engine has no event of its own; anything that gives it work wakes it."""
        if self._idle:
            self._wake_after(0)

    def _run(self, _: simpy.Event) -> None:
        """The last event of an instant: run up to the next one, or to the end of a request."""
        peek = self._env.peek()
        t_end = _FOREVER if peek == math.inf else math.ceil(peek)
        while (reason := run_until(self.state, t_end, _STEPS_A_CALL)) not in (c.X_DONE, c.X_TIME, c.X_ENDED):
            self._simulation.drain(reason)
        self._reason = reason
        if reason == c.X_DONE:
            self._idle = True
        elif reason == c.X_ENDED:
            # the engine is ahead; nothing else happens before
            ahead = self._env.timeout(max(0, int(self._ctl["now"][0]) - self._now()))
            ahead.callbacks.append(self._ended)
        else:
            self._wake_after(peek - self._env.now)

    def _ended(self, _: simpy.Event) -> None:
        self._deliver()
        self._wake_after(0)

    def _deliver(self) -> None:
        """Trigger the events of the requests that have ended."""
        count = self._ctl["num_ended_watched"]
        ended = self.state.queues.ended_watched[: count[0]].tolist()
        count[0] = 0
        for r in ended:
            self._open.pop(r).succeed(self._outcome(r))

    def _outcome(self, r: int) -> Outcome:
        value = {name: int(self._requests[name][r]) for name in _OUTCOME_FIELDS}
        return Outcome(
            index=r,
            status=_STATUS_NAMES[value["status"]],
            arrival_ns=value["arrival"],
            first_scheduled_ns=value["first_scheduled"],
            first_token_ns=value["first_token"],
            finish_ns=value["finish"],
            prompt_tokens=value["prompt_len"],
            output_tokens=max(0, value["num_tokens"] - value["prompt_len"]),
            hit_tokens=value["hit_tokens"],
            preemptions=value["preemptions"],
        )
