"""Commands that look into one engine say so when they are given a fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.errors import InputError

if TYPE_CHECKING:
    from sim.resolve import Resolved


def refuse_fleet(resolved: Resolved, source: str) -> None:
    """Raise InputError if the config is of a fleet.

    Args:
        resolved: the config.
        source: file or folder, for the message.
    """
    if resolved.fleet is not None:
        raise InputError(
            f"this looks into the pool of one engine, and here are {resolved.fleet.replicas} replicas",
            source,
            hint="`python -m sim report` shows what each replica did; or use a run with replicas: 1",
        )
