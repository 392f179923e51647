"""Whether this machine can hold what a run allocates: asked before anything is allocated."""

from __future__ import annotations

import os
from pathlib import Path

from sim.config_yaml import Problem
from sim.engine_settings import EngineSettings

#: Pools of fewer blocks (1 GiB) are not looked at: whatever runs Python holds them.
_LARGE = 20_000_000
_GIB = 2**30


def free_bytes() -> int | None:
    """Memory that this process can still take, None if the system does not tell."""
    found = [_meminfo(), _pages(), _limit()]
    return min((n for n in found if n is not None), default=None)


def _meminfo() -> int | None:
    """Linux: what can be taken without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _pages() -> int | None:
    """All of the machine's memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _limit() -> int | None:
    """The limit of this process (`ulimit -v`)."""
    try:
        import resource
    except ImportError:
        return None
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def memory_problems(e: EngineSettings, replicas: int = 1) -> list[Problem]:
    """A pool whose records are larger than the memory that is free here."""
    blocks = e.num_gpu_blocks * replicas
    if blocks < _LARGE:
        return []
    from sim.capacity import pool_bytes

    needed, free = pool_bytes(e.num_gpu_blocks) * replicas, free_bytes()
    if free is None or needed <= free:
        return []
    pool = f"a pool of {e.num_gpu_blocks:,} blocks" + (f" in {replicas} replicas" if replicas > 1 else "")
    message = f"{pool} takes {needed / _GIB:,.1f} GiB here to simulate, and {free / _GIB:,.1f} GiB are free"
    hint = "give a smaller engine.num_gpu_blocks, or simulate on a machine with more memory"
    return [Problem(("engine", "num_gpu_blocks"), message, hint)]


__all__ = ["free_bytes", "memory_problems"]
