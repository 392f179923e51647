"""Commands that look into one engine: which one of a fleet, or none of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.errors import InputError

if TYPE_CHECKING:
    from sim.resolve import Resolved


def refuse_fleet(resolved: Resolved, source: str, hint: str = "") -> None:
    """Raise InputError if the config is of a fleet.

    Args:
        resolved: the config.
        source: file or folder, for the message.
        hint: what else can be done.
    """
    if resolved.fleet is not None:
        raise InputError(
            f"this looks into the pool of one engine, and here are {resolved.fleet.replicas} replicas",
            source,
            hint=hint or "use replicas: 1",
        )


def check_replica(resolved: Resolved, replica: int, source: str) -> None:
    """Raise InputError unless the config is of a fleet with a replica of this number."""
    if resolved.fleet is None:
        raise InputError("this is the run of one engine", source, hint="leave out --replica")
    if replica >= resolved.fleet.replicas:
        last = resolved.fleet.replicas - 1
        raise InputError(f"there is no replica {replica}", source, hint=f"give --replica 0 to {last}")
