"""What every test may use: hypothesis profiles, the public traces, the conformance recordings.

Data that is not part of the repository is looked for beside it (``../shared``) or where an environment
variable says; a test that needs it is skipped, with the reason in pytest's summary, when it is absent.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "tests" / "benchmarks"

# No deadline: the first example of a test may compile jitted code.
# In CI the examples are the same in every run.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all of tests/benchmarks, before ``-m`` selects, so that no benchmark runs with the tests."""
    for item in items:
        if BENCHMARKS in item.path.parents:
            item.add_marker(pytest.mark.bench)


def _data_folder(variable: str, default: Path, what: str) -> Path:
    """The folder that `variable` names, or `default`; skips the test when it is not there."""
    named = os.environ.get(variable)
    folder = Path(named) if named else default
    if not folder.is_dir():
        pytest.skip(
            f"{what} not found: no folder {folder} (set {variable}; README.md says where they come from)"
        )
    return folder


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the public traces: ``KVPOOL_DATA``, or ``../shared/data``."""
    return _data_folder("KVPOOL_DATA", ROOT.parent / "shared" / "data", "public traces")


@pytest.fixture(scope="session")
def conformance_dir() -> Path:
    """Folder of the recordings of a real vLLM: ``KVPOOL_CONFORMANCE``, or ``../shared/conformance``."""
    return _data_folder(
        "KVPOOL_CONFORMANCE", ROOT.parent / "shared" / "conformance", "conformance recordings"
    )
