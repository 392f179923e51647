"""Each numbered invariant notices what it is there for: one field of a busy engine is spoiled at a time."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sim.capacity import LogOptions, allocate
from sim.core import codes as c
from sim.core.engine import run_until
from sim.core.free_queue import GAP
from sim.core.prefix_map import BUCKET
from sim.core.records import DUE, KEYED
from sim.core.state import State
from sim.core.verify import INVARIANTS, verify
from sim.engine_settings import EngineSettings, KVCacheGroup
from sim.step_time import constant
from tests.core.cases import FOREVER
from workloads.builder import WorkloadBuilder
from workloads.requests import Workload

DOC = Path(__file__).resolve().parents[2] / "docs" / "invariants.md"


def workload() -> Workload:
    """Equal prompts that fill whole blocks, a successor, and one request that comes late."""
    builder = WorkloadBuilder(vocab_size=50, clock="time")
    for _ in range(7):
        builder.add([1, 2], [4, 4], output_len=9, arrival=0, out_seg=3)
    builder.add([1], [4], output_len=2, arrival=0)
    builder.add([1], [4], output_len=2, parent=0, think_ns=1000)
    builder.add([1], [4], output_len=2, parent=7, think_ns=10**6)
    builder.add([1], [4], output_len=2, arrival=10**6)
    builder.add([1], [4], output_len=2, arrival=10**6 + 1)
    return builder.build()


def is_busy(st: State) -> bool:
    """Whether there is something of everything to spoil."""
    ctl, blocks = st.ctl, st.kv.pool.blocks
    ids = np.arange(blocks.size)
    return bool(
        ctl.num_in_flight == 2
        and ctl.memo_req >= 0
        and ctl.memo_hits > 0
        and ctl.num_waiting > 1
        and ctl.num_running > 1
        and ctl.num_ended > 0
        and ctl.heap_len > 0
        and st.kv.pool.meta.num_cached_free > 0
        and st.kv.pool.runs.number > 0
        and ((blocks.dup_next >= 0) & (blocks.dup_next != ids)).any()
    )


def busy_state(policy: str) -> State:
    """An asynchronous engine in the middle of things."""
    settings = EngineSettings(
        block_size=4,
        num_gpu_blocks=9,
        max_num_seqs=3,
        max_num_batched_tokens=32,
        max_model_len=64,
        async_scheduling=True,
        policy=policy,
        watermark=0.2,
    )
    state = allocate(settings, workload(), constant(100), LogOptions(sample_period_ns=70, warmup_ns=50))
    while not is_busy(state):
        assert run_until(state, FOREVER, 1) == c.X_MAX_STEPS, "the engine never gets busy"
    assert verify(state, workload()) == []
    return state


def leave_a_gap(st: State) -> None:
    """Make the full attention of the busy state a sliding window whose table has a hole."""
    st.kv.groups.attention[0] = c.GROUP_SLIDING_WINDOW
    st.kv.groups.window[0] = 1
    st.kv.table_blocks[0, slot(st), 1] = 0


def give_up_too_much(st: State) -> None:
    """... or has lost a block that it still reads."""
    st.kv.groups.attention[0] = c.GROUP_CHUNKED_LOCAL
    st.kv.groups.window[0] = 1024
    st.kv.table_blocks[0, slot(st), 0] = 0


def forget_keys(st: State) -> None:
    """... or has keys that nobody noted."""
    st.kv.groups.attention[0] = c.GROUP_SLIDING_WINDOW
    st.kv.keyed = np.zeros(st.kv.tables.shape, dtype=KEYED).view(np.recarray)


def forget_what_is_due(st: State) -> None:
    """Running requests that are never due."""
    st.kv.due = np.full(st.kv.slots.size, 10**6, dtype=np.int32).repeat(len(DUE)).view(DUE).view(np.recarray)


def running(st: State, i: int = 0) -> int:
    return int(st.queues.lists.running[i])


def slot(st: State) -> int:
    return int(st.requests.slot[running(st)])


def free_block(st: State) -> int:
    """The first block of the free queue."""
    return int(np.flatnonzero(st.kv.pool.blocks.place == first_place(st))[0])


def first_place(st: State) -> int:
    """Where the first block of the free queue stands in its ring."""
    pool = st.kv.pool
    places = np.arange(pool.queue.first, pool.queue.end) & (pool.ring.size - 1)
    return int(places[pool.ring[places] != GAP][0])


def cached_block(st: State) -> int:
    return int(np.flatnonzero(st.kv.pool.blocks.block_hash)[0])


def place(st: State) -> int:
    """A place of the prefix map that holds the key of one block alone."""
    table, blocks = st.kv.pool.table, st.kv.pool.blocks
    used = [int(i) for i in np.flatnonzero(table) if i % BUCKET != BUCKET - 1]
    return next(i for i in used if blocks.dup_next[int(table[i]) & 2**32 - 1] == int(table[i]) & 2**32 - 1)


def doubled_block(st: State) -> int:
    """A block that shares its key."""
    blocks = st.kv.pool.blocks
    return int(np.flatnonzero((blocks.dup_next >= 0) & (blocks.dup_next != np.arange(blocks.size)))[0])


def ended(st: State) -> int:
    return int(np.flatnonzero(st.requests.status == c.S_FINISHED)[0])


def add(array: Callable[[State], np.ndarray], index: Callable[[State], object], by: int = 1) -> Callable:
    """A spoiler that adds to one element."""

    def spoil(st: State) -> None:
        array(st)[index(st)] += by

    return spoil


def gauge(record: Callable[[State], np.ndarray], field: str, by: int = 1) -> Callable:
    """A spoiler that adds to one field of a record."""

    def spoil(st: State) -> None:
        record(st)[field] += by

    return spoil


def swap_keys(st: State) -> None:
    """Move a key of the map to where nothing looks for it."""
    table = st.kv.pool.table
    old = place(st)
    bucket = (old // BUCKET + 1) * BUCKET % table.size
    new = next(i for i in range(bucket, bucket + BUCKET - 1) if table[i] == 0)
    table[new], table[old] = table[old], 0


def repeat_in_table(st: State) -> None:
    table = st.kv.table_blocks[0, slot(st)]
    table[1] = table[0]


def one_request_twice(st: State) -> None:
    st.queues.lists.running[1] = st.queues.lists.running[0]


def zero_tokens(st: State) -> None:
    entries = st.queues.entries[st.ctl.ring_head]
    entries.tokens[0] = 0


def swap_waiting(st: State) -> None:
    """Exchange two requests of the priority heap, with their positions: the order alone is wrong."""
    heap, rq = st.queues.wait_heap, st.requests
    a, b = int(heap[0]), int(heap[1])
    heap[0], heap[1] = b, a
    rq.heap_pos[a], rq.heap_pos[b] = 1, 0


def used_top(st: State) -> None:
    """The first used block is said to be the top of the free runs."""
    st.kv.pool.runs.top = int(np.flatnonzero(st.kv.pool.blocks.ref_cnt[1:-2] > 0)[0]) + 1
    st.kv.pool.runs.length = 1


def no_bound(st: State) -> None:
    """No run is a top, and none may be longer than 0."""
    st.kv.pool.runs.length = st.kv.pool.runs.bound = 0


def meta(st: State) -> np.ndarray:
    return st.kv.pool.meta


def runs(st: State) -> np.ndarray:
    return st.kv.pool.runs


def ctl(st: State) -> np.ndarray:
    return st.ctl


SPOILERS: dict[str, dict[str, Callable[[State], None]]] = {
    "INV-1": {
        "place": add(lambda s: s.kv.pool.blocks.place, free_block),
        "ends": gauge(lambda s: s.kv.pool.queue, "end", 10**6),
        "spare": gauge(lambda s: s.kv.pool.queue, "spare"),
        "length": gauge(meta, "num_free"),
        "member": add(lambda s: s.kv.pool.blocks.ref_cnt, free_block),
        "stranger": add(lambda s: s.kv.pool.ring, first_place, 10**6),
    },
    "INV-2": {"negative": add(lambda s: s.kv.pool.blocks.ref_cnt, free_block, -1)},
    "INV-3": {"key": add(lambda s: s.kv.pool.blocks.block_hash, lambda s: 0)},
    "INV-4": {
        "key of a block": add(lambda s: s.kv.pool.blocks.block_hash, cached_block),
        "first block": add(lambda s: s.kv.pool.table, place),
        "half a key": add(lambda s: s.kv.pool.table, place, 2**32),
        "turned away": add(lambda s: s.kv.pool.table, lambda s: BUCKET - 1),
        "ring": add(lambda s: s.kv.pool.blocks.dup_prev, doubled_block),
        "place": swap_keys,
        "number": gauge(meta, "num_keys"),
    },
    "INV-5": {"caching": lambda s: s.params.__setattr__("enable_caching", 0)},
    "INV-6": {"count": add(lambda s: s.kv.pool.blocks.ref_cnt, lambda s: s.kv.table_blocks[0, slot(s), 0])},
    "INV-7": {
        "twice": repeat_in_table,
        "null": lambda s: s.kv.table_blocks.__setitem__((0, slot(s), 1), 0),
        "count": add(lambda s: s.kv.tables.nulls, lambda s: (0, slot(s))),
    },
    "INV-8": {"length": add(lambda s: s.kv.tables.length, lambda s: (0, slot(s)), -1)},
    "INV-9": {
        "computed": add(lambda s: s.requests.num_computed, lambda s: s.ctl.head_req),
        "table": add(lambda s: s.kv.tables.num_cached, lambda s: (0, s.ctl.memo_slot)),
    },
    "INV-10": {
        "twice": one_request_twice,
        "status": add(lambda s: s.requests.status, running),
        "limit": lambda s: s.params.__setattr__("max_num_active_seqs", 1),
    },
    "INV-11": {
        "count": add(lambda s: s.kv.tables.num_cached, lambda s: (0, slot(s)), 1),
        "key": add(lambda s: s.kv.hashes, lambda s: (slot(s), 0)),
    },
    "INV-12": {
        "in flight": add(lambda s: s.requests.in_flight, running),
        "stale": add(lambda s: s.requests.stale, running, -1),
        "placeholders": add(lambda s: s.requests.placeholders, running),
    },
    "INV-13": {
        "computed": add(lambda s: s.requests.num_computed, running, 40),
        "output": add(lambda s: s.requests.num_tokens, running, 10),
        "model": lambda s: s.params.__setattr__("max_model_len", 8),
    },
    "INV-14": {
        "number": add(lambda s: s.kv.slots.num_hashed, slot, 10),
        "cursor": add(lambda s: s.kv.slots.hash_offset, slot),
        "content": add(lambda s: s.kv.hashes, lambda s: (slot(s), 1)),
    },
    "INV-15": {
        "hits": gauge(lambda s: s.count, "prefix_hits"),
        "tokens": gauge(lambda s: s.count, "decode_tokens"),
        "preemptions": gauge(lambda s: s.count, "preempted_requests", 100),
    },
    "INV-16": {
        "order": swap_waiting,
        "position": add(lambda s: s.requests.heap_pos, lambda s: s.queues.wait_heap[1]),
    },
    "INV-17": {
        "no token": zero_tokens,
        "budget": lambda s: s.params.__setattr__("max_num_batched_tokens", 1),
    },
    "INV-18": {
        "bit": add(lambda s: s.kv.pool.free_bits, lambda s: 0),
        "number": gauge(runs, "number"),
        "longer top": gauge(runs, "length", 100_000),
        "top elsewhere": used_top,
        "bound": no_bound,
    },
    "INV-19": {"cached": gauge(meta, "num_cached"), "free": gauge(meta, "num_cached_free")},
    "INV-20": {
        "blocks": gauge(lambda s: s.count, "table_blocks"),
        "runs": add(lambda s: s.kv.tables.runs, lambda s: (0, slot(s))),
        "allocated": add(lambda s: s.kv.groups.allocated, lambda s: 0),
        "held": add(lambda s: s.kv.groups.held, lambda s: 0),
    },
    "INV-21": {
        "stack": gauge(ctl, "num_free_slots", -1),
        "owner": add(lambda s: s.requests.slot, running),
        "head": gauge(ctl, "head_req"),
    },
    "INV-22": {
        "mark": add(lambda s: s.kv.pool.blocks.mark, lambda s: s.kv.table_blocks[0, s.ctl.memo_slot, 0]),
        "free": gauge(ctl, "memo_free"),
        "hits": add(lambda s: s.kv.table_blocks[0], lambda s: (s.ctl.memo_slot, 0)),
        "too many": gauge(ctl, "memo_hits", 50),
        "owner": gauge(ctl, "memo_slot"),
        "none": lambda s: s.ctl.__setattr__("memo_req", -1),
    },
    "INV-23": {
        "lost": gauge(ctl, "heap_len", -1),
        "passed over": gauge(ctl, "order_pos"),
        "order": add(lambda s: s.requests.arrival, lambda s: 10, 100),
        "release": add(lambda s: s.requests.arrival, lambda s: 9),
    },
    "INV-24": {
        "ended": gauge(ctl, "num_ended"),
        "finished": gauge(lambda s: s.count, "finished"),
        "times": add(lambda s: s.requests.first_token, ended, 10**6),
        "output": add(lambda s: s.requests.output_len, ended),
        "slot": lambda s: s.requests.slot.__setitem__(ended(s), 0),
        "never": lambda s: s.requests.finish.__setitem__(ended(s), -1),
    },
    "INV-25": {
        "number": gauge(ctl, "num_in_flight"),
        "phase": lambda s: s.ctl.__setattr__("phase", c.P_SCHEDULE),
        "end": add(lambda s: s.queues.batches.done, lambda s: s.ctl.ring_head, 10**6),
        "step": add(lambda s: s.queues.batches.loop_step, lambda s: s.ctl.ring_head, 10**6),
        "half built": add(lambda s: s.requests.batch_pos, running),
    },
    "INV-26": {
        "histogram": add(lambda s: s.logs.histogram, lambda s: (2, 3)),
        "sum": add(lambda s: s.logs.weighted.total, lambda s: 4, 10**9),
        "note": add(lambda s: s.logs.notes.lasted, lambda s: 0, 5),
        "time": gauge(ctl, "last_time"),
    },
    "INV-27": {
        "sample": gauge(ctl, "next_sample"),
        "overdue": gauge(ctl, "next_sample", -70),
        "events": gauge(ctl, "events_lost"),
        "rows": gauge(ctl, "log_len", 10**6),
        "watched": gauge(ctl, "num_ended_watched"),
    },
    "INV-28": {"gap": leave_a_gap, "within reach": give_up_too_much},
    "INV-29": {
        "count": gauge(lambda s: s.kv.pool.meta, "num_partial_keys"),
        "table": lambda s: s.kv.pool.partial_table.__setitem__(slice(0, 2), [7, 1]),
    },
    "INV-30": {"cap": lambda s: s.kv.groups.admission_cap.__setitem__(0, 1)},
    "INV-31": {
        "budget": gauge(ctl, "encoder_budget"),
        "slots": gauge(ctl, "encoder_free", -1),
        "owner": add(lambda s: s.kv.slots.encoder_tokens, slot),
    },
    "INV-32": {"copy": gauge(ctl, "num_copies")},
    "INV-33": {"key": forget_keys},
    "INV-34": {"due": forget_what_is_due},
}


@pytest.mark.parametrize(("name", "what"), [(name, what) for name in SPOILERS for what in SPOILERS[name]])
def test_a_spoiled_state_is_noticed(name: str, what: str) -> None:
    state = busy_state("priority")
    SPOILERS[name][what](state)
    assert [line for line in verify(state, workload()) if line.startswith(f"{name}: ")]


def state_with_states(exports: bool) -> State:
    """An engine whose only running request has cached a state inside a block, or has exported one."""
    builder = WorkloadBuilder(vocab_size=50, clock="time")
    builder.add([1], [31], output_len=3, arrival=0, out_seg=3)
    settings = EngineSettings(
        block_size=8,
        prefix_match_unit=2,
        num_gpu_blocks=40,
        max_num_seqs=2,
        max_num_batched_tokens=32,
        max_model_len=64,
        kv_cache_groups=(
            KVCacheGroup(),
            KVCacheGroup("mamba", prefill_checkpoint_alignment=1 if exports else None),
        ),
    )
    workload = builder.build()
    state = allocate(settings, workload, constant(100), LogOptions())
    places = state.kv.states.exported_at if exports else state.kv.states.shared
    while not (places[1] >= 0).any():
        assert run_until(state, FOREVER, 1) == c.X_MAX_STEPS
    assert verify(state, workload) == []
    return state


def special(st: State) -> tuple[int, int]:
    """Place of the running request in ``kv.states`` of the Mamba group."""
    return 1, slot(st)


def inside(st: State) -> int:
    """A place that has a key inside a block."""
    return int(np.flatnonzero(st.kv.pool.partial_keys)[0])


def key_of_shared(st: State) -> None:
    """Another key than that of the state which is to be copied."""
    b = st.kv.table_blocks[1, slot(st), st.kv.states.shared[special(st)]]
    st.kv.pool.blocks.block_hash[b] += np.uint64(1)


SPECIAL: dict[str, tuple[bool, str, Callable[[State], object]]] = {
    "place": (False, "INV-32", lambda s: s.kv.states.shared.__setitem__(special(s), 0)),
    "key": (False, "INV-32", key_of_shared),
    "of attention": (False, "INV-32", lambda s: s.kv.states.shared.__setitem__((0, slot(s)), 3)),
    "exported place": (True, "INV-32", lambda s: s.kv.states.exported_at.__setitem__(special(s), 9)),
    "exported tokens": (True, "INV-32", lambda s: s.kv.states.exported.__setitem__(special(s), 99)),
    "ring": (False, "INV-29", add(lambda s: s.kv.pool.partial_links, lambda s: 2 * inside(s) + 1)),
    "ring back": (False, "INV-29", add(lambda s: s.kv.pool.partial_links, lambda s: 2 * inside(s))),
    "own text": (True, "INV-11", lambda s: s.kv.pool.partial_keys.__setitem__(inside(s), 9)),
}


@pytest.mark.parametrize("what", SPECIAL)
def test_a_spoiled_state_of_states_is_noticed(what: str) -> None:
    exports, name, spoil = SPECIAL[what]
    state = state_with_states(exports)
    spoil(state)
    assert [line for line in verify(state) if line.startswith(f"{name}: ")]


@pytest.mark.parametrize("field", ["wait_next", "wait_prev"])
def test_a_broken_list_of_waiting_requests_is_noticed(field: str) -> None:
    state = busy_state("fcfs")
    head = state.queues.wait_heap.size
    first = int(state.requests.wait_next[head])
    state.requests[field][first] = head if field == "wait_next" else first
    assert [line for line in verify(state) if line.startswith("INV-16: ")]


def test_every_invariant_is_numbered_documented_and_has_a_spoiler() -> None:
    assert list(INVARIANTS) == [f"INV-{i}" for i in range(1, len(INVARIANTS) + 1)] == list(SPOILERS)
    doc = re.sub(r"\s+", " ", DOC.read_text())
    for name, check in INVARIANTS.items():
        sentence = (check.__doc__ or "").split("\n")[0]
        assert sentence.startswith(f"{name}: ")
        assert f"**{name}** {sentence.removeprefix(f'{name}: ')}" in doc
