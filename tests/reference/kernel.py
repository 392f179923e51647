"""The kernel behind the twin's interface: the settings and workload of the file formats in, rows out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sim.capacity import LogOptions, allocate
from sim.core.state import State
from sim.engine_settings import EngineSettings
from sim.step_time import StepTime
from sim.steplog import RowRecorder as Recorder
from sim.steplog import record
from workloads.builder import WorkloadBuilder
from workloads.requests import Workload

__all__ = ["NO_TIME", "Recorder", "as_rows", "kernel_rows", "kernel_state", "to_workload"]

NO_TIME = StepTime(0, np.zeros(12), np.zeros(1), np.zeros(1), np.zeros(1))
"""A step-time model for runs in logical time, which do not ask."""

Row = dict[str, Any]


def to_workload(lines: Sequence[Mapping[str, Any]]) -> Workload:
    """Lines of a logical-time workload with explicit tokens."""
    salts: dict[str, int] = {}
    vocab_size = 1 + max(max(*line["prompt_token_ids"], *line["output_token_ids"]) for line in lines)
    builder = WorkloadBuilder(vocab_size=vocab_size, clock="logical")
    for line in lines:
        salt = line.get("cache_salt")
        builder.add(
            [builder.add_tokens(line["prompt_token_ids"])],
            [len(line["prompt_token_ids"])],
            output_len=len(line["output_token_ids"]),
            out_seg=builder.add_tokens(line["output_token_ids"]),
            arrival=line["arrival_step"],
            max_tokens=line.get("max_tokens", len(line["output_token_ids"])),
            priority=line.get("priority", 0),
            salt=0 if salt is None else salts.setdefault(salt, len(salts) + 1),
            request_id=line["request_id"],
        )
    return builder.build({"kind": "logical"})


def kernel_state(settings: Mapping[str, Any], workload: Workload) -> State:
    """The kernel's state before the first step."""
    return allocate(EngineSettings(**settings), workload, NO_TIME, LogOptions(sample_period_ns=0))


def kernel_rows(settings: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The kernel's step log of a workload that can be served, one mapping a row."""
    log = record(EngineSettings(**settings), to_workload(lines))
    assert not log.stuck
    return as_rows(log.columns)


def as_rows(columns: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Columns as one mapping a row."""
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]
