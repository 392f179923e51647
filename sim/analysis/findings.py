"""What a BlockLayoutAnalyzer finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Splitter:
    """A request whose blocks stand between free runs.

    Attributes:
        request: position in the workload; -1: blocks that nobody owns.
        request_id: its name.
        boundaries: gaps between two neighbouring free runs that hold at least one of its blocks.
        sole: of these, gaps that hold only its blocks: without it the two runs would be one.
        blocks: its blocks in such gaps.
        free_blocks_split: free blocks on both sides of its sole gaps.
        age_ns: age of its oldest block there, -1: unknown.
        share: boundaries / all boundaries of the snapshot.
    """

    request: int
    request_id: str
    boundaries: int
    sole: int
    blocks: int
    free_blocks_split: int
    age_ns: int
    share: float


@dataclass(frozen=True)
class Stripe:
    """A range of ids in which the blocks of different requests alternate.

    Attributes:
        first, last: block ids, inclusive; all blocks between them are used.
        requests: who alternates, most blocks first.
        request_ids: their names.
        changes: neighbouring pairs owned by different requests.
        interleaving: changes / neighbouring pairs, 1 for perfect alternation.
    """

    first: int
    last: int
    requests: tuple[int, ...]
    request_ids: tuple[str, ...]
    changes: int
    interleaving: float


@dataclass(frozen=True)
class Region:
    """A range of block ids in which no snapshot of the busy pool had a free run longer than ``longest_run``.

    Attributes:
        first, last: block ids, inclusive.
        longest_run: over all snapshots of the busy pool (at least half of it in use).
        mean_free: mean share of its blocks that were free in those.
    """

    first: int
    last: int
    longest_run: int
    mean_free: float


@dataclass(frozen=True)
class GroupUse:
    """What the block tables of one KV-cache group held; means over the snapshots.

    Attributes:
        block_size: tokens of a block, 0: its blocks hold states.
        blocks: entries of the tables, null blocks left out.
        nulls: places without a block.
        wasted_slots: slots without a token.
    """

    block_size: int
    blocks: float
    nulls: float
    wasted_slots: float


@dataclass(frozen=True)
class Cause:
    """A request's part in a bad moment.

    Attributes:
        request: position in the workload.
        request_id: its name.
        amount: in the unit of the metric.
        share: of all.
        of_what: what the share is of, in words.
        sole: gaps between free runs that hold only its blocks.
    """

    request: int
    request_id: str
    amount: int
    share: float
    of_what: str
    sole: int = 0


@dataclass(frozen=True)
class WorstMoment:
    """One of the worst rows of the step log by one metric.

    Attributes:
        metric: "wasted_slots", "external_fragmentation" or "num_free_blocks".
        time_ns: of the row.
        value: of the metric.
        causes: the requests behind it, largest part first.
    """

    metric: str
    time_ns: int
    value: float
    causes: tuple[Cause, ...]


@dataclass(frozen=True)
class LayoutReport:
    """What a BlockLayoutAnalyzer found.

    Attributes:
        times_ns: instants of the snapshots looked at.
        interleaving: for each of them, neighbouring used pairs owned by different requests / all such pairs.
        splitters: over all snapshots, most boundaries first.
        stripes: of the snapshot with the highest interleaving, longest first.
        regions: that never coalesce, longest first.
        worst: the worst moments, metric by metric.
        coalesce: blocks; a region has no free run longer than this.
        busy_instants: snapshots by which regions are judged.
        groups: KV-cache groups, in the engine's order.
    """

    times_ns: tuple[int, ...]
    interleaving: tuple[float, ...]
    splitters: tuple[Splitter, ...]
    stripes: tuple[Stripe, ...]
    regions: tuple[Region, ...]
    worst: tuple[WorstMoment, ...]
    coalesce: int = 8
    busy_instants: int = 0
    groups: tuple[GroupUse, ...] = ()
