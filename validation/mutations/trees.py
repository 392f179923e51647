"""Copies of the project with one fault each, and the process that runs tests in them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from validation.mutations.fault import Fault

ROOT = Path(__file__).resolve().parents[2]
_COPIED = ("sim", "workloads", "validation")
_TESTS = ("tests/__init__.py", "tests/conftest.py", "tests/validation/test_kernel_rules.py")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "recordings", ".*", "*.tmp")
_RECORDINGS = "tests/recorded_vllm"


class CheckError(Exception):
    """The mutation check can't be made."""


class PatchError(CheckError):
    """A fault's text does not stand in the kernel as it did."""


def patched(fault: Fault, root: Path = ROOT) -> str:
    """The faulty file's content. Raises PatchError when the text to change is not there as often as it
    should."""
    source = (root / fault.file).read_text()
    found = source.count(fault.old)
    if found != fault.times:
        raise PatchError(
            f"fault {fault.name}: {fault.file} has {found} times, not {fault.times}, the text {fault.old!r}; "
            "write the fault anew in validation/mutations/faults.py"
        )
    return source.replace(fault.old, fault.new)


def copy_project(folder: Path, fault: Fault | None) -> Path:
    """A copy of what the tests need, with the fault in it; None: as it is."""
    for name in _COPIED:
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "recordings")
        )
    for name in _TESTS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    shutil.copyfile(ROOT / "pyproject.toml", folder / "pyproject.toml")
    (folder / _RECORDINGS).symlink_to(ROOT / _RECORDINGS)
    if fault is not None:
        (folder / fault.file).write_text(patched(fault))
    return folder


class Worker:
    """The process that runs jobs in copies of the project (see worker.py)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        # a small case takes a fraction of a second without a compiler, and a compilation much longer
        environment |= {"NUMBA_DISABLE_JIT": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self._trees: dict[str, Path] = {}

    def ask(self, fault: Fault | None, timeout_s: float, **job: Any) -> dict[str, Any]:
        """Run a job in the copy with this fault."""
        name = "no_fault" if fault is None else fault.name
        if name not in self._trees:
            self._trees[name] = copy_project(self.folder / name, fault)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = {"tree": str(self._trees[name]), "timeout_s": timeout_s} | job
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the worker ended with exit code {self._process.wait()}")
        shutil.rmtree(self._trees.pop(name))
        return dict(json.loads(answer))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@contextmanager
def worker() -> Iterator[Worker]:
    """A worker and its folder, both gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="kvpool-mutations-") as folder:
        running = Worker(Path(folder))
        try:
            yield running
        finally:
            running.close()
