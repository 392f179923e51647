"""The `router:` section: how requests are sent to the replicas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from sim.config_types import Positive, Strict, key
from sim.config_workload import Duration

MAX_REPLICAS = 4096

Weight = Annotated[float, Field(ge=0.0, le=1e6, allow_inf_nan=False)]


class RoundRobin(Strict):
    """One replica after the other (production-stack's `roundrobin`)."""

    kind: Literal["round_robin"] = key("round_robin", "One after the other.")


class Random(Strict):
    """Any replica with equal probability (llm-d's `random-picker`)."""

    kind: Literal["random"] = key("random", "At random.")


class LeastLoaded(Strict):
    """The replica with the least load, as the data-parallel load balancer of vLLM's API server sees it."""

    kind: Literal["least_loaded"] = key("least_loaded", "The least loaded replica.")
    score: Literal["in_flight", "waiting_x4"] = key(
        "in_flight",
        "What is least. `in_flight` (vLLM 0.32): the larger of requests sent and not ended, and"
        " waiting + running; plus waiting * 6 * (KV usage - 0.5) where requests wait and usage is above half."
        " `waiting_x4` (vLLM 0.9 and some releases after it): 4 * waiting + running.",
    )
    stats_interval: Duration = key(
        "100ms",
        "Time between two looks at waiting, running and usage; 0: at every request. Between two looks the"
        " router adds what it sends to what waits.",
        "duration",
    )


class SessionAffinity(Strict):
    """A conversation's requests go to one replica; a request without one is a conversation of its own."""

    kind: Literal["session_affinity"] = key("session_affinity", "A conversation stays where it began.")
    first: Literal["hash", "least_loaded"] = key(
        "hash",
        "Where a conversation begins. `hash`: by a hash of its id, whatever the load (production-stack's"
        " `session`). `least_loaded`: as the router of that kind says (a session cookie behind a load"
        " balancer, llm-d's session affinity).",
    )
    stats_interval: Duration = key("100ms", "For `first: least_loaded`: as there.", "duration")


class PrefixAffinity(Strict):
    """The highest weighted sum of three scores from 0 to 1, as in the llm-d router (and the endpoint picker
    of the Gateway API inference extension): prefix, queue, free KV cache; a random one of equals.
    """

    kind: Literal["prefix_affinity"] = key("prefix_affinity", "Where the prompt's beginning is cached.")
    prefix_weight: Weight = key(
        3.0,
        "Weight of the share of the prompt's units that the replica was sent before, by the router's index.",
    )
    queue_weight: Weight = key(
        2.0, "Weight of the queue: 1 for the shortest, 0 for the longest, 1 for all if they are equal."
    )
    usage_weight: Weight = key(2.0, "Weight of 1 - KV cache usage.")
    unit_tokens: Positive | Literal["auto"] = key(
        "auto", "Tokens that are hashed together. `auto`: the block size, at least 64.", "tokens"
    )
    max_prefix_tokens: Positive = key(131072, "Tokens of a prompt that are looked at.", "tokens")
    index_capacity: Positive | Literal["auto"] = key(
        "auto",
        "Hashes remembered for each replica; the one used longest ago falls out. `auto`: as many as its pool"
        " has blocks.",
        "hashes",
    )
    stats_interval: Duration = key(
        "50ms", "Time between two looks at the replicas' queue and usage; 0: at every request.", "duration"
    )


def _section(value: Any) -> Any:
    """`router: random` is short for a section with that kind alone."""
    return {"kind": value} if isinstance(value, str) else value


Router = Annotated[
    RoundRobin | Random | LeastLoaded | SessionAffinity | PrefixAffinity, Field(discriminator="kind")
]
RouterKey = Annotated[Router, BeforeValidator(_section)]


@dataclass(frozen=True)
class FleetSettings:
    """How many replicas, and the router in front of them."""

    replicas: int
    router: Router
