"""Makes a `Workload`, request by request, without a Python object for each."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workloads.errors import WorkloadError
from workloads.requests import Int32Array, Int64Array, Workload
from workloads.tokens import explicit_segment

if TYPE_CHECKING:
    from workloads.spool import SpoolWriter

#: Synthetic outputs of a request that names no output segment: far above any counter or hash id.
AUTO_OUTPUT_BASE = 1 << 62


class WorkloadBuilder:
    """Collects requests in sequence order; `build` returns the validated workload.

    Pieces are given as parallel sequences (segment ids, starts, lengths), so a conversation can keep its
    own lists and hand them over whole.
    """

    def __init__(self, vocab_size: int, clock: str = "time", closed_loop: bool = False) -> None:
        self.vocab_size = vocab_size
        self.clock = clock
        self.closed_loop = closed_loop
        self._columns = {
            name: array("q")
            for name in (
                "arrival",
                "parent",
                "think_ns",
                "out_seg",
                "prompt_len",
                "output_len",
                "max_tokens",
                "priority",
                "salt",
                "session",
            )
        }
        self._seg_ptr = array("q", [0])
        self._seg_id = array("q")
        self._seg_start = array("q")
        self._seg_len = array("q")
        self._tokens = array("q")
        self._request_ids: list[str] = []
        self._taken = self._spilled_tokens = 0
        self._accepted_drafts: dict[int, tuple[int, ...]] = {}
        self._encoder_tokens: dict[int, int] = {}

    def __len__(self) -> int:
        return self._taken + len(self._columns["arrival"])

    @property
    def held(self) -> int:
        """Requests that have been added and not been moved to a spool."""
        return len(self._columns["arrival"])

    def add_tokens(self, token_ids: Sequence[int]) -> int:
        """Append explicit token ids to the pool; returns their segment id (negative)."""
        start = len(self._tokens)
        self._tokens.extend(token_ids)
        return explicit_segment(start)

    def add(
        self,
        seg_ids: Sequence[int],
        seg_lens: Sequence[int],
        *,
        output_len: int,
        seg_starts: Sequence[int] | None = None,
        out_seg: int | None = None,
        arrival: int = -1,
        parent: int = -1,
        think_ns: int = 0,
        max_tokens: int | None = None,
        priority: int = 0,
        salt: int = 0,
        session: int = -1,
        request_id: str | None = None,
        accepted_drafts: Sequence[int] = (),
        encoder_tokens: int | None = None,
    ) -> int:
        """Append one request; returns its index.

        Args:
            seg_ids: segment of each piece of the prompt.
            seg_lens: tokens of each piece.
            output_len: tokens that it generates.
            seg_starts: offset of each piece in its segment; None: all 0.
            out_seg: segment of the output; None: one of its own.
            arrival, parent, think_ns, max_tokens, priority, salt, session: as in `Workload`; max_tokens None:
                output_len.
            request_id: its name; either all requests of a workload have one or none.
            accepted_drafts: as in `Workload`.
            encoder_tokens: as in `Workload`; None: as the engine says.
        """
        columns = self._columns
        index = self._taken + len(columns["arrival"])
        columns["arrival"].append(arrival)
        columns["parent"].append(parent)
        columns["think_ns"].append(think_ns)
        columns["out_seg"].append(AUTO_OUTPUT_BASE + index if out_seg is None else out_seg)
        columns["prompt_len"].append(sum(seg_lens))
        columns["output_len"].append(output_len)
        columns["max_tokens"].append(output_len if max_tokens is None else max_tokens)
        columns["priority"].append(priority)
        columns["salt"].append(salt)
        columns["session"].append(session)
        self._seg_id.extend(seg_ids)
        self._seg_len.extend(seg_lens)
        self._seg_start.extend([0] * len(seg_ids) if seg_starts is None else seg_starts)
        self._seg_ptr.append(len(self._seg_id))
        if accepted_drafts:
            self._accepted_drafts[index] = tuple(accepted_drafts)
        if encoder_tokens is not None:
            self._encoder_tokens[index] = encoder_tokens
        if request_id is not None:
            self._request_ids.append(request_id)
        return index

    def build(self, source: dict[str, Any] | None = None) -> Workload:
        """The workload of everything added so far, validated.

        Raises:
            WorkloadError: a rule of `Workload` is broken, or a number does not fit its field.
        """
        if self._request_ids and len(self._request_ids) != self.held:
            raise WorkloadError(
                f"{len(self._request_ids)} of {self.held} requests have an id; give one to all or none"
            )
        columns = {name: np.array(values, dtype=np.int64) for name, values in self._columns.items()}
        return assemble(
            clock=self.clock,
            closed_loop=self.closed_loop,
            vocab_size=self.vocab_size,
            seg_ptr=np.array(self._seg_ptr, dtype=np.int64),
            seg_id=np.array(self._seg_id, dtype=np.int64),
            seg_start=np.array(self._seg_start, dtype=np.int64),
            seg_len=np.array(self._seg_len, dtype=np.int64),
            tokens=np.array(self._tokens, dtype=np.int64),
            request_ids=tuple(self._request_ids) if self._request_ids else None,
            accepted_drafts=self._patterns(),
            encoder_tokens=self._encoder_inputs(),
            source=source,
            **columns,
        )

    def _patterns(self) -> tuple[tuple[int, ...], ...] | None:
        given = self._accepted_drafts
        return tuple(given.get(i, ()) for i in range(len(self))) if given else None

    def _encoder_inputs(self) -> Int64Array | None:
        """Of those that have not been moved to a spool; None: nobody says anything."""
        given = self._encoder_tokens
        if not given:
            return None
        own = (given.get(i, -1) for i in range(self._taken, len(self)))
        return np.fromiter(own, dtype=np.int64, count=self.held)

    def spill(self, spool: SpoolWriter) -> None:
        """Move everything added since the last time to a spool.

        Raises:
            WorkloadError: as `build`.
            OSError: it can't be written.
        """
        if not self.held:
            return
        if self._accepted_drafts:
            raise WorkloadError("requests with accepted_drafts can't be streamed")
        columns: dict[str, Any] = {
            name: np.array(values, dtype=np.int64) for name, values in self._columns.items()
        }
        first = self._taken
        parents = columns["parent"].copy()
        # request 0 stands for all that have gone before, so that the rules can be checked part by part
        inside = np.where(parents >= first, parents - first + 1, np.where(parents >= 0, 0, -1))
        dummy = {"arrival": 0, "parent": -1, "prompt_len": 1, "output_len": 1, "max_tokens": 1, "session": -1}
        columns["parent"] = inside
        columns = {name: np.concatenate([[dummy.get(name, 0)], values]) for name, values in columns.items()}
        own = self._encoder_inputs()
        names = None
        if self._request_ids:
            if len(self._request_ids) != self.held:
                raise WorkloadError(f"{len(self._request_ids)} of {self.held} requests have an id")
            names = ("", *self._request_ids)
        ptr = np.array(self._seg_ptr, dtype=np.int64) - self._seg_ptr[0] + 1
        part = assemble(
            clock=self.clock,
            closed_loop=self.closed_loop,
            vocab_size=self.vocab_size,
            seg_ptr=np.concatenate([[0], ptr]),
            seg_id=np.concatenate([[0], np.array(self._seg_id, dtype=np.int64)]),
            seg_start=np.concatenate([[0], np.array(self._seg_start, dtype=np.int64)]),
            seg_len=np.concatenate([[1], np.array(self._seg_len, dtype=np.int64)]),
            tokens=np.array(self._tokens, dtype=np.int64),
            request_ids=names,
            encoder_tokens=None if own is None else np.concatenate([[-1], own]),
            **columns,
        )
        spool.append(part, _narrow("parent", parents), part.tokens[self._spilled_tokens :], skip=1)
        self._spilled_tokens = len(self._tokens)
        self._taken += self.held
        for values in (*self._columns.values(), self._seg_id, self._seg_start, self._seg_len):
            del values[:]
        self._seg_ptr = array("q", [0])
        self._request_ids = []
        self._encoder_tokens = {}


def assemble(
    *,
    vocab_size: int,
    seg_id: Int64Array,
    seg_len: Int64Array,
    output_len: Int64Array,
    arrival: Int64Array,
    seg_ptr: Int64Array | None = None,
    seg_start: Int64Array | None = None,
    prompt_len: Int64Array | None = None,
    parent: Int64Array | None = None,
    think_ns: Int64Array | None = None,
    out_seg: Int64Array | None = None,
    max_tokens: Int64Array | None = None,
    priority: Int64Array | None = None,
    salt: Int64Array | None = None,
    session: Int64Array | None = None,
    tokens: Int64Array | None = None,
    clock: str = "time",
    closed_loop: bool = False,
    request_ids: tuple[str, ...] | None = None,
    accepted_drafts: tuple[tuple[int, ...], ...] | None = None,
    encoder_tokens: Int64Array | None = None,
    source: dict[str, Any] | None = None,
) -> Workload:
    """A validated workload from whole columns (int64; the fields of `Workload`), the rest at its default.

    Args:
        seg_ptr: None: one piece for each request.
        seg_start: None: all 0.
        prompt_len: None: summed from the pieces.
        parent, think_ns, salt, priority, session: None: none.
        out_seg: None: a segment of its own for each request.
        max_tokens: None: `output_len`, so that requests stop by length.
        encoder_tokens: None, or -1 for all: as the engine says.

    Raises:
        WorkloadError: a rule of `Workload` is broken, or a number does not fit its field.
    """
    n = len(arrival)
    zero = np.zeros(n, dtype=np.int64)
    ptr = np.arange(n + 1, dtype=np.int64) if seg_ptr is None else seg_ptr
    if prompt_len is None:
        total = np.concatenate([[0], np.cumsum(seg_len)])
        prompt_len = total[ptr[1:]] - total[ptr[:-1]]
    if encoder_tokens is not None and (encoder_tokens == -1).all():
        encoder_tokens = None
    workload = Workload(
        clock=clock,
        arrival=np.ascontiguousarray(arrival),
        parent=_narrow("parent", zero - 1 if parent is None else parent),
        think_ns=zero if think_ns is None else think_ns,
        closed_loop=closed_loop,
        seg_ptr=ptr,
        seg_id=np.ascontiguousarray(seg_id),
        seg_start=_narrow(
            "seg_start", np.zeros(len(seg_id), dtype=np.int64) if seg_start is None else seg_start
        ),
        seg_len=_narrow("seg_len", seg_len),
        out_seg=AUTO_OUTPUT_BASE + np.arange(n, dtype=np.int64) if out_seg is None else out_seg,
        prompt_len=_narrow("prompt_len", prompt_len),
        output_len=_narrow("output_len", output_len),
        max_tokens=_narrow("max_tokens", output_len if max_tokens is None else max_tokens),
        priority=_narrow("priority", zero if priority is None else priority),
        salt=zero.copy() if salt is None else salt,
        session=_narrow("session", zero - 1 if session is None else session),
        tokens=_narrow("tokens", zero[:0] if tokens is None else tokens),
        vocab_size=vocab_size,
        request_ids=request_ids,
        accepted_drafts=accepted_drafts,
        encoder_tokens=None if encoder_tokens is None else _narrow("encoder_tokens", encoder_tokens),
        source=dict(source or {}),
    )
    workload.validate()
    return workload


def salt_id(cache_salt: str | None) -> int:
    """The id (> 0) of a cache_salt string, the same in every workload; 0 for null and for an empty string."""
    if not cache_salt:
        return 0
    return 1 + (int.from_bytes(hashlib.sha256(cache_salt.encode()).digest()[:8], "little") >> 2)


def _narrow(name: str, values: Int64Array) -> Int32Array:
    narrow = values.astype(np.int32)
    if not np.array_equal(narrow, values):
        at = int(np.argmax(narrow != values))
        raise WorkloadError(f"{name}[{at}] = {int(values[at])} does not fit 32 bits")
    return narrow
