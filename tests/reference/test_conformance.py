"""The reference twin against recordings of a real vLLM 0.32.0: every case, every column."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sim.reference import record

CASES = [
    "async_tight",
    "caching_off",
    "chat_multiturn",
    "chunked_local_hybrid",
    "duplicates",
    "exact_multiple",
    "hybrid_full_swa",
    "long_prompts_chunked",
    "mamba_hybrid_align",
    "poisson_plain",
    "priority_tight",
    "shared_prompts",
    "swa_only",
    "tight_preempt",
    "tight_preempt_shared",
    "tiny_pool",
    "watermark",
]

NOT_COMPARED = {"refcnt_crc"}
"""Includes the null block's reference count, which vLLM does not maintain."""


def load(case: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Engine configuration, workload lines and recorded rows of one case."""
    config = json.loads((case / "config.json").read_text())
    with gzip.open(case / "workload.jsonl.gz", "rt") as lines:
        workload = [json.loads(line) for line in lines]
    return config, workload, pq.read_table(case / "steps.parquet").to_pylist()


@pytest.mark.parametrize("name", CASES)
def test_every_row_and_column_equals_the_recording(conformance_dir: Path, name: str) -> None:
    config, workload, recorded = load(conformance_dir / name)
    rows = record(config, workload)
    for row, want in zip(rows, recorded, strict=False):
        wanted = {column: value for column, value in want.items() if column not in NOT_COMPARED}
        assert row == wanted, f"{name}: step {want['step']} {want['phase']}"
    assert len(rows) == len(recorded)


def test_the_list_above_is_all_there_is(conformance_dir: Path) -> None:
    assert sorted(config.parent.name for config in conformance_dir.glob("*/config.json")) == CASES
