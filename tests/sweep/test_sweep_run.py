"""A sweep from file to folder: tables, resuming, failures, a full disk, equal bytes whoever works."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from sim import results, runner
from sim.sweep import command, execute, point
from sim.sweep.execute import Local
from sim.sweep.point import Failure
from tests.sweep.conftest import SWEEP, kvpool, points, rows

FINAL = ("points.parquet", "curves.parquet")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the points that are simulated in this process."""
    ids: list[str] = []
    real = command.run_point

    def counted(task: point.Task) -> Any:
        ids.append(task.id)
        return real(task)

    monkeypatch.setattr(command, "run_point", counted)
    return ids


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_tables_page_and_what_is_printed(work: Path) -> None:
    said = kvpool("sweep", "sweep.yaml", "--jobs", "1", "--set", "engine.watermark=0.05")
    assert said.exit_code == 0, said.output
    out = Path("runs/sweep-sweep")
    table = rows(out)
    assert [(r["point"], r["seed"]) for r in table] == [(p, s) for p in range(9) for s in (0, 1)]
    assert [r["engine.block_size"] for r in table[::6]] == [4, 8, 16]
    assert {r["status"] for r in table} == {"done"}
    assert list(table[0])[-1:] != ["waste_at_finish"]
    keys = list(table[0])
    assert (
        keys.index("waste_at_finish")
        < keys.index("e2e_s.mean")
        < keys.index("preemptions")
        < keys.index("steps")
    )
    # every number of a run of the same config and seed, and its content id
    runner.run(
        "small.yaml",
        runner.RunOptions(
            overrides=[
                "engine.block_size=8",
                "engine.max_num_seqs=4",
                "engine.watermark=0.05",
                "output.plots=false",
            ],
            seed=1,
            out="run",
            quiet=True,
        ),
    ).write()
    summary = json.loads(Path("run/summary.json").read_text())
    row = next(r for r in table if (r["engine.block_size"], r["engine.max_num_seqs"], r["seed"]) == (8, 4, 1))
    assert row["content_id"] == summary["content_id"]
    assert row["waste_at_finish"] == summary["waste"]["waste_at_finish"]
    assert row["ttft_s.p99"] == summary["latency"]["ttft_s"]["p99"]
    curve = [r for r in rows(out, "curves.parquet") if (r["point"], r["seed"]) == (row["point"], 1)]
    assert len(curve) == 201
    assert curve[-1]["time_s"] == summary["simulated_s"]
    assert curve[-1]["preemptions"] == summary["preemptions"]["preemptions"]
    page = (out / "index.html").read_text()
    assert page.count("<h1>") == 1
    assert not re.search(r"""(src|href)=["'](https?:|//)""", page)
    best = min(table, key=lambda r: r["waste_at_finish"])
    assert "Lowest waste at finish: " in said.stdout
    assert f"with block_size {best['engine.block_size']}" in said.stdout
    assert json.loads((out / "results.json").read_text())["sections"][0]["key"] == "answer"
    assert sorted(p.name for p in (out / "plots").iterdir()) == [
        f"{n}.{k}" for n in ("curves", "heat", "metrics") for k in ("png", "svg")
    ]
    assert not list((out / "traces").iterdir())


def test_nothing_is_repeated(work: Path, ran: list[str]) -> None:
    args = ("sweep", "sweep.yaml", "--jobs", "1", "--no-plots", "--out", "o")
    assert kvpool(*args).exit_code == 0
    assert len(set(ran)) == len(ran) == 18
    before = {n: Path("o", n).read_bytes() for n in FINAL}
    said = kvpool(*args)
    assert (len(ran), "18 of 18 runs were done before" in said.stderr) == (18, True)
    assert {n: Path("o", n).read_bytes() for n in FINAL} == before
    # some points lost, one file damaged: only those are done again
    lost = sorted(points(Path("o")))
    for name in lost[:3]:
        Path("o/points", name).unlink()
    damaged = Path("o/points", lost[5])
    damaged.write_bytes(damaged.read_bytes()[:100])
    said = kvpool(*args)
    assert (len(ran), "14 of 18 runs were done before" in said.stderr) == (22, True)
    assert {n: Path("o", n).read_bytes() for n in FINAL} == before
    # one more value: its points only; another base: all of them
    Path("sweep.yaml").write_text(SWEEP.replace("[4, 8, 16]", "[4, 8, 16, 32]"))
    kvpool(*args)
    assert len(ran) == 28
    kvpool(*args, "--set", "workload.num_requests=39")
    assert len(ran) == 28 + 24


def test_a_failing_point_is_recorded_and_the_rest_go_on(work: Path, ran: list[str]) -> None:
    Path("sweep.yaml").write_text(SWEEP.replace("[4, 8, 16]", "[1, 8]"))
    said = kvpool("sweep", "sweep.yaml", "--jobs", "1", "--no-plots", "--out", "o")
    assert said.exit_code == 1
    assert "3 of 9 runs failed; the messages are below." in said.stdout
    table = rows(Path("o"))
    failed = [r for r in table if r["status"] == "failed"]
    assert [r["engine.block_size"] for r in failed] == [1, 1, 1]
    assert all("a pool of 300 blocks is smaller than one" in r["message"] for r in failed)
    assert all(r["waste_at_finish"] is None for r in failed)
    assert len(ran) == 6


def test_points_that_break_while_they_run(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sim import simulate

    real = simulate.Simulation.run

    def run(self: Any, until: int | None = None, *more: Any) -> str:
        size = int(self.state.kv.groups.block_size[0])
        if size == 4:
            raise MemoryError
        if size == 8:
            raise AssertionError("the pool is upside down")
        return real(self, until, *more)

    monkeypatch.setattr(simulate.Simulation, "run", run)
    said = kvpool("sweep", "sweep.yaml", "--jobs", "1", "--no-plots", "--out", "o", "--seeds", "1")
    assert said.exit_code == 1
    messages = [r["message"] for r in rows(Path("o"))]
    assert messages[:3] == ["out of memory"] * 3
    assert all(
        m.startswith("AssertionError: the pool is upside down (test_sweep_run.py:") for m in messages[3:6]
    )
    assert messages[6:] == [""] * 3
    monkeypatch.undo()
    monkeypatch.chdir(work)
    said = kvpool("sweep", "sweep.yaml", "--jobs", "1", "--no-plots", "--out", "o", "--seeds", "1")
    assert (said.exit_code, "3 of 9 runs were done before" in said.stderr) == (0, True)


def test_unserved_requests_are_told(work: Path) -> None:
    said = kvpool("sweep", "sweep.yaml", "--jobs", "1", "--no-plots", "--set", "engine.max_model_len=100")
    assert said.exit_code == 0, said.output
    assert "At 9 points some requests did not finish" in said.stdout
    said = kvpool(
        "sweep", "sweep.yaml", "--jobs", "1", "--no-plots", "--out", "o", "--set", "engine.max_model_len=10"
    )
    assert said.exit_code == 1
    message = rows(Path("o"))[0]["message"]
    assert message.startswith("no request finished, so there is nothing to measure: 40 have a prompt")


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_is_one_message_and_loses_no_point(
    work: Path, monkeypatch: pytest.MonkeyPatch, where: str, ran: list[str]
) -> None:
    real = getattr(os, where)

    def fills_up(*args: Any, **more: Any) -> Any:
        return full() if len(ran) > 5 else real(*args, **more)

    monkeypatch.setattr(os, where, fills_up)
    args = ("sweep", "sweep.yaml", "--jobs", "1", "--no-plots", "--out", "o")
    said = kvpool(*args)
    monkeypatch.setattr(os, where, real)
    assert said.exit_code == 2
    errors = [line for line in said.stderr.splitlines() if "No space" in line]
    assert errors == ["o: the results can't be written: No space left on device"]
    assert "finished points are kept there: make room and give the same command again" in said.stderr
    assert len(points(Path("o"))) == 5
    assert not list(Path("o").rglob(".*.tmp-*"))
    assert not Path("o/points.parquet").exists()
    said = kvpool(*args)
    assert (said.exit_code, len(ran)) == (0, 6 + 13)
    assert "5 of 18 runs were done before" in said.stderr


def test_a_full_disk_at_the_end_keeps_earlier_results(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("sweep", "sweep.yaml", "--jobs", "1", "--no-plots", "--out", "o", "--seeds", "1")
    kvpool(*args)
    before = Path("o/points.parquet").read_bytes()
    monkeypatch.setattr(results.os, "fsync", full)
    said = kvpool(*args)
    monkeypatch.undo()
    monkeypatch.chdir(work)
    assert (said.exit_code, said.stderr.count("No space left on device")) == (2, 1)
    assert Path("o/points.parquet").read_bytes() == before


def test_a_strangers_folder_and_a_folder_in_use(work: Path) -> None:
    Path("o").mkdir()
    Path("o/mine.txt").write_text("keep me")
    said = kvpool("sweep", "sweep.yaml", "--out", "o")
    assert (said.exit_code, "holds files that no sweep has written (mine.txt)" in said.stderr) == (2, True)
    assert kvpool("sweep", "sweep.yaml", "--out", "sweep.yaml").exit_code == 2
    args = ("sweep", "sweep.yaml", "--jobs", "1", "--no-plots", "--out", "p", "--seeds", "1")
    assert kvpool(*args).exit_code == 0
    with command.Store(Path("p"), "sweep", command.FINALS):
        said = kvpool(*args)
    assert (said.exit_code, "another sweep is at work in this folder" in said.stderr) == (2, True)
    Path("other.yaml").write_text(SWEEP)
    said = kvpool("sweep", "other.yaml", "--out", "p")
    assert (said.exit_code, "the folder is that of another sweep, 'sweep'" in said.stderr) == (2, True)


def test_ctrl_c_keeps_what_is_done(work: Path, monkeypatch: pytest.MonkeyPatch, ran: list[str]) -> None:
    real = command.run_point

    def interrupted(task: point.Task) -> Any:
        if len(ran) == 4:
            raise KeyboardInterrupt
        return real(task)

    monkeypatch.setattr(command, "run_point", interrupted)
    said = kvpool("sweep", "sweep.yaml", "--jobs", "1", "--no-plots", "--out", "o")
    assert said.exit_code == 130
    assert (
        said.stderr.splitlines()[-1]
        == "interrupted: 4 finished runs kept in o; the same command does the rest"
    )
    assert len(points(Path("o"))) == 4


def test_a_trace_is_run_once_whatever_the_seeds(work: Path) -> None:
    lines = [
        json.dumps(
            {"timestamp": 100 * i, "input_length": 600, "output_length": 5, "hash_ids": [i % 3, 7 + i]}
        )
        for i in range(20)
    ]
    Path("t.jsonl").write_text("\n".join(lines))
    Path("small.yaml").write_text(
        "engine: {num_gpu_blocks: 300, max_model_len: 1024, max_num_seqs: 8, max_num_batched_tokens: 512}\n"
        "step_time: {kind: constant, step: 10ms}\n"
        "workload: {kind: trace, path: t.jsonl, format: mooncake}\n"
    )
    said = kvpool(
        "sweep", "sweep.yaml", "--jobs", "1", "--no-plots", "--out", "o", "--set", "engine.max_num_seqs=8"
    )
    assert said.exit_code == 2
    text = SWEEP.replace("[4, 8, 16]", "[8, 16]")
    Path("sweep.yaml").write_text(text)
    said = kvpool("sweep", "sweep.yaml", "--jobs", "1", "--no-plots", "--out", "o")
    assert said.exit_code == 0, said.output
    assert len(rows(Path("o"))) == 6
    assert "the workload is the same for every seed: only seed 0 is run" in said.stderr
    Path("t.jsonl").write_text("\n".join([*lines, "{]"]))
    said = kvpool("sweep", "sweep.yaml", "--jobs", "1", "--no-plots", "--out", "o")
    assert (said.exit_code, said.stderr.count("t.jsonl:21:")) == (2, 1)
    Path("t.jsonl").unlink()
    said = kvpool("sweep", "sweep.yaml", "--jobs", "1", "--no-plots", "--out", "o")
    assert (said.exit_code, "small.yaml:3:31: no such trace file 't.jsonl'" in said.stderr) == (2, True)


def test_fleets_are_points_like_others(work: Path) -> None:
    Path("sweep.yaml").write_text(
        "base: small.yaml\naxes: {replicas: [1, 2]}\nmetrics: [latency, usage.mean]\n"
    )
    said = kvpool("sweep", "sweep.yaml", "--jobs", "1", "--no-plots", "--out", "o")
    assert said.exit_code == 0, said.output
    one, two = rows(Path("o"))
    assert (one["replicas"], two["replicas"]) == (1, 2)
    assert two["e2e_s.mean"] < one["e2e_s.mean"]
    curve = [r for r in rows(Path("o"), "curves.parquet") if r["point"] == 1]
    assert 0 < max(r["usage"] for r in curve) <= 1


def _odd(number: int) -> int:
    """Work whose third task kills its worker."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


@pytest.mark.slow
def test_a_task_that_kills_its_worker_is_given_up_and_no_other() -> None:
    workers = Local(2, given=True)
    try:
        found = dict(workers.run(_odd, list(range(8))))
    finally:
        workers.close()
    killed = found.pop(3)
    assert isinstance(killed, Failure)
    assert killed.message == "the worker process died (SIGKILL, perhaps for want of memory)"
    assert found == {n: n * n for n in range(8) if n != 3}


def test_little_work_starts_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "parallel_run", lambda *_, **__: pytest.fail("workers were started"))
    assert dict(Local(2, given=False).run(_odd, [1, 2, 4, 5])) == {1: 1, 2: 4, 4: 16, 5: 25}
