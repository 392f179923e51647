"""A trace's requests part by part, as they stand in the file: put together in memory, or spooled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workloads.builder import AUTO_OUTPUT_BASE, assemble
from workloads.readers.options import ReadOptions, arrange, cut_note, provenance, scaled
from workloads.requests import Int32Array, Int64Array, Workload
from workloads.spool import Spool, SpoolWriter, spool_workload

#: Requests of a part, about.
PART = 16384


@dataclass(frozen=True)
class Part:
    """Some requests of a trace.

    Attributes:
        times: int64[n], ns as the file gives them.
        prompt_len, output_len: int64[n], tokens.
        counts: int64[n], pieces of each prompt.
        seg_id, seg_len: int64[sum of counts], the pieces.
    """

    times: Int64Array
    prompt_len: Int64Array
    output_len: Int64Array
    counts: Int64Array
    seg_id: Int64Array
    seg_len: Int64Array

    def __len__(self) -> int:
        return len(self.times)

    def first(self, n: int) -> Part:
        """The first n requests."""
        m = int(self.counts[:n].sum())
        return Part(
            self.times[:n],
            self.prompt_len[:n],
            self.output_len[:n],
            self.counts[:n],
            self.seg_id[:m],
            self.seg_len[:m],
        )


class TraceParts(ABC):
    """A trace in one of the formats that are read part by part.

    Args:
        path: of the file, for messages.
        options: what the reader shall do.
    """

    #: Name of the format.
    name: str

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.path = path
        self.options = options

    @abstractmethod
    def parts(self, lines: Iterator[str]) -> Iterator[Part]:
        """The requests of the file's lines, in order.

        Raises:
            WorkloadError: a line is broken (file:line:column), or there is no request.
        """

    @property
    def notes(self) -> list[str]:
        """What was done to the trace that a user should know; complete when the parts are."""
        return []

    @property
    def own_options(self) -> dict[str, Any]:
        """Options for the provenance."""
        return {"time_scale": self.options.time_scale}

    def source(self, sha256: str, notes: Sequence[str]) -> dict[str, Any]:
        """`Workload.source`, when the parts are complete."""
        return provenance(self.path, sha256, self.name, self.own_options, [*self.notes, *notes])


def put_together(trace: TraceParts, parts: Sequence[Part], sha256: str) -> Workload:
    """The workload of all parts, by arrival.

    Raises:
        WorkloadError: no request is left, or a number does not fit.
    """
    arrivals = arrange(np.concatenate([p.times for p in parts]), trace.options)
    counts = np.concatenate([p.counts for p in parts])
    seg_id, seg_len = (np.concatenate([getattr(p, name) for p in parts]) for name in ("seg_id", "seg_len"))
    order = arrivals.order
    own = counts[order]
    seg_ptr = np.concatenate([[0], np.cumsum(own)])
    # index of each piece in the file: where its request begins there, plus its place in the request
    begin = (np.cumsum(counts) - counts)[order]
    pieces = np.arange(seg_ptr[-1]) + np.repeat(begin - seg_ptr[:-1], own)
    return assemble(
        vocab_size=trace.options.vocab_size,
        arrival=arrivals.arrival,
        seg_ptr=seg_ptr,
        seg_id=seg_id[pieces],
        seg_len=seg_len[pieces],
        prompt_len=np.concatenate([p.prompt_len for p in parts])[order],
        output_len=np.concatenate([p.output_len for p in parts])[order],
        request_ids=arrivals.request_ids,
        source=trace.source(sha256, arrivals.notes),
    )


class OutOfOrderError(Exception):
    """A request is earlier than the one before, so that the trace has to be sorted."""


class _Spooling:
    """Writes parts to a spool, as `put_together` would order and cut them."""

    def __init__(self, trace: TraceParts, folder: Path) -> None:
        self._trace = trace
        self._writer = SpoolWriter(
            folder, clock="time", closed_loop=False, vocab_size=trace.options.vocab_size
        )
        self._start = self._last = 0
        self._seen = 0

    def add(self, part: Part) -> None:
        options, times = self._trace.options, part.times
        if not self._seen:
            self._start = self._last = int(times[0])
        if times[0] < self._last or (np.diff(times) < 0).any():
            raise OutOfOrderError
        self._last = int(times[-1])
        self._seen += len(part)
        n = len(part)
        if options.duration_ns is not None:
            n = int(np.searchsorted(times - self._start, options.duration_ns, side="left"))
        if options.max_requests is not None:
            n = min(n, options.max_requests - len(self._writer))
        if n <= 0:
            return
        kept, first = part.first(n), len(self._writer)
        done = assemble(
            vocab_size=options.vocab_size,
            arrival=scaled(kept.times - self._start, options),
            seg_ptr=np.concatenate([[0], np.cumsum(kept.counts)]),
            seg_id=kept.seg_id,
            seg_len=kept.seg_len,
            prompt_len=kept.prompt_len,
            output_len=kept.output_len,
            out_seg=AUTO_OUTPUT_BASE + first + np.arange(n, dtype=np.int64),
        )
        nobody: Int32Array = np.full(n, -1, dtype=np.int32)
        self._writer.append(done, nobody, np.zeros(0, dtype=np.int32))

    def finish(self, sha256: str) -> Spool:
        used = len(self._writer)
        notes = [cut_note(used, self._seen)] if used < self._seen else []
        return self._writer.finish(self._trace.source(sha256, notes))

    def close(self) -> None:
        self._writer.close()


def put_together_or_spool(
    trace: TraceParts,
    lines: Iterator[str],
    sha256: Callable[[], str],
    folder: Callable[[], Path],
    limit: int,
) -> Workload | Spool:
    """As `put_together`, but what is more than `limit` requests goes to disk as it is read.

    Args:
        lines: of the file.
        sha256: of the file, when all its lines have been read.
        folder: makes an empty folder for the spool; not called where a Workload comes back.

    Raises:
        OutOfOrderError: the trace has to be sorted and was no longer in memory.
        WorkloadError: as `TraceParts.parts`.
        OSError: the spool can't be written.
    """
    held: list[Part] = []
    spooling: _Spooling | None = None
    sorted_so_far, last = True, int(np.iinfo(np.int64).min)
    try:
        for part in trace.parts(lines):
            if not len(part):
                continue
            if spooling is not None:
                spooling.add(part)
                continue
            held.append(part)
            sorted_so_far &= bool(part.times[0] >= last and (np.diff(part.times) >= 0).all())
            last = int(part.times[-1])
            if sorted_so_far and sum(map(len, held)) > limit:
                spooling = _Spooling(trace, folder())
                for earlier in held:
                    spooling.add(earlier)
                held.clear()
        if spooling is None:
            workload = put_together(trace, held, sha256())
            return workload if len(workload) <= limit else spool_workload(workload, folder())
        spool = spooling.finish(sha256())
        return spool if len(spool) > limit else spool.load()
    finally:
        if spooling is not None:
            spooling.close()
