"""The project's own contracts: versions, the lock file, what sim.core imports, no path of one machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sim

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent
#: llvmlite is the code generator that Numba brings with it; sim/core/struct.py extends Numba with it.
CORE_MAY_IMPORT = {"numpy", "numba", "llvmlite", *sys.stdlib_module_names}


@pytest.fixture(scope="module")
def project() -> dict:
    """The ``[project]`` table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def canonical(requirement: str) -> str:
    """Name of a requirement, normalised as package indexes do: lower case, runs of ``-_.`` as one ``-``."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, f"no package name in {requirement!r}"
    return re.sub(r"[-_.]+", "-", name.group()).lower()


def lock_lines() -> list[str]:
    """Lines of requirements.lock that are not comments."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def tracked_files() -> list[Path]:
    """Every file that git tracks, or a skip outside a git checkout."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"not a git checkout: {done.stderr.decode().strip()}")
    paths = [ROOT / name for name in done.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_version_is_the_same_everywhere(project: dict) -> None:
    assert project["version"] == sim.__version__
    assert f"## [{sim.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_lock_holds_every_dependency(project: dict) -> None:
    extras = project["optional-dependencies"]
    wanted = {canonical(r) for r in [*project["dependencies"], *extras["test"], *extras["dev"]]}
    assert wanted - {canonical(line) for line in lock_lines()} == set()


def test_lock_is_exact_and_names_no_place() -> None:
    assert [line for line in lock_lines() if not re.fullmatch(r"[a-z0-9-]+==[0-9][^\s@]*", line)] == []


def test_core_imports_only_numpy_and_numba() -> None:
    """import-linter checks the direction of imports; an allow-list of names is checked here."""
    found = set()
    for path in sorted((ROOT / "sim" / "core").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                package = path.relative_to(ROOT).parts[:-1]
                base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
                names = [".".join(filter(None, [base, node.module]))]
            else:
                continue
            for name in names:
                if name.split(".")[0] not in CORE_MAY_IMPORT and not f"{name}.".startswith("sim.core."):
                    found.add((str(path.relative_to(ROOT)), name))
    assert found == set()


@pytest.mark.parametrize("package", ["sim", "workloads", "validation"])
def test_help_is_quick(package: str) -> None:
    """``--help`` loads none of the packages that take long to import."""
    heavy = ["matplotlib", "numba", "pyarrow", "simpy", "torch", "vllm"]
    program = f"""
import runpy, sys
sys.argv = ["{package}", "--help"]
try:
    runpy.run_module("{package}", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", *[name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:", done.stdout
    assert "Usage" in done.stdout


def test_no_path_of_one_machine() -> None:
    """Nothing that git tracks names a folder of the machine that it was written on."""
    machine_path = re.compile(rb"(?<![\w./:$}<-])/(?:work|root|home|Users|opt)/\w")
    found = []
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" in content[:8192]:
            continue
        for number, line in enumerate(content.splitlines(), 1):
            if machine_path.search(line):
                found.append(
                    f"{path.relative_to(ROOT)}:{number}: {line[:120].decode(errors='replace').strip()}"
                )
    assert found == []
