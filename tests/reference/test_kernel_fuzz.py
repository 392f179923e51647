"""The jitted engine against its twin on random engines and workloads: equal in every column of every row."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sim.core import codes as c
from sim.core.engine import abort_request, advance
from sim.engine_settings import EngineSettings
from sim.reference import Engine, EngineStuck, Settings, record
from sim.reference.steplog import StepLog
from sim.steplog import record as record_kernel
from tests.reference.kernel import Recorder, as_rows, kernel_rows, kernel_state, to_workload
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


@given(seed=st.integers(0, 2**32 - 1))
@hypothesis_settings(max_examples=10)
def test_a_request_that_never_fits_stops_both(seed: int) -> None:
    case = random_case(seed)
    settings = {**case.settings, "max_model_len": 4096, "scheduler_reserve_full_isl": True}
    settings |= {"enable_chunked_prefill": True, "idle_steps": "skip"}
    capacity = (settings["num_gpu_blocks"] - 1) * settings["block_size"]
    giant = {
        "request_id": "giant",
        "arrival_step": case.workload[len(case.workload) // 2]["arrival_step"],
        "prompt_token_ids": [0] * (capacity + 1),
        "output_token_ids": [0],
        "priority": 1,
    }
    workload = [*case.workload, giant]
    log = StepLog()
    with pytest.raises(EngineStuck, match="giant"):
        Engine(Settings.from_dict(settings), workload, log).run()
    kernel = record_kernel(EngineSettings(**settings), to_workload(workload))
    assert kernel.stuck
    rows = as_rows(kernel.columns)
    # They may notice it a step apart: from then on nothing happens.
    shared = min(len(rows), len(log.rows))
    assert_equal(rows[:shared], log.rows[:shared])
    for row in [*rows[shared:], *log.rows[shared:]]:
        assert (row["num_scheduled_tokens"], row["used_blocks"]) == (0, 0)
    assert abs(len(rows) - len(log.rows)) <= 4


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
