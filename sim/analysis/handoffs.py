"""Block tables at the moment when a request's KV would be sent elsewhere.

A request's table is given back in the step that ends it, so it is read before the step's tokens are
delivered: the engine runs phase by phase, and before each delivery the batch tells whose first or last token
it may bring. Nothing in the engine needs to know of it. Of a recording the last state before the end, or the
first one after the prefill, shows the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError
from sim.fleet.single import refuse_fleet
from sim.groups import layout_of

if TYPE_CHECKING:
    from sim.analysis.recorded import Recorded
    from sim.analysis.recording_file import RecordedState
    from sim.core.state import State
    from sim.resolve import Resolved
    from workloads.requests import Workload

I64 = NDArray[np.int64]

FIRST_TOKEN, FINISH = "first-token", "finish"
_FOREVER = 1 << 62


@dataclass(frozen=True)
class Handoffs:
    """One entry a request whose KV would be sent; k requests in order of time, G KV-cache groups.

    Attributes:
        when: "first-token" or "finish".
        request: int64[k], position in the workload.
        time_ns: int64[k], when its token is delivered (of a recording: of the state that shows the table).
        tokens: int64[k], tokens whose KV is computed.
        blocks: int64[k, G], blocks that are sent: those that hold computed tokens, and the current state.
        ascending: int64[k, G], adjacent pairs of ids (b, b + 1) among these blocks in table order.
        descending: int64[k, G], adjacent pairs (b, b - 1).
        missed: requests without a table: preempted when the token came, or never seen with it.
        names: of the requests, where the workload does not say.
    """

    when: str
    request: I64
    time_ns: I64
    tokens: I64
    blocks: I64
    ascending: I64
    descending: I64
    missed: int
    names: tuple[str, ...] = ()

    @property
    def pairs(self) -> I64:
        """int64[k, G], adjacent pairs: blocks - 1."""
        return np.maximum(self.blocks - 1, 0)

    @property
    def runs(self) -> I64:
        """int64[k, G], maximal runs of consecutive ascending ids."""
        return self.blocks - self.ascending


def pairs_of(table: NDArray[np.integer]) -> tuple[int, int]:
    """Adjacent pairs (b, b + 1) and (b, b - 1) in a block table."""
    steps = np.diff(table)
    return int((steps == 1).sum()), int((steps == -1).sum())


def sent_blocks(table: NDArray[np.integer], tokens: int, block_size: int) -> NDArray[np.integer]:
    """The blocks of a table that are sent.

    Args:
        table: block ids, 0 where a place has none.
        tokens: computed ones.
        block_size: tokens of a block; 0: blocks hold states, of which the last one is the current; negative:
            they hold encoder tokens, which are all sent.
    """
    if block_size < 0:
        return table[table != 0]
    if block_size == 0:
        return table[np.flatnonzero(table)[-1:]]
    held = table[: -(-tokens // block_size)]
    return held[held != 0]


Row = tuple[int, int, int, list[tuple[int, int, int]]]


def _row(
    request: int, time_ns: int, tokens: int, tables: Sequence[NDArray[np.integer]], sizes: Sequence[int]
) -> Row:
    found = []
    for table, size in zip(tables, sizes, strict=True):
        sent = sent_blocks(table, tokens, size)
        found.append((len(sent), *pairs_of(sent)))
    return request, time_ns, tokens, found


def _handoffs(
    when: str, rows: Sequence[Row], groups: int, missed: int, names: Sequence[str] = ()
) -> Handoffs:
    plain = np.array([row[:3] for row in rows], dtype=np.int64).reshape(-1, 3)
    tables = np.array([row[3] for row in rows], dtype=np.int64).reshape(-1, groups, 3)
    request, time_ns, tokens = plain.T.copy()
    blocks, ascending, descending = np.moveaxis(tables, 2, 0).copy()
    return Handoffs(when, request, time_ns, tokens, blocks, ascending, descending, missed, tuple(names))


class _Watch:
    """The requests whose first or last token the next update may deliver, and their tables before it."""

    def __init__(self, state: State, when: str, drafts: int, max_model_len: int, warmup_ns: int) -> None:
        self._state, self._when, self._drafts = state, when, drafts
        self._limit, self._warmup = max_model_len, warmup_ns
        self._before: list[tuple[int, list[NDArray[np.int32]] | None]] = []
        self._done_at = 0

    def look(self) -> None:
        """Before an update."""
        from sim.core import codes as c

        st = self._state
        rq, known = st.requests, st.requests["num_tokens"]
        batches, batch = st.queues.batches, int(st.ctl.ring_head)
        entry = st.queues.entries[batch, : int(batches["entries"][batch])]
        ours = entry["req"][entry["sampled"] == 1]
        ours = ours[rq["status"][ours] < c.S_FINISHED]
        generated = known[ours] - rq["prompt_len"][ours]
        if self._when == FIRST_TOKEN:
            may = generated == 0
        else:
            # an update brings one token and the accepted drafts
            most = 1 + self._drafts
            may = (generated + most >= rq["output_len"][ours]) | (known[ours] + most >= self._limit)
        picked = ours[may & (rq["arrival"][ours] >= self._warmup)].tolist()
        self._done_at = int(batches["done"][batch])
        running = rq["status"]
        self._before = [(r, self._tables(r) if running[r] == c.S_RUNNING else None) for r in picked]

    def _tables(self, r: int) -> list[NDArray[np.int32]]:
        kv, slot = self._state.kv, int(self._state.requests["slot"][r])
        lengths = kv.tables["length"][:, slot].tolist()
        return [kv.table_blocks[g, slot, :n].copy() for g, n in enumerate(lengths)]

    def found(self, sizes: Sequence[int]) -> tuple[list[Row], int]:
        """After it: rows of those that got the token, and how many of them had no table."""
        from sim.core import codes as c

        rq = self._state.requests
        rows, missed = [], 0
        for r, tables in self._before:
            known = int(rq["num_tokens"][r])
            got = known > rq["prompt_len"][r]
            if not got or (self._when == FINISH and rq["status"][r] < c.S_FINISHED):
                continue
            if tables is None:
                missed += 1
                continue
            # the token that came last is not computed
            rows.append(_row(r, self._done_at, known - 1, tables, sizes))
        return rows, missed


def simulate_handoffs(
    resolved: Resolved,
    workload: Workload,
    when: str = FINISH,
    progress: Callable[[int, int], None] | None = None,
) -> Handoffs:
    """Simulate a config and read the tables of each request when it is to be sent.

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

    engine = resolved.engine
    state = allocate(engine, workload, resolved.step_time, LogOptions(sample_period_ns=0))
    end = _FOREVER if resolved.until_ns is None else resolved.until_ns
    layout = layout_of(engine)
    crossing = [g.attention == c.GROUP_CROSS for g in layout.groups]
    sizes = tuple(-1 if x else n for x, n in zip(crossing, layout.slot_sizes, strict=True))
    watch = _Watch(state, when, engine.num_speculative_tokens, engine.max_model_len, resolved.warmup_ns)
    rows: list[Row] = []
    missed = steps = 0
    while True:
        updates = state.ctl.phase == c.P_UPDATE
        if updates:
            watch.look()
        reason = advance(state, end)
        if reason == c.X_UPDATED:
            more, without = watch.found(sizes)
            rows += more
            missed += without
        elif reason != c.X_SCHEDULED:
            break
        steps += 1
        if progress and steps % 10000 == 0:
            progress(len(rows), len(workload))
    return _handoffs(when, rows, len(sizes), missed)


def recorded_handoffs(recorded: Recorded, when: str = FINISH) -> Handoffs:
    """The tables that the states of a recording show.

    Args:
        recorded: the recording.
        when: "first-token": of each request the first state in which its whole prompt is computed; "finish":
            the last state that shows it running, if its end was recorded.

    Raises:
        InputError: no state, or no requests (a table of states) for "first-token".
    """
    recorded.state_before(0)
    names = [] if recorded.requests is None else [str(n) for n in recorded.requests["request_id"]]
    prompts: dict[str, int] = {}
    if recorded.requests is not None:
        lengths = recorded.requests["prompt_tokens"].tolist()
        prompts = {name: n for name, n in zip(names, lengths, strict=True) if n >= 0}
    elif when == FIRST_TOKEN:
        raise InputError(
            "a table of states does not tell how long prompts are",
            str(recorded.path),
            hint="use --when finish, or give the recording itself",
        )
    seen: dict[str, tuple[int, int, list[NDArray[np.int32]]]] = {}
    for i, time in enumerate(recorded.state_times.tolist()):
        state: RecordedState = recorded.state(i)
        for name, computed, tables in zip(state.running, state.computed, state.tables, strict=True):
            if when == FINISH:
                seen[name] = (time, int(computed), tables)
            elif name in prompts and computed >= prompts[name]:
                seen.setdefault(name, (time, int(computed), tables))
    wanted = list(seen)
    if recorded.requests is not None:
        ended = recorded.requests["finish_ns"] >= 0
        wanted = [n for n, e in zip(names, ended.tolist(), strict=True) if e or when == FIRST_TOKEN]
    number = {name: i for i, name in enumerate(names or wanted)}
    rows = [
        _row(number[n], seen[n][0], seen[n][1], seen[n][2], recorded.block_sizes) for n in wanted if n in seen
    ]
    rows.sort(key=lambda row: (row[1], row[0]))
    missed = sum(n not in seen for n in wanted)
    return _handoffs(when, rows, len(recorded.block_sizes), missed, names or wanted)


def check_source(
    source: str, overrides: Sequence[str] = (), seed: int | None = None, replica: int | None = None
) -> tuple[Resolved, Workload]:
    """A config file, or the config of a run folder: resolved, with its requests; `replica` of a fleet's run.
    A run that was interrupted is to end where it did.

    Raises:
        InputError: a bad config, not a run folder, or one whose workload can't be had again.
    """
    from sim.runner import check

    folder = Path(source)
    if replica is not None:
        return _replica(folder, overrides, seed, replica)
    if not folder.is_dir():
        resolved, workload = check(source, overrides, seed)
        refuse_fleet(resolved, source, "use replicas: 1, or run it and name one with --replica N, from 0")
        return resolved, workload
    if not (folder / "provenance.json").is_file() or not (folder / "config.yaml").is_file():
        hint = "a run folder is what `python -m sim run` writes; or name a config file"
        raise InputError("this is not the folder of a run", source, hint=hint)
    resolved, workload = check(str(folder / "config.yaml"), overrides, seed)
    refuse_fleet(resolved, source, "name one with --replica N, from 0")
    if not overrides and seed is None:
        from sim.report.folder import read_run

        run = read_run(folder)
        if run.provenance["workload"]["sha256"] != workload.content_hash():
            hint = "its trace file has changed, or the rules that draw requests: run it again"
            raise InputError("the workload is not the one that this run was made with", source, hint=hint)
        if run.summary["exit_reason"] == "interrupted":
            resolved = replace(resolved, until_ns=run.end_ns)
    return resolved, workload


def _replica(
    folder: Path, overrides: Sequence[str], seed: int | None, replica: int
) -> tuple[Resolved, Workload]:
    from sim.analysis.rerun import Rerun

    if not folder.is_dir():
        hint = "run it first, and name the run folder"
        raise InputError(
            "a replica is that of a run: its requests depend on the router", str(folder), hint=hint
        )
    if overrides or seed is not None:
        message = "a replica's requests are those of its run, which --set and --seed would change"
        raise InputError(message, "--replica", hint="leave out one of them")
    rerun = Rerun(folder, replica=replica)
    return rerun.resolved, rerun.workload
