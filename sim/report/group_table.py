"""The KV-cache groups of an engine in a report: what each held, and what it lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.report.document import (
    Column,
    Inline,
    Paragraph,
    Part,
    Table,
    Value,
    as_count,
    as_share,
)
from sim.report.units import count, plural

if TYPE_CHECKING:
    from sim.analysis.findings import GroupUse
    from sim.engine_settings import KVCacheGroup
    from sim.resolve import Resolved


@dataclass(frozen=True)
class GroupName:
    """A group as people know it.

    Attributes:
        name: its attention, and its layers where the model is known.
        padding: share of a block's bytes that holds nothing of this group; None: not known.
    """

    name: str
    padding: float | None = None


def kind_name(kind: str, window: int | None, chunk: int | None) -> str:
    """A type of attention in words.

    Args:
        kind: "full", "sliding_window", "chunked_local", "mamba" or "cross_attention".
        window: tokens of the window.
        chunk: tokens of the chunk.
    """
    words = {
        "full": "full attention",
        "sliding_window": f"window of {window:,}" if window else "sliding window",
        "chunked_local": f"chunks of {chunk:,}" if chunk else "chunked attention",
        "mamba": "states",
        "cross_attention": "cross attention",
    }
    return words.get(kind, kind)


def _kind(group: KVCacheGroup) -> str:
    return kind_name(group.type, group.sliding_window, group.attention_chunk_size)


def names_of(resolved: Resolved) -> tuple[GroupName, ...]:
    """The groups of a config, in the engine's order."""
    groups, plan = resolved.engine.kv_cache_groups, resolved.pool.plan
    if plan is None or len(plan.groups) != len(groups):
        return tuple(GroupName(_kind(g)) for g in groups)
    return tuple(
        GroupName(f"{_kind(g)}, {plural(len(p.layers), 'layer')}", 1 - p.content_bytes / plan.block_bytes)
        for g, p in zip(groups, plan.groups, strict=True)
    )


def group_parts(used: Sequence[GroupUse], names: Sequence[GroupName], over: str) -> list[Part]:
    """What the groups held; nothing where there is one only.

    Args:
        used: by group.
        names: the same groups.
        over: what the means are over.
    """
    if len(used) < 2:
        return []
    total = sum(g.blocks for g in used)
    known = any(n.padding is not None for n in names)
    columns = [
        Column("group", "groups", words=True),
        Column("tokens a block"),
        Column("blocks"),
        Column("of all"),
        Column("places without one", "groups"),
        Column("wasted slots"),
        Column("of its slots"),
    ]
    if known:
        columns.append(Column("padding", "groups"))
    rows: list[tuple[str | Value | Inline, ...]] = []
    for i, (g, n) in enumerate(zip(used, names, strict=True)):
        slots = g.blocks * g.block_size
        row: list[str | Value | Inline] = [
            f"{i}: {n.name}",
            as_count(g.block_size or None, "tokens"),
            as_count(g.blocks, "blocks"),
            as_share(g.blocks / total if total else None),
            as_count(g.nulls, "places"),
            as_count(g.wasted_slots if g.block_size else None, "slots"),
            as_share(g.wasted_slots / slots if slots else None),
        ]
        rows.append((*row, as_share(n.padding)) if known else tuple(row))
    says: Inline = (
        f"{count(len(used))} KV-cache groups share the pool; a running request has a block table in each.",
    )
    caption = f"What the block tables of the running requests hold, by group; means over {over}."
    return [Paragraph(says), Table("groups", tuple(columns), tuple(rows), caption=caption)]
