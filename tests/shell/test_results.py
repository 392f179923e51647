"""The run folder: whole or not at all, never over a stranger's files; the same bytes each time."""

from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim import results
from sim.columns import REQUESTS, STEPS
from sim.config import load_config
from sim.errors import InputError
from sim.report import text
from sim.report.units import count, plural, seconds, share, size
from sim.resolve import Resolved, content_id, resolve
from sim.results import OutputError, check_target, to_json, to_parquet, to_yaml, write_run
from sim.summary import DEFINITIONS, summarize
from tests.shell import fakes

CONFIG = """\
model: llama-3.1-8b
gpu: h100
engine: {num_gpu_blocks: 1024, max_model_len: 8192}
workload: {kind: batch, num_requests: 3}
"""


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> Resolved:
    path = tmp_path_factory.mktemp("config") / "a.yaml"
    path.write_text(CONFIG)
    return resolve(load_config(path))


@pytest.fixture(scope="module")
def summary(resolved: Resolved) -> dict[str, Any]:
    return summarize(resolved, fakes.run_result(), 300, "c" * 64, "0.1.0")


FILES = {"summary.json": b"{}\n", "plots/a.svg": b"<svg/>"}


def tree(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_a_run_is_written_and_replaced(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "runs" / "a"
    write_run(out, FILES, {"seed": 1})
    assert tree(tmp_path / "deep" / "runs") == [
        "a",
        "a/plots",
        "a/plots/a.svg",
        "a/provenance.json",
        "a/summary.json",
    ]
    record = json.loads((out / "provenance.json").read_text())
    assert (record["tool"], record["seed"], sorted(record["files"])) == ("kvpool", 1, sorted(FILES))
    write_run(out, {"summary.json": b"[]"}, {"seed": 2})
    assert tree(out) == ["provenance.json", "summary.json"]


@pytest.mark.parametrize("name", ["notes.txt", "provenance.json", "plots/mine.png"])
def test_strangers_files_are_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="holds files that no earlier run has written") as e:
        write_run(tmp_path, FILES, {})
    assert name in e.value.message
    assert (tmp_path / name).read_text() == "{}"


def test_a_file_added_to_a_run_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "a"
    write_run(out, FILES, {})
    (out / "my-notes.md").write_text("keep me")
    with pytest.raises(InputError, match=r"my-notes\.md"):
        check_target(out)


def test_targets_that_are_no_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="this is a file"):
        check_target(tmp_path / "file")
    with pytest.raises(InputError, match="is a file, so no folder"):
        check_target(tmp_path / "file" / "a" / "b")
    (tmp_path / "empty").mkdir()
    check_target(tmp_path / "empty")


@pytest.mark.parametrize("where", ["write", "fsync", "rename"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "write":

        class FullFile(io.BytesIO):
            def write(self, _: object) -> int:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(results, "open", lambda *_: FullFile(), raising=False)
    else:
        monkeypatch.setattr(results.os, where, full)
    with pytest.raises(OutputError, match="No space left on device") as e:
        write_run(tmp_path / "runs" / "a", FILES, {})
    monkeypatch.undo()
    assert str(tmp_path / "runs" / "a") in str(e.value)
    assert tree(tmp_path) == []


def test_a_full_disk_keeps_the_earlier_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a"
    write_run(out, FILES, {"seed": 1})
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    real = os.rename

    def second_fails(old: Any, new: Any) -> None:
        if Path(new) == out and ".tmp-" in str(old):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(old, new)

    monkeypatch.setattr(results.os, "rename", second_fails)
    with pytest.raises(OutputError):
        write_run(out, {"summary.json": b"new"}, {"seed": 2})
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert tree(tmp_path) == ["a", *(f"a/{n}" for n in tree(out))]


def test_parquet_has_units_and_stable_bytes() -> None:
    import pyarrow.parquet as pq

    result = fakes.run_result()
    data = to_parquet(result.steps, STEPS, {"content_id": "x"})
    assert data == to_parquet(fakes.run_result().steps, STEPS, {"content_id": "x"})
    table = pq.read_table(io.BytesIO(data))
    assert table.schema.names == list(STEPS)
    assert table.schema.field("time_ns").metadata == {
        b"unit": b"ns",
        b"description": b"simulated time of the row",
    }
    assert table.schema.metadata[b"kvpool.content_id"] == b"x"
    assert pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0).column(0).compression == "ZSTD"
    requests = pq.read_table(io.BytesIO(to_parquet(result.requests, REQUESTS, {})))
    assert np.array_equal(requests["prompt_tokens"].to_numpy(), result.requests["prompt_tokens"])


def test_resolved_yaml_is_a_fixed_point(resolved: Resolved, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(to_yaml(resolved.config, "one\ntwo"))
    again = resolve(load_config(path))
    assert again.config == resolved.config
    assert (again.engine, again.name) == (resolved.engine, "a")
    assert np.array_equal(again.step_time.coef, resolved.step_time.coef)
    assert content_id(again.config, "w") == content_id(resolved.config, "w")
    assert content_id(again.config, "v") != content_id(resolved.config, "w")
    assert to_yaml(again.config, "one\ntwo") == path.read_bytes()


def test_summary_numbers(summary: dict[str, Any], resolved: Resolved) -> None:
    result = fakes.run_result()
    assert summary["requests"]["finished"] == 300
    steps = result.steps
    assert summary["usage"]["max"] == steps["used_blocks"].max() / 1023
    cache = summary["prefix_cache"]
    assert cache["first_lookup_token_hit_rate"] == steps["prefix_hits"][-1] / steps["prefix_queries"][-1]
    waste, r = summary["waste"], result.requests
    assert waste["waste_at_finish"] == r["wasted_slots"].sum() / r["allocated_slots"].sum()
    assert waste["mean_wasted_bytes"] == pytest.approx(waste["mean_wasted_slots"] * 131072)
    ttft = (r["first_token_ns"] - r["arrival_ns"]) / 1e9
    assert summary["latency"]["ttft_s"]["p99"] == pytest.approx(np.percentile(ttft, 99))
    assert summary["worst_moment"]["num_free_blocks"] == steps["num_free_blocks"].min()
    assert summary["most_waste"]["wasted_slots"] == steps["wasted_slots"].max()
    assert summary["engine"]["pool_bytes"] == 2 * 2**30
    assert json.loads(to_json(summary)) == summary
    pairs = (steps["table_blocks"] - steps["num_running"]).sum()
    runs = (steps["table_runs"] - steps["num_running"]).sum()
    assert summary["table_contiguity"] == pytest.approx(1 - runs / pairs)


def test_every_definition_names_a_number(summary: dict[str, Any]) -> None:
    names: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            names.update(node)
            for value in node.values():
                walk(value)

    walk({k: v for k, v in summary.items() if k != "definitions"})
    assert set(DEFINITIONS) <= names


def test_summary_fits_one_screen(summary: dict[str, Any]) -> None:
    sink = io.StringIO()
    text.render(summary, sink)
    rows = sink.getvalue().splitlines()
    assert len(rows) <= 30
    assert max(len(row) for row in rows) <= 80
    assert "\x1b" not in sink.getvalue()
    assert rows[0].startswith("a: finished after 8 min 25 s simulated, 19,960 steps")


def test_summary_of_nothing_and_of_trouble(resolved: Resolved) -> None:
    result = fakes.run_result()
    result.steps = {k: v[:0] for k, v in result.steps.items()}
    result.requests = {k: v[:0] for k, v in result.requests.items()}
    result.time_weighted, result.totals = {}, {}
    empty = summarize(resolved, result, 300, "c" * 64, "0")
    assert empty["usage"] is None
    assert empty["latency"]["ttft_s"]["count"] == 0
    assert text.lines(empty)
    result = fakes.run_result()
    result.exit_reason = "interrupted"
    result.requests["status"][:2] = 5
    result.requests["status"][2:5] = 4
    result.requests["status"][5] = 1
    bad = summarize(resolved, result, 300, "c" * 64, "0")
    shown = "\n".join(row for _, row in text.lines(bad))
    assert "INTERRUPTED" in shown
    assert "2 requests can never fit the pool of" in shown
    assert "3 requests with a prompt not shorter" in shown
    assert "294 finished of 300 arrived; 1 unfinished" in shown
    assert bad["requests"]["unservable"] == 2


def test_warmup_is_left_out(resolved: Resolved) -> None:
    from dataclasses import replace

    result = fakes.run_result()
    late = summarize(replace(resolved, warmup_ns=100 * 10**9), result, 300, "c", "0")
    assert late["latency"]["ttft_s"]["count"] == int((result.requests["arrival_ns"] >= 100 * 10**9).sum())


def test_plots_are_drawn_and_stable(summary: dict[str, Any]) -> None:
    from sim.report.plots import draw

    result = fakes.run_result()
    first = draw(summary, result.steps, result.requests, 0)
    assert sorted(first) == [
        "plots/latency.png",
        "plots/latency.svg",
        "plots/overview.png",
        "plots/overview.svg",
    ]
    assert first == draw(summary, result.steps, result.requests, 0)
    assert b"<dc:date>" not in first["plots/overview.svg"]
    many = fakes.run_result(rows=5000)
    assert len(draw(summary, many.steps, many.requests, 0)["plots/overview.svg"]) < 2_000_000
    few = {k: v[:1] for k, v in result.steps.items()}
    assert "plots/overview.png" not in draw(summary, few, result.requests, 0)


def test_units() -> None:
    spans = (None, 0, 5e-6, 0.0123, 4.567, 45.67, 723, 3720)
    shown = ["-", "0 s", "5 us", "12.3 ms", "4.57 s", "45.7 s", "12 min 03 s", "1 h 02 min"]
    assert [seconds(s) for s in spans] == shown
    assert [share(x) for x in (None, 0, 0.0043, 0.612, 1)] == ["-", "0.0 %", "0.43 %", "61.2 %", "100.0 %"]
    assert [size(b) for b in (None, 2**29, 55 * 2**30, 2**20)] == ["-", "512 MiB", "55.0 GiB", "1.0 MiB"]
    assert [count(n) for n in (None, 3, 0.305, 12.34, 12345.6)] == ["-", "3", "0.30", "12.3", "12,346"]
    assert [plural(1, "block"), plural(1200, "block")] == ["1 block", "1,200 blocks"]


def test_columns_are_those_of_the_core() -> None:
    from sim.columns import EVENT_TYPES
    from sim.core import codes

    assert tuple(STEPS) == codes.LOG_COLUMNS
    assert EVENT_TYPES == codes.EVENT_NAMES
