"""What the routing did, in a few lines of the summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.report.units import count, share, span


def router_text(router: Mapping[str, Any]) -> str:
    """The router's kind and what its section says."""
    kind = str(router["kind"])
    if kind == "least_loaded" and router["score"] != "in_flight":
        kind += f" ({router['score']})"
    if kind == "session_affinity":
        kind += f" (first by {router['first']})"
    if kind == "prefix_affinity":
        weights = ":".join(f"{router[f'{name}_weight']:g}" for name in ("prefix", "queue", "usage"))
        kind += f" (prefix:queue:usage {weights})"
    return kind


def _range(values: list[float | None], show: Any) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    low, high = show(min(known)), show(max(known))
    return low if low == high else f"{low} to {high}"


def fleet_lines(fleet: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, text) pairs."""
    parts = fleet["per_replica"]

    def ratio(x: float | None) -> str:
        return "-" if x is None else f"{x:.2f}"

    even = fleet["imbalance"]
    out = [
        (
            "fleet",
            f"{fleet['replicas']} replicas of {count(fleet['usable_blocks_per_replica'])} blocks behind"
            f" {router_text(fleet['router'])}",
        ),
        (
            "each replica",
            f"{_range([p['requests'] for p in parts], count)} requests, usage"
            f" {_range([p['usage'] for p in parts], share)}, hit rate"
            f" {_range([p['first_lookup_token_hit_rate'] for p in parts], share)},"
            f" {_range([p['preemptions'] for p in parts], count)} preemptions, first token p99"
            f" {_range([p['ttft_s_p99'] for p in parts], span)}",
        ),
        (
            "imbalance",
            f"largest / mean: requests {ratio(even['requests'])}, computed tokens"
            f" {ratio(even['computed_tokens'])}, busy {ratio(even['busy'])}; at a time the load varies by"
            f" {share(fleet['load_spread'])}",
        ),
    ]
    places = []
    if fleet["conversations"]:
        places.append(
            f"{share(fleet['stayed'])} of {count(fleet['conversations'])} conversations stayed on one replica"
            f" ({fleet['replicas_per_conversation']:.2f} replicas each)"
        )
    if fleet["copies_per_cached_block"]:
        places.append(f"a cached block has {fleet['copies_per_cached_block']:.2f} copies")
    if places:
        out.append(("places", "; ".join(places)))
    return out
