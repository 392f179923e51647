"""Exports: what they hold equals the run, and other tools can read it."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from sim.analysis.export import export_chrome_trace, export_prometheus
from sim.analysis.openmetrics import last_scrape, observed, scrape_rows
from sim.analysis.rerun import Rerun, read_columns
from sim.analysis.tracker import track
from sim.cli import main

Series = dict[tuple[str, str], list[tuple[float, float]]]

_SAMPLE = re.compile(r'([a-zA-Z_:][\w:]*)\{((?:\w+="(?:[^"\\]|\\.)*",?)*)\} (\S+) (\S+)')


def parse(text: str) -> tuple[dict[str, str], Series]:
    """A strict reader of what we write: types by family, and (time, value) by name and labels."""
    assert text.endswith("# EOF\n")
    kinds: dict[str, str] = {}
    series: Series = defaultdict(list)
    family = ""
    for line in text.splitlines()[:-1]:
        if line.startswith("# HELP "):
            continue
        if line.startswith("# TYPE "):
            _, _, family, kind = line.split(" ")
            assert family not in kinds
            kinds[family] = kind
            continue
        found = _SAMPLE.fullmatch(line)
        assert found, line
        name, labels, value, time = found.groups()
        suffix = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
        assert name in {family + s for s in suffix[kinds[family]]}, line
        points = series[name, labels]
        assert not points or points[-1][0] < float(time), f"time goes back: {line}"
        points.append((float(time), float(value)))
    return kinds, series


def values(series: Series, name: str, *labels: str) -> list[float]:
    """Values of the one series of a name whose labels hold these texts."""
    found = [v for (n, text), v in series.items() if n == name and all(part in text for part in labels)]
    assert len(found) == 1, (name, labels)
    return [value for _, value in found[0]]


def test_prometheus_text(run_folder: Path) -> None:
    kinds, series = parse(export_prometheus(run_folder, 10**6, 0.0).decode())
    assert kinds["vllm:kv_cache_usage_perc"] == "gauge"
    assert kinds["vllm:prefix_cache_hits"] == "counter"
    assert kinds["vllm:kv_block_lifetime_seconds"] == "histogram"
    steps = read_columns(run_folder / "steps.parquet")
    assert values(series, "vllm:num_requests_running") == steps["num_running"].tolist()
    assert values(series, "vllm:num_preemptions_total") == steps["preemptions"].tolist()
    assert values(series, "vllm:kv_cache_usage_perc") == (steps["used_blocks"] / 89).tolist()
    assert values(series, "vllm:request_success_total", "length") == steps["finished"].tolist()
    assert set(values(series, "vllm:request_success_total", "stop")) == {0.0}
    for name, kind in kinds.items():
        if kind == "histogram":
            count = values(series, f"{name}_count")
            assert values(series, f"{name}_bucket", 'le="+Inf"') == count == sorted(count)
            bounds = [labels for n, labels in series if n == f"{name}_bucket"]
            counts = np.array([[v for _, v in series[f"{name}_bucket", labels]] for labels in bounds])
            assert (np.diff(counts, axis=0) >= 0).all()
    tracked = track(run_folder, 0)
    life = tracked.residency.lifetime
    assert values(series, "vllm:kv_block_lifetime_seconds_count")[-1] == life.count > 0
    assert values(series, "vllm:kv_block_lifetime_seconds_sum")[-1] == pytest.approx(life.total_s)
    done = values(series, "vllm:e2e_request_latency_seconds_count")
    assert done == steps["finished"].tolist()
    assert values(series, "vllm:time_to_first_token_seconds_count")[-1] == 60
    requests = read_columns(run_folder / "requests.parquet")
    took = (requests["finish_ns"] - requests["arrival_ns"]).sum() / 1e9
    assert values(series, "vllm:e2e_request_latency_seconds_sum")[-1] == pytest.approx(took)


def test_scrapes_and_start(run_folder: Path) -> None:
    _, series = parse(export_prometheus(run_folder, 5, 1000.0).decode())
    (points,) = [v for (name, _), v in series.items() if name == "vllm:num_requests_waiting"]
    assert len(points) in (5, 6)
    end = Rerun(run_folder).end_ns / 1e9
    assert points[-1][0] == pytest.approx(1000 + end)
    assert scrape_rows(0, 5).tolist() == []
    assert scrape_rows(4, 5).tolist() == [0, 1, 2, 3]
    assert scrape_rows(10, 5).tolist() == [1, 3, 5, 7, 9]
    assert scrape_rows(11, 5).tolist() == [2, 5, 8, 10]


_UNITS = re.compile(r"_(ms|us|ns|sec|secs|milliseconds|minutes|hours|mb|kb|kib|mib|percent)(_|$)")


def lint(text: str) -> list[str]:
    """What `promtool check metrics` says of a scrape in the text format (its rules, written anew)."""
    said = []
    kinds: dict[str, str] = {}
    helped: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    for line in text.splitlines():
        if line.startswith("# "):
            _, word, name, rest = line.split(" ", 3)
            table = helped if word == "HELP" else kinds
            assert name not in table, f"{word} of {name} twice"
            table[name] = rest
            continue
        found = re.fullmatch(r'([a-zA-Z_:][\w:]*)\{((?:\w+="(?:[^"\\]|\\.)*",?)*)\} (\S+)', line)
        assert found, line
        name, labels, value = found.groups()
        float(value)
        assert (name, labels) not in seen, f"twice: {line}"
        seen.add((name, labels))
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        family = family if kinds.get(family) == "histogram" else name
        kind = kinds[family]
        names = [part.partition("=")[0] for part in labels.split(",")]
        rules = {
            "no help text": not helped.get(family),
            'counter metrics should have "_total" suffix': kind == "counter" and not name.endswith("_total"),
            'non-counter metrics should not have "_total" suffix': kind != "counter" and "_total" in name,
            'metric names should not contain ":"': ":" in name,
            "non-histogram with a histogram's suffix": kind != "histogram"
            and bool(re.search(r"_(bucket|sum|count)$", name)),
            'non-histogram metrics should not have "le" label': kind != "histogram" and "le" in names,
            "the name says the type": bool(re.search(r"_(gauge|counter|histogram|summary)(_|$)", name)),
            "not in base units": bool(_UNITS.search(name)),
            "not in snake_case": any(n != n.lower() for n in (name, *names)),
        }
        said += [f"{family}: {rule}" for rule, broken in rules.items() if broken]
    return sorted(set(said))


def test_metrics_pass_the_linter_of_prometheus_but_for_vllms_own_colon(run_folder: Path) -> None:
    text = last_scrape(export_prometheus(run_folder, 1, 0.0).decode())
    said = lint(text)
    assert {line.partition(": ")[2] for line in said} == {'metric names should not contain ":"'}
    assert all(line.startswith("vllm:") for line in said)
    assert "kvpool_kv_cache_evictions_total{" in text
    finished = len(read_columns(run_folder / "requests.parquet")["index"])
    assert f'finished_reason="length"}} {finished}\n' in text
    # the linter finds what it should
    assert lint('# HELP aB_ms x\n# TYPE aB_ms counter\naB_ms{le="1"} 2\n') == [
        'aB_ms: counter metrics should have "_total" suffix',
        'aB_ms: non-histogram metrics should not have "le" label',
        "aB_ms: not in base units",
        "aB_ms: not in snake_case",
    ]


def test_bounds_belong_to_the_bucket_below() -> None:
    when = np.array([5, 10, 10, 20])
    took = np.array([10**9, 10**9 + 1, 2 * 10**9, 10**10])
    h = observed("a", "b", (1.0, 2.0), when, took, np.array([10, 20, 30]))
    # what happens at the time of a scrape is not seen by it
    assert h.counts.tolist() == [[1, 0, 0], [1, 2, 0], [1, 2, 1]]
    assert h.sums.tolist() == [1.0, 4.000000001, 14.000000001]


def test_chrome_trace(run_folder: Path) -> None:
    trace = json.loads(export_chrome_trace(run_folder))
    requests = read_columns(run_folder / "requests.parquet")
    slices: dict[int, list[tuple[float, float, str]]] = defaultdict(list)
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            slices[event["tid"] - 1].append((event["ts"], event["dur"], event["name"]))
    assert len(slices) == 60
    preempted = 0
    for i in range(60):
        mine = sorted(slices[i])
        # the slices of a request follow each other without a gap, from its arrival to its end
        for (begin, length, _), (after, _, _) in pairwise(mine):
            assert begin + length == pytest.approx(after)
        assert mine[0][0] == pytest.approx(requests["arrival_ns"][i] / 1000)
        assert mine[-1][0] + mine[-1][1] == pytest.approx(requests["finish_ns"][i] / 1000)
        names = [name for _, _, name in mine]
        preempted += names.count("preempted")
        assert names.count("resumed") == requests["preemptions"][i]
    assert preempted == requests["preemptions"].sum() > 0
    counters = [e for e in trace["traceEvents"] if e["ph"] == "C" and e["name"] == "blocks"]
    assert {sum(e["args"].values()) for e in counters} == {89}
    names = {e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert names == {f"r{i}" for i in range(60)}


@pytest.mark.parametrize("style", ["parquet", "csv"])
def test_tables(run_folder: Path, tmp_path: Path, style: str) -> None:
    out = tmp_path / "tables"
    result = CliRunner().invoke(main, ["export", str(run_folder), "--format", style, "--out", str(out)])
    assert result.exit_code == 0, result.output
    tracked = track(run_folder)
    names = {"steps", "requests", "failures", "patterns", "residency"}
    assert {p.name for p in out.iterdir()} == {f"{n}.{style}" for n in names}
    if style == "parquet":
        table = pq.read_table(out / "failures.parquet")
        assert table.num_rows == len(tracked.failures)
        assert table.schema.field("waited_ns").metadata[b"unit"] == b"ns"
        assert pq.read_table(out / "steps.parquet")["usage"].to_pylist() == tracked.curves["usage"].tolist()
        return
    with open(out / "failures.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [r["cause"] for r in rows] == [failure.cause for failure in tracked.failures]
    assert [int(r["time_ns"]) for r in rows] == [failure.time_ns for failure in tracked.failures]
    with open(out / "residency.csv", newline="") as f:
        counts = [int(r["count"]) for r in csv.DictReader(f) if r["kind"] == "lifetime"]
    assert counts == tracked.residency.lifetime.counts.tolist()


def test_the_command(run_folder: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    out = tmp_path / "run.om"
    args = ["export", str(run_folder), "--format", "prometheus"]
    result = runner.invoke(
        main, [*args, "--out", str(out), "--start", "2026-01-31T12:00:00Z", "--points", "2"]
    )
    assert result.exit_code == 0, result.output
    _, series = parse(out.read_text())
    assert min(t for points in series.values() for t, _ in points) > 1.7e9
    printed = runner.invoke(main, [*args, "--out", "-", "--points", "3"])
    assert printed.stdout.encode() == export_prometheus(run_folder, 3, 0.0)
    for wrong, message in (
        (["--format", "promtheus"], "did you mean 'prometheus'"),
        (["--format", "prometheus", "--start", "noon"], "not a date"),
        (["--format", "csv", "--out", "-"], "several files"),
    ):
        result = runner.invoke(main, ["export", str(run_folder), *wrong])
        assert result.exit_code == 2
        assert message in result.stderr
    result = runner.invoke(main, ["export", str(tmp_path), "--format", "csv"])
    assert result.exit_code == 2
    assert "not a run folder" in result.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from sim.cli import main;"
        "assert CliRunner().invoke(main, ['export', '--help']).exit_code == 0;"
        "print([m for m in ('numpy', 'numba', 'pyarrow', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_residency_is_sampled_as_a_server_samples_it(run_folder: Path) -> None:
    whole, part = (
        values(
            parse(export_prometheus(run_folder, 1, 0.0, share).decode())[1],
            "vllm:kv_block_lifetime_seconds_count",
        )
        for share in (1.0, 0.25)
    )
    assert 0.15 < part[-1] / whole[-1] < 0.35
    with_option = CliRunner().invoke(
        main, ["export", str(run_folder), "--format", "metrics", "--residency-sample", "0.25", "--out", "-"]
    )
    assert (
        f'vllm:kv_block_lifetime_seconds_count{{model_name="small",engine="0"}} {part[-1]:.0f}'
        in with_option.stdout
    )
    recording = "validation/recordings/live-cpu-chat.jsonl.gz"
    refused = CliRunner().invoke(
        main, ["export", recording, "--format", "metrics", "--residency-sample", "0.1"]
    )
    assert refused.exit_code == 2
    assert "a recording is not simulated again" in refused.stderr
