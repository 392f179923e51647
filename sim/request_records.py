"""A workload's requests as the core's records: of an engine, a fleet, and a window on a long trace."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.core.records import PIECE, REQUEST, Record
from sim.engine_settings import EngineSettings
from sim.record_arrays import record_array
from workloads.requests import Workload

#: Fields that are taken from the column of the workload of the same name.
FROM_WORKLOAD = (
    "arrival",
    "prompt_len",
    "output_len",
    "max_tokens",
    "priority",
    "salt",
    "out_seg",
    "think_ns",
)
_NOT_YET = (
    "arrival",
    "order_time",
    "status",
    "slot",
    "batch_pos",
    "heap_pos",
    "parent",
    "first_child",
    "next_sibling",
    "first_scheduled",
    "first_token",
    "finish",
)


def make_blank(records: np.ndarray) -> None:
    """Records of zeros (REQUEST[n], modified in place) become those of requests that have yet to come."""
    for name in _NOT_YET:
        records[name] = -1


def _link_children(requests: Record, parent: np.ndarray) -> None:
    """Link the children of each request in order of index; nobody has been linked yet."""
    first_child, next_sibling = requests["first_child"], requests["next_sibling"]
    child = np.flatnonzero(parent >= 0)
    child = child[np.argsort(parent[child], kind="stable")]
    of = parent[child]
    same = of[1:] == of[:-1]
    next_sibling[child[:-1][same]] = child[1:][same]
    # written backwards: what stays is the first child of each
    first_child[of[::-1]] = child[::-1]


def request_records(e: EngineSettings, w: Workload, capacity: int, queues: int = 1) -> Record:
    """The workload's requests, room for ``capacity`` in all, and the sentinels of so many waiting queues."""
    n = len(w)
    rq = record_array(REQUEST, capacity + 2 * queues)
    make_blank(rq)
    for name in (*FROM_WORKLOAD, "parent"):
        rq[name][:n] = getattr(w, name)
    if e.policy == "priority":
        names = [w.request_id(i) if i < n else f"r{i}" for i in range(capacity)]
        rq["id_rank"][sorted(range(capacity), key=names.__getitem__)] = np.arange(capacity)
    if w.clock == "logical":
        rq.order_time[:n] = np.arange(n) if e.arrival_time == "seq" else w.arrival
    _link_children(rq, w.parent)
    return rq


@dataclass(frozen=True)
class SharedRequests:
    """Requests that several engines serve together; arrivals and releases are somebody else's.

    Attributes:
        requests: REQUEST[capacity + 2 * engines], of `request_records`.
        seg_ptr, pieces: their prompts.
        position: of the engine among them, which gives it its sentinels.
    """

    requests: Record
    seg_ptr: np.ndarray
    pieces: Record
    position: int


def prompt_pieces(w: Workload, capacity: int, num_pieces: int) -> tuple[np.ndarray, Record]:
    """The pieces of the prompts: int64[capacity + 1] offsets and PIECE[num_pieces], with room for more."""
    seg_ptr = np.full(capacity + 1, w.seg_ptr[-1] if len(w) else 0, dtype=np.int64)
    seg_ptr[: w.seg_ptr.size] = w.seg_ptr
    pieces = record_array(PIECE, num_pieces)
    m = w.seg_id.size
    pieces.seg[:m] = w.seg_id
    pieces.start[:m] = w.seg_start
    pieces.length[:m] = w.seg_len
    return seg_ptr, pieces


def arrival_order(w: Workload) -> np.ndarray:
    """int32: the requests whose arrival is known, by (arrival, index)."""
    known = np.flatnonzero(w.arrival >= 0)
    return known[np.argsort(w.arrival[known], kind="stable")].astype(np.int32)
