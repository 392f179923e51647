"""What a client that reacts to the engine sees of it; the simulator implements it (``sim.coupled``).

A client is a SimPy process in the engine's environment, whose clock counts integer nanoseconds. At one
instant all SimPy events come first and the engine last, so a client sees the engine as it stood just before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import simpy

#: (segment, offset in the segment, tokens) of a prompt, as in a Workload.
Piece = tuple[int, int, int]


@dataclass(frozen=True)
class Outcome:
    """How a request ended; times in ns, -1: never.

    Attributes:
        index: number of the request in the engine.
        status: "finished", "aborted", "rejected" (its prompt leaves no room for a token of output) or
            "unservable" (it can never fit the pool).
        arrival_ns, first_scheduled_ns, first_token_ns, finish_ns: when it arrived, was first in a batch,
            gave its first token, ended.
        prompt_tokens, output_tokens: length of the prompt, tokens generated.
        hit_tokens: tokens of the prompt found in the prefix cache at its first look-up.
        preemptions: how often it was preempted.
    """

    index: int
    status: str
    arrival_ns: int
    first_scheduled_ns: int
    first_token_ns: int
    finish_ns: int
    prompt_tokens: int
    output_tokens: int
    hit_tokens: int
    preemptions: int


class Sent(simpy.Event):
    """A request on its way; the event happens when the request has ended, and its value is an ``Outcome``."""

    def __init__(self, env: simpy.Environment, index: int) -> None:
        super().__init__(env)
        self.index = index

    @property
    def outcome(self) -> Outcome | None:
        """How the request ended, None before that."""
        return self.value if self.triggered else None


class EngineView(Protocol):
    """An engine beside the SimPy environment."""

    @property
    def env(self) -> simpy.Environment:
        """The environment; its clock is the engine's."""
        ...

    @property
    def num_waiting(self) -> int:
        """Requests in the waiting queue."""
        ...

    @property
    def num_running(self) -> int:
        """Requests that hold blocks."""
        ...

    @property
    def kv_usage(self) -> float:
        """Used blocks as a fraction of all that can be used (vLLM's kv_cache_usage)."""
        ...

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
        """Send a request now."""
        ...

    def abort(self, sent: Sent) -> bool:
        """Abort a request now; False when it has ended already."""
        ...

    def first_token_ns(self, sent: Sent) -> int:
        """When the request's first token came, -1: not yet."""
        ...
