"""`validation diff`: what it calls equal, what it says about the first difference, its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sim.errors import InputError
from tests.validation.steplog_samples import small_log
from validation import steplog
from validation.cli import main
from validation.diff import compare


def test_equal_logs() -> None:
    result = compare(small_log(), small_log())
    assert result.equal
    assert set(result.columns) == set(steplog.COLUMNS) - {"refcnt_crc"}


def test_the_null_blocks_count_is_not_compared() -> None:
    other = small_log()
    other["refcnt_crc"] = [0] * 4
    assert compare(small_log(), other).equal
    assert not compare(small_log(), other, ["refcnt_crc"]).equal


def test_the_first_difference_is_the_first_row_then_the_first_column() -> None:
    other = small_log()
    other["sched_crc"][1] = 7
    other["free_queue_crc"][2] = 7
    other["num_running"][2] = 7
    other["num_running"][3] = 7
    result = compare(small_log(), other)
    assert result.first is not None
    assert (result.first.row, result.first.column, result.first.b) == (1, "sched_crc", 7)
    assert result.first.at == {"step": 1, "phase": "updated", "batch_step": 1}
    assert result.differing == {"num_running": 2, "free_queue_crc": 1, "sched_crc": 1}
    assert "row 1 (step 1 updated, batch 1) sched_crc" in result.summary()


@pytest.mark.parametrize("swap", [False, True])
def test_a_log_that_ends_early_differs(swap: bool) -> None:
    logs = [small_log(4), small_log(3)]
    result = compare(*(reversed(logs) if swap else logs))
    assert not result.equal
    assert result.first is not None
    assert (result.first.row, result.first.column) == (3, "(rows)")
    assert ("only in B" if swap else "only in A") in result.summary()


def test_a_column_that_only_one_log_has_is_a_difference() -> None:
    other = small_log()
    del other["sched_crc"]
    result = compare(small_log(), other)
    assert result.first is None
    assert not result.equal
    assert result.only_in_a == ("sched_crc",)
    assert compare(small_log(), other, ["step", "num_running"]).equal


def test_an_unknown_column_names_the_nearest() -> None:
    with pytest.raises(InputError, match="free_queue_crc"):
        compare(small_log(), small_log(), ["free_que_crc"])


def test_exit_codes_and_output(tmp_path: Path) -> None:
    other = small_log()
    other["finished"][3] = ["r9"]
    a = str(steplog.write(tmp_path / "a.parquet", small_log()))
    b = str(steplog.write(tmp_path / "b.jsonl.gz", other))
    run = CliRunner().invoke
    assert run(main, ["diff", a, a]).exit_code == 0
    differs = run(main, ["diff", a, b])
    assert differs.exit_code == 1
    assert "first difference: row 3: step 3, phase updated, batch_step 3, column finished" in differs.output
    assert "A: []\n  B: ['r9']" in differs.output
    assert run(main, ["diff", a, b, "--columns", "step,phase"]).exit_code == 0
    assert run(main, ["diff", a, str(tmp_path / "none.parquet")]).exit_code == 2
    as_json = run(main, ["diff", a, b, "--json"])
    assert as_json.exit_code == 1
    report = json.loads(as_json.output)
    assert report["differing"] == {"finished": 1}
    assert report["first"]["row"] == 3
