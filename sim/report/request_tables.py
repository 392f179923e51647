"""The requests of a run: how much each wastes, and the worst of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sim.report import style
from sim.report.curves import histogram_chart
from sim.report.document import (
    Chart,
    Column,
    Inline,
    Paragraph,
    Part,
    Table,
    as_count,
    as_plural,
    as_seconds,
    as_share,
    as_span,
)
from sim.report.folder import RunFolder

_TOP = 3
_CLASSES = 16


def waste_histogram(run: RunFolder) -> Chart | None:
    """Finished requests by wasted slots at their end."""
    done = run.requests["status"] == 3
    wasted = run.requests["wasted_slots"][done]
    if len(wasted) == 0:
        return None
    high = int(wasted.max()) + 1
    step = max(1, -(-high // _CLASSES))
    counts = np.bincount(wasted // step, minlength=-(-high // step))
    labels = [str(i * step) if step == 1 else f"{i * step}-{i * step + step - 1}" for i in range(len(counts))]
    mean = float(wasted.mean())
    allocated = int(run.requests["allocated_slots"][done].sum())
    says: Inline = (
        as_plural(len(wasted), "finished request"),
        " leave ",
        as_count(mean, "slots"),
        " slots empty on average, ",
        as_share(int(wasted.sum()) / allocated if allocated else None),
        " of what they hold",
        f" (blocks of {run.summary['engine']['block_size']} slots).",
    )
    return histogram_chart(
        "waste_histogram",
        "Waste of finished requests",
        says,
        labels,
        [("requests", counts.tolist(), style.RED)],
        "wasted slots at the end",
        "requests",
        "waste_at_finish",
    )


def _worst(values: NDArray[np.int64]) -> list[int]:
    """Positions of the greatest positive values, greatest first; the earlier of equals."""
    order = np.argsort(-values, kind="stable")[:_TOP]
    return [int(i) for i in order if values[i] > 0]


def reasons_of(*criteria: tuple[NDArray[np.int64], str]) -> dict[int, list[str]]:
    """Position of each request that is among the worst by a criterion (value by request, name) -> names."""
    reasons: dict[int, list[str]] = {}
    for values, why in criteria:
        for i in _worst(values):
            reasons.setdefault(i, []).append(why)
    return reasons


def worst_requests(run: RunFolder, name_of: Callable[[int], str]) -> list[Part]:
    """A table of those that stand out, each with the reason."""
    r = run.requests
    if len(r["index"]) == 0:
        return []
    end = run.end_ns
    queue = np.where(r["first_scheduled_ns"] >= 0, r["first_scheduled_ns"], end) - r["arrival_ns"]
    reasons = reasons_of(
        (r["recomputed_tokens"], "most recomputed tokens"),
        (r["preemptions"], "most preemptions"),
        (r["peak_blocks"], "most blocks"),
        (np.where(r["status"] == 3, r["wasted_slots"], 0), "most waste at its end"),
        (queue, "longest wait"),
        (np.where(r["status"] >= 4, 1, 0), "never served"),
    )
    rows = []
    for i, found in reasons.items():
        finish = int(r["finish_ns"][i])
        took = (finish - int(r["arrival_ns"][i])) / 1e9 if finish >= 0 else None
        rows.append(
            (
                name_of(int(r["index"][i])),
                ", ".join(found),
                as_seconds(int(r["arrival_ns"][i]) / 1e9),
                as_count(int(r["prompt_tokens"][i]), "tokens"),
                as_count(int(r["output_tokens"][i]), "tokens"),
                as_count(int(r["hit_tokens"][i]), "tokens"),
                as_count(int(r["peak_blocks"][i]), "blocks"),
                as_count(int(r["wasted_slots"][i]), "slots"),
                as_count(int(r["preemptions"][i])),
                as_count(int(r["recomputed_tokens"][i]), "tokens"),
                as_span(float(queue[i]) / 1e9),
                as_span(took),
            )
        )
    columns = (
        Column("request", words=True),
        Column("stands out by", words=True),
        Column("arrival"),
        Column("prompt"),
        Column("output"),
        Column("hit"),
        Column("peak blocks"),
        Column("wasted", "waste_at_finish"),
        Column("preempted", "preemptions"),
        Column("recomputed", "recomputed_tokens"),
        Column("queued"),
        Column("took"),
    )
    note = "Up to three requests by each reason; tokens unless the heading says otherwise."
    return [Paragraph((note,), "note"), Table("worst_requests", columns, tuple(rows))]
