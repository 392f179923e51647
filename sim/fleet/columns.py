"""Columns of a fleet's result files: those of one engine, and which replica."""

from __future__ import annotations

from sim.columns import EVENTS, REQUESTS, STEPS

_SENT = {"replica": ("", "replica that the request was sent to, from 0; -1: none yet")}
_WHOSE = {"replica": ("", "replica, from 0")}

#: steps.parquet: sums over the replicas.
FLEET_STEPS = {
    name: (unit, text if name == "time_ns" else f"sum over the replicas: {text}")
    for name, (unit, text) in STEPS.items()
} | {"step_duration_ns": ("ns", "longest of the replicas' last steps")}
REPLICA_STEPS = _WHOSE | STEPS
FLEET_REQUESTS = REQUESTS | _SENT
FLEET_EVENTS = _WHOSE | EVENTS
