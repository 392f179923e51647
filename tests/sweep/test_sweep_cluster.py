"""Sweeps on a Dask cluster of two workers, one of which is killed; on Ray, where it is installed."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.sweep.conftest import ROOT, command, equal, kvpool, points, rows
from tests.sweep.test_sweep_kill import wait_for

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start(module: str, *args: str, cwd: Path) -> subprocess.Popen[str]:
    """A process of the cluster, with kvpool importable and its own log."""
    with (cwd / f"{module}.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, *args],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )


def listens(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def busy(folder: Path) -> list[int]:
    """Process ids of the workers that have finished a point."""
    return [int(json.loads(gzip.decompress(p))["worker"].split(":")[1]) for p in points(folder).values()]


def test_a_dask_worker_that_dies_loses_nothing(long_work: Path, whole: dict[str, bytes]) -> None:
    pytest.importorskip("distributed", reason="needs the package distributed (pip install 'kvpool[dask]')")
    port = free_port()
    url = f"127.0.0.1:{port}"
    at = ("--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-jupyter")
    cluster = [start("distributed.cli.dask_scheduler", *at, cwd=long_work)]
    try:
        wait_for(lambda: listens(port), cluster[0])
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard")
        for i in range(2):
            (long_work / f"w{i}").mkdir()
            cluster.append(
                start("distributed.cli.dask_worker", f"tcp://{url}", *options, cwd=long_work / f"w{i}")
            )
        for i in range(2):
            log = long_work / f"w{i}" / "distributed.cli.dask_worker.log"
            wait_for(lambda log=log: "Registered to" in log.read_text(), cluster[1 + i])  # type: ignore[misc]
        args = ("sweep", "sweep.yaml", "--no-plots", "--out", "o", "--cluster", f"dask://{url}")
        process = command(*args, cwd=long_work)
        wait_for(lambda: bool(busy(long_work / "o")), process)
        killed = busy(long_work / "o")[0]
        next(p for p in cluster if p.pid == killed).kill()
        done = len(points(long_work / "o"))
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, (out, err)
        assert done < 12
        assert "Dask, 2 workers" in err
        assert {int(r["worker"].split(":")[1]) for r in rows(long_work / "o", "timings.parquet")} == {
            p.pid for p in cluster[1:]
        }
        equal(long_work / "o", whole)
    finally:
        for p in reversed(cluster):
            p.kill()
            p.wait()


def test_a_cluster_that_does_not_answer(work: Path) -> None:
    said = kvpool("sweep", "sweep.yaml", "--cluster", f"dask://127.0.0.1:{free_port()}")
    assert said.exit_code == 2
    assert said.stderr.startswith("--cluster dask://127.0.0.1:")
    assert not Path("runs").exists()


def test_ray_gives_the_same_bytes(
    long_work: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="needs the package ray (pip install 'kvpool[ray]'), which is large")
    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_AUTH_MODE", "disabled")):
        monkeypatch.setenv(name, value)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    port = free_port()
    ray = "import sys; from ray.scripts.scripts import main; sys.exit(main())"
    # paths of sockets are short, so the folder of a test is too deep for Ray's
    with tempfile.TemporaryDirectory(prefix="kvray", ignore_cleanup_errors=True) as folder:
        options = ("--num-cpus", "2", "--include-dashboard", "false", "--temp-dir", folder)
        with (long_work / "ray.log").open("w") as log:
            head = subprocess.Popen(
                [sys.executable, "-c", ray, "start", "--head", "--block", "--port", str(port), *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        try:
            wait_for(lambda: listens(port), head)
            wait_for(lambda: "Ray runtime started" in (long_work / "ray.log").read_text(), head)
            cluster = f"ray://127.0.0.1:{port}"
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "sim",
                    "sweep",
                    "sweep.yaml",
                    "--no-plots",
                    "--out",
                    "o",
                    "--cluster",
                    cluster,
                ],
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            head.terminate()
            head.wait(30)
    assert done.returncode == 0, done.stderr
    assert "Ray, 2 processors" in done.stderr
    equal(long_work / "o", whole)
