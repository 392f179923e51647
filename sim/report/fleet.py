"""The section of a report that says what the routing of a fleet did."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.report import svg
from sim.report.curves import histogram_chart
from sim.report.document import (
    Chart,
    Column,
    Inline,
    Paragraph,
    Part,
    Table,
    as_count,
    as_share,
    as_span,
    plain_text,
)
from sim.report.fleet_plots import Rows, grid_over_time, heat, panels
from sim.report.fleet_text import fleet_lines, router_text
from sim.report.folder import RunFolder, read_rows
from sim.report.style import BLUE, GREEN

#: Beyond so many replicas the table has the extremes only.
_MOST_ROWS = 64

DEFINITIONS: dict[str, tuple[str, str]] = {
    "replica_requests": ("Requests of a replica", "Requests that the router sent to it."),
    "computed_tokens": (
        "Computed tokens",
        "Tokens scheduled on the replica: prompts without what was found in its cache, and outputs.",
    ),
    "replica_busy": ("Busy", "Simulated time in which a step of the replica executes / simulated time."),
    "replica_load": ("Requests in a replica", "Running and waiting requests, at the rows of the step log."),
}


def fleet_parts(run: RunFolder) -> list[Part]:
    """Paragraphs, the table of replicas and the charts; [] for a run of one engine."""
    fleet = run.summary.get("fleet")
    if fleet is None:
        return []
    said = [f"{label}: {text}." for label, text in fleet_lines(fleet)]
    parts: list[Part] = [
        Paragraph(
            (f"Requests were routed by {router_text(fleet['router'])} to {fleet['replicas']} replicas.",)
        ),
        *(Paragraph((line[0].upper() + line[1:],), "note") for line in said[1:]),
        _table(fleet),
    ]
    rows = read_rows(run.path / "replica_steps.parquet")
    if len(rows["time_ns"]) >= 2 * fleet["replicas"] and rows["time_ns"].max() > 0:
        parts += _heat_maps(fleet, rows)
    parts += _bars(run, fleet)
    return parts


def sums_note(run: RunFolder) -> list[Part]:
    """What the curves over time show of a fleet; [] for one engine."""
    if "fleet" not in run.summary:
        return []
    text = (
        "The curves are those of all replicas together: counts are sums, shares are of all their blocks."
        " Means beside them are those of one replica."
    )
    return [Paragraph((text,), "note")]


def _table(fleet: Any) -> Table:
    entries = fleet["per_replica"]
    caption = ""
    if len(entries) > _MOST_ROWS:
        order = sorted(entries, key=lambda p: p["computed_tokens"])
        entries = order[-_MOST_ROWS // 2 :][::-1] + order[: _MOST_ROWS // 2][::-1]
        caption = f"The {_MOST_ROWS // 2} replicas with the most and with the fewest computed tokens."
    rows = tuple(
        (
            str(p["replica"]),
            as_count(p["requests"], "requests"),
            as_count(p["computed_tokens"], "tokens"),
            as_share(p["busy"]),
            as_share(p["usage"]),
            as_count(p["num_running"], "requests"),
            as_count(p["num_waiting"], "requests"),
            as_share(p["first_lookup_token_hit_rate"]),
            as_share(p["internal_fragmentation"]),
            as_share(p["external_fragmentation"]),
            as_count(p["evicted_blocks"], "blocks"),
            as_count(p["preemptions"]),
            as_span(p["ttft_s_p50"]),
            as_span(p["ttft_s_p99"]),
        )
        for p in entries
    )
    columns = (
        Column("replica"),
        Column("requests", "replica_requests"),
        Column("computed", "computed_tokens"),
        Column("busy", "replica_busy"),
        Column("usage", "usage"),
        Column("running"),
        Column("waiting"),
        Column("hit rate", "first_lookup_hit_rate"),
        Column("internal", "internal_fragmentation"),
        Column("external", "external_fragmentation"),
        Column("evicted"),
        Column("preempted", "preemptions"),
        Column("first token p50"),
        Column("first token p99"),
    )
    return Table("replicas", columns, rows, caption)


def _heat_maps(fleet: Any, rows: Rows) -> list[Part]:
    n = fleet["replicas"]
    charts: list[Part] = []
    keys = ("fleet_usage", "fleet_load", "fleet_external")
    terms = ("usage", "replica_load", "external_fragmentation")
    shown = zip(keys, terms, panels(rows, fleet["usable_blocks_per_replica"]), strict=True)
    for key, term, (title, kind, values) in shown:
        grid, end = grid_over_time(rows, values, n)
        means = grid.mean(axis=1)
        most, least = int(np.argmax(means)), int(np.argmin(means))
        show = as_share if kind == "share" else (lambda x: as_count(round(x, 1), "requests"))
        says: Inline = (
            f"On average most in replica {most} (",
            show(float(means[most])),
            f"), least in replica {least} (",
            show(float(means[least])),
            ").",
        )
        bright = show(1.0 if kind == "share" else float(grid.max(initial=0)))
        with svg.drawing():
            figure = svg.new_figure(2.6)
            ax = figure.add_axes((0.085, 0.185, 0.895, 0.79))
            heat(ax, grid, end, kind)
            markup = svg.inline_svg(figure, key, f"{title}. {plain_text(says)}")
        data = {"replica_mean": [float(m) for m in means]}
        look = f"Bright is {bright.text}."
        charts.append(Chart(key, title, says, markup, data, term=term, look=look))
    return charts


def _bars(run: RunFolder, fleet: Any) -> list[Part]:
    entries = fleet["per_replica"]
    labels = [str(p["replica"]) for p in entries]
    rates = [p["first_lookup_token_hit_rate"] or 0.0 for p in entries]
    whole = run.summary["prefix_cache"]["first_lookup_token_hit_rate"]
    out: list[Part] = []
    if whole is not None:
        says: Inline = (
            "From ",
            as_share(fleet["hit_rate_least"]),
            " to ",
            as_share(fleet["hit_rate_most"]),
            ", ",
            as_share(whole),
            " over all.",
        )
        out.append(
            histogram_chart(
                "fleet_hit_rate",
                "Hit rate of each replica",
                says,
                labels,
                [("percent", [100 * r for r in rates], BLUE)],
                "replica",
                "percent of tokens looked up",
                "first_lookup_hit_rate",
            )
        )
    computed = [p["computed_tokens"] for p in entries]
    says = (
        "From ",
        as_count(min(computed), "tokens"),
        " to ",
        as_count(max(computed), "tokens"),
        " tokens.",
    )
    out.append(
        histogram_chart(
            "fleet_computed",
            "Tokens computed by each replica",
            says,
            labels,
            [("tokens", computed, GREEN)],
            "replica",
            "tokens",
            "computed_tokens",
        )
    )
    return out
