"""Snapshot of a simulated engine, from its arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.analysis.snapshot import FREE, NULL, FragmentationSnapshot
from sim.analysis.tables import LiveTables
from sim.core import codes as c
from sim.core.inspect import free_queue_order
from sim.core.state import Pool, State
from workloads.requests import Workload

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]


def block_states(pool: Pool) -> NDArray[np.uint8]:
    """State of every block, uint8[N] with the values of ``sim.analysis.snapshot``."""
    n = int(pool.params.num_blocks)
    blocks = pool.blocks[:n]
    used = blocks["ref_cnt"] > 0
    state = (FREE + 2 * used + (blocks["block_hash"] != 0)).astype(np.uint8)
    state[0] = NULL
    return state


def block_sizes(state: State) -> tuple[int, ...]:
    """Tokens of a block, by group; 0 where blocks hold states instead of tokens."""
    groups = state.kv.groups
    return tuple(np.where(groups["token_slots"] != c.SLOTS_NONE, groups["block_size"], 0).tolist())


def live_tables(state: State, workload: Workload) -> LiveTables:
    """Block tables of the running requests."""
    running = state.queues.lists["running"][: state.ctl.num_running].copy()
    slots = state.requests["slot"][running]
    lengths = state.kv.tables["length"][:, slots].T.reshape(-1).astype(np.int64)
    tables = [
        state.kv.table_blocks[g, slot, : state.kv.tables["length"][g, slot]]
        for slot in slots
        for g in range(len(state.kv.groups))
    ]
    return LiveTables(
        request=running.astype(np.int32),
        request_id=tuple(workload.request_id(int(r)) for r in running),
        num_computed=state.requests["num_computed"][running].astype(np.int64),
        blocks=np.concatenate([np.zeros(0, dtype=np.int32), *tables]),
        ptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        table_tokens=_table_tokens(state, running, slots),
    )


def _table_tokens(state: State, running: NDArray[np.int32], slots: NDArray[np.int32]) -> I64 | None:
    """Tokens in each table of the running requests, None where that is what they have computed."""
    crossing = state.kv.groups["token_slots"] == c.SLOTS_ENCODER_TOKENS
    if not crossing.any():
        return None
    computed = state.requests["num_computed"][running].astype(np.int64)[:, None]
    encoder = state.kv.slots["encoder_tokens"][slots].astype(np.int64)[:, None]
    return np.where(crossing, encoder, computed).reshape(-1)


def snapshot_of_state(
    state: State, workload: Workload, time_ns: int | None = None, *, layout_only: bool = False
) -> FragmentationSnapshot:
    """See ``FragmentationSnapshot.from_state``."""
    pool = state.kv.pool
    n = int(pool.params.num_blocks)
    ref_cnt = pool.blocks["ref_cnt"][:n].copy()
    ref_cnt[0] = 0
    born = np.full(n, -1, dtype=np.int64)
    if pool.params.follow_blocks:
        born[:] = pool.followed["birth"]
    key = unreachable = free_order = None
    if not layout_only:
        order = np.zeros(n, dtype=np.int32)
        free_order = order[: free_queue_order(pool, order)].copy()
        key = _dense(pool.blocks["block_hash"][:n])
        # a window is hit without the blocks before it, and only selected blocks of it are cached
        if pool.params.follow_blocks and state.kv.plain:
            unreachable = _unreachable(pool, len(state.kv.groups))
    return FragmentationSnapshot(
        time_ns=int(state.ctl.now) if time_ns is None else time_ns,
        step=int(state.ctl.step),
        block_sizes=block_sizes(state),
        state=block_states(pool),
        ref_cnt=ref_cnt,
        key=key,
        born_ns=born,
        unreachable=unreachable,
        free_order=free_order,
        tables=live_tables(state, workload),
    )


def _dense(hashes: U64) -> NDArray[np.int64]:
    """Numbers from 0 for the distinct hashes, -1 where there is none (0)."""
    out = np.full(len(hashes), -1, dtype=np.int64)
    cached = hashes != 0
    out[cached] = np.unique(hashes[cached], return_inverse=True)[1]
    return out


def _unreachable(pool: Pool, num_groups: int) -> NDArray[np.bool_]:
    """Cached blocks whose chain back to the first block of a prefix is broken."""
    n = int(pool.params.num_blocks)
    cached = np.flatnonzero(pool.blocks["block_hash"][:n] != 0)
    chain = pool.followed["hash"][cached]
    hashes, first, inverse = np.unique(chain, return_index=True, return_inverse=True)
    # with several groups a block is hit only where all of them have one
    keys = np.unique(pool.blocks["block_hash"][cached], return_inverse=True)[1]
    in_groups = np.bincount(np.unique(np.stack([inverse, keys]), axis=1)[0], minlength=len(hashes))
    present = in_groups == num_groups
    parents = pool.followed["parent"][cached][first]
    reachable = chain_reachable(hashes, parents, present)
    out = np.zeros(n, dtype=np.bool_)
    out[cached] = ~reachable[inverse]
    return out


def chain_reachable(hashes: U64, parents: U64, present: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which hashes are present with all their ancestors.

    Args:
        hashes: distinct, ascending; uint64[k].
        parents: hash before each of them in its prefix, 0 for the first of a prefix; uint64[k].
        present: bool[k].
    """
    k = len(hashes)
    root, missing = k, k + 1
    at = np.searchsorted(hashes, parents)
    found = (at < k) & (hashes[np.minimum(at, max(k - 1, 0))] == parents) if k else np.zeros(0, dtype=bool)
    up = np.where(parents == 0, root, np.where(found, at, missing))
    up = np.where(present, up, missing)
    jump = np.concatenate([up, [root, missing]])
    # pointer jumping: each pass doubles the number of ancestors that are skipped
    while True:
        further = jump[jump]
        if np.array_equal(further, jump):
            return jump[:k] == root
        jump = further
