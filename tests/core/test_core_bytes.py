"""The same bytes from every process, with and without jitted code; and what the compilation promises."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from sim.capacity import LogOptions, allocate
from sim.compilation import is_compiled
from sim.core import jit
from sim.core.engine import run_until
from sim.core.jit import entry, leaf
from sim.core.switch import version_of
from sim.coupled import empty_workload
from sim.engine_settings import EngineSettings, KVCacheGroup
from sim.groups import layout_of
from sim.step_time import constant
from tests.core.fingerprint import fingerprint

ROOT = Path(__file__).resolve().parents[2]

SEEDS = (1, 6, 8, 14, 23, 34, 37, 39)
"""Short runs: both policies, synchronous and asynchronous, preemptions, a closed loop, no caching."""


def lines_of_process(**environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.core.fingerprint", *map(str, SEEDS)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def here() -> list[str]:
    return [f"{seed} {clock} {fingerprint(seed, clock)}" for seed in SEEDS for clock in ("time", "logical")]


def test_without_jit(here: list[str]) -> None:
    assert lines_of_process(NUMBA_DISABLE_JIT="1") == here


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_in_another_process(here: list[str], hash_seed: str) -> None:
    assert lines_of_process(PYTHONHASHSEED=hash_seed) == here


@entry
def allocates(n: int) -> float:
    return np.zeros(n)[0]


@leaf
def double(n: int) -> int:
    return 2 * n


@entry
def quadruple(n: int) -> int:
    return double(double(n))


def test_an_allocation_in_the_core_is_a_compile_error() -> None:
    """What ``_nrt=False`` is for; should a release of Numba drop the option, this says so."""
    with pytest.raises(numba.core.errors.TypingError, match="zeros"):
        allocates(3)


def test_a_helper_runs_in_jitted_code_only() -> None:
    assert quadruple(3) == 12
    with pytest.raises(TypeError):
        double(3)


def test_the_cache_key_follows_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key, digest = jit._cache_key(), jit.core_digest()
    for path in jit._CORE.glob("*.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(jit, "_CORE", tmp_path)
    assert (jit._cache_key(), jit.core_digest()) == (key, digest)
    with (tmp_path / "free_queue.py").open("a") as source:
        source.write("# changed\n")
    assert jit.core_digest() != digest
    assert jit._cache_key() != key


def test_the_cache_key_follows_numba_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = jit._cache_key()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert jit._cache_key() == key
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1")
    checked = jit._cache_key()
    assert checked != key
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "0")
    assert jit._cache_key() not in (key, checked)
    monkeypatch.setenv("KVPOOL_CACHE_DIR", str(tmp_path))
    assert jit.cache_dir() == tmp_path / "numba" / jit._cache_key()


@pytest.mark.parametrize(
    ("version", "group"),
    [
        ("plain", KVCacheGroup()),
        ("windows", KVCacheGroup("sliding_window", sliding_window=8)),
        ("general", KVCacheGroup("mamba")),
    ],
)
def test_each_version_of_the_engine_leaves_a_mark(version: str, group: KVCacheGroup) -> None:
    """So that a command knows whether it is going to compile."""
    engine = EngineSettings(num_gpu_blocks=40, kv_cache_groups=(group,))
    assert layout_of(engine).version == version
    state = allocate(engine, empty_workload(), constant(1), LogOptions())
    run_until(state, 1, 1)
    assert version_of(state.native_type()) == version
    assert is_compiled(engine)
    assert (jit.cache_dir() / f"run_until.{version}").exists()


def test_another_copy_of_the_sources_uses_the_compiled_code(tmp_path: Path) -> None:
    """A second clone, a reinstall, a container made again: other path, other file times, no compilation."""
    lines_of_process()
    shutil.copytree(ROOT / "sim", tmp_path / "sim", copy_function=shutil.copyfile)
    script = (
        "from sim.core import engine, jit; import pathlib;"
        f"assert pathlib.Path(jit.__file__).is_relative_to({str(tmp_path)!r});"
        "index = engine.run_until._cache._cache_file._load_index();"
        "print(len(index), jit.cache_dir())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    entries, folder = done.stdout.split(maxsplit=1)
    assert int(entries) >= 1
    assert Path(folder.strip()) == jit.cache_dir()
