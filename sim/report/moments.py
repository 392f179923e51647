"""The worst moments of a run: found in the step log, numbered, marked in every curve, explained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sim.report.document import (
    Column,
    Inline,
    Paragraph,
    Part,
    Piece,
    Table,
    Value,
    as_count,
    as_seconds,
    as_share,
)
from sim.report.series import Rows
from sim.report.units import clock_time

if TYPE_CHECKING:
    from sim.analysis.layout import LayoutReport, WorstMoment

_STANDS_OUT = 0.1
KINDS = {
    "num_free_blocks": "fewest free blocks",
    "wasted_slots": "most wasted slots",
    "external_fragmentation": "most fragmented",
}


@dataclass(frozen=True)
class Moment:
    """A row of the step log that is the worst by one metric; `label` is its number in order of time."""

    label: str
    metric: str
    row: int
    time_ns: int
    value: float


def external(steps: Rows) -> np.ndarray:
    """float64: external fragmentation by row."""
    free = steps["num_free_blocks"]
    return np.where(free > 0, 1.0 - steps["largest_free_run"] / np.maximum(free, 1), 0.0)


def find_moments(steps: Rows, usable_blocks: int, warmup_ns: int = 0) -> list[Moment]:
    """At most one a metric: the worst row after the warm-up (the earliest, where several are equal)."""
    late = np.flatnonzero(steps["time_ns"] >= warmup_ns)
    if len(late) == 0:
        return []
    found = []
    tight = late[np.lexsort((late, -steps["num_waiting"][late], steps["num_free_blocks"][late]))[0]]
    if steps["num_free_blocks"][tight] < usable_blocks:
        found.append(("num_free_blocks", int(tight), float(steps["num_free_blocks"][tight])))
    for metric, values in (
        ("wasted_slots", steps["wasted_slots"]),
        ("external_fragmentation", external(steps)),
    ):
        row = int(late[np.argmax(values[late])])
        if values[row] > 0:
            found.append((metric, row, float(values[row])))
    moments = [Moment("", metric, row, int(steps["time_ns"][row]), value) for metric, row, value in found]
    moments.sort(key=lambda m: (m.time_ns, m.metric))
    return [replace(m, label=str(i)) for i, m in enumerate(moments, 1)]


def _value(steps: Rows, moment: Moment) -> Inline:
    i = moment.row
    if moment.metric == "num_free_blocks":
        return (as_count(int(steps["num_free_blocks"][i]), "blocks"), " blocks free")
    if moment.metric == "wasted_slots":
        part = steps["wasted_slots"][i] / max(int(steps["allocated_slots"][i]), 1)
        return (
            as_count(int(steps["wasted_slots"][i]), "slots"),
            " slots wasted, ",
            as_share(float(part)),
            " of those allocated",
        )
    return (
        as_share(float(external(steps)[i])),
        ": the longest of ",
        as_count(int(steps["free_runs"][i]), "runs"),
        " free runs has ",
        as_count(int(steps["largest_free_run"][i]), "blocks"),
        " of ",
        as_count(int(steps["num_free_blocks"][i]), "blocks"),
        " free blocks",
    )


def _causes(moment: Moment, worst: Sequence[WorstMoment]) -> Inline:
    for found in worst:
        if found.metric == moment.metric and found.time_ns == moment.time_ns:
            causes = found.causes[:3]
            if not causes:
                return ("no request",)
            pieces: list[Piece] = []
            for cause in causes:
                alone = f" ({cause.sole:,} alone)" if cause.sole else ""
                pieces += [", " if pieces else "", f"{cause.request_id} ", as_share(cause.share), alone]
            pieces.append(f" of the {causes[0].of_what}")
            if causes[0].share < _STANDS_OUT:
                pieces.append("; no request stands out")
            return tuple(pieces)
    return ("-",)


def moments_table(
    steps: Rows, moments: Sequence[Moment], layout: LayoutReport | None, started_unix_ns: int | None = None
) -> list[Part]:
    """What the marked moments are, and who caused them.

    Args:
        steps: the rows in which they were found.
        moments: see there.
        layout: with the causes of the moments; None: they are not known.
        started_unix_ns: Unix time of time zero, to show the clock on the wall too.
    """
    if not moments:
        return []
    columns = [
        Column("#", words=True),
        Column("time"),
        Column("worst by", words=True),
        Column("value", words=True),
        Column("running"),
        Column("waiting"),
    ]
    if started_unix_ns is not None:
        columns.insert(2, Column("UTC", words=True))
    if layout is not None:
        columns.append(Column("caused by", words=True))
    rows = []
    for m in moments:
        row: list[str | Value | Inline] = [
            m.label,
            as_seconds(m.time_ns / 1e9),
            KINDS[m.metric],
            _value(steps, m),
            as_count(int(steps["num_running"][m.row]), "requests"),
            as_count(int(steps["num_waiting"][m.row]), "requests"),
        ]
        if started_unix_ns is not None:
            row.insert(2, clock_time(started_unix_ns + m.time_ns, date=False))
        if layout is not None:
            row.append(_causes(m, layout.worst))
        rows.append(tuple(row))
    note = "The numbers mark the same moments in every curve"
    if "preemptions" in steps and steps["preemptions"][-1] > 0:
        note += "; the strokes at its foot are preemptions"
    table = Table("moments", tuple(columns), tuple(rows))
    return [Paragraph((f"{note}.",), "note", only="picture"), table]
