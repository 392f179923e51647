"""What all clients share: the environment, the builder, random streams, segment ids, sending a request."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import simpy

from workloads.arrivals import OpenLoopModel, arrival_times, mean_rate, open_loop
from workloads.builder import WorkloadBuilder, salt_id
from workloads.errors import WorkloadError
from workloads.lengths import LengthModel, LengthSampler, TimeModel, TimeSampler
from workloads.spec.arrivals import ClosedLoopArrivals
from workloads.spec.clients import Client, Requests, Sessions
from workloads.streams import generator

#: Time that an answer is taken to need when later requests of a session are put in order: a first token and
#: then one at a time. It decides only the order of requests in the workload: when a request that follows
#: another really arrives is up to the simulated engine.
NOMINAL_FIRST_TOKEN_NS = 200_000_000
NOMINAL_TOKEN_NS = 20_000_000

_SEGMENTS_A_CLIENT = 1 << 40
_CLIENT_BITS = 21

#: Guard against traffic that would fill the memory before anything is said.
MAX_REQUESTS = 20_000_000

#: A session: a SimPy process that returns the index of its last request (-1: it sent none).
Session = Generator[simpy.Event, None, int]


def nominal_service_ns(output_len: int) -> int:
    """Time that an answer of `output_len` tokens is taken to need."""
    return NOMINAL_FIRST_TOKEN_NS + NOMINAL_TOKEN_NS * output_len


@dataclass
class Shared:
    """What the clients of one workload share."""

    env: simpy.Environment
    builder: WorkloadBuilder
    seed: int
    base_dir: str | Path | None = None
    named: bool = False
    """Requests are called after their client ("support-0")."""
    notes: list[str] = field(default_factory=list)
    salts: dict[str, str] = field(default_factory=dict)
    sessions: int = 0
    empty_sessions: dict[str, int] = field(default_factory=dict)
    """Client -> sessions whose very first request is longer than max_context, so that they sent nothing."""


class Emitter:
    """One client's hand on the workload."""

    def __init__(
        self, shared: Shared, name: str, spec: Client, weight: float = 1.0, start_ns: int = 0
    ) -> None:
        self.shared = shared
        self.env = shared.env
        self.name = name
        self.weight = weight
        self.start_ns = start_ns
        self.priority = spec.priority
        self.max_tokens = spec.max_tokens
        self.salt = salt_id(spec.cache_salt)
        if spec.cache_salt:
            shared.salts[str(self.salt)] = spec.cache_salt
        self._encoder_lens = (
            None if spec.encoder_len is None else self.lengths(spec.encoder_len, "encoder_len")
        )
        self.emitted = 0
        self._segments = segment_base(name)

    def rng(self, purpose: str) -> np.random.Generator:
        """The client's own generator for one purpose."""
        return generator(self.shared.seed, f"{self.name}/{purpose}")

    def lengths(self, model: LengthModel, purpose: str) -> Iterator[int]:
        """An endless stream of lengths."""
        return iter(LengthSampler(model, self.rng(purpose), self.shared.base_dir))

    def times(self, model: TimeModel, purpose: str) -> Iterator[int]:
        """An endless stream of times, ns."""
        return iter(TimeSampler(model, self.rng(purpose)))

    def segment(self) -> int:
        """A new segment id; the ids of different clients never meet."""
        self._segments += 1
        return self._segments

    def segments(self, n: int) -> list[int]:
        """n new segment ids."""
        return [self.segment() for _ in range(n)]

    def session(self) -> int:
        """A new session id."""
        self.shared.sessions += 1
        return self.shared.sessions - 1

    def capped(self, output_len: int) -> int:
        """The output length under the client's cap."""
        return output_len if self.max_tokens is None else min(output_len, self.max_tokens)

    def encoder_len(self) -> int | None:
        """The next length of an encoder input, None if the client has none."""
        return None if self._encoder_lens is None else next(self._encoder_lens)

    def emit(
        self,
        seg_ids: Sequence[int],
        seg_lens: Sequence[int],
        output_len: int,
        *,
        out_seg: int,
        seg_starts: Sequence[int] | None = None,
        parent: int = -1,
        think_ns: int = 0,
        session: int = -1,
        pooled: bool = False,
        encoder_len: int | None = None,
    ) -> int:
        """Add one request now; returns its index.

        Args:
            seg_ids, seg_lens, seg_starts: its prompt; pieces must not be empty.
            output_len: already capped.
            out_seg: segment of its output.
            parent: the request it follows, -1: none (it arrives now).
            think_ns: after the parent, or after the completion that releases it from the pool.
            session: its session, -1: none.
            pooled: it waits in the closed-loop pool.
            encoder_len: of its encoder input; None: drawn, if the client has such.
        """
        waits = parent >= 0 or pooled
        index = self.shared.builder.add(
            seg_ids,
            seg_lens,
            seg_starts=seg_starts,
            output_len=output_len,
            out_seg=out_seg,
            arrival=-1 if waits else int(self.env.now),
            parent=parent,
            think_ns=think_ns if waits else 0,
            max_tokens=self.max_tokens,
            priority=self.priority,
            salt=self.salt,
            session=session,
            request_id=f"{self.name}-{self.emitted}" if self.shared.named else None,
            encoder_tokens=self.encoder_len() if encoder_len is None else encoder_len,
        )
        self.emitted += 1
        if index >= MAX_REQUESTS:
            raise _too_many(self.name)
        return index


def _too_many(name: str) -> WorkloadError:
    return WorkloadError(f"{name}: more than {MAX_REQUESTS:,} requests; lower the rate or the duration")


def _check_number(
    emitter: Emitter, arrivals: OpenLoopModel, duration_ns: int | None, limit: int | None
) -> None:
    """Refuse at once what would be refused after the last request that there may be."""
    expected = (
        float("inf") if duration_ns is None else mean_rate(arrivals) * emitter.weight * duration_ns / 1e9
    )
    if min(expected, float("inf") if limit is None else limit) > 2 * MAX_REQUESTS:
        raise _too_many(emitter.name)


def segment_base(name: str) -> int:
    """First segment id of a client: a function of its name alone."""
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return (digest % ((1 << _CLIENT_BITS) - 1) + 1) * _SEGMENTS_A_CLIENT


def drop_empty(seg_ids: Sequence[int], seg_lens: Sequence[int]) -> tuple[list[int], list[int]]:
    """Pieces without those of no tokens."""
    kept = [(s, n) for s, n in zip(seg_ids, seg_lens, strict=True) if n > 0]
    return [s for s, _ in kept], [n for _, n in kept]


def run_sessions(emitter: Emitter, spec: Sessions, session: Callable[[int, int], Session]) -> None:
    """Start a client made of sessions.

    Args:
        session: `session(parent, think_ns)` is the process of one session, whose first request arrives when
            the process begins (parent -1) or follows another.
    """
    env, arrivals = emitter.env, spec.arrivals
    if not isinstance(arrivals, ClosedLoopArrivals):
        _check_number(emitter, arrivals, spec.duration, spec.num_sessions)
        times = arrival_times(arrivals, emitter.rng("arrivals"), emitter.weight)

        def begin(_: int) -> None:
            env.process(_counted(emitter, session(-1, 0)))

        env.process(
            open_loop(
                env,
                times,
                begin,
                start_ns=emitter.start_ns,
                duration_ns=spec.duration,
                limit=spec.num_sessions,
            )
        )
        return
    assert spec.num_sessions is not None
    left = iter(range(spec.num_sessions))
    think = emitter.times(arrivals.think_time, "client_think")

    def client() -> Generator[simpy.Event, None, None]:
        if emitter.start_ns:
            yield env.timeout(emitter.start_ns)
        last, pause = -1, 0
        for _ in left:
            ended = yield from _counted(emitter, session(last, pause))
            last = last if ended < 0 else ended
            pause = next(think)
            if pause:
                yield env.timeout(pause)

    for _ in range(closed_clients(emitter, arrivals)):
        env.process(client())


def run_requests(
    emitter: Emitter, spec: Requests, request: Callable[[int, int, bool], tuple[int, int]], allow_pool: bool
) -> None:
    """Start a client made of independent requests.

    Args:
        request: `request(parent, think_ns, pooled)` emits one; returns its index and its output length.
        allow_pool: the closed loop may be the workload's pool (alone in it, one request at a time).
    """
    env, arrivals = emitter.env, spec.arrivals
    if not isinstance(arrivals, ClosedLoopArrivals):
        _check_number(emitter, arrivals, spec.duration, spec.num_requests)
        times = arrival_times(arrivals, emitter.rng("arrivals"), emitter.weight)

        def begin(_: int) -> None:
            request(-1, 0, False)

        env.process(
            open_loop(
                env,
                times,
                begin,
                start_ns=emitter.start_ns,
                duration_ns=spec.duration,
                limit=spec.num_requests,
            )
        )
        return
    assert spec.num_requests is not None
    clients = closed_clients(emitter, arrivals)
    think = emitter.times(arrivals.think_time, "client_think")
    if arrivals.assignment == "pool" and allow_pool:
        emitter.shared.builder.closed_loop = spec.num_requests > clients
        for k in range(spec.num_requests):
            waits = k >= clients
            request(-1, next(think) if waits else 0, waits)
        return
    left = iter(range(spec.num_requests))

    def client() -> Generator[simpy.Event, None, None]:
        if emitter.start_ns:
            yield env.timeout(emitter.start_ns)
        last, pause = -1, 0
        for _ in left:
            last, output_len = request(last, pause, False)
            pause = next(think)
            yield env.timeout(nominal_service_ns(output_len) + pause)

    for _ in range(clients):
        env.process(client())


def closed_clients(emitter: Emitter, arrivals: ClosedLoopArrivals) -> int:
    """Clients of a closed loop under the weight of a mixture."""
    return max(1, round(arrivals.clients * emitter.weight))


def _counted(emitter: Emitter, session: Session) -> Session:
    """The session, with a count of those that send nothing."""
    last = yield from session
    if last < 0:
        empty = emitter.shared.empty_sessions
        empty[emitter.name] = empty.get(emitter.name, 0) + 1
    return last
