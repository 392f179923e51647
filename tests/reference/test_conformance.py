"""The reference twin against recordings of a real vLLM 0.32.0: every full-attention case, every column."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sim.reference import record

FULL_ATTENTION_CASES = [
    "async_tight",
    "caching_off",
    "chat_multiturn",
    "duplicates",
    "exact_multiple",
    "long_prompts_chunked",
    "poisson_plain",
    "priority_tight",
    "shared_prompts",
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


@pytest.mark.parametrize("name", FULL_ATTENTION_CASES)
def test_every_row_and_column_equals_the_recording(conformance_dir: Path, name: str) -> None:
    config, workload, recorded = load(conformance_dir / name)
    rows = record(config, workload)
    for row, want in zip(rows, recorded, strict=False):
        wanted = {column: value for column, value in want.items() if column not in NOT_COMPARED}
        assert row == wanted, f"{name}: step {want['step']} {want['phase']}"
    assert len(rows) == len(recorded)


def test_the_list_above_is_all_there_is(conformance_dir: Path) -> None:
    full = []
    for config in sorted(conformance_dir.glob("*/config.json")):
        groups = json.loads(config.read_text()).get("kv_cache_groups", [{"type": "full"}])
        if all(group["type"] == "full" for group in groups):
            full.append(config.parent.name)
    assert full == FULL_ATTENTION_CASES
