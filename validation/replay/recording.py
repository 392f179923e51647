"""What a replay recorded, and its files.

timeline.parquet   one row after each schedule and update call: what stands in sim's steps.parquet
batches.parquet    one row a batch: what was in it and how long it took
requests.parquet   one row a request that arrived
steps.parquet      the exact step log of the same run, which `validation diff` reads
recording.json     which hardware and versions, how long, what the recorder itself cost
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.columns import REQUESTS, STEPS
from sim.errors import InputError
from validation.steplog import Columns

Table = dict[str, NDArray[Any]]

BATCHES: dict[str, tuple[str, str]] = {
    "loop_step": ("", "engine-loop step of the schedule call"),
    "start_ns": ("ns", "start of that step"),
    "done_ns": ("ns", "end of the step of the batch's update call; -1: not made"),
    "duration_ns": ("ns", "from the start, or the end of the batch before if that is later, to done"),
    "scheduled_tokens": ("tokens", "tokens of the batch"),
    "context_tokens": ("tokens", "decode_context + prefill_context"),
    "prefill_tokens": ("tokens", "tokens of requests that compute more than one"),
    "decode_seqs": ("requests", "requests that compute exactly one token"),
    "decode_context": ("tokens", "tokens computed before that the decodes read"),
    "prefill_pairs": ("", "query-key pairs of the prefills"),
    "prefill_context": ("tokens", "tokens that the prefills read"),
    "sampled": ("requests", "requests that sample a token"),
}
TIMELINE: dict[str, tuple[str, str]] = {
    **{k: v for k, v in STEPS.items() if k not in ("cached_free_blocks", "evictions", "step_duration_ns")},
    "wall_ns": ("ns", "when the row itself was taken; time_ns is the start of the step, or its end"),
    "engine_steps": ("", "cumulative: engine steps, as a server counts them"),
    "computed_prompt_tokens": ("tokens", "cumulative: prompt tokens that a server computed"),
    "generated_tokens": ("tokens", "cumulative: tokens that a server generated"),
    "updated": ("", "0: after schedule(), 1: after update_from_output()"),
}
MORE_REQUESTS: dict[str, tuple[str, str]] = {
    **REQUESTS,
    "added_ns": ("ns", "handed to the engine"),
    "added_step": ("", "engine-loop step before which it was handed over"),
}
_TABLES = {"timeline": TIMELINE, "batches": BATCHES, "requests": MORE_REQUESTS}


@dataclass
class Recording:
    """A recorded replay.

    Attributes:
        kind: "engine" (every step seen) or "http" (a server's metrics, polled).
        timeline: columns over time; time_ns ascends, of equal times the last row holds.
        requests: one entry a request that arrived, in the order of the workload.
        batches: one entry a batch; None for http.
        steps: the exact step log; None for http.
        order: workload indices in the order in which they were handed over.
        info: hardware, versions, duration, what the recorder cost.
    """

    kind: str
    timeline: Table
    requests: Table
    batches: Table | None = None
    steps: Columns | None = None
    order: list[int] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def end_ns(self) -> int:
        """The last moment of the timeline."""
        return int(self.timeline["time_ns"][-1]) if len(self.timeline["time_ns"]) else 0

    def files(self) -> dict[str, bytes]:
        """Name -> content of the recording's files."""
        from sim.results import to_json, to_parquet
        from validation.steplog import to_table

        out: dict[str, bytes] = {}
        for name, known in _TABLES.items():
            table: Table | None = getattr(self, name)
            if table is not None:
                out[f"{name}.parquet"] = to_parquet(table, known, {"format": "1"})
        if self.steps is not None:
            out["steps.parquet"] = _arrow_bytes(to_table(self.steps))
        out["recording.json"] = to_json({"kind": self.kind, "order": self.order, **self.info})
        return out


def _arrow_bytes(table: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False)
    return bytes(sink.getvalue().to_pybytes())


def read_recording(folder: str | Path) -> Recording:
    """Read the recording of a report folder.

    Raises:
        InputError: it is not there, or not whole.
    """
    from validation import steplog

    place = Path(folder)
    try:
        info = json.loads((place / "recording.json").read_text(encoding="utf-8"))
        kind, order = info.pop("kind"), info.pop("order")
    except (OSError, ValueError, KeyError, AttributeError) as e:
        raise InputError(
            f"no recording of a replay: {e}", str(folder), hint="give the folder that `replay --out` wrote"
        ) from None
    tables = {name: read_table(place / f"{name}.parquet") for name in _TABLES if _has(place, name, kind)}
    steps = steplog.read(place / "steps.parquet") if kind == "engine" else None
    return Recording(
        kind, tables["timeline"], tables["requests"], tables.get("batches"), steps, list(order), info
    )


def _has(place: Path, name: str, kind: str) -> bool:
    return kind == "engine" or (place / f"{name}.parquet").exists()


def read_table(path: Path) -> Table:
    """A Parquet file of numbers as arrays by column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as e:
        raise InputError(f"not a readable Parquet file: {str(e).splitlines()[0]}", str(path)) from None
    return {name: table.column(name).to_numpy() for name in table.column_names}


def request_table(columns: Mapping[str, NDArray[Any]]) -> Table:
    """The rows of the requests that arrived, with their index in the workload first."""
    arrived = np.flatnonzero(np.asarray(columns["arrival_ns"]) >= 0)
    table: Table = {"index": arrived.astype(np.int64)}
    table |= {name: np.asarray(values)[arrived].astype(np.int64) for name, values in columns.items()}
    return table
