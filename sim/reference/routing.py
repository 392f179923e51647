"""Routers in front of a fleet, in plain Python: the rules that ``sim.core.routing`` has compiled.

A router sees a request (its prompt's tokens, its conversation) and, of each replica, what `Seen` holds. What
it follows:

- `RoundRobin`: production-stack, `RoundRobinRouter`: requests in turn over the endpoints in fixed order.
- `LeastLoaded`: vLLM 0.32.0, `DPLBAsyncMPClient.get_core_engine_for_request` with one API server; counts
  arrive from `DPCoordinatorProc` every 100 ms, and what is sent meanwhile is added to what waits. With
  ``waiting_x4``: the score of the releases before the in-flight count, 4 * waiting + running, ties to the
  first.
- `SessionAffinity`: production-stack, `SessionRouter` (by hash), and session affinity that remembers where a
  session began (llm-d router, `session-affinity` filter). Our hash is not a consistent-hash ring: the
  replicas never change, so a ring would only be a less even hash.
- `PrefixAffinity`: llm-d router (and the endpoint picker of the Gateway API inference extension): the scorers
  `prefix-cache-scorer` on `approx-prefix-cache-producer`, `queue-scorer` and `kv-cache-utilization-scorer`
  with the weights 3, 2, 2 of the default profile, and `max-score-picker`: a random one of equals.
- `Random`: llm-d router, `random-picker`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass
class Seen:
    """What a router knows of one replica.

    Attributes:
        waiting, running: requests, when the router last looked.
        usage: share of the usable blocks in use, then.
        in_flight: requests sent there that have not ended, now.
    """

    waiting: int = 0
    running: int = 0
    usage: float = 0.0
    in_flight: int = 0


@dataclass(frozen=True)
class Prompt:
    """What a router sees of a request: its conversation from 0, its tokens, its cache salt."""

    session: int
    tokens: Sequence[int]
    salt: int = 0


def mix64(x: int) -> int:
    """Finaliser of MurmurHash3, as in ``sim.core.block_hash``."""
    x = (x ^ (x >> 33)) * 0xFF51AFD7ED558CCD & _MASK
    x = (x ^ (x >> 33)) * 0xC4CEB9FE1A85EC53 & _MASK
    return x ^ (x >> 33)


def scaled(x: int, n: int) -> int:
    """64 random bits as a number from 0 to n - 1."""
    return ((x >> 32) * n) >> 32


@dataclass
class Draws:
    """Random numbers by seed and counter."""

    seed: int
    count: int = 0

    def below(self, n: int) -> int:
        """From 0 to n - 1."""
        self.count += 1
        return scaled(mix64((self.seed + self.count * _GOLDEN) & _MASK), n)


@dataclass
class RoundRobin:
    """One replica after the other."""

    sent: int = 0

    def choose(self, _prompt: Prompt, seen: Sequence[Seen]) -> int:
        """The replica for the next request."""
        self.sent += 1
        return (self.sent - 1) % len(seen)


@dataclass
class Random:
    """Any replica."""

    draws: Draws

    def choose(self, _prompt: Prompt, seen: Sequence[Seen]) -> int:
        """The replica for the next request."""
        return self.draws.below(len(seen))


@dataclass
class LeastLoaded:
    """The least score, the first one from `start` on among equals."""

    score: str = "in_flight"
    start: int = 0

    def choose(self, _prompt: Prompt, seen: Sequence[Seen]) -> int:
        """The replica for the next request; it waits there from now on, for all that the router knows."""
        in_turn = [(self.start + i) % len(seen) for i in range(len(seen))]
        best = min(in_turn, key=lambda k: self._score(seen[k]))
        seen[best].waiting += 1
        if self.score == "in_flight":
            self.start = (self.start + 1) % len(seen)
        return best

    def _score(self, s: Seen) -> float:
        if self.score == "waiting_x4":
            return 4 * s.waiting + s.running
        load = float(max(s.in_flight, s.waiting + s.running))
        if s.waiting:
            # a queue in front of a full cache drains slowly
            load += s.waiting * 6.0 * max(0.0, s.usage - 0.5)
        return load


@dataclass
class SessionAffinity:
    """Where the conversation began; that is by a hash of it, or where `first` says."""

    seed: int
    first: LeastLoaded | None = None
    began: dict[int, int] = field(default_factory=dict)

    def choose(self, prompt: Prompt, seen: Sequence[Seen]) -> int:
        """The replica for the next request."""
        if prompt.session not in self.began:
            if self.first is not None:
                k = self.first.choose(prompt, seen)
            else:
                k = scaled(mix64((self.seed + (prompt.session + 1) * _GOLDEN) & _MASK), len(seen))
            self.began[prompt.session] = k
        return self.began[prompt.session]


@dataclass
class PrefixAffinity:
    """Prefix, queue and free cache, weighted; the index remembers `capacity` prefixes for each replica."""

    draws: Draws
    capacity: int
    unit: int = 64
    max_units: int = 2048
    prefix_weight: float = 3.0
    queue_weight: float = 2.0
    usage_weight: float = 2.0
    held: dict[int, OrderedDict[Hashable, None]] = field(default_factory=dict)

    def choose(self, prompt: Prompt, seen: Sequence[Seen]) -> int:
        """The replica for the next request; the index notes that it gets the prompt."""
        prefixes = self._prefixes(prompt)
        matched = self._matched(prefixes, len(seen))
        waiting = [s.waiting for s in seen]
        scores = []
        for k, s in enumerate(seen):
            queue = 1.0
            if max(waiting) > min(waiting):
                queue = (max(waiting) - s.waiting) / (max(waiting) - min(waiting))
            total = self.queue_weight * queue
            total += self.usage_weight * (1.0 - s.usage)
            total += self.prefix_weight * (matched[k] / len(prefixes))
            scores.append(total)
        equals = [k for k, score in enumerate(scores) if score == max(scores)]
        best = equals[self.draws.below(len(equals)) if len(equals) > 1 else 0]
        held = self.held.setdefault(best, OrderedDict())
        for prefix in prefixes:
            held[prefix] = None
            held.move_to_end(prefix)
            if len(held) > self.capacity:
                held.popitem(last=False)
        return best

    def _prefixes(self, prompt: Prompt) -> Sequence[Hashable]:
        ends = range(self.unit, len(prompt.tokens) + self.unit, self.unit)
        return [(prompt.salt, tuple(prompt.tokens[:end])) for end in ends][: self.max_units]

    def _matched(self, prefixes: Sequence[Hashable], replicas: int) -> list[int]:
        """Units that each replica holds, up to the first one that nobody does."""
        matched = [0] * replicas
        for prefix in prefixes:
            holders = [k for k in range(replicas) if prefix in self.held.get(k, ())]
            if not holders:
                break
            for k in holders:
                matched[k] += 1
        return matched


AnyRouter = RoundRobin | Random | LeastLoaded | SessionAffinity | PrefixAffinity
