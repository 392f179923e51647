"""One rule of vLLM each: a short recording of a real vLLM 0.32.0 that a kernel without the rule could not
repeat.

The mutation check (docs/mutations.md) takes the rules away one by one and runs these tests.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from validation.corpus import read_case
from validation.diff import compare
from validation.mutations.faults import FAULTS
from validation.record import record

RECORDED = Path(__file__).resolve().parents[1] / "recorded_vllm"
FOLDERS = {fault.name: fault.folder for fault in FAULTS}


@pytest.mark.parametrize("name", FOLDERS)
def test_rule(name: str) -> None:
    recorded = read_case(RECORDED / FOLDERS[name])
    replayed = record("sim", recorded.case.settings, recorded.case.requests)
    assert replayed.stuck is None
    comparison = compare(recorded.log(), replayed.log)
    assert comparison.equal, comparison.summary()
    assert len(comparison.columns) == 34
