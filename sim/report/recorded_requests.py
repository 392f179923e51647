"""The requests of a recording: those that stand out."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.analysis.recorded import Recorded
from sim.report.document import Column, Paragraph, Part, Table, as_count, as_seconds, as_span
from sim.report.request_tables import reasons_of

_ENDS = {"length": "ended by its length", "stop": "ended by a stop"}
_MOST_COLUMNS = (
    Column("most blocks", "in_states"),
    Column("most waste", "in_states"),
    Column("most runs", "in_states"),
    Column("states", "in_states"),
)


def recorded_requests(recorded: Recorded) -> list[Part]:
    """A table of those that stand out, each with the reason; of a table of states what its states show."""
    r = recorded.requests
    seen = recorded.seen_in_states
    if r is None:
        return _seen_requests(seen)
    if not len(r["request_id"]):
        return []
    most = np.array([seen.get(str(name), [0, 0, 0, 0]) for name in r["request_id"]], dtype=np.int64)
    known = (r["arrival_ns"] >= 0) & (r["finish_ns"] >= 0)
    took = np.where(known, r["finish_ns"] - r["arrival_ns"], -1)
    reasons = reasons_of(
        (r["preemptions"], "most preemptions"),
        (most[:, 0], "most blocks"),
        (most[:, 1], "most waste"),
        (most[:, 2], "most runs"),
        (took, "longest"),
        (np.where((r["status"] == "aborted") | (r["status"] == "error"), 1, 0), "ended from outside"),
    )

    def number(value: int, unit: str) -> Any:
        return as_count(value if value >= 0 else None, unit)

    rows = tuple(
        (
            str(r["request_id"][i]),
            ", ".join(found),
            as_seconds(int(r["arrival_ns"][i]) / 1e9 if r["arrival_ns"][i] >= 0 else None),
            number(int(r["prompt_tokens"][i]), "tokens"),
            number(int(r["output_tokens"][i]), "tokens"),
            *_most(most[i].tolist()),
            as_count(int(r["preemptions"][i])),
            _ENDS.get(str(r["status"][i]), str(r["status"][i])),
            as_span(int(took[i]) / 1e9 if took[i] >= 0 else None),
        )
        for i, found in reasons.items()
    )
    columns = (
        Column("request", words=True),
        Column("stands out by", words=True),
        Column("arrival"),
        Column("prompt"),
        Column("output"),
        *_MOST_COLUMNS,
        Column("preempted", "preemptions"),
        Column("end", words=True),
        Column("took", "e2e"),
    )
    note = "Up to three requests by each reason; tokens unless the heading says otherwise."
    return [Paragraph((note,), "note"), Table("worst_requests", columns, rows)]


def _most(values: list[int]) -> tuple[Any, ...]:
    if not values[3]:
        return (
            as_count(None, "blocks"),
            as_count(None, "slots"),
            as_count(None, "runs"),
            as_count(0, "states"),
        )
    units = ("blocks", "slots", "runs", "states")
    return tuple(as_count(v, unit) for v, unit in zip(values, units, strict=True))


def _seen_requests(seen: dict[str, list[int]]) -> list[Part]:
    """The requests that the states show, for a file that knows no others."""
    if not seen:
        return []
    names = list(seen)
    most = np.array([seen[name] for name in names], dtype=np.int64)
    reasons = reasons_of((most[:, 0], "most blocks"), (most[:, 1], "most waste"), (most[:, 2], "most runs"))
    rows = tuple((names[i], ", ".join(found), *_most(most[i].tolist())) for i, found in reasons.items())
    columns = (Column("request", words=True), Column("stands out by", words=True), *_MOST_COLUMNS)
    return [Table("worst_requests", columns, rows)]
