"""What the analysis of a re-simulated run adds: failures, cache and residency, who splits the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.report import style
from sim.report.curves import histogram_chart
from sim.report.document import (
    Card,
    Cards,
    Chart,
    Column,
    Inline,
    Paragraph,
    Part,
    Piece,
    Table,
    Value,
    as_count,
    as_plural,
    as_seconds,
    as_share,
    as_span,
)
from sim.report.units import plural

if TYPE_CHECKING:
    from sim.analysis.layout import LayoutReport
    from sim.analysis.residency import Residency
    from sim.analysis.tracker import AllocationFailure, ResidencyHistogram, Tracked

_ROWS, _FEW = 10, 5


# ---- allocation failures ----


def failure_parts(tracked: Tracked) -> list[Part]:
    """Causes and outcomes counted, then the episodes that cost most."""
    failures = tracked.failures
    fit: Inline = (
        "A contiguous allocator would have refused ",
        as_count(tracked.contiguous_fit_failures, "allocations"),
        " of ",
        as_plural(tracked.allocations, "allocation"),
        " although enough blocks were free.",
    )
    if not failures:
        return [Paragraph(("No request was ever refused a block.",)), Paragraph(fit)]
    groups: dict[tuple[str, str], list[AllocationFailure]] = {}
    for f in failures:
        groups.setdefault((f.cause, f.outcome), []).append(f)
    rows = []
    for (cause, outcome), found in sorted(groups.items(), key=lambda g: (-len(g[1]), g[0])):
        waits = sorted(f.waited_ns for f in found)
        rows.append(
            (
                cause,
                outcome,
                as_count(len(found), "episodes"),
                as_count(sum(f.attempts for f in found), "refusals"),
                as_span(sum(waits) / len(waits) / 1e9),
                as_span(waits[-1] / 1e9),
                as_count(sum(len(f.preempted) for f in found), "requests"),
                as_count(sum(f.recomputed_tokens for f in found), "tokens"),
            )
        )
    summary = Table(
        "failures",
        (
            Column("cause", "failures", words=True),
            Column("outcome", words=True),
            Column("episodes"),
            Column("refusals"),
            Column("mean wait"),
            Column("longest wait"),
            Column("preempted", "preemptions"),
            Column("recomputed", "recomputed_tokens"),
        ),
        tuple(rows),
    )
    worst = sorted(failures, key=lambda f: (-f.recomputed_tokens, -f.waited_ns, f.time_ns))[:_ROWS]
    names = tracked.request_ids
    listed = Table(
        "worst_failures",
        (
            Column("request", words=True),
            Column("time"),
            Column("cause", "failures", words=True),
            Column("wanted"),
            Column("free"),
            Column("refusals"),
            Column("waited"),
            Column("outcome", words=True),
        ),
        tuple(
            (
                f.request_id,
                as_seconds(f.time_ns / 1e9),
                f.cause,
                as_count(f.wanted_blocks, "blocks"),
                as_count(f.free_blocks, "blocks"),
                as_count(f.attempts),
                as_span(f.waited_ns / 1e9),
                _outcome(f, names),
            )
            for f in sorted(worst, key=lambda f: f.time_ns)
        ),
        caption=f"The {len(worst)} of {len(failures):,} episodes that cost most, in order of time.",
    )
    return [Paragraph(fit), summary, listed]


def _outcome(f: AllocationFailure, names: tuple[str, ...]) -> Inline:
    if not f.preempted:
        return (f.outcome,)
    whom = ", ".join(names[r] for r in f.preempted[:3])
    more = f" and {len(f.preempted) - 3} more" if len(f.preempted) > 3 else ""
    return (f"{f.outcome}: {whom}{more}; ", as_plural(f.recomputed_tokens, "token"), " recomputed")


# ---- cache and residency ----


def _bound(s: float) -> str:
    """A bucket's bound on an axis: `5ms`, `1s`, `30min`."""
    for scale, unit in ((60.0, "min"), (1.0, "s"), (1e-3, "ms")):
        if s >= scale:
            return f"{s / scale:.3g}{unit}"
    return f"{s * 1e6:.3g}us"


def _duration_chart(key: str, title: str, h: ResidencyHistogram, color: str) -> Chart:
    labels = [_bound(float(b)) for b in h.bounds_s]
    labels.append(f">{labels[-1]}")
    says: Inline = (
        as_plural(h.count, "duration"),
        ": median ",
        as_seconds(h.quantile(0.5)),
        ", p90 ",
        as_seconds(h.quantile(0.9)),
        ", longest ",
        as_seconds(h.max_s if h.count else None),
        ".",
    )
    return histogram_chart(
        key,
        title,
        says,
        labels,
        [("blocks", h.counts.tolist(), color)],
        "at most (vLLM's buckets)",
        "blocks",
        key,
    )


def cache_parts(tracked: Tracked) -> list[Part]:
    """What the cache was good for, and how long blocks lived."""
    c, r = tracked.cache, tracked.residency
    pollution = Value(None, "-") if c.pollution is None else as_share(c.pollution)
    cards = Cards(
        (
            Card(
                "Hit rate at first lookup",
                as_share(c.hit_rate),
                (as_count(c.hits, "tokens"), " of ", as_plural(c.queries, "token")),
                "first_lookup_hit_rate",
            ),
            Card(
                "Hit rate when resumed",
                as_share(c.resumed_hit_rate),
                (as_count(c.resumed_hits, "tokens"), " of ", as_plural(c.resumed_queries, "token")),
                "resumed_hit_rate",
            ),
            Card(
                "Evicted without a hit",
                pollution,
                (as_count(c.evicted_unused, "blocks"), " of ", as_plural(c.evicted, "block")),
                "pollution",
            ),
            Card(
                "Duplicate blocks at the end",
                as_count(c.duplicates_at_end, "blocks"),
                ("of ", as_plural(c.cached_at_end, "cached block")),
                "duplicates",
            ),
            Card(
                "Unreachable blocks at the end",
                as_count(c.unreachable_at_end, "blocks"),
                ("of ", as_plural(c.cached_at_end, "cached block"))
                if c.unreachable_at_end is not None
                else ("not known with windows or states",),
                "unreachable",
            ),
        )
    )
    return [cards, *residency_parts(r)]


def residency_parts(r: Residency) -> list[Part]:
    """How long blocks lived, idled and waited for their next hit."""
    parts: list[Part] = []
    charts = [
        _duration_chart(key, title, h, color)
        for key, title, h, color in (
            ("lifetime", "Block lifetime", r.lifetime, style.BLUE),
            ("idle", "Idle before eviction", r.idle, style.GREEN),
            ("reuse_gap", "Reuse gap", r.reuse_gap, style.ORANGE),
        )
        if h.count
    ]
    if charts:
        parts += charts
        note: list[Piece] = [
            as_plural(r.open_records, "followed block"),
            " had not been allocated again at the end",
        ]
        note += [" and are not counted; ", as_share(r.sample_rate), " of the allocations were followed."]
        parts.append(Paragraph(tuple(note), "note"))
    else:
        parts.append(
            Paragraph(("No block was allocated a second time: there are no lifetimes to show.",), "note")
        )
    return parts


# ---- layout ----


def layout_parts(layout: LayoutReport) -> list[Part]:
    """Who splits the free space, stripes, regions that never coalesce."""
    parts: list[Part] = []
    if layout.interleaving:
        mean = sum(layout.interleaving) / len(layout.interleaving)
        parts.append(
            Paragraph(
                (
                    "Of neighbouring used blocks, ",
                    as_share(mean),
                    f" belong to different requests (mean over {len(layout.interleaving)} instants, at most ",
                    as_share(max(layout.interleaving)),
                    ").",
                )
            )
        )
    if layout.splitters:
        parts.append(
            Table(
                "splitters",
                (
                    Column("request", words=True),
                    Column("gaps", "splitters"),
                    Column("share of gaps"),
                    Column("sole gaps", "splitters"),
                    Column("blocks there"),
                    Column("free blocks beside"),
                    Column("oldest block"),
                ),
                tuple(
                    (
                        x.request_id,
                        as_count(x.boundaries, "gaps"),
                        as_share(x.share),
                        as_count(x.sole, "gaps"),
                        as_count(x.blocks, "blocks"),
                        as_count(x.free_blocks_split, "blocks"),
                        as_span(x.age_ns / 1e9 if x.age_ns >= 0 else None),
                    )
                    for x in layout.splitters[:_ROWS]
                ),
                caption="Who splits the free space: requests whose blocks stand between free runs; sums over"
                f" {plural(len(layout.times_ns), 'instant')}.",
            )
        )
    if layout.stripes:
        parts.append(
            Table(
                "stripes",
                (
                    Column("blocks", "stripes", words=True),
                    Column("length"),
                    Column("changes of owner"),
                    Column("interleaving"),
                    Column("requests"),
                    Column("most blocks", words=True),
                ),
                tuple(
                    (
                        f"{x.first:,} to {x.last:,}",
                        as_count(x.last - x.first + 1, "blocks"),
                        as_count(x.changes),
                        as_share(x.interleaving),
                        as_count(len(x.request_ids), "requests"),
                        ", ".join(x.request_ids[:4]),
                    )
                    for x in layout.stripes[:_FEW]
                ),
                caption="The longest stripes: where neighbours belong to different requests.",
            )
        )
    if layout.regions:
        parts.append(
            Table(
                "regions",
                (
                    Column("blocks", "regions", words=True),
                    Column("length"),
                    Column("longest free run"),
                    Column("free on average"),
                ),
                tuple(
                    (
                        f"{x.first:,} to {x.last:,}",
                        as_count(x.last - x.first + 1, "blocks"),
                        as_count(x.longest_run, "blocks"),
                        as_share(x.mean_free),
                    )
                    for x in layout.regions[:_FEW]
                ),
                caption=f"The longest regions that never coalesce: no free run longer than"
                f" {plural(layout.coalesce, 'block')} at any of the {plural(layout.busy_instants, 'instant')}"
                " at which half of the pool was used.",
            )
        )
    if not (layout.splitters or layout.stripes or layout.regions):
        parts.append(Paragraph(("Nothing stands out in the layout of the pool.",)))
    return parts
