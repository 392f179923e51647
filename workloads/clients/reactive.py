"""Clients that react to the engine: they run beside it, and what they send depends on how it does.

``impatient``: users who hang up when no first token has come in time, and try again after a pause that grows.
``adaptive``: a pool of clients whose number follows the engine: one more for every round of answers that
came in time, fewer at once when one is late or the waiting queue grows (additive increase, multiplicative
decrease).

Both send independent requests (``workloads.spec.Random``) to an ``EngineView``. The random numbers and
segment ids of a client depend on the seed and on its name alone.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import repeat

import simpy

from workloads.arrivals import arrival_times, open_loop
from workloads.clients.base import segment_base
from workloads.clients.view import EngineView, Piece, Sent
from workloads.errors import WorkloadError
from workloads.lengths import LengthSampler, TimeModel, TimeSampler
from workloads.spec.arrivals import ClosedLoopArrivals
from workloads.spec.clients import Random
from workloads.streams import generator

Process = Generator[simpy.Event, object, None]


@dataclass(frozen=True)
class Impatience:
    """When a user hangs up, and what then.

    Attributes:
        patience: time that a user waits for the first token, drawn for each attempt.
        max_attempts: after so many the user gives up.
        backoff_ns: pause before the second attempt, ns.
        backoff_factor: each later pause is so many times the one before.
    """

    patience: TimeModel
    max_attempts: int = 3
    backoff_ns: int = 1_000_000_000
    backoff_factor: float = 2.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or self.backoff_ns < 0 or self.backoff_factor < 1.0:
            raise WorkloadError(
                "impatience: max_attempts >= 1, backoff_ns >= 0 and backoff_factor >= 1 do not all hold"
            )


@dataclass(frozen=True)
class Attempt:
    """One request of a user; ``number`` counts from 0, ``hung_up`` when the user aborted it."""

    user: int
    number: int
    sent: Sent
    hung_up: bool


@dataclass(frozen=True)
class Aimd:
    """How the number of clients follows the engine.

    Attributes:
        first_token_target_ns: an answer whose first token takes longer is late.
        max_waiting: more requests than this in the waiting queue are as bad as a late answer.
        minimum, maximum: bounds of the number of clients.
        increase: clients added for a full round of answers in time.
        decrease: factor for a late one, in (0, 1); at most once for the requests under way.
    """

    first_token_target_ns: int
    max_waiting: int = 1 << 30
    minimum: float = 1.0
    maximum: float = 1024.0
    increase: float = 1.0
    decrease: float = 0.5

    def __post_init__(self) -> None:
        if not 1.0 <= self.minimum <= self.maximum or not 0.0 < self.decrease < 1.0 or self.increase <= 0.0:
            raise WorkloadError(
                "aimd: 1 <= minimum <= maximum, 0 < decrease < 1 and increase > 0 do not all hold"
            )


@dataclass
class AdaptivePool:
    """What a pool does: ``clients`` is their number now, ``history`` holds (ns, number) of every change."""

    clients: float
    in_flight: int = 0
    history: list[tuple[int, float]] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)


def impatient(
    engine: EngineView, traffic: Random, impatience: Impatience, seed: int, name: str = "impatient"
) -> list[Attempt]:
    """Start users that arrive as ``traffic`` says; returns the list that their attempts are added to.

    An attempt is added when the user stops waiting: with the answer, or by hanging up. All attempts of a user
    send the same prompt, so a later one may find what an earlier one left in the cache.

    Raises:
        WorkloadError: closed-loop arrivals, which say nothing about when a user arrives.
    """
    if isinstance(traffic.arrivals, ClosedLoopArrivals):
        raise WorkloadError(f"{name}: impatient users arrive by themselves; closed_loop arrivals do not fit")
    _check(traffic, name)
    env = engine.env
    requests = _requests(traffic, seed, name)
    patience = iter(TimeSampler(impatience.patience, generator(seed, f"{name}/patience")))
    attempts: list[Attempt] = []

    def user(k: int) -> Process:
        prompt, output_len, out_seg = next(requests)
        pause = float(impatience.backoff_ns)
        for number in range(impatience.max_attempts):
            if number:
                yield env.timeout(round(pause))
                pause *= impatience.backoff_factor
            sent = engine.submit(
                prompt,
                output_len,
                out_seg=out_seg,
                max_tokens=traffic.max_tokens,
                priority=traffic.priority,
            )
            yield sent | env.timeout(next(patience))
            hung_up = not sent.triggered and engine.first_token_ns(sent) < 0
            if hung_up:
                engine.abort(sent)
            elif not sent.triggered:
                yield sent
            attempts.append(Attempt(k, number, sent, hung_up))
            if not hung_up:
                return

    def begin(k: int) -> None:
        env.process(user(k))

    times = arrival_times(traffic.arrivals, generator(seed, f"{name}/arrivals"), 1.0)
    env.process(open_loop(env, times, begin, duration_ns=traffic.duration, limit=traffic.num_requests))
    return attempts


def adaptive(
    engine: EngineView, traffic: Random, aimd: Aimd, seed: int, name: str = "adaptive"
) -> AdaptivePool:
    """Start a pool that sends ``num_requests`` requests in all, at first from ``arrivals.clients`` clients.

    A request that takes the place of another comes a think time after it.

    Raises:
        WorkloadError: the arrivals are not closed-loop.
    """
    arrivals = traffic.arrivals
    if not isinstance(arrivals, ClosedLoopArrivals) or traffic.num_requests is None:
        raise WorkloadError(f"{name}: an adaptive pool needs closed_loop arrivals and num_requests")
    _check(traffic, name)
    env = engine.env
    think = iter(TimeSampler(arrivals.think_time, generator(seed, f"{name}/client_think")))
    requests = _requests(traffic, seed, name)
    pool = AdaptivePool(min(max(float(arrivals.clients), aimd.minimum), aimd.maximum))
    pool.history.append((int(env.now), pool.clients))
    left = traffic.num_requests
    not_before = 0

    def observe(sent: Sent) -> None:
        nonlocal not_before
        outcome = sent.outcome
        assert outcome is not None
        answered = outcome.first_token_ns >= 0
        late = not answered or outcome.first_token_ns - outcome.arrival_ns > aimd.first_token_target_ns
        if late or engine.num_waiting > aimd.max_waiting:
            if outcome.arrival_ns < not_before:
                return
            # the requests under way were sent at the old number and say nothing about the new one
            not_before = int(env.now)
            wanted = max(aimd.minimum, pool.clients * aimd.decrease)
        else:
            wanted = min(aimd.maximum, pool.clients + aimd.increase / pool.clients)
        if wanted != pool.clients:
            pool.clients = wanted
            pool.history.append((int(env.now), wanted))

    def client(think_ns: int) -> Process:
        if think_ns:
            yield env.timeout(think_ns)
        prompt, output_len, out_seg = next(requests)
        sent = engine.submit(
            prompt,
            output_len,
            out_seg=out_seg,
            max_tokens=traffic.max_tokens,
            priority=traffic.priority,
        )
        pool.sent.append(sent)
        yield sent
        pool.in_flight -= 1
        observe(sent)
        fill(think)

    def fill(thinks: Iterator[int]) -> None:
        nonlocal left
        while left and pool.in_flight < int(pool.clients):
            left -= 1
            pool.in_flight += 1
            env.process(client(next(thinks)))

    fill(repeat(0))
    return pool


def _check(traffic: Random, name: str) -> None:
    unknown = [key for key in ("lengths", "cache_salt", "encoder_len") if getattr(traffic, key) is not None]
    if unknown:
        raise WorkloadError(f"{name}: clients that react to the engine do not know {unknown[0]}")


def _requests(traffic: Random, seed: int, name: str) -> Iterator[tuple[list[Piece], int, int]]:
    """Endless requests: prompt, output length, segment of the output."""
    prompts = iter(LengthSampler(traffic.prompt_len, generator(seed, f"{name}/prompt_len")))
    outputs = iter(LengthSampler(traffic.output_len, generator(seed, f"{name}/output_len")))
    prefix = segment_base(name)
    segment = prefix
    while True:
        prompt: list[Piece] = [(prefix, 0, traffic.prefix_len)] if traffic.prefix_len else []
        output_len = next(outputs)
        if traffic.max_tokens is not None:
            output_len = min(output_len, traffic.max_tokens)
        yield [*prompt, (segment + 1, 0, next(prompts))], output_len, segment + 2
        segment += 2
