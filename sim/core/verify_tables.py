"""The numbered invariants of block tables, slots and hashes, recomputed naively; see ``verify``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sim.core import codes as c
from sim.core.state import State
from sim.core.verify_pool import map_places

_MASK = 2**64 - 1
_MIX1, _MIX2 = 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53
_PARENT = 0x9FB21C651E98DF25
_NONE_HASH = 0x2545F4914F6CDD1D
_GROUP = 0xA0761D6478BD642F


class Tokens(Protocol):
    """Token ids of the requests: a Workload."""

    def __len__(self) -> int: ...

    def prompt_tokens(self, i: int) -> NDArray[np.int32]:
        """Prompt of request i, int32[prompt_len]."""
        ...

    def output_tokens(self, i: int) -> NDArray[np.int32]:
        """What request i generates, int32[output_len]."""
        ...


class View(NamedTuple):
    """The state, with what most checks ask for."""

    st: State
    running: list[int]
    waiting: list[int]
    tokens: Tokens | None

    def slot(self, r: int) -> int:
        """Slot of request r, -1: none."""
        return int(self.st.requests.slot[r])

    def table(self, g: int, slot: int) -> list[int]:
        """Block table of a slot in one group."""
        return self.st.kv.table_blocks[g, slot, : self.st.kv.tables.length[g, slot]].tolist()

    def batches(self) -> list[int]:
        """Ring indices of the batches in flight, oldest first."""
        ctl = self.st.ctl
        return [int(ctl.ring_head + i) % 3 for i in range(ctl.num_in_flight)]


Check = Callable[[View], Iterator[str]]


def inv_6(v: View) -> Iterator[str]:
    """INV-6: a block's reference count is the number of its places in block tables."""
    n = int(v.st.params.num_blocks)
    groups, slots = v.st.kv.tables.shape
    blocks = [b for g in range(groups) for slot in range(slots) for b in v.table(g, slot)]
    places = np.bincount(np.array(blocks, dtype=np.int64), minlength=n)
    for b in np.flatnonzero(places[1:n] != v.st.kv.pool.blocks["ref_cnt"][1:n]) + 1:
        yield f"block {b} stands {places[b]} times in block tables, ref_cnt {v.st.kv.pool.blocks.ref_cnt[b]}"


def inv_7(v: View) -> Iterator[str]:
    """INV-7: a table holds no block twice; null blocks only where the group gives blocks up, and counted."""
    groups, slots = v.st.kv.tables.shape
    for g in range(groups):
        for slot in range(slots):
            ids = v.table(g, slot)
            blocks = [b for b in ids if b]
            nulls = len(ids) - len(blocks)
            keeps_all = v.st.kv.groups.attention[g] in (c.GROUP_FULL, c.GROUP_CROSS)
            if len(set(blocks)) != len(blocks) or (nulls and keeps_all):
                yield f"table of slot {slot}, group {g}: {ids}"
            if nulls != v.st.kv.tables.nulls[g, slot]:
                yield f"slot {slot}, group {g} counts {v.st.kv.tables.nulls[g, slot]} null blocks: {ids}"


def inv_8(v: View) -> Iterator[str]:
    """INV-8: a running request's table has exactly the blocks that its computed tokens need.

    With drafts, also those of slots that were given to drafts or to the drafter. Cross attention: those of
    the encoder tokens.
    """
    drafts = int(v.st.params.num_drafts)
    for r in v.running:
        computed = int(v.st.requests.num_computed[r])
        for g, size in enumerate(v.st.kv.groups["block_size"].tolist()):
            length = int(v.st.kv.tables.length[g, v.slot(r)])
            least = -(-computed // size)
            most = -(-(computed + 3 * drafts) // size) + (0 if v.st.kv.groups.token_slots[g] else drafts)
            if v.st.kv.groups.attention[g] == c.GROUP_CROSS:
                tokens = encoder_tokens(v.st, r)
                if tokens and v.st.kv.params.encoder_most:
                    tokens = int(v.st.kv.params.encoder_most)
                least = most = -(-tokens // size)
            if not least <= length <= most:
                yield f"request {r} with {computed} tokens has {length} blocks of {size} tokens"


def encoder_tokens(st: State, r: int) -> int:
    """Encoder tokens of request r."""
    own = st.kv.encoder_tokens
    return int(own[r] if r < own.size else st.params.encoder_tokens)


def inv_28(v: View) -> Iterator[str]:
    """INV-28: what a request gave up in a window group is the beginning of its table, and out of reach.

    Releases that count tokens in flight as computed may have given it up for drafts that were rejected.
    """
    st = v.st
    for r in v.running:
        computed = int(st.requests.num_computed[r])
        if st.params.window_free_basis == c.WINDOW_OPTIMISTIC:
            computed += 2 * int(st.params.num_drafts)
        for g, size in enumerate(st.kv.groups["block_size"].tolist()):
            kind, window = int(st.kv.groups.attention[g]), int(st.kv.groups.window[g])
            if kind not in (c.GROUP_SLIDING_WINDOW, c.GROUP_CHUNKED_LOCAL):
                continue
            passed = computed - window + 1 if kind == c.GROUP_SLIDING_WINDOW else computed // window * window
            table = v.table(g, v.slot(r))
            nulls = table.count(0)
            if any(table[:nulls]) or nulls > max(passed, 0) // size:
                yield f"request {r} with {computed} tokens, window {window}: table {table}"


def inv_9(v: View) -> Iterator[str]:
    """INV-9: only running requests hold blocks; a waiting one has nothing computed and no placeholder."""
    st = v.st
    free = np.ones(st.kv.slots.size, dtype=bool)
    free[[v.slot(r) for r in v.running]] = False
    for name in ("length", "num_cached", "runs", "nulls", "retired"):
        for g, slot in np.argwhere(st.kv.tables[name] * free):
            yield f"slot {slot} of no running request has {name} {st.kv.tables[name][g, slot]} in group {g}"
    for r in v.waiting:
        if st.requests.num_computed[r] or st.requests.placeholders[r]:
            yield (
                f"request {r} waits with {st.requests.num_computed[r]} computed tokens "
                f"and {st.requests.placeholders[r]} placeholders"
            )


def inv_11(v: View) -> Iterator[str]:
    """INV-11: the counted leading blocks of a running request carry its own keys, the others none.

    Counted are the blocks that its computed tokens of known identity fill, up to where a hit may end. A token
    that is known only since the last update (async scheduling, drafts) may count at the request's next
    schedule. In groups that cache selected blocks a counted one may also have no key. A block that is not
    full may have the key of a prompt that ends in it, and an exported state that of any beginning.
    """
    st, rq = v.st, v.st.requests
    for r in v.running:
        slot = v.slot(r)
        computed = int(rq.num_computed[r])
        most = min(computed, int(rq.num_tokens[r])) if st.params.enable_caching else 0
        least = max(computed - int(rq.placeholders[r]) - int(st.params.num_drafts), 0) if most else 0
        aligned = st.params.hybrid and st.params.hybrid_aligned and not st.params.fine_grained
        unit = int(st.params.scheduler_block_size) if aligned else 1
        for g, (size, ratio) in enumerate(
            zip(st.kv.groups["block_size"].tolist(), st.kv.groups["hash_ratio"].tolist(), strict=True)
        ):
            counted = int(st.kv.tables.num_cached[g, slot])
            selected = st.kv.groups.attention[g] in (c.GROUP_SLIDING_WINDOW, c.GROUP_MAMBA)
            end = most // unit * unit
            if end and st.kv.groups.drops[g]:
                end = min(end + size, most)
            if not least // unit * unit // size <= counted <= end // size:
                yield f"request {r} counts {counted} cached blocks of {size} tokens, computed {computed}"
            for i, b in enumerate(v.table(g, slot)):
                if b == 0:
                    continue
                key = _group_key(int(st.kv.hashes[slot, (i + 1) * ratio - 1]), g) if i < counted else 0
                found = int(st.kv.pool.blocks.block_hash[b])
                further = _further_keys(st, b)
                if further or (found and st.kv.groups.export_alignment[g]):
                    hashed = int(st.kv.slots.num_hashed[slot])
                    units = range(i * ratio + 1, min((i + 1) * ratio, hashed + 1))
                    if st.kv.groups.export_alignment[g]:
                        units = range(1, hashed + 1)
                    own = {_group_key(int(st.kv.hashes[slot, u - 1]), g) for u in units}
                    if not own.issuperset(further):
                        yield f"request {r} block {i}: block {b} has keys {further} of another text"
                    if found in own and (i >= counted or selected):
                        continue
                if found != key and not (selected and found == 0):
                    yield f"request {r} block {i}: block {b} does not carry key {key:#x}"


def _further_keys(st: State, b: int) -> list[int]:
    width = int(st.params.partial_width)
    return [int(key) for key in st.kv.pool.partial_keys[b * width : (b + 1) * width] if key]


def inv_30(v: View) -> Iterator[str]:
    """INV-30: a request holds no more blocks of a window or chunk than the admission cap reserves for it.

    The cap does not count drafts.
    """
    drafts = int(v.st.params.num_drafts)
    for r in v.running:
        for g, (cap, size) in enumerate(v.st.kv.groups[["admission_cap", "block_size"]].tolist()):
            held = sum(b > 0 for b in v.table(g, v.slot(r)))
            if cap and held > cap + -(-3 * drafts // size):
                yield f"request {r} holds {held} blocks in group {g}, at most {cap}"


def inv_32(v: View) -> Iterator[str]:
    """INV-32: between two phases no copy is to be made; a state to be copied is keyed, where its request is.

    It is the state at the last boundary of the prompt that a hit can use, inside its block. An exported state
    stands in the table until its request goes on.
    """
    st = v.st
    if st.ctl.num_copies:
        yield f"{st.ctl.num_copies} copies are to be made"
    if st.kv.windows_only:
        return
    unit = int(st.kv.hash_mult.size)
    for r in v.running:
        slot, computed = v.slot(r), int(st.requests.num_computed[r])
        for g, size in enumerate(st.kv.groups["block_size"].tolist()):
            states, table = st.kv.states[g, slot], v.table(g, slot)
            shared, exported_at = int(states.shared), int(states.exported_at)
            kept = st.kv.groups.attention[g] == c.GROUP_MAMBA and st.params.enable_caching
            if shared >= 0:
                key = _group_key(int(st.kv.hashes[slot, computed // unit - 1]), g) if computed >= unit else 0
                b = table[shared] if shared < len(table) else 0
                if not kept or shared != computed // size or computed % size == 0:
                    yield f"request {r} with {computed} tokens is to copy place {shared} of {table}"
                elif not b or int(st.kv.pool.blocks.block_hash[b]) != key or computed % unit:
                    yield f"request {r} is to copy block {b}, which does not stand for its {computed} tokens"
            if exported_at >= 0:
                known = kept and st.kv.groups.export_alignment[g] and exported_at < len(table)
                if not known or not 0 < states.exported <= computed + 2 * st.params.num_drafts:
                    yield f"request {r} with {computed} tokens exported {states.exported} at {exported_at}"


def inv_14(v: View) -> Iterator[str]:
    """INV-14: the hashes of a slot are those of its request's first full units; the cursor stands behind."""
    st, rq = v.st, v.st.requests
    unit = int(st.kv.hash_mult.size)
    for r in np.flatnonzero(rq["slot"][: st.ctl.num_requests] >= 0).tolist():
        slot = v.slot(r)
        hashed = int(st.kv.slots.num_hashed[slot])
        known = int(rq.num_tokens[r])
        behind = int(st.params.hash_lookahead) if hashed else 0
        if not 0 <= hashed * unit + behind <= known:
            yield f"request {r} has {hashed} hashes of {unit} tokens, known are {known}"
            continue
        if (cursor := _cursor(st, r, hashed * unit + behind)) != (
            st.kv.slots.hash_piece[slot],
            st.kv.slots.hash_offset[slot],
        ):
            yield f"request {r} goes on hashing at {st.kv.slots[slot]}, should at (piece, offset) {cursor}"
        if v.tokens is not None and r < len(v.tokens):
            expected = _chain(st, v.tokens, r, hashed)
            if st.kv.hashes[slot, :hashed].tolist() != expected:
                yield f"request {r} has hashes that are not those of its tokens"


def _cursor(st: State, r: int, position: int) -> tuple[int, int]:
    """(piece, offset in it) of a token position; the output counts as one piece behind the prompt."""
    first, end = int(st.kv.seg_ptr[r]), int(st.kv.seg_ptr[r + 1])
    for piece in range(first, end):
        length = int(st.kv.pieces.length[piece])
        if position < length:
            return piece, position
        position -= length
    return end, position


def _chain(st: State, tokens: Tokens, r: int, count: int) -> list[int]:
    """The first hashes of a request in whole-number arithmetic, from its token ids."""
    unit = int(st.kv.hash_mult.size)
    first = int(st.params.hash_lookahead)
    known = np.concatenate([tokens.prompt_tokens(r), tokens.output_tokens(r)]).astype(np.uint64)
    ids = known[first : first + count * unit]
    sums = (ids.reshape(count, unit) * st.kv.hash_mult).sum(axis=1, dtype=np.uint64)
    salt = int(st.requests.salt[r])
    parent = _mix64(_NONE_HASH + salt * _PARENT) if salt else _NONE_HASH
    if first and count:
        parent = _chained(parent, int(known[0] * st.kv.hash_mult[0]))
    chain = []
    for content in sums.tolist():
        parent = _chained(parent, content)
        chain.append(parent)
    return chain


def _chained(parent: int, content: int) -> int:
    return (parent * _PARENT + _mix64(content + 1)) & _MASK or 1


def _mix64(x: int) -> int:
    for factor in (_MIX1, _MIX2):
        x &= _MASK
        x = (x ^ (x >> 33)) * factor
    x &= _MASK
    return x ^ (x >> 33)


def _group_key(h: int, group: int) -> int:
    return h if group == 0 else h ^ (group * _GROUP & _MASK) or 1


def inv_20(v: View) -> Iterator[str]:
    """INV-20: the gauges of the tables add up: blocks, runs of consecutive ids, slots, tokens held."""
    st = v.st
    blocks = runs = 0
    computed = int(st.requests["num_computed"][v.running].sum(dtype=np.int64))
    for g in range(st.kv.groups.size):
        in_group = 0
        for slot in range(st.kv.slots.size):
            table = np.array(v.table(g, slot), dtype=np.int64)
            blocks_here = table[table > 0]
            before = np.concatenate([[0], table[:-1]])
            found = int(((table > 0) & ((before == 0) | (table != before + 1))).sum())
            if found != st.kv.tables.runs[g, slot]:
                yield f"table of slot {slot}, group {g} has {found} runs, says {st.kv.tables.runs[g, slot]}"
            in_group += blocks_here.size
            runs += found
        blocks += in_group
        given_up = int(st.kv.tables["nulls"][g].sum()) * int(st.kv.groups.block_size[g])
        held = computed - given_up if st.kv.groups.token_slots[g] else 0
        if st.kv.groups.attention[g] == c.GROUP_CROSS:
            held = sum(encoder_tokens(st, r) for r in v.running)
        if (st.kv.groups.allocated[g], st.kv.groups.held[g]) != (in_group, held):
            yield (
                f"group {g} has {in_group} blocks and {held} tokens; "
                f"gauges say {st.kv.groups.allocated[g]} and {st.kv.groups.held[g]}"
            )
    if (st.count.table_blocks, st.count.table_runs) != (blocks, runs):
        yield (
            f"{blocks} blocks in {runs} runs in all tables; "
            f"gauges say {st.count.table_blocks} and {st.count.table_runs}"
        )


def inv_21(v: View) -> Iterator[str]:
    """INV-21: each slot is free or has one owner: a running request, or the head of the waiting queue."""
    st = v.st
    head = int(st.ctl.head_req)
    slot_of = st.requests["slot"][: st.ctl.num_requests]
    owners = np.flatnonzero(slot_of >= 0).tolist()
    free = st.kv.slots["free_stack"][: st.ctl.num_free_slots].tolist()
    if sorted([*free, *slot_of[owners].tolist()]) != list(range(st.kv.slots.size)):
        yield f"free slots {free} and those of the requests {owners} are not all slots"
    expected = sorted([*v.running, *([head] if head >= 0 else [])])
    if owners != expected:
        yield f"requests {owners} own slots, running and head are {expected}"
    if head >= 0 and head not in v.waiting:
        yield f"request {head} is the head of the queue, but does not wait"


def inv_22(v: View) -> Iterator[str]:
    """INV-22: the remembered look-up is a beginning of a fresh one; its marks are exactly where it says."""
    st, ctl = v.st, v.st.ctl
    blocks = st.kv.pool.blocks
    marked = np.flatnonzero(blocks["mark"]).tolist()
    if ctl.memo_req < 0:
        if marked:
            yield f"blocks {marked} are marked, and no look-up is remembered"
        return
    r, slot = int(ctl.memo_req), int(ctl.memo_slot)
    hits = int(ctl.memo_hits)
    if r not in v.waiting or v.slot(r) != slot:
        yield f"the look-up of request {r} in slot {slot} is remembered"
        return
    if not 0 <= hits <= ctl.memo_marked:
        yield f"{hits} hits of {ctl.memo_marked} marked blocks are remembered"
        return
    first = {int(blocks.block_hash[b]): b for _, _, b in map_places(st.kv.pool)}
    ratio = int(st.kv.specs.hash_ratio[0])
    allowed = set()
    for g in np.flatnonzero(st.kv.groups["spec"] == 0).tolist():
        remembered = st.kv.table_blocks[g, slot, : ctl.memo_marked].tolist()
        allowed |= {(b, i + 1) for i, b in enumerate(remembered)}
        for i, b in enumerate(remembered[:hits]):
            key = _group_key(int(st.kv.hashes[slot, (i + 1) * ratio - 1]), g)
            if first.get(key) != b or blocks.mark[b] != i + 1:
                yield f"hit {i} of request {r} is block {b}, marked {blocks.mark[b]}; found {first.get(key)}"
    for b in marked:
        if (b, int(blocks.mark[b])) not in allowed:
            yield f"block {b} is marked {blocks.mark[b]}, which nothing remembers"
    free = sum(int(blocks.ref_cnt[b]) == 0 for b in marked)
    if free != ctl.memo_free:
        yield f"{free} marked blocks are free, remembered are {ctl.memo_free}"


TABLE_INVARIANTS: dict[str, Check] = {
    "INV-6": inv_6,
    "INV-7": inv_7,
    "INV-8": inv_8,
    "INV-9": inv_9,
    "INV-11": inv_11,
    "INV-14": inv_14,
    "INV-20": inv_20,
    "INV-21": inv_21,
    "INV-22": inv_22,
    "INV-28": inv_28,
    "INV-30": inv_30,
    "INV-32": inv_32,
}
