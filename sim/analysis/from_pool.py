"""Snapshot of a live block pool of vLLM, or of the plain-Python twin: objects, read and not changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analysis.from_state import chain_reachable
from sim.analysis.snapshot import FREE, NULL, FragmentationSnapshot
from sim.analysis.tables import LiveTables

_GROUP_BYTES = 4


def snapshot_of_pool(
    pool: Any,
    requests: Iterable[Any],
    tables: Mapping[str, Sequence[Sequence[int]]],
    block_sizes: tuple[int, ...],
    time_ns: int,
    step: int,
    parents: Mapping[Any, Any] | None,
) -> FragmentationSnapshot:
    """See ``FragmentationSnapshot.from_block_pool``."""
    n = len(pool.blocks)
    ref_cnt = np.fromiter((b.ref_cnt for b in pool.blocks), dtype=np.int32, count=n)
    null = int(pool.null_block.block_id)
    ref_cnt[null] = 0
    keys = [b.block_hash for b in pool.blocks]
    cached = np.fromiter((k is not None for k in keys), dtype=np.bool_, count=n)
    state = (FREE + 2 * (ref_cnt > 0) + cached).astype(np.uint8)
    state[null] = NULL
    free = pool.free_block_queue.get_all_free_blocks()
    return FragmentationSnapshot(
        time_ns=time_ns,
        step=step,
        block_sizes=block_sizes,
        state=state,
        ref_cnt=ref_cnt,
        key=_numbered(keys),
        born_ns=np.full(n, -1, dtype=np.int64),
        unreachable=None if parents is None else _unreachable(keys, parents, len(block_sizes)),
        free_order=np.fromiter((b.block_id for b in free), dtype=np.int32, count=len(free)),
        tables=_live_tables(list(requests), tables, len(block_sizes)),
    )


def _numbered(keys: Sequence[Any]) -> NDArray[np.int64]:
    numbers: dict[Any, int] = {}
    out = (-1 if k is None else numbers.setdefault(k, len(numbers)) for k in keys)
    return np.fromiter(out, dtype=np.int64, count=len(keys))


def split_key(key: Any) -> tuple[Any, int]:
    """Hash and group of a cached block's key: bytes with the group behind (vLLM), or a pair (the twin)."""
    if isinstance(key, bytes):
        return key[:-_GROUP_BYTES], int.from_bytes(key[-_GROUP_BYTES:], "big")
    block_hash, group = key
    return block_hash, int(group)


def _unreachable(keys: Sequence[Any], parents: Mapping[Any, Any], num_groups: int) -> NDArray[np.bool_]:
    """Cached blocks that no look-up reaches.

    Raises:
        KeyError: a cached hash is not in ``parents``.
    """
    groups: dict[Any, set[int]] = {}
    for key in keys:
        if key is not None:
            block_hash, group = split_key(key)
            groups.setdefault(block_hash, set()).add(group)
    number = {block_hash: i + 1 for i, block_hash in enumerate(groups)}
    known = {None: 0}
    up = [known.get(parents[h], number.get(parents[h], len(number) + 1)) for h in number]
    reachable = chain_reachable(
        np.arange(1, len(number) + 1, dtype=np.uint64),
        np.array(up, dtype=np.uint64),
        np.array([len(groups[h]) == num_groups for h in number], dtype=np.bool_),
    )
    out = (k is not None and not reachable[number[split_key(k)[0]] - 1] for k in keys)
    return np.fromiter(out, dtype=np.bool_, count=len(keys))


def parents_of_requests(requests: Iterable[Any]) -> dict[Any, Any]:
    """Parent of each block hash of the requests (with ``block_hashes``), None for the first of a prefix."""
    parents: dict[Any, Any] = {}
    for request in requests:
        before = None
        for block_hash in request.block_hashes:
            parents.setdefault(block_hash, before)
            before = block_hash
    return parents


def _live_tables(
    requests: Sequence[Any], tables: Mapping[str, Sequence[Sequence[int]]], num_groups: int
) -> LiveTables:
    lists = [list(tables[r.request_id][g]) for r in requests for g in range(num_groups)]
    return LiveTables(
        request=np.arange(len(requests), dtype=np.int32),
        request_id=tuple(r.request_id for r in requests),
        num_computed=np.array([r.num_computed_tokens for r in requests], dtype=np.int64),
        blocks=np.array([b for table in lists for b in table], dtype=np.int32),
        ptr=np.concatenate([[0], np.cumsum([len(t) for t in lists])]).astype(np.int64),
    )
