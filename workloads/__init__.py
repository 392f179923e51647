"""Traffic for the simulator: synthetic clients, arrival processes, readers of public traces.

This package knows nothing of the simulator. It makes a `Workload` (workloads.requests), and everything else
reads that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workloads.errors import WorkloadError

if TYPE_CHECKING:
    from workloads.builder import WorkloadBuilder
    from workloads.generate import build
    from workloads.requests import Workload

__all__ = ["Workload", "WorkloadBuilder", "WorkloadError", "build"]

_LAZY = {
    "Workload": "workloads.requests",
    "WorkloadBuilder": "workloads.builder",
    "build": "workloads.generate",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'workloads' has no attribute {name!r}")
