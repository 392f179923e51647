"""Patterns in the layout of a pool: who splits the free space, stripes, regions that never coalesce, and the
requests behind the worst moments.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.analysis.findings import Cause, GroupUse, LayoutReport, Region, Splitter, Stripe, WorstMoment
from sim.analysis.rerun import Rerun
from sim.analysis.runs import runs_of
from sim.analysis.snapshot import FragmentationSnapshot

__all__ = [
    "BlockLayoutAnalyzer",
    "Cause",
    "GroupUse",
    "LayoutReport",
    "Region",
    "Splitter",
    "Stripe",
    "WorstMoment",
    "analyze",
    "causes_of",
    "interleaving",
    "splitters_of",
    "stripes_of",
]

I64 = NDArray[np.int64]
MIN_STRIPE = 8
"""Fewest blocks of a stripe."""
STRIPE_SHARE = 0.5
"""Fewest changes of owner among a stripe's neighbouring pairs, as a share."""


class _Split:
    """Sums of one request over the gaps between free runs."""

    def __init__(self) -> None:
        self.boundaries = self.sole = self.blocks = self.free = 0
        self.age = -1


class BlockLayoutAnalyzer:
    """Takes in snapshots of one pool, one after the other, and keeps only sums.

    Args:
        coalesce: blocks; a region never coalesces if no snapshot has a free run longer than this in it.
        busy: regions are judged by the snapshots with at least this share of the usable blocks in use, since
            every pool is one free run before its first request and after its last.
    """

    def __init__(self, coalesce: int = 8, busy: float = 0.5) -> None:
        self.coalesce = coalesce
        self.busy = busy
        self.busy_snapshots = 0
        self.times: list[int] = []
        self.interleaving: list[float] = []
        self._splits: dict[tuple[int, str], _Split] = defaultdict(_Split)
        self._boundaries = 0
        self._longest: I64 | None = None
        self._free: I64 | None = None
        self._block_sizes: tuple[int, ...] = ()
        self._by_group: I64 | None = None
        self._striped: tuple[float, tuple[Stripe, ...]] = (-1.0, ())

    def add(self, snapshot: FragmentationSnapshot) -> None:
        """Take in one snapshot."""
        self.times.append(snapshot.time_ns)
        share = interleaving(snapshot)
        self.interleaving.append(share)
        if share > self._striped[0]:
            self._striped = share, stripes_of(snapshot)
        by_group = np.stack([snapshot.blocks_by_group, snapshot.nulls_by_group, snapshot.wasted_by_group])
        self._block_sizes = snapshot.block_sizes
        self._by_group = by_group if self._by_group is None else self._by_group + by_group
        splitters = splitters_of(snapshot)
        self._boundaries += max(snapshot.num_free_runs - 1, 0)
        for s in splitters:
            total = self._splits[s.request, s.request_id]
            total.boundaries += s.boundaries
            total.sole += s.sole
            total.blocks += s.blocks
            total.free += s.free_blocks_split
            total.age = max(total.age, s.age_ns)
        if snapshot.usage >= self.busy:
            self.busy_snapshots += 1
            self._add_regions(snapshot)

    def _add_regions(self, snapshot: FragmentationSnapshot) -> None:
        if self._longest is None or self._free is None:
            self._longest = np.zeros(snapshot.num_blocks, dtype=np.int64)
            self._free = np.zeros(snapshot.num_blocks, dtype=np.int64)
        _, lengths = snapshot.free_runs
        run_length = np.zeros(snapshot.num_blocks, dtype=np.int64)
        run_length[snapshot.free_mask] = np.repeat(lengths, lengths)
        np.maximum(self._longest, run_length, out=self._longest)
        self._free += snapshot.free_mask

    def splitters(self, top: int) -> tuple[Splitter, ...]:
        """Over all snapshots: the requests at the most boundaries, sums over the snapshots."""
        ranked = sorted(self._splits.items(), key=lambda item: (-item[1].boundaries, item[0]))
        return tuple(
            Splitter(
                request=request,
                request_id=name,
                boundaries=s.boundaries,
                sole=s.sole,
                blocks=s.blocks,
                free_blocks_split=s.free,
                age_ns=s.age,
                share=s.boundaries / max(self._boundaries, 1),
            )
            for (request, name), s in ranked[:top]
        )

    def regions(self, top: int) -> tuple[Region, ...]:
        """Longest ranges of ids whose free runs never exceed ``coalesce``, but some of which was free."""
        if self._longest is None or self._free is None:
            return ()
        never = self._longest <= self.coalesce
        never[0] = False
        found = []
        for first, length in zip(*runs_of(never), strict=True):
            span = slice(int(first), int(first + length))
            free = float(self._free[span].mean()) / self.busy_snapshots
            if length > self.coalesce and free > 0:
                longest = int(self._longest[span].max())
                found.append(Region(int(first), int(first + length) - 1, longest, free))
        return tuple(sorted(found, key=lambda r: (r.first - r.last, r.first))[:top])

    def groups(self) -> tuple[GroupUse, ...]:
        """What each KV-cache group held, in the engine's order."""
        if self._by_group is None:
            return ()
        mean = (self._by_group / len(self.times)).T.tolist()
        return tuple(GroupUse(size, *row) for size, row in zip(self._block_sizes, mean, strict=True))

    def report(self, top: int = 10, worst: Sequence[WorstMoment] = ()) -> LayoutReport:
        """Everything found so far, the first ``top`` of each kind."""
        return LayoutReport(
            times_ns=tuple(self.times),
            interleaving=tuple(self.interleaving),
            splitters=self.splitters(top),
            stripes=self._striped[1][:top],
            regions=self.regions(top),
            worst=tuple(worst),
            coalesce=self.coalesce,
            busy_instants=self.busy_snapshots,
            groups=self.groups(),
        )


def _owners(snapshot: FragmentationSnapshot) -> tuple[I64, dict[int, str]]:
    names = dict(zip(snapshot.tables.request.tolist(), snapshot.tables.request_id, strict=True))
    return snapshot.owner.astype(np.int64), names


def interleaving(snapshot: FragmentationSnapshot) -> float:
    """Neighbouring ids that are both used and first owned by different requests / all that are both used."""
    owner, _ = _owners(snapshot)
    both = (owner[:-1] >= 0) & (owner[1:] >= 0)
    pairs = int(both.sum())
    return float((owner[:-1] != owner[1:])[both].sum()) / pairs if pairs else 0.0


def stripes_of(snapshot: FragmentationSnapshot) -> tuple[Stripe, ...]:
    """Ranges of used blocks in which at least every second neighbour belongs to another request, longest
    first.

    A block whose two neighbours have its owner ends a stripe.
    """
    owner, names = _owners(snapshot)
    change = (owner[:-1] != owner[1:]) & (owner[:-1] >= 0) & (owner[1:] >= 0)
    used_pair = (owner[:-1] >= 0) & (owner[1:] >= 0)
    near = change.copy()
    near[1:] |= change[:-1]
    near[:-1] |= change[1:]
    found = []
    for first, pairs in zip(*runs_of(near & used_pair), strict=True):
        blocks = owner[first : first + pairs + 1]
        changes = int((blocks[:-1] != blocks[1:]).sum())
        if len(blocks) < MIN_STRIPE or changes < STRIPE_SHARE * pairs:
            continue
        who, count = np.unique(blocks, return_counts=True)
        order = np.lexsort((who, -count))
        requests = tuple(int(r) for r in who[order])
        found.append(
            Stripe(
                first=int(first),
                last=int(first + pairs),
                requests=requests,
                request_ids=tuple(names[r] for r in requests),
                changes=changes,
                interleaving=changes / int(pairs),
            )
        )
    return tuple(sorted(found, key=lambda s: (s.first - s.last, s.first)))


def splitters_of(snapshot: FragmentationSnapshot) -> tuple[Splitter, ...]:
    """Requests whose blocks lie between two neighbouring free runs, most boundaries first.

    A block of several requests counts for each of them; such a gap is nobody's alone unless all its blocks
    have that request among their owners.
    """
    starts, lengths = snapshot.free_runs
    gaps = len(starts) - 1
    if gaps < 1:
        return ()
    ends = starts + lengths
    block, index, _, _ = snapshot.tables.entries(snapshot.block_sizes)
    gap = np.searchsorted(starts, block, side="right") - 1
    inside = (gap >= 0) & (gap < gaps)
    block, index, gap = block[inside], index[inside], gap[inside]
    # a pair (request, gap) that covers all blocks of the gap separates the two runs alone
    pair, held = np.unique(index * gaps + gap, return_counts=True)
    who, where = np.divmod(pair, gaps)
    size = (starts[1:] - ends[:-1])[where]
    sole = held == size
    free_beside = (lengths[:-1] + lengths[1:])[where]
    born = np.full(len(snapshot.tables.request), np.iinfo(np.int64).max)
    known = snapshot.born_ns[block] >= 0
    np.minimum.at(born, index[known], snapshot.born_ns[block[known]])
    found = []
    for i in np.unique(who):
        mine = who == i
        boundaries = int(mine.sum())
        found.append(
            Splitter(
                request=int(snapshot.tables.request[i]),
                request_id=snapshot.tables.request_id[i],
                boundaries=boundaries,
                sole=int((mine & sole).sum()),
                blocks=int(held[mine].sum()),
                free_blocks_split=int(free_beside[mine & sole].sum()),
                age_ns=int(snapshot.time_ns - born[i]) if born[i] <= snapshot.time_ns else -1,
                share=boundaries / gaps,
            )
        )
    return tuple(sorted(found, key=lambda s: (-s.boundaries, s.request)))


def causes_of(snapshot: FragmentationSnapshot, metric: str, top: int = 5) -> tuple[Cause, ...]:
    """The requests behind a metric at an instant, largest part first.

    Args:
        snapshot: of the instant.
        metric: "wasted_slots": who wastes them; "external_fragmentation": at how many boundaries of free
            runs a request's blocks lie; "num_free_blocks": who holds the blocks, a shared one counted for
            its first owner.
        top: causes at the most.

    Raises:
        ValueError: another metric.
    """
    rows = snapshot.by_request
    if metric == "external_fragmentation":
        of = "gaps between free runs"
        return tuple(
            Cause(s.request, s.request_id, s.boundaries, s.share, of, s.sole)
            for s in splitters_of(snapshot)[:top]
        )
    if metric == "wasted_slots":
        amount, whole, of = rows.wasted_slots, snapshot.wasted_slots, "wasted slots"
    elif metric == "num_free_blocks":
        owner = snapshot.owner
        owned = np.bincount(owner[owner >= 0], minlength=1)
        amount = owned[np.minimum(rows.request, len(owned) - 1)] * (rows.request < len(owned))
        whole, of = snapshot.num_used, "used blocks"
    else:
        raise ValueError(f"no such metric: {metric}")
    order = np.lexsort((rows.request, -amount))[:top]
    return tuple(
        Cause(int(rows.request[i]), rows.request_id[i], int(amount[i]), float(amount[i] / whole), of)
        for i in order
        if amount[i] > 0
    )


def worst_rows(steps: dict[str, I64], metric: str, top: int, apart_ns: int) -> list[tuple[int, float]]:
    """Times and values of the worst rows by a metric, at least ``apart_ns`` apart, worst first."""
    if metric == "external_fragmentation":
        free = np.maximum(steps["num_free_blocks"], 1)
        values = 1 - steps["largest_free_run"] / free
        values[steps["num_free_blocks"] == 0] = 0.0
        order = np.argsort(-values, kind="stable")
    elif metric == "num_free_blocks":
        values = steps[metric].astype(np.float64)
        order = np.argsort(values, kind="stable")
    else:
        values = steps[metric].astype(np.float64)
        order = np.argsort(-values, kind="stable")
    chosen: list[tuple[int, float]] = []
    for i in order:
        time = int(steps["time_ns"][i])
        if all(abs(time - other) >= apart_ns for other, _ in chosen):
            chosen.append((time, float(values[i])))
            if len(chosen) == top:
                break
    return chosen


METRICS = ("wasted_slots", "external_fragmentation", "num_free_blocks")


def worst_moments(
    rerun: Rerun, steps: dict[str, I64], top: int = 3, causes: int = 5
) -> tuple[WorstMoment, ...]:
    """The worst rows of a run's step log by each metric, with the requests behind them.

    Args:
        rerun: the run.
        steps: its step log.
        top: moments for each metric, at least a hundredth of the run apart.
        causes: requests for each moment.
    """
    wanted = [
        (time, metric, value)
        for metric in METRICS
        for time, value in worst_rows(steps, metric, top, max(1, rerun.end_ns // 100))
    ]
    found: dict[tuple[str, int], WorstMoment] = {}
    for time, metric, value in sorted(wanted):
        snapshot = rerun.snapshot(time, layout_only=True)
        found[metric, time] = WorstMoment(metric, time, value, causes_of(snapshot, metric, causes))
    return tuple(found[metric, time] for time, metric, _ in wanted)


def analyze(
    folder: str | Path | Rerun, times_ns: Iterable[int] | None = None, samples: int = 100, top: int = 10
) -> LayoutReport:
    """Look at the layout of a run's pool at many instants, and at its worst moments.

    Args:
        folder: a run folder, or a Rerun of it.
        times_ns: instants to look at; None: ``samples`` of them, evenly spread.
        samples: see there.
        top: findings of each kind.

    Raises:
        InputError: as ``Rerun``.
    """
    rerun = folder if isinstance(folder, Rerun) else Rerun(folder)
    analyzer = BlockLayoutAnalyzer()
    times = rerun.times(samples) if times_ns is None else times_ns
    for snapshot in rerun.snapshots(times, layout_only=True):
        analyzer.add(snapshot)
    return analyzer.report(top, worst_moments(rerun, rerun.steps))
