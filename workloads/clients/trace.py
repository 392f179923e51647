"""A trace: alone it is the workload as it was read; in a mixture it is one client of several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from workloads.arrivals import Process
from workloads.clients.base import Shared, segment_base
from workloads.errors import WorkloadError
from workloads.readers import read_or_spool, read_trace
from workloads.readers.options import ReadOptions
from workloads.requests import Int64Array, Workload
from workloads.spec.base import DEFAULT_VOCAB_SIZE
from workloads.spec.clients import Trace
from workloads.spool import Spool
from workloads.tokens import pool_start


def load(spec: Trace, base_dir: str | Path | None = None, factor: float = 1.0) -> Workload:
    """Read the trace of a workload section.

    Args:
        factor: multiplies the trace's rate.

    Raises:
        WorkloadError: the file is missing or broken.
    """
    return read_trace(spec.path, spec.format, _options(spec, factor), base_dir)


def load_or_spool(
    spec: Trace, base_dir: str | Path | None, folder: Callable[[], Path], limit: int
) -> Workload | Spool:
    """As `load`, but more than `limit` requests are written to disk; see `readers.read_or_spool`."""
    return read_or_spool(spec.path, spec.format, _options(spec), base_dir, folder, limit)


def _options(spec: Trace, factor: float = 1.0) -> ReadOptions:
    return ReadOptions(
        hash_block_size=spec.hash_block_size,
        time_scale=spec.time_scale / factor,
        max_requests=spec.max_requests,
        duration_ns=spec.duration,
        output_len=spec.output_len,
        model=spec.model,
        log_type=spec.log_type,
        vocab_size=spec.vocab_size or DEFAULT_VOCAB_SIZE,
    )


def start(shared: Shared, name: str, spec: Trace, weight: float, start_ns: int) -> None:
    """Start the trace as one client of a mixture; its segments get ids that no other client has.

    Raises:
        WorkloadError: the trace cannot be read, is in logical time, or is a closed-loop pool.
    """
    workload = load(spec, shared.base_dir, weight)
    if workload.clock != "time":
        raise WorkloadError("a logical-time workload cannot be part of a mixture", spec.path)
    if workload.closed_loop:
        raise WorkloadError("a workload with a closed-loop pool cannot be part of a mixture", spec.path)
    if len(workload.tokens) and workload.vocab_size > shared.builder.vocab_size:
        raise WorkloadError(
            f"the trace has token ids up to {workload.vocab_size - 1}; set vocab_size of the mixture to "
            f"{workload.vocab_size} or more",
            spec.path,
        )
    shared.salts.update(workload.source.get("cache_salts", {}))
    shared.notes.extend(f"{name}: {note}" for note in workload.source.get("notes", []))
    shared.env.process(_send(shared, name, workload, start_ns))


def _send(shared: Shared, name: str, workload: Workload, start_ns: int) -> Process:
    """Each request at its nominal time: that of its arrival, or right after the one it follows."""
    env, builder = shared.env, shared.builder
    seg_id, out_seg = _renamed(workload, name, pool_start(builder.add_tokens(workload.tokens.tolist())))
    ids, starts, lens = seg_id.tolist(), workload.seg_start.tolist(), workload.seg_len.tolist()
    ptr, encoder = workload.seg_ptr.tolist(), workload.encoder_tokens
    indices: list[int] = []
    sessions: dict[int, int] = {}
    for i in range(len(workload)):
        parent = int(workload.parent[i])
        if parent < 0:
            delay = start_ns + int(workload.arrival[i]) - int(env.now)
            if delay > 0:
                yield env.timeout(delay)
        session = int(workload.session[i])
        if session >= 0 and session not in sessions:
            sessions[session] = shared.sessions
            shared.sessions += 1
        indices.append(
            builder.add(
                ids[ptr[i] : ptr[i + 1]],
                lens[ptr[i] : ptr[i + 1]],
                seg_starts=starts[ptr[i] : ptr[i + 1]],
                output_len=int(workload.output_len[i]),
                out_seg=int(out_seg[i]),
                arrival=-1 if parent >= 0 else start_ns + int(workload.arrival[i]),
                parent=-1 if parent < 0 else indices[parent],
                think_ns=int(workload.think_ns[i]),
                max_tokens=int(workload.max_tokens[i]),
                priority=int(workload.priority[i]),
                salt=int(workload.salt[i]),
                session=sessions.get(session, -1),
                request_id=f"{name}-{i}",
                encoder_tokens=None if encoder is None or encoder[i] < 0 else int(encoder[i]),
            )
        )


def _renamed(workload: Workload, name: str, pool_offset: int) -> tuple[Int64Array, Int64Array]:
    """Piece and output segments under the client's own ids; explicit ones move to their place in the pool."""
    every = np.concatenate([workload.seg_id, workload.out_seg])
    _, rank = np.unique(every, return_inverse=True)
    moved = np.where(every >= 0, segment_base(name) + 1 + rank, every - pool_offset)
    return moved[: len(workload.seg_id)], moved[len(workload.seg_id) :]
