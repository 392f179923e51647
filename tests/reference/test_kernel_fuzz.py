"""The jitted engine against its twin on random engines and workloads: equal in every column of every row."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sim.core import codes as c
from sim.core.engine import abort_request, advance
from sim.reference import record
from tests.reference.kernel import Recorder, kernel_rows, kernel_state, to_workload
from tests.reference.random_cases import random_case

FOREVER = 1 << 62
Row = dict[str, Any]


def assert_equal(rows: list[Row], expected: list[Row]) -> None:
    """Equal in the expected columns, with the first difference named."""
    for row, want in zip(rows, expected, strict=False):
        different = {k: (row[k], value) for k, value in want.items() if row[k] != value}
        assert not different, f"step {want['step']} {want['phase']}: (kernel, twin) {different}"
    assert len(rows) == len(expected)


@given(seed=st.integers(0, 2**32 - 1))
@hypothesis_settings(max_examples=30)
def test_every_row_and_column_is_equal(seed: int) -> None:
    case = random_case(seed)
    assert_equal(kernel_rows(case.settings, case.workload), record(case.settings, case.workload))


def rows_with_aborts(
    case_settings: dict[str, Any], lines: list[Row], aborts: dict[int, list[str]]
) -> list[Row]:
    """Drive the kernel phase by phase, aborting before the schedule of a step."""
    workload = to_workload(lines)
    state = kernel_state(case_settings, workload)
    recorder = Recorder(state, workload)
    index = {line["request_id"]: i for i, line in enumerate(lines)}
    due = sorted(aborts.items())
    rows: list[Row] = []
    while True:
        while due and state.ctl.phase == c.P_SCHEDULE and due[0][0] <= state.ctl.step:
            for request_id in due.pop(0)[1]:
                abort_request(state, index[request_id])
        reason = advance(state, FOREVER)
        if reason not in (c.X_SCHEDULED, c.X_UPDATED):
            return rows
        rows.append(recorder.row(reason == c.X_UPDATED))


@given(seed=st.integers(0, 2**32 - 1))
@hypothesis_settings(max_examples=15)
def test_aborts_leave_equal_states(seed: int) -> None:
    case = random_case(seed, with_aborts=True)
    arrival = {line["request_id"]: line["arrival_step"] for line in case.workload}
    # In the step of its arrival the kernel aborts before, the twin after it is queued.
    aborts = {step: ids for step, ids in case.aborts.items() if step > arrival[ids[0]]}
    expected = record(case.settings, case.workload, aborts=aborts)
    for row in expected:
        del row["finished"]  # aborted ids stand in the twin's next row
    rows = rows_with_aborts(case.settings, case.workload, aborts)
    # An abort that ends the workload: the twin still makes the empty calls that tell the workers.
    tail = expected[len(rows) :]
    assert len(tail) <= 4
    assert all(row["num_scheduled_tokens"] == 0 and row["used_blocks"] == 0 for row in tail)
    assert_equal(rows, expected[: len(rows)])
