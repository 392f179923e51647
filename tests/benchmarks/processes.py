"""Timed child processes: whole commands with their peak memory, and a real vLLM between our own rounds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.benchmarks.cases import ROOT

# The kernel counts what the process held that a command was forked from, so a small one launches it.
_LAUNCHER = """
import json, os, sys, time
began = time.monotonic()
_, status, usage = os.wait4(os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ), 0)
told = {"began": began, "ended": time.monotonic(), "cpu_s": usage.ru_utime + usage.ru_stime}
os.write(int(sys.argv[1]), json.dumps({**told, "maxrss": usage.ru_maxrss}).encode())
sys.exit(status != 0)
"""


@dataclass(frozen=True)
class Command:
    """A finished command.

    Attributes:
        cpu_s: CPU seconds.
        wall_s: wall seconds.
        peak_mb: peak resident memory in MB (10**6 bytes).
        stdout: what it printed.
        began: when it was started, on the monotonic clock.
    """

    cpu_s: float
    wall_s: float
    peak_mb: float
    stdout: str
    began: float


def run_command(arguments: list[str], env: dict[str, str] | None = None) -> Command:
    """Run this Python with ``arguments`` in the project's folder.

    Raises:
        RuntimeError: the command failed.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as told:
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(told.fileno())]
        child = subprocess.run(
            [*launcher, sys.executable, *arguments],
            cwd=ROOT,
            stdout=out,
            stderr=err,
            env=env,
            pass_fds=[told.fileno()],
            check=False,
        )
        for file in (out, err, told):
            file.seek(0)
        if child.returncode != 0:
            raise RuntimeError(f"{' '.join(arguments)} failed:\n{err.read().decode()}")
        text = out.read().decode()
        usage = json.loads(told.read())
    peak = usage["maxrss"] * (1 if sys.platform == "darwin" else 1024) / 1e6
    return Command(usage["cpu_s"], usage["ended"] - usage["began"], peak, text, usage["began"])


def run_simulation(config: Path, overrides: list[str], env: dict[str, str] | None = None) -> Command:
    """``python -m sim run CONFIG`` without plots, into a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        sets = [part for value in overrides for part in ("--set", value)]
        arguments = [
            "-m",
            "sim",
            "run",
            str(config),
            "--quiet",
            "--no-plots",
            "--out",
            f"{folder}/run",
            *sets,
        ]
        return run_command(arguments, env)


def first_step(config: Path, env: dict[str, str] | None = None) -> dict[str, Any]:
    """CPU and wall seconds from the start of ``python -m sim run CONFIG`` to its first simulated phase."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["-m", "tests.benchmarks.first_step", str(config), f"{folder}/run"]
        command = run_command(arguments, env)
    report = json.loads(command.stdout.splitlines()[-1])
    return {"cpu_s": report["cpu_s"], "wall_s": report["at"] - command.began, "cached": report["cached"]}


def compile_time(config: Path) -> dict[str, Any]:
    """As `first_step`, with an empty cache of compiled code: the first run ever on a machine."""
    with tempfile.TemporaryDirectory() as folder:
        return first_step(config, {**os.environ, "KVPOOL_CACHE_DIR": folder})


def vllm_python() -> str | None:
    """A Python with a real vLLM: KVPOOL_VLLM_PYTHON, else that of .venv-vllm; None when there is neither."""
    named = os.environ.get("KVPOOL_VLLM_PYTHON")
    if named:
        return named
    own = ROOT / ".venv-vllm" / "bin" / "python"
    return str(own) if own.exists() else None


class VllmWorker:
    """A child process in which the real vLLM scheduler serves the control workload when it is asked to."""

    def __init__(self, python: str, num_requests: int) -> None:
        self._child = subprocess.Popen(
            [python, "-m", "tests.benchmarks.vllm_worker", str(num_requests)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> VllmWorker:
        if not self._answer().get("ready"):
            raise RuntimeError("the vLLM worker did not start")
        return self

    def serve(self) -> dict[str, Any]:
        """One run: cpu_s, wall_s, steps, request_steps."""
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(
            "the vLLM worker ended; run `PYTHON -m tests.benchmarks.vllm_worker 10` to see why"
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.communicate()
