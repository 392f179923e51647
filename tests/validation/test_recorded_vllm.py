"""Recordings of a real vLLM 0.32.0, replayed with no vLLM installed: every column of every row must be equal.

`tests/recorded_vllm` holds short cases chosen from random ones (`python -m validation corpus`) and, below
`regressions`, cases that once differed (`python -m validation fuzz`). The conformance set is longer and lies
beside the repository.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.engine_checks import check_simulated
from validation.corpus import RecordedCase, features, read_case
from validation.diff import compare
from validation.record import record
from validation.steplog import num_rows
from validation.suite import simulated

RECORDED = Path(__file__).resolve().parents[1] / "recorded_vllm"
FOLDERS = {str(p.parent.relative_to(RECORDED)): p.parent for p in sorted(RECORDED.glob("**/config.json"))}


@pytest.fixture(params=FOLDERS)
def recorded(request: pytest.FixtureRequest) -> RecordedCase:
    return read_case(FOLDERS[request.param])


@pytest.mark.parametrize("target", ["reference", "sim"])
def test_replay_is_equal(recorded: RecordedCase, target: str) -> None:
    if target == "sim" and not simulated(recorded):
        pytest.skip(check_simulated(recorded.case.settings)[0].message)
    replayed = record(target, recorded.case.settings, recorded.case.requests)
    comparison = compare(recorded.log(), replayed.log)
    assert comparison.equal, comparison.summary()
    assert len(comparison.columns) == 34


def test_the_set_shows_what_it_is_kept_for() -> None:
    shown: set[str] = set()
    rows = size = 0
    random_cases = [folder for folder in FOLDERS.values() if folder.parent == RECORDED]
    for folder in random_cases:
        recorded = read_case(folder)
        log = recorded.log()
        shown |= features(recorded.case, log)
        rows += num_rows(log)
        size += sum(file.stat().st_size for file in folder.iterdir())
    assert {
        "async + preemption",
        "async + end token",
        "async + several preempted",
        "async + past the length limit",
        "block size 1 + preemption",
        "block size 1 + hits",
        "caching off + preemption",
        "chunking off + preemption",
        "priority + several preempted",
        "reserve off + preemption",
        "reserve off + hits after preemption",
        "threshold + preemption",
        "ties + preemption",
        "watermark + preemption",
        "active seqs",
        "adaptive",
        "duplicates",
        "gap",
        "idle run",
        "retention none",
        "salt",
        "scheduled tokens",
        "several finished",
    } <= shown
    assert len(random_cases) >= 25
    assert rows > 2000
    assert size < 1_000_000


def test_recordings_with_groups_show_what_they_are_kept_for() -> None:
    shown: set[str] = set()
    size = 0
    for name, folder in FOLDERS.items():
        if name.startswith("groups/"):
            recorded = read_case(folder)
            shown |= features(recorded.case, recorded.log())
            size += sum(file.stat().st_size for file in folder.iterdir())
    assert {
        "two windows + preemption",
        "two windows + async",
        "window + retention none",
        "window + retention interval",
        "window + hits after preemption",
        "window + caching off",
        "one group + window",
        "chunked + preemption",
        "chunked + window",
        "mamba + preemption",
        "mamba + hits after preemption",
        "mamba + async",
        "mamba + retention interval",
        "three types",
        "full later",
        "unequal block sizes + preemption",
        "unequal block sizes + hits",
        "unequal block sizes + several keys a block",
        "mamba + unequal block sizes",
        "three block sizes",
        "hash unit + mamba",
        "hash unit + hits after preemption",
        "drafts + preemption",
        "drafts + end token",
        "dropped blocks + hits",
        "dropped blocks + async",
        "dropped blocks + unequal block sizes",
        "dropped blocks + mamba",
        "draft model + hits",
        "a drafter's group + hits",
        "cross + preemption",
        "cross + async",
        "encoder inputs + preemption",
        "encoder inputs + async",
        "exported states + hits",
        "exported states + preemption",
    } <= shown, sorted(shown)
    assert size < 1_000_000


def test_every_simulated_case_of_the_conformance_set(conformance_dir: Path) -> None:
    """Equality in every column of every row with the longer recordings that lie beside the repository."""
    compared = []
    for folder in sorted(p.parent for p in conformance_dir.glob("*/config.json")):
        case = read_case(folder)
        if not simulated(case):
            continue
        replayed = record("sim", case.case.settings, case.case.requests)
        comparison = compare(case.log(), replayed.log)
        assert comparison.equal, f"{folder.name}: {comparison.summary()}"
        compared.append(folder.name)
    assert len(compared) >= 13, compared
