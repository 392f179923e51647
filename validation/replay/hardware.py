"""Which machine and which software a recording was made on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from typing import Any


def describe_machine(device: str) -> dict[str, Any]:
    """CPU, cores, memory and, for "cuda", the GPU and its driver; null where it can't be told."""
    out: dict[str, Any] = {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
    }
    if device == "cuda":
        out["gpu"] = _gpu()
    return out


def cpu_model() -> str | None:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            names = [line.partition(":")[2].strip() for line in f if line.startswith("model name")]
    except OSError:
        return platform.processor() or None
    return names[0] if names else platform.processor() or None


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def _gpu() -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": _driver(),
        "cuda": torch.version.cuda,
    }


def _driver() -> str | None:
    """The NVIDIA driver's version."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None


def describe_vllm() -> dict[str, Any]:
    """Versions of vLLM, PyTorch and Python, and the threads that PyTorch computes with."""
    import torch
    import vllm

    return {
        "vllm": str(vllm.__version__),
        "torch": str(torch.__version__),
        "torch_threads": torch.get_num_threads(),
        **describe_python(),
    }


def describe_python() -> dict[str, Any]:
    """Versions of Python and of the packages that the simulator runs on."""
    out = {"python": platform.python_version()}
    for package in ("numpy", "numba"):
        try:
            out[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return out


def describe_load() -> list[float] | None:
    """The machine's load averages over 1, 5 and 15 minutes."""
    try:
        return [round(x, 2) for x in os.getloadavg()]
    except OSError:
        return None
