"""Block tables at the moment when a request's KV would be sent elsewhere.

A request's table is given back in the step that ends it, so it is read before the step's tokens are
delivered: the engine runs phase by phase, and before each delivery the batch tells whose first or last token
it brings. Nothing in the engine needs to know of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError
from sim.fleet.single import refuse_fleet

if TYPE_CHECKING:
    from sim.resolve import Resolved
    from workloads.requests import Workload

I64 = NDArray[np.int64]

FIRST_TOKEN, FINISH = "first-token", "finish"
_FOREVER = 1 << 62


@dataclass(frozen=True)
class Handoffs:
    """One entry a request whose KV would be sent; k requests, in order of time.

    Attributes:
        when: "first-token" or "finish".
        request: int64[k], position in the workload.
        time_ns: int64[k], when its token is delivered.
        tokens: int64[k], tokens whose KV is computed.
        blocks: int64[k], blocks that hold them.
        ascending: int64[k], adjacent pairs of ids (b, b + 1) among these blocks in table order.
        descending: int64[k], adjacent pairs (b, b - 1).
        missed: requests that got the token while preempted, without a table.
    """

    when: str
    request: I64
    time_ns: I64
    tokens: I64
    blocks: I64
    ascending: I64
    descending: I64
    missed: int

    @property
    def pairs(self) -> I64:
        """int64[k], adjacent pairs: blocks - 1."""
        return np.maximum(self.blocks - 1, 0)

    @property
    def runs(self) -> I64:
        """int64[k], maximal runs of consecutive ascending ids."""
        return self.blocks - self.ascending


def pairs_of(table: NDArray[np.integer]) -> tuple[int, int]:
    """Adjacent pairs (b, b + 1) and (b, b - 1) in a block table."""
    steps = np.diff(table)
    return int((steps == 1).sum()), int((steps == -1).sum())


def simulate_handoffs(
    resolved: Resolved,
    workload: Workload,
    when: str = FINISH,
    progress: Callable[[int, int], None] | None = None,
) -> Handoffs:
    """Simulate a config and read the table of each request when it is to be sent.

    Args:
        resolved: the config.
        workload: its requests.
        when: "first-token" (a prefill instance hands over) or "finish" (the KV is stored elsewhere).
        progress: called with requests seen and requests in all, now and then.

    Requests that arrive during the warm-up are left out.
    """
    from sim.capacity import LogOptions, allocate
    from sim.core import codes as c
    from sim.core.engine import advance

    state = allocate(resolved.engine, workload, resolved.step_time, LogOptions(sample_period_ns=0))
    end = _FOREVER if resolved.until_ns is None else resolved.until_ns
    ctl, rq, block_size = state.ctl, state.requests, resolved.engine.block_size
    known, prompt, output = rq["num_tokens"], rq["prompt_len"], rq["output_len"]
    batches, entries = state.queues.batches, state.queues.entries
    rows: list[tuple[int, ...]] = []
    missed = steps = 0
    while True:
        picked: NDArray[np.integer] = np.zeros(0, dtype=np.int32)
        if ctl.phase == c.P_UPDATE:
            batch = int(ctl.ring_head)
            entry = entries[batch, : int(batches["entries"][batch])]
            ours = entry["req"][entry["sampled"] == 1]
            generated = known[ours] - prompt[ours] + 1
            if when == FIRST_TOKEN:
                hit = generated == 1
            else:
                hit = (generated >= output[ours]) | (known[ours] + 1 >= resolved.engine.max_model_len)
            picked = ours[hit & (rq["arrival"][ours] >= resolved.warmup_ns)]
            picked = picked[rq["status"][picked] < c.S_FINISHED]
        done_at = int(batches["done"][int(ctl.ring_head)])
        seen: list[tuple[int, ...] | None] = []
        for r in picked:
            if rq["status"][r] != c.S_RUNNING:
                seen.append(None)
                continue
            blocks = -(-int(known[r]) // block_size)
            table = state.kv.table_blocks[0, rq["slot"][r], :blocks]
            seen.append((int(r), done_at, int(known[r]), blocks, *pairs_of(table)))
        reason = advance(state, end)
        if reason == c.X_UPDATED:
            rows += [row for row in seen if row is not None]
            missed += seen.count(None)
        elif reason != c.X_SCHEDULED:
            break
        steps += 1
        if progress and steps % 10000 == 0:
            progress(len(rows), len(workload))
    table_of_rows = np.array(rows, dtype=np.int64).reshape(-1, 6)
    request, time_ns, tokens, blocks_held, ascending, descending = table_of_rows.T.copy()
    return Handoffs(when, request, time_ns, tokens, blocks_held, ascending, descending, missed)


def check_source(
    source: str, overrides: Sequence[str] = (), seed: int | None = None
) -> tuple[Resolved, Workload]:
    """A config file, or the config of a run folder: resolved, with its requests.

    Raises:
        InputError: a bad config, not a run folder, or one whose workload can't be had again.
    """
    from sim.runner import check

    folder = Path(source)
    if not folder.is_dir():
        resolved, workload = check(source, overrides, seed)
        refuse_fleet(resolved, source)
        return resolved, workload
    if not (folder / "provenance.json").is_file() or not (folder / "config.yaml").is_file():
        hint = "a run folder is what `python -m sim run` writes; or name a config file"
        raise InputError("this is not the folder of a run", source, hint=hint)
    resolved, workload = check(str(folder / "config.yaml"), overrides, seed)
    refuse_fleet(resolved, source)
    if not overrides and seed is None:
        was = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["workload"]["sha256"]
        if was != workload.content_hash():
            hint = "its trace file has changed, or the rules that draw requests: run it again"
            raise InputError("the workload is not the one that this run was made with", source, hint=hint)
    return resolved, workload
