"""Reports, pictures, comparisons and exports of recordings of a live vLLM.

Exact numbers: recordings of the plain-Python twin, whose step log and kernel are known. A real one: the file
of a whole engine of vLLM 0.32.0 in validation/recordings.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from sim.analysis.openmetrics import last_scrape
from sim.analysis.recorded import Recorded
from sim.analysis.recording import load
from sim.analysis.snapshot import FragmentationSnapshot
from sim.capacity import LogOptions, allocate
from sim.cli import main
from sim.core import codes as c
from sim.core.engine import run_until
from sim.engine_settings import EngineSettings
from sim.reference.metrics import KVCacheMetricsCollector
from sim.report.document import values_of
from sim.report.recorded_report import build_recorded_report
from sim.report.recorded_run import weighted
from sim.report.render import render
from tests.core.cases import FOREVER
from tests.reference.kernel import NO_TIME, to_workload
from tests.reference.random_cases import random_case
from tests.validation.test_live import TwinEngine
from validation.live.export import write_snapshots
from validation.live.hooks import record_scheduler
from validation.live.options import FULL, LiveOptions
from validation.live.reader import read

REAL = Path(__file__).resolve().parents[2] / "validation" / "recordings" / "live-cpu-chat.jsonl.gz"
OPS_ONLY = LiveOptions(row_every=3, state_every=5, budget=0, ops=True)
SEEDS = (1, 4, 7)


def sim(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def twin_of(seed: int) -> TwinEngine:
    case = random_case(seed)
    return TwinEngine(case.settings, case.workload)


def recorded(seed: int, folder: Path, options: LiveOptions = FULL) -> tuple[TwinEngine, Recorded]:
    engine = twin_of(seed)
    return engine, load(engine.record(folder / f"live-{seed}", options).writer.final)


@pytest.fixture(scope="module")
def real() -> Recorded:
    return load(REAL)


# ---- exact ----


@pytest.mark.parametrize("seed", SEEDS)
def test_the_columns_are_those_of_the_step_log(seed: int, tmp_path: Path) -> None:
    engine, r = recorded(seed, tmp_path)
    log = engine.log.rows
    assert r.every_call
    assert r.num_states == len(log) == len(r.steps["time_ns"])
    for name in (
        "num_running", "num_waiting", "num_free_blocks", "used_blocks", "num_cached_hashes",
        "num_cached_blocks", "num_scheduled_tokens", "allocated_slots", "held_tokens", "wasted_slots",
        "free_runs", "largest_free_run", "prefix_queries", "prefix_hits", "preempted_queries",
        "preempted_hits",
    ):  # fmt: skip
        assert r.steps[name].tolist() == [row[name] for row in log], name
    for name, ids in (("preemptions", "preempted"), ("finished", "finished")):
        assert r.steps[name].tolist() == np.cumsum([len(row[ids]) for row in log]).tolist()
    assert r.requests is not None
    ended = Counter(name for row in log for name in row["preempted"])
    names = r.requests["request_id"].tolist()
    assert dict(zip(names, r.requests["preemptions"].tolist(), strict=True)) == {n: ended[n] for n in names}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_recorded_state_is_the_snapshot_of_the_live_pool(seed: int, tmp_path: Path) -> None:
    engine = twin_of(seed)
    live = record_scheduler(engine.scheduler, tmp_path / "live", FULL)
    assert live is not None
    manager = engine.scheduler.kv_cache_manager
    taken: list[dict[str, Any]] = []

    def observe(*_: Any) -> None:
        running = engine.scheduler.running
        tables = {
            r.request_id: [
                [b.block_id for b in m.req_to_blocks.get(r.request_id, ())] for m in manager.managers
            ]
            for r in running
        }
        sizes = [m.block_size for m in manager.managers]
        pool = FragmentationSnapshot.from_block_pool(manager.block_pool, running, tables, block_sizes=sizes)
        taken.append(pool.summary())

    engine._observer = observe
    engine.run()
    live.close()
    r = load(live.writer.final)
    assert len(taken) == r.num_states > 5
    for snapshot, expected in zip(r.snapshots(), taken, strict=True):
        found = snapshot.summary()
        for name in ("time_s", "step", "duplicate_blocks", "unreachable_blocks"):
            del found[name], expected[name]
        assert found == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_evictions_and_lifetimes_from_the_operations(seed: int, tmp_path: Path) -> None:
    """Against the kernel's counters and the twin's collector, in time that counts calls."""
    engine = twin_of(seed)
    live = record_scheduler(engine.scheduler, tmp_path / "live", OPS_ONLY)
    assert live is not None
    collector = KVCacheMetricsCollector(lambda: live.calls + 1, 1.0)
    engine.scheduler.kv_cache_manager.block_pool.metrics_collector = collector
    engine.run()
    live.close()
    r = load(live.writer.final)
    case = random_case(seed)
    log = LogOptions(sample_period_ns=0, follow_blocks=True)
    state = allocate(EngineSettings(**case.settings), to_workload(case.workload), NO_TIME, log)
    assert run_until(state, FOREVER, 10**6) == c.X_DONE
    history = r.history()
    assert history is not None
    history._times = np.array([call for call, _ in history._ops])
    history.advance()
    assert history.evicted == int(state.kv.pool.meta.evictions)
    assert history.evicted_unused == int(state.kv.pool.meta.evicted_unused)
    events, residency = collector.drain_events(), history.residency()
    for found, expected in (
        (residency.lifetime, [e.lifetime_seconds for e in events]),
        (residency.idle, [e.idle_seconds for e in events]),
        (residency.reuse_gap, [gap for e in events for gap in e.reuse_gaps_seconds]),
    ):
        assert found.count == len(expected)
        assert found.total_s == pytest.approx(sum(expected))
        assert np.repeat(found.fine_s, found.fine_counts).tolist() == pytest.approx(sorted(expected))
    assert residency.open_records == len(collector.block_metrics)


def test_samples_hold_up_to_the_next_and_leave_out_what_lies_between_two_steps(tmp_path: Path) -> None:
    _, r = recorded(3, tmp_path, OPS_ONLY)
    assert not r.every_call
    steps = r.steps
    assert set(steps["updated"][:-1].tolist()) == {0}
    assert r.num_states < len(steps["time_ns"]) < len(r.rows["time_ns"])
    for i, time in enumerate(steps["time_ns"].tolist()):
        held = r.state_columns["free_runs"][r.state_before(time)]
        assert steps["free_runs"][i] == (1 if r.is_idle(time) else held)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_idle_engine_is_known_from_its_requests(seed: int, tmp_path: Path) -> None:
    """At full rate the rows show it; among samples rows are added for it."""
    _, full = recorded(seed, tmp_path)
    rows, inside = full.rows, np.array([full.is_idle(t) for t in full.rows["time_ns"].tolist()])
    empty = rows["num_running"] + rows["num_waiting"] == 0
    assert empty[inside].all()
    assert (rows["num_free_blocks"][inside] == full.usable_blocks).all()
    began = rows["time_ns"] > full.requests["finish_ns"].min()  # type: ignore[index]
    assert inside[empty & began & (rows["time_ns"] < full.end_ns)].all()
    _, sampled = recorded(seed, tmp_path, OPS_ONLY)
    assert not sampled.every_call
    steps = sampled.steps
    assert (np.diff(steps["time_ns"]) >= 0).all()
    for start, _ in sampled.idle_spans:
        row = int(np.flatnonzero(steps["time_ns"] == start)[-1])
        assert steps["used_blocks"][row] == steps["num_running"][row] == steps["wasted_slots"][row] == 0
        assert steps["num_free_blocks"][row] == sampled.usable_blocks


def test_time_weighted_by_hand() -> None:
    found = weighted(np.array([np.nan, 1.0, 3.0, 2.0]), np.array([0, 10, 20, 60]), 80)
    assert found is not None
    assert found.pop("mean") == (10 * 1 + 40 * 3 + 20 * 2) / 70
    assert found == {"p50": 3, "p90": 3, "p99": 3, "max": 3, "max_at_s": 2e-8}
    assert weighted(np.array([np.nan]), np.array([0]), 1) is None
    once = weighted(np.array([2.0]), np.array([5]), 5)
    assert once is not None
    assert once["mean"] == 2


# ---- the real one ----


def test_the_report_of_a_real_recording(real: Recorded) -> None:
    document = build_recorded_report(real)
    keys = ["answer", "time", "moments", "pool", "layout", "cache", "requests", "missing"]
    assert [s.key for s in document.sections] == keys
    charts = {chart.key for chart in document.charts()}
    assert charts >= {
        "usage", "internal_fragmentation", "external_fragmentation", "free_runs", "hit_rate", "preemptions",
        "pool_map", "run_lengths", "lifetime",
    }  # fmt: skip
    assert len(values_of(document)) > 200
    text = render(document, "text")
    assert "Recorded from a live vLLM 0.32.0, 95 blocks of 32 tokens, 107 requests" in text
    assert "UTC" in text
    assert "simulated" not in text
    assert max(map(len, text.splitlines())) <= 80
    page = render(document, "html")
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    assert render(document, "html") == page
    usage = document.charts()[0].data["usage"]
    assert len(usage) == 200
    assert max(usage) <= 1.0


def test_what_is_not_recorded_is_named_and_not_made_up(tmp_path: Path) -> None:
    _, r = recorded(3, tmp_path, LiveOptions(row_every=1, state_every=0))
    assert r.num_states == 0
    text = render(build_recorded_report(r), "text")
    words = " ".join(text.split())
    assert "no state was recorded (state_every=0)" in words
    assert "Evictions, lifetimes of blocks and their ages: record with ops=on" in words
    assert re.search(r"External fragmentation +not recorded", text)
    assert "The pool over time" not in text
    answered = sim("layout", str(r.path))
    assert answered.exit_code == 2
    assert "holds no state" in answered.output


def test_losses_stand_at_the_head(tmp_path: Path) -> None:
    lines = gzip.decompress(REAL.read_bytes()).splitlines(keepends=True)
    lost = json.dumps({"kind": "lost", "lost": {"row": 3}}).encode() + b"\n"
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(gzip.compress(b"".join([*lines[:400], lost])) + b"\x1f\x8b torn")
    r = load(broken)
    words = " ".join(render(build_recorded_report(r), "text").split())
    assert "! This recording is not whole: 3 lines about row were lost." in words
    assert "! This recording is not whole: it was not closed" in words
    assert "7 bytes at its end are no whole piece" in words


@pytest.mark.parametrize("style", ["md", "json"])
def test_the_command(style: str, tmp_path: Path) -> None:
    out = tmp_path / "report"
    answered = sim("report", str(REAL), "--format", style, "--out", str(out))
    assert answered.exit_code == 0, answered.output
    assert out.stat().st_size > 3000
    if style == "json":
        assert json.loads(out.read_text())["sections"][-1]["key"] == "missing"


def test_a_table_of_states(real: Recorded, tmp_path: Path) -> None:
    path = tmp_path / "states.parquet"
    assert write_snapshots(read(REAL), path) == real.num_states
    r = load(path)
    assert r.kind == "states"
    assert r.started_unix_ns is not None
    for name, column in r.state_columns.items():
        assert column.tolist() == real.state_columns[name].tolist()
    answered = sim("report", str(path))
    assert answered.exit_code == 0, answered.output
    words = " ".join(answered.output.split())
    assert "Preemptions and requests' arrivals, lengths and ends: a table of states has none." in words
    assert "Hits of the prefix cache: a table of states." in words
    assert sim("layout", str(path), "--at", "1s").exit_code == 0
    # a table without the date, as older ones are
    table = pq.read_table(path)
    meta = {k: v for k, v in table.schema.metadata.items() if k not in (b"started_unix_ns", b"specs")}
    old = tmp_path / "old.parquet"
    pq.write_table(table.replace_schema_metadata(meta), old)
    assert load(old).started_unix_ns is None
    assert sim("export", str(old), "--format", "chrome-trace", "--out", str(tmp_path / "x")).exit_code == 0


def test_layout(real: Recorded) -> None:
    time = int(real.state_times[40])
    drawn = sim("layout", str(REAL), "--at", f"{time / 1e9!r}s", "--width", "110").output
    assert "state 41 of" in drawn
    letters = "".join(re.findall(r"^ *\d+ ([.oX#]+)$", drawn, re.MULTILINE))
    assert letters == "".join(".oX#"[code] for code in real.codes(40))
    changed = sim("layout", str(REAL), "--diff", "4s", "9s").output
    assert "the last ones recorded up to 4 s and 9 s" in " ".join(changed.split())
    assert "both)" in changed
    tightest = sim("layout", str(REAL)).output
    assert "free 0 (0.0 %)" in tightest


def test_a_difference_counts_blocks_that_were_allocated_anew_in_between(tmp_path: Path) -> None:
    """With the operations recorded; without them such blocks are taken for unchanged, and that is said."""
    _, with_ops = recorded(3, tmp_path, FULL)
    begin, end = (int(with_ops.state_times[i]) for i in (0, with_ops.num_states // 2))
    path = str(with_ops.path)
    words = " ".join(sim("layout", path, "--diff", f"{begin / 1e9!r}s", f"{end / 1e9!r}s").output.split())
    assert "block operations were not recorded" not in words
    _, without = recorded(4, tmp_path, LiveOptions(row_every=1, state_every=1, budget=0))
    words = " ".join(sim("layout", str(without.path), "--diff", "0s", "0.0001s").output.split())
    assert "block operations were not recorded (ops=on)" in words


def test_compare_with_itself_and_with_a_run(small_run: Path) -> None:
    answered = sim("compare", str(REAL), str(REAL), "--format", "json")
    assert answered.exit_code == 0, answered.output
    data = json.loads(answered.stdout)
    table = next(p for s in data["sections"] for p in s["parts"] if p.get("key") == "difference_B")
    assert {row[3]["value"] for row in table["rows"]} == {0.0}
    against = sim("compare", str(small_run), str(REAL))
    assert against.exit_code == 0, against.output
    words = " ".join(against.output.split())
    assert "A recording is one run on one machine" in words
    assert "engine.num_gpu_blocks 17 96" in words


@pytest.mark.parametrize("style", ["parquet", "csv", "prometheus", "metrics", "chrome-trace"])
def test_export(style: str, real: Recorded, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answered = sim("export", str(REAL), "--format", style, "--out", str(out))
    assert answered.exit_code == 0, answered.output
    if style == "parquet":
        assert {p.stem for p in out.iterdir()} == {"rows", "states", "requests", "residency"}
        assert pq.read_metadata(out / "rows.parquet").num_rows == len(real.rows["time_ns"])
        assert pq.read_table(out / "rows.parquet")["unix_ns"][0].as_py() > 1_700_000_000 * 10**9
    elif style == "csv":
        assert (out / "states.csv").read_text().count("\n") == real.num_states + 1
    elif style == "chrome-trace":
        events = json.loads(out.read_text())["traceEvents"]
        kinds = Counter((e["ph"], e["name"]) for e in events)
        assert kinds["X", "request"] == 107
        assert kinds["i", "preempted"] == int(real.rows["preemptions"][-1])
    else:
        text = out.read_text()
        assert ("# EOF" in text) == (style == "prometheus")
        final = text if style == "metrics" else last_scrape(text)
        assert f"}} {int(real.rows['prefix_hits'][-1])}\n" in final
        assert "vllm:kv_block_lifetime_seconds_count" in final


# ---- bad files ----


def changed(change: Callable[[list[dict[str, Any]]], Any]) -> bytes:
    """The real recording with some of its lines changed."""
    lines = [json.loads(line) for line in gzip.decompress(REAL.read_bytes()).splitlines()]
    change(lines)
    return gzip.compress(b"".join(json.dumps(line).encode() + b"\n" for line in lines))


def first(lines: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(line for line in lines if line["kind"] == kind)


def short_state(lines: list[dict[str, Any]]) -> None:
    first(lines, "row")["state"]["running"] = []


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "neither a run folder nor a recording"),
    "text": (lambda: b"hello\n", "neither a run folder nor a recording"),
    "gzip of something": (lambda: gzip.compress(b"hello\n"), "not a line of a live recording"),
    "other JSON": (lambda: gzip.compress(b'{"kind": "x"}\n'), "not a live recording of kvpool"),
    "cut": (lambda: REAL.read_bytes()[:200], "no whole line"),
    "later version": (lambda: changed(lambda x: x[0].update(version=2)), "format version 2"),
    "no settings": (lambda: changed(lambda x: x[0].pop("settings")), "not a line of a live recording"),
    "row without a key": (lambda: changed(lambda x: first(x, "row").pop("num_waiting")), "damaged"),
    "state of other sizes": (lambda: changed(short_state), "state 1 of the recording is damaged"),
    "ops of other blocks": (lambda: changed(lambda x: first(x, "ops")["ops"][0][1].append(10**6)), "damaged"),
    "Parquet": (lambda: b"PAR1 nothing PAR1", "not a readable table of states"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_message_and_exit_code_2(name: str, tmp_path: Path) -> None:
    make, message = BAD[name]
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes(make())
    for command in (
        ("report",),
        ("export", "--format", "csv", "--out", str(tmp_path / "x")),
        ("layout", "--at", "0"),
    ):
        answered = sim(command[0], str(path), *command[1:])
        if command[0] == "layout" and name == "ops of other blocks":
            continue  # the picture of an instant does not need them
        assert answered.exit_code == 2, (command, answered.output)
        assert message in answered.output
        assert "Traceback" not in answered.output
    assert not (tmp_path / "x").exists()


def test_the_report_of_a_replay_is_told_apart() -> None:
    answered = sim("report", str(REAL.parent / "cpu-chat"))
    assert answered.exit_code == 2
    assert "the report of a replay, not a run folder" in answered.output


def test_other_parquet_files_are_refused(small_run: Path) -> None:
    answered = sim("report", str(small_run / "steps.parquet"))
    assert answered.exit_code == 2
    assert "no table of states" in answered.output
