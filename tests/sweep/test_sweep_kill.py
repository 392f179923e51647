"""kill -9 in the middle of a sweep, a worker, a run: the same command goes on, and gives the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sweep.conftest import command, equal, kvpool, points, rows

pytestmark = pytest.mark.slow


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until it is so; fails if the process ends first or two minutes pass."""
    for _ in range(6000):
        if what():
            return
        if process.poll() is not None:
            pytest.fail(f"it ended too early: {process.communicate()}")
        time.sleep(0.02)
    process.kill()
    pytest.fail("it did not come so far in two minutes")


def test_a_killed_sweep_goes_on(long_work: Path, whole: dict[str, bytes]) -> None:
    args = ("sweep", "sweep.yaml", "--no-plots", "--out", "o", "--jobs")
    process = command(*args, "2", cwd=long_work)
    wait_for(lambda: len(points(long_work / "o")) >= 2, process)
    left = workers_of(process)
    process.kill()
    process.wait()
    kept = points(long_work / "o")
    assert 2 <= len(kept) < 12
    said = kvpool(*args, "1")
    assert said.exit_code == 0, said.output
    assert f"{len(kept)} of 12 runs were done before" in said.stderr
    after = points(long_work / "o")
    assert {n: after[n] for n in kept} == kept
    assert not [p for p in (long_work / "o").rglob(".*") if p.name != ".lock"]
    equal(long_work / "o", whole)
    # the workers have noticed, too
    for _ in range(400):
        if not any(Path(f"/proc/{pid}").exists() for pid in left):
            break
        time.sleep(0.05)
    else:
        pytest.fail("workers live on without the process that started them")
    process.communicate()


def test_a_killed_worker_loses_nothing(long_work: Path, whole: dict[str, bytes]) -> None:
    process = command("sweep", "sweep.yaml", "--jobs", "2", "--no-plots", "--out", "o", cwd=long_work)
    wait_for(lambda: len(points(long_work / "o")) >= 2, process)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, (out, err)
    ran = {int(r["worker"].split(":")[1]) for r in rows(long_work / "o", "timings.parquet")}
    assert not ran & {os.getpid(), process.pid}
    equal(long_work / "o", whole)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Its worker processes (not loky's tracker of shared resources)."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(c) for c in children if b"popen_loky" in Path(f"/proc/{c}/cmdline").read_bytes()]


def test_a_killed_run_leaves_nothing_that_confuses(long_work: Path) -> None:
    """In the middle of the simulation nothing is there; in the middle of writing, only a hidden folder."""
    args = ("run", "small.yaml", "--quiet", "--no-plots", "--out", "r")
    process = command(*args, "--set", "workload.num_requests=400000", cwd=long_work)
    time.sleep(1.0)
    process.kill()
    process.communicate()
    assert not (long_work / "r").exists()
    left = long_work / f".r.tmp-{process.pid}"
    left.mkdir()
    (left / "summary.json").write_text('{"half')
    other = long_work / f".r.tmp-{os.getpid()}x"
    other.mkdir()
    assert kvpool(*args).exit_code == 0
    first = {p.name: p.read_bytes() for p in (long_work / "r").iterdir() if p.name != "provenance.json"}
    assert not left.exists()
    assert other.exists()
    assert kvpool(*args).exit_code == 0
    assert {
        p.name: p.read_bytes() for p in (long_work / "r").iterdir() if p.name != "provenance.json"
    } == first
