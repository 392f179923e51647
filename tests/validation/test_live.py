"""The live recorder without vLLM, on the plain-Python twin: it has the attributes of vLLM's scheduler that
matter."""

from __future__ import annotations

import gzip
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from sim.errors import InputError
from sim.reference.engine import Engine
from sim.reference.settings import Settings
from sim.reference.steplog import StepLog
from tests.reference.random_cases import random_case
from validation import live as plugin
from validation import steplog
from validation.cli import main
from validation.diff import compare
from validation.live import hooks
from validation.live.export import write_whole
from validation.live.hooks import LiveRecorder, record_scheduler
from validation.live.options import FULL, LiveOptions, parse_options
from validation.live.reader import curves, read, states, step_log
from validation.live.show import render, summary
from validation.live.writer import ITEM_BYTES, Writer


class TwinEngine(Engine):
    """The twin's engine with the attribute names that the recorder reads in a vLLM."""

    def __init__(self, settings: dict[str, Any], lines: list[dict[str, Any]]) -> None:
        self.log = StepLog()
        super().__init__(Settings.from_dict(settings), lines, observer=self.log)
        scheduler: Any = self.scheduler
        manager, pool = scheduler.kv_cache_manager, scheduler.kv_cache_manager.block_pool
        manager.coordinator.single_type_managers = manager.managers
        for group in manager.managers:
            group.kv_cache_spec = SimpleNamespace()
        queue = pool.free_block_queue
        scheduler.scheduler_config = scheduler.cache_config = SimpleNamespace(**settings)
        scheduler.max_model_len = settings.get("max_model_len")
        pool.free_block_queue.get_all_free_blocks = lambda: [pool.blocks[i] for i in queue.block_ids()]

    def record(self, path: Path, options: LiveOptions) -> LiveRecorder:
        """Run to the end under a recorder, and close it."""
        live = record_scheduler(self.scheduler, path, options)
        assert live is not None
        self.run()
        live.close()
        return live


def twin(seed: int = 3) -> TwinEngine:
    case = random_case(seed)
    return TwinEngine(case.settings, case.workload)


def expected_log(engine: TwinEngine) -> steplog.Columns:
    """The twin's log with its steps counted as a live recorder counts them."""
    numbers: dict[int, int] = {}
    for row in engine.log.rows:
        row["step"] = numbers.setdefault(row["step"], len(numbers))
        row["batch_step"] = numbers[row["batch_step"]]
    names = [name for name in steplog.COLUMNS if name in engine.log.rows[0]]
    return {name: [row[name] for row in engine.log.rows] for name in names}


@pytest.mark.parametrize("seed", range(6))
def test_full_rate_equals_the_twins_log(seed: int, tmp_path: Path) -> None:
    engine = twin(seed)
    live = engine.record(tmp_path / "live", FULL)
    recording = read(live.writer.final)
    assert recording.complete
    log = step_log(recording)
    log.pop("refcnt_crc")
    comparison = compare(expected_log(engine), log)
    assert comparison.equal, comparison.summary()


def test_diff_reads_a_recording(tmp_path: Path) -> None:
    """A recording at full rate stands for its step log; one of samples is refused."""
    engine = twin(2)
    live = engine.record(tmp_path / "live", FULL)
    log = expected_log(engine)
    steplog.write(tmp_path / "log.jsonl.gz", log)
    result = CliRunner().invoke(main, ["diff", str(live.writer.final), str(tmp_path / "log.jsonl.gz")])
    assert result.exit_code == 0, result.output
    assert "equal" in result.output
    sampled = twin(2).record(tmp_path / "sampled", LiveOptions()).writer.final
    result = CliRunner().invoke(main, ["diff", str(sampled), str(tmp_path / "log.jsonl.gz")])
    assert result.exit_code == 2
    assert "only samples were recorded" in result.output


def test_empty_steps_after_the_last_request_are_no_part_of_the_log(tmp_path: Path) -> None:
    """A running engine may come to one more step, in which it only tells the workers who has ended."""
    engine = twin(1)
    live = record_scheduler(engine.scheduler, tmp_path / "live", FULL)
    assert live is not None
    engine.run()
    rows = len(engine.log.rows)
    scheduler: Any = engine.scheduler
    scheduler.update_from_output(scheduler.schedule())
    live.close()
    recording = read(live.writer.final)
    assert len(recording.rows) == rows + 2
    log = step_log(recording)
    log.pop("refcnt_crc")
    assert compare(expected_log(engine), log).equal


def test_operations_rebuild_the_free_set(tmp_path: Path) -> None:
    """The stream of block operations, applied to reference counts alone, gives the last state."""
    engine = twin()
    recording = read(engine.record(tmp_path / "live", FULL).writer.final)
    counts = [0] * recording.header["settings"]["num_gpu_blocks"]
    for _, op in recording.ops:
        for block in op[1] if op[0] in ("new", "touch", "free") else ():
            counts[block] += -1 if op[0] == "free" else 1
            assert counts[block] >= 0
    last = list(states(recording))[-1]
    assert counts[1:] == last.ref_cnt[1:].tolist()
    assert {op[0] for _, op in recording.ops} >= {"new", "free", "cache"}
    assert recording.end is not None
    assert recording.end["ops"] == len(recording.ops)


def test_sampling_and_curves(tmp_path: Path) -> None:
    engine = twin()
    live = engine.record(tmp_path / "live", LiveOptions(row_every=4, state_every=8, budget=0))
    recording = read(live.writer.final)
    assert {row["step"] % 4 for row in recording.rows} == {0}
    assert recording.ops == []
    table = curves(recording)
    known = [i for i, value in enumerate(table["free_runs"]) if value is not None]
    assert 1 < len(known) < len(recording.rows)
    full = expected_log(engine)
    for i, row in enumerate(recording.rows):
        assert table["num_free_blocks"][i] == full["num_free_blocks"][row["call"] - 1]
    for i in known:
        call = recording.rows[i]["call"] - 1
        assert table["largest_free_run"][i] == full["largest_free_run"][call]
        assert table["wasted_slots"][i] == full["wasted_slots"][call]
    assert [r for ids in table["finished"] for r in ids] == [
        r for ids in full["finished"][: recording.rows[-1]["call"]] for r in ids
    ]
    with pytest.raises(InputError, match="only samples"):
        step_log(recording)


def test_a_budget_puts_states_off(tmp_path: Path) -> None:
    tight = LiveOptions(row_every=1, state_every=1, budget=1e-9)
    recording = read(twin().record(tmp_path / "live", tight).writer.final)
    assert sum(1 for _ in states(recording)) == 1


def test_a_full_queue_drops_counts_and_says_so(tmp_path: Path) -> None:
    """With a writer that does not get on, memory stays below the bound and the file tells what is missing."""
    engine = twin()
    live = record_scheduler(engine.scheduler, tmp_path / "live", FULL)
    assert live is not None
    writer, gate = live.writer, threading.Event()
    append = writer._append

    def slow(member: bytes) -> None:
        gate.wait(20)
        append(member)

    writer._append = slow  # type: ignore[method-assign]
    writer.limit = 60_000
    engine.run()
    assert writer.pending_bytes <= writer.limit
    assert writer.peak_bytes <= writer.limit
    assert writer.lost["row"] > 0
    assert live.failure is None
    gate.set()
    live.close()
    recording = read(writer.final)
    assert recording.lost == writer.lost
    assert recording.end is not None
    assert recording.end["lost"] == writer.lost
    assert len(recording.rows) + recording.lost["row"] == live.calls
    with pytest.raises(InputError, match="lines were lost"):
        step_log(recording)
    assert "row lines lost" in render(summary(recording), "x")


def test_an_item_larger_than_the_queue_is_lost_not_kept(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "x", 10 * ITEM_BYTES, 0.01, 1)
    assert not writer.put("row", 1 << 30, dict)
    assert writer.put("row", 0, dict)
    writer.close(dict)
    assert writer.lost == {"row": 1}
    assert writer.pending_bytes == 0


@pytest.mark.parametrize("where", ["_read_state", "_prefix_now", "_op"])
def test_an_exception_switches_the_recorder_off_and_nothing_else(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = twin()
    undisturbed.run()
    engine = twin()
    live = record_scheduler(engine.scheduler, tmp_path / "live", FULL)
    assert live is not None
    calls = 0

    def sometimes(*_: Any, **__: Any) -> Any:
        nonlocal calls
        calls += 1
        raise RuntimeError("injected")

    monkeypatch.setattr(live, where, sometimes)
    engine.run()
    assert engine.log.rows == undisturbed.log.rows
    assert calls == 1
    assert [r.getMessage() for r in caplog.records] == [
        "kvpool: the live recording ends here: RuntimeError: injected"
    ]
    assert not {"schedule", "update_from_output", "add_request"} & set(vars(engine.scheduler))
    recording = read(live.writer.final)
    assert "injected" in recording.errors[0]
    assert recording.end is not None
    assert recording.end["failed"]


def test_a_full_disk_ends_the_recording_and_keeps_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = twin()
    live = record_scheduler(engine.scheduler, tmp_path / "live", FULL)
    assert live is not None
    live.writer._flush_s = 0.01
    live.writer._wake.set()
    deadline = time.monotonic() + 10
    while not Path(f"{live.writer.final}.part").stat().st_size and time.monotonic() < deadline:
        time.sleep(0.01)

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("validation.live.writer.os.fsync", full)
    live.writer._wake.set()
    engine.run()
    live.close()
    monkeypatch.undo()
    assert live.writer.failure is not None
    recording = read(f"{live.writer.final}.part")
    assert recording.end is None
    assert not recording.torn_bytes
    assert not recording.complete


def test_a_killed_process_leaves_a_readable_file(tmp_path: Path) -> None:
    final = twin().record(tmp_path / "live", FULL).writer.final
    whole = read(final)
    cut = tmp_path / "cut.part"
    cut.write_bytes(final.read_bytes()[:-5])
    # one member only here, so nothing is left; two members, and the first is
    with pytest.raises(InputError, match="no whole line"):
        read(cut)
    lines = gzip.decompress(final.read_bytes()).splitlines(keepends=True)
    members = [gzip.compress(b"".join(lines[:20])), gzip.compress(b"".join(lines[20:]))]
    cut.write_bytes(members[0] + members[1][:-5])
    torn = read(cut)
    assert torn.torn_bytes == len(members[1]) - 5
    assert not torn.complete
    assert torn.rows == whole.rows[: len(torn.rows)]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    names = [twin().record(tmp_path / "a.jsonl.gz", FULL).writer.final.name for _ in range(3)]
    assert names == ["a.jsonl.gz", "a.1.jsonl.gz", "a.2.jsonl.gz"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)


def test_prompts_are_recorded_only_when_asked_for(tmp_path: Path) -> None:
    quiet = read(twin().record(tmp_path / "a", FULL).writer.final)
    assert not any("prompt_token_ids" in line or "output_token_ids" in line for line in quiet.requests)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", LiveOptions()),
        ("default, row_every=4", LiveOptions(row_every=4)),
        ("full", FULL),
        ("ops=on,queue_mb=0.5,budget=0", LiveOptions(ops=True, queue_mb=0.5, budget=0)),
    ],
)
def test_options(text: str, expected: LiveOptions) -> None:
    assert parse_options(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("row_evry=4", "row_every"),
        ("row_every=0", "at least 1"),
        ("ops=maybe", "on or off"),
        ("fast", "default, full"),
        ("compress=10", "0 to 9"),
        ("flush_s=-1", "not negative"),
    ],
)
def test_bad_options_are_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_options(text)


def test_the_plugin_does_nothing_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(hooks, "record_new_schedulers", lambda path, options: asked.append(path))
    monkeypatch.delenv(plugin.PATH_VARIABLE, raising=False)
    plugin.register()
    assert asked == []
    monkeypatch.setenv(plugin.PATH_VARIABLE, "live")
    plugin.register()
    assert asked == ["live"]


def test_the_plugin_reports_bad_options_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv(plugin.PATH_VARIABLE, str(tmp_path / "live"))
    monkeypatch.setenv(plugin.OPTIONS_VARIABLE, "nonsense=1")
    plugin.register()
    assert "nothing will be recorded" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = twin()
    assert record_scheduler(engine.scheduler, tmp_path / "none" / "live", FULL) is None
    assert len(caplog.records) == 1
    assert "schedule" not in vars(engine.scheduler)


@pytest.mark.parametrize(
    "content", [b"", b"text", gzip.compress(b"{}\n"), gzip.compress(b'{"kind":"header","format":"x"}\n')]
)
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(InputError, match="live recording"):
        read(path)
    assert CliRunner().invoke(main, ["live", "show", str(path)]).exit_code == 2


def test_show_and_export(tmp_path: Path) -> None:
    engine = twin()
    final = str(engine.record(tmp_path / "live", FULL).writer.final)
    run = CliRunner().invoke
    shown = run(main, ["live", "show", final])
    assert shown.exit_code == 0
    assert "missing: nothing" in shown.output
    assert json.loads(run(main, ["live", "show", final, "--json"]).output)["closed"]
    out = [tmp_path / name for name in ("steps.parquet", "curves.parquet", "snapshots.parquet")]
    exported = run(
        main,
        ["live", "export", final, "--out", str(out[0]), "--curves", str(out[1]), "--snapshots", str(out[2])],
    )
    assert exported.exit_code == 0, exported.output
    rows = len(engine.log.rows)
    assert steplog.num_rows(steplog.read(out[0])) == pq.read_table(out[1]).num_rows == rows
    states = pq.read_table(out[2])
    assert states.num_rows == rows
    assert states.schema.metadata[b"format"] == b"kvpool-snapshots"
    assert len(states.column("ref_cnt")[0]) == int(states.schema.metadata[b"num_gpu_blocks"])
    assert run(main, ["live", "export", final]).exit_code == 2
    refused = run(
        main, ["live", "export", final, "--engine", str(tmp_path / "c"), "--workload", str(tmp_path / "w")]
    )
    assert refused.exit_code == 2
    assert "tokens=on" in refused.output


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    def write(_file: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left"):
        write_whole(tmp_path / "x", write)
    assert list(tmp_path.iterdir()) == []
