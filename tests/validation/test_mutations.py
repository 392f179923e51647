"""The mutation check: every fault still applies, and its named test notices it."""

from __future__ import annotations

import os
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from validation.corpus import read_case
from validation.mutations.check import RECORDED, check, chosen
from validation.mutations.document import render
from validation.mutations.faults import FAULTS
from validation.mutations.trees import CheckError, PatchError, patched
from validation.steplog import num_rows

ROOT = Path(__file__).resolve().parents[2]
#: `make validate` plants all of them; here a seventh, chosen by a hash of the name, unless asked for more.
ALL = bool(os.environ.get("KVPOOL_ALL_MUTATIONS"))
PLANTED = [f for f in FAULTS if ALL or zlib.crc32(f.name.encode()) % 7 == 0]


def test_there_are_enough_and_each_has_its_recording() -> None:
    assert len(FAULTS) >= 20
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    own = [fault.name for fault in FAULTS if not fault.recording]
    assert sorted(p.name for p in (RECORDED / "mutations").iterdir()) == sorted(own)
    assert all(num_rows(read_case(RECORDED / fault.folder).log()) < 400 for fault in FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_can_be_planted(fault) -> None:  # type: ignore[no-untyped-def]
    changed = patched(fault)
    assert changed != (ROOT / fault.file).read_text()
    compile(changed, fault.file, "exec")


def test_a_fault_whose_text_is_gone_is_named() -> None:
    fault = replace(FAULTS[0], old="no such text")
    with pytest.raises(PatchError, match=FAULTS[0].name):
        patched(fault)
    with pytest.raises(CheckError, match="write the fault anew"):
        check([fault], print)


def test_a_change_without_effect_is_not_called_caught() -> None:
    fault = replace(FAULTS[0], new=FAULTS[0].old + "  # as before")
    verdicts = check([fault], print)
    assert [v.outcome for v in verdicts] == ["MISSED"]


@pytest.mark.slow
def test_the_named_tests_catch_the_faults() -> None:
    verdicts = check(PLANTED, print)
    assert len(verdicts) == len(PLANTED) >= 4
    assert [v.fault.name for v in verdicts if not v.caught] == []


def test_the_document_is_the_list() -> None:
    assert (ROOT / "docs" / "mutations.md").read_text() == render()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(Exception, match="free_order_hashed"):
        chosen(["free_order_hash"])
