"""The `workload:` section of a config, and how it becomes requests.

The models stand in `workloads.spec`, because `python -m workloads describe` reads the same section and the
workloads know nothing of the simulator; the simulator's top-level model includes them from here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sim.errors import InputError
from workloads.errors import WorkloadError
from workloads.spec import KINDS, AnyClient, WorkloadSpec
from workloads.units import Duration

if TYPE_CHECKING:
    from workloads.requests import Workload
    from workloads.spool import Spool

__all__ = ["KINDS", "AnyClient", "Duration", "WorkloadSpec", "to_workload", "to_workload_or_spool"]


def to_workload(spec: AnyClient, seed: int, config_dir: str | Path | None = None) -> Workload:
    """Generate or read the requests of a `workload:` section.

    Args:
        spec: the validated section.
        seed: seed of everything random in it, >= 0.
        config_dir: folder of the config file, where relative paths are looked for first; None: only in the
            working folder.

    Raises:
        InputError: a trace cannot be used, or no request comes out; with file:line:column where there is one.
    """
    from workloads.generate import build

    try:
        return build(spec, seed, base_dir=config_dir)
    except WorkloadError as error:
        raise InputError(error.message, file=error.file, line=error.line, column=error.column) from error


def to_workload_or_spool(
    spec: AnyClient, seed: int, config_dir: str | Path | None, folder: Callable[[], Path], limit: int
) -> Workload | Spool:
    """As `to_workload`; more than `limit` requests are written to disk on the way.

    Args:
        folder: makes an empty folder, when it is needed.

    Raises:
        InputError: as `to_workload`.
        OSError: the folder can't be written.
    """
    from workloads.generate import build_or_spool

    try:
        return build_or_spool(spec, seed, config_dir, folder, limit)
    except WorkloadError as error:
        raise InputError(error.message, file=error.file, line=error.line, column=error.column) from error
