"""Makes a `Workload`, request by request, without a Python object for each."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from workloads.errors import WorkloadError
from workloads.requests import Workload
from workloads.tokens import explicit_segment

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

    def __len__(self) -> int:
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
        """
        columns = self._columns
        index = len(columns["arrival"])
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
        if request_id is not None:
            self._request_ids.append(request_id)
        return index

    def build(self, source: dict[str, Any] | None = None) -> Workload:
        """The workload of everything added so far, validated.

        Raises:
            WorkloadError: a rule of `Workload` is broken, or a number does not fit its field.
        """
        if self._request_ids and len(self._request_ids) != len(self):
            raise WorkloadError(
                f"{len(self._request_ids)} of {len(self)} requests have an id; give one to all or none"
            )
        columns = {name: np.array(values, dtype=np.int64) for name, values in self._columns.items()}
        workload = Workload(
            clock=self.clock,
            arrival=columns["arrival"],
            parent=_narrow("parent", columns["parent"]),
            think_ns=columns["think_ns"],
            closed_loop=self.closed_loop,
            seg_ptr=np.array(self._seg_ptr, dtype=np.int64),
            seg_id=np.array(self._seg_id, dtype=np.int64),
            seg_start=_narrow("seg_start", np.array(self._seg_start, dtype=np.int64)),
            seg_len=_narrow("seg_len", np.array(self._seg_len, dtype=np.int64)),
            out_seg=columns["out_seg"],
            prompt_len=_narrow("prompt_len", columns["prompt_len"]),
            output_len=_narrow("output_len", columns["output_len"]),
            max_tokens=_narrow("max_tokens", columns["max_tokens"]),
            priority=_narrow("priority", columns["priority"]),
            salt=columns["salt"],
            session=_narrow("session", columns["session"]),
            tokens=_narrow("tokens", np.array(self._tokens, dtype=np.int64)),
            vocab_size=self.vocab_size,
            request_ids=tuple(self._request_ids) if self._request_ids else None,
            source=dict(source or {}),
        )
        workload.validate()
        return workload


def _narrow(name: str, values: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int32]]:
    narrow = values.astype(np.int32)
    if not np.array_equal(narrow, values):
        at = int(np.argmax(narrow != values))
        raise WorkloadError(f"{name}[{at}] = {int(values[at])} does not fit 32 bits")
    return narrow
