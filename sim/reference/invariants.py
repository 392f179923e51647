"""Numbered invariants of the control plane, each recomputed from the state alone.

They hold after every ``schedule`` and ``update_from_output``, whatever the KV-cache groups; those of the pool
hold after every pool operation. A violation is a defect of the code, never of the input.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from sim.reference.block_hash import BlockHasher
from sim.reference.block_pool import BlockPool
from sim.reference.engine import Engine
from sim.reference.managers import cdiv
from sim.reference.request import Request, RequestStatus
from sim.reference.scheduler import Scheduler
from sim.reference.scheduler_output import SchedulerOutput


class InvariantError(AssertionError):
    """One or more invariants do not hold; the message lists all of them."""


class State(NamedTuple):
    """What the checks read: a scheduler and the batches under way, oldest first."""

    scheduler: Scheduler
    batches: tuple[SchedulerOutput, ...] = ()


PoolCheck = Callable[[BlockPool], Iterator[str]]
StateCheck = Callable[[State], Iterator[str]]


def verify(state: BlockPool | Scheduler | Engine) -> None:
    """Check every invariant that applies to ``state``.

    A pool is checked for INV-1 to INV-5; a scheduler also for the others, as one that has no batch under way;
    an engine with its batches.

    Raises:
        InvariantError: with one line for each violation.
    """
    if isinstance(state, BlockPool):
        pool, whole = state, None
    elif isinstance(state, Engine):
        pool = state.scheduler.kv_cache_manager.block_pool
        whole = State(state.scheduler, tuple(batch for _, batch in state.batch_queue))
    else:
        pool, whole = state.kv_cache_manager.block_pool, State(state)
    found = [f"{name}: {text}" for name, check in POOL_INVARIANTS.items() for text in check(pool)]
    if whole is not None:
        found += [f"{name}: {text}" for name, check in STATE_INVARIANTS.items() for text in check(whole)]
    if found:
        raise InvariantError("\n".join(found))


def inv_1(pool: BlockPool) -> Iterator[str]:
    """INV-1: a block without references, and no other, is in the free queue, once; the null block is not."""
    counts = Counter(pool.free_block_queue.block_ids())
    for block in pool.blocks:
        wanted = int(block.ref_cnt == 0 and not block.is_null)
        if counts[block.block_id] != wanted:
            yield f"{block} is {counts[block.block_id]} times in the free queue"


def inv_2(pool: BlockPool) -> Iterator[str]:
    """INV-2: free blocks, referenced blocks and the null block are all blocks; no count is negative."""
    held = sum(b.ref_cnt > 0 for b in pool.blocks if not b.is_null)
    if pool.get_num_free_blocks() + held + 1 != pool.num_gpu_blocks:
        yield f"{pool.get_num_free_blocks()} free + {held} held + 1 null != {pool.num_gpu_blocks}"
    for block in pool.blocks:
        if not block.is_null and block.ref_cnt < 0:
            yield f"{block} has a negative count"


def inv_3(pool: BlockPool) -> Iterator[str]:
    """INV-3: block 0 alone is the null block, and it never carries a key."""
    nulls = [b.block_id for b in pool.blocks if b.is_null]
    if nulls != [0] or pool.null_block is not pool.blocks[0]:
        yield f"null blocks are {nulls}"
    if pool.null_block.block_hash is not None:
        yield f"the null block carries {pool.null_block.block_hash}"


def inv_4(pool: BlockPool) -> Iterator[str]:
    """INV-4: the prefix map and the keys of the blocks say the same; no key of the map is without a block.

    All keys of a block are of one group; a block without a primary key has none.
    """
    mapped: dict[int, list[object]] = {}
    for key in pool.cached_block_hash_to_block:
        blocks = pool.cached_block_hash_to_block.blocks_of(key)
        if not blocks:
            yield f"key {key} has no block"
        for block in blocks:
            mapped.setdefault(block.block_id, []).append(key)
    for block in pool.blocks:
        keys = pool.keys_of(block)
        if sorted(keys) != sorted(mapped.get(block.block_id, [])):  # type: ignore[type-var]
            yield f"{block} has keys {keys}, the map {mapped.get(block.block_id)}"
        if len(set(keys)) != len(keys) or len({group for _, group in keys}) > 1:
            yield f"{block} has keys {keys}"
        if (block.block_hash is None) != (block.block_hash_num_tokens is None):
            yield f"{block} covers {block.block_hash_num_tokens} tokens"
        if block.block_hash is None and keys:
            yield f"{block} has only further keys {keys}"


def inv_5(pool: BlockPool) -> Iterator[str]:
    """INV-5: without prefix caching nothing is cached."""
    if not pool.enable_caching and len(pool.cached_block_hash_to_block):
        yield f"{len(pool.cached_block_hash_to_block)} keys are cached"


def inv_6(state: State) -> Iterator[str]:
    """INV-6: a block's reference count is the number of its places in block tables."""
    manager = state.scheduler.kv_cache_manager
    places: Counter[int] = Counter()
    for group in manager.managers:
        for table in group.req_to_blocks.values():
            places.update(b.block_id for b in table)
    for block in manager.block_pool.blocks:
        if not block.is_null and block.ref_cnt != places[block.block_id]:
            yield f"{block} stands {places[block.block_id]} times in block tables"


def inv_7(state: State) -> Iterator[str]:
    """INV-7: a table holds no block twice; null blocks are where its type of attention does not look.

    Windows and chunks: at the beginning. States: anywhere. Others: nowhere.
    """
    for group in state.scheduler.kv_cache_manager.managers:
        for request_id, table in group.req_to_blocks.items():
            ids = [b.block_id for b in table]
            if group.group.type in ("sliding_window", "chunked_local"):
                ids = ids[next((i for i, n in enumerate(ids) if n), len(ids)) :]
            elif not group.holds_tokens:
                ids = [n for n in ids if n]
            if len(set(ids)) != len(ids) or 0 in ids:
                yield f"table of {request_id!r}: {[b.block_id for b in table]}"


def inv_8(state: State) -> Iterator[str]:
    """INV-8: a running request's table has exactly the positions that its computed tokens need.

    With drafts, also those of slots that were given to drafts or to the drafter. Cross attention: those of
    the encoder tokens.
    """
    drafts = state.scheduler.settings.num_speculative_tokens
    for request in state.scheduler.running:
        for group in state.scheduler.kv_cache_manager.managers:
            length = len(group.req_to_blocks.get(request.request_id, ()))
            least = cdiv(request.num_computed_tokens, group.block_size)
            most = cdiv(request.num_computed_tokens + 3 * drafts, group.block_size)
            most += 0 if group.holds_tokens else drafts
            if group.group.type == "cross_attention":
                least = most = cdiv(state.scheduler.cross_tokens(request), group.block_size)
            if not least <= length <= most:
                yield f"{request} has {length} blocks of {group.block_size} tokens"


def inv_9(state: State) -> Iterator[str]:
    """INV-9: only running requests hold blocks; a waiting one has nothing computed and no placeholder."""
    running = {r.request_id for r in state.scheduler.running}
    for group in state.scheduler.kv_cache_manager.managers:
        strangers = (set(group.req_to_blocks) | set(group.num_cached_block)) - running
        if strangers:
            yield f"requests {sorted(strangers)} have a table but do not run"
    for request in state.scheduler.waiting:
        if request.num_computed_tokens or request.num_output_placeholders:
            yield f"{request} waits with {request.num_output_placeholders} placeholders"


def inv_10(state: State) -> Iterator[str]:
    """INV-10: every unfinished request either runs or waits, once, and its status says which."""
    scheduler = state.scheduler
    waiting = list(scheduler.waiting)
    ids = Counter(r.request_id for r in [*scheduler.running, *waiting])
    if ids != Counter(scheduler.requests.keys()):
        yield f"queues hold {dict(ids)}, requests are {list(scheduler.requests)}"
    for request in scheduler.running:
        if request.status != RequestStatus.RUNNING:
            yield f"{request} runs"
    for request in waiting:
        if request.status != (RequestStatus.PREEMPTED if request.num_preemptions else RequestStatus.WAITING):
            yield f"{request} waits after {request.num_preemptions} preemptions"
    if len(scheduler.running) > scheduler.settings.active_seqs:
        yield f"{len(scheduler.running)} requests run"


def inv_11(state: State) -> Iterator[str]:
    """INV-11: blocks of a running request carry keys of its own text only, and all that must be cached are.

    Counted as cached are the blocks that its computed tokens of known identity fill, up to where a hit can
    end. A token that is known only since the last update (async scheduling) may count at the request's next
    schedule. Of the counted blocks those of full attention carry the key of the whole block; other types may
    leave some out. No other block carries the key of a whole block.
    """
    manager = state.scheduler.kv_cache_manager
    for request in state.scheduler.running:
        most = min(request.num_computed_tokens, request.num_tokens) if manager.enable_caching else 0
        least = request.num_computed_tokens - request.num_output_placeholders if most else 0
        least = max(0, least - state.scheduler.settings.num_speculative_tokens)
        for group in manager.managers:
            size, unit = group.block_size, manager.hash_block_size
            counted = group.num_cached_block.get(request.request_id, 0)
            low, high = (manager.coordinator.num_cacheable_tokens(n, group) // size for n in (least, most))
            if not low <= counted <= high:
                yield f"{request} counts {counted} cached blocks of {size} tokens, not {low} to {high}"
            for i, block in enumerate(group.req_to_blocks.get(request.request_id, ())):
                ends = range(i * size + unit, (i + 1) * size + 1, unit) if manager.enable_caching else ()
                own = dict(zip(ends, request.block_hashes[i * size // unit :], strict=False))
                if not group.holds_tokens and manager.enable_caching:
                    # An exported state may stand in the table behind the tokens that it is the state of.
                    own |= {-n: block_hash for n, block_hash in enumerate(request.block_hashes, 1)}
                keys = [key[0] for key in manager.block_pool.keys_of(block)]
                if not set(keys) <= set(own.values()):
                    yield f"{request} block {i}: {block} has keys {keys}, of its text are {own}"
                whole = own.get((i + 1) * size) in keys and bool(keys)
                if whole if i >= counted else group.group.type == "full" and not whole:
                    yield f"{request} block {i} of {counted} counted: {block}"


def inv_12(state: State) -> Iterator[str]:
    """INV-12: what is in flight is what the batches under way hold; placeholders are their tokens to come."""
    for request in state.scheduler.requests.values():
        name = request.request_id
        tokens = sum(b.num_scheduled_tokens.get(name, 0) for b in state.batches)
        if request.num_in_flight_tokens != tokens:
            yield f"{request} has {request.num_in_flight_tokens} tokens in flight, batches hold {tokens}"
        if not 0 <= request.num_stale_output_tokens <= tokens:
            yield f"{request} has {request.num_stale_output_tokens} stale tokens of {tokens}"
        fresh = (
            [b for b in state.batches if name in b.sampling] if not request.num_stale_output_tokens else []
        )
        expected = sum(1 + b.num_draft_tokens.get(name, 0) for b in fresh)
        if not state.scheduler.settings.async_scheduling:
            expected = 0
        if request.num_output_placeholders != expected:
            yield f"{request} has {request.num_output_placeholders} placeholders, batches sample {expected}"


def inv_13(state: State) -> Iterator[str]:
    """INV-13: an unfinished request is within its limits, and has delivered a beginning of its output."""
    for request in state.scheduler.requests.values():
        drafts = max((b.num_draft_tokens.get(request.request_id, 0) for b in state.batches), default=0)
        if request.num_computed_tokens > request.num_tokens + request.num_output_placeholders + drafts:
            yield f"{request} has only {request.num_tokens} tokens"
        if request.num_tokens >= state.scheduler.settings.max_model_len:
            yield f"{request} has {request.num_tokens} tokens and goes on"
        outputs = request.all_token_ids[request.num_prompt_tokens :]
        if outputs != request.forced_output[: len(outputs)] or len(outputs) >= len(request.forced_output):
            yield f"{request} has output {outputs} of {request.forced_output}"


def inv_14(state: State) -> Iterator[str]:
    """INV-14: the hashes of a request are those of its full blocks, and nothing else, when caching is on."""
    manager = state.scheduler.kv_cache_manager
    for request in state.scheduler.requests.values():
        reach = request.num_tokens - state.scheduler.settings.hash_lookahead
        full = reach // manager.hash_block_size if manager.enable_caching else 0
        if len(request.block_hashes) != full:
            yield f"{request} has {len(request.block_hashes)} hashes for {full} full blocks"
    if manager.enable_caching:
        hasher = BlockHasher(manager.hash_block_size, state.scheduler.settings.hash_lookahead)
        yield from _hash_disagreements(list(state.scheduler.requests.values()), hasher)


def _hash_disagreements(requests: list[Request], fresh: BlockHasher) -> Iterator[str]:
    # Numbered anew, the chains must be equal and different in the same places as the requests' own numbers.
    own_of: dict[int, int] = {}
    for request in requests:
        renumbered = fresh.new_block_hashes((), request.all_token_ids, request.cache_salt)
        for new, own in zip(renumbered, request.block_hashes, strict=False):
            if own_of.setdefault(new, own) != own:
                yield f"{request}: one prefix has hashes {own_of[new]} and {own}"
    if len(set(own_of.values())) != len(own_of):
        yield "different prefixes share a hash"


def inv_15(state: State) -> Iterator[str]:
    """INV-15: counters fit each other: hits are whole blocks and fewer than the tokens looked up."""
    manager = state.scheduler.kv_cache_manager
    s = manager.prefix_cache_stats
    first = (s.requests, s.queries, s.hits)
    resumed = (s.preempted_requests, s.preempted_queries, s.preempted_hits)
    for requests, queries, hits in (first, resumed):
        if not 0 <= hits <= queries - requests or hits % manager.hash_block_size:
            yield f"{hits} tokens hit of {queries} in {requests} lookups"
    if s.preempted_requests > state.scheduler.num_preemptions:
        yield f"{s.preempted_requests} resumed of {state.scheduler.num_preemptions} preempted"
    if not 0.0 <= manager.usage <= 1.0:
        yield f"usage is {manager.usage}"


def inv_16(state: State) -> Iterator[str]:
    """INV-16: by priority, the waiting queue is sorted by (priority, arrival time, id)."""
    keys = [r.sort_key() for r in state.scheduler.waiting]
    if state.scheduler.settings.policy == "priority" and keys != sorted(keys):
        yield f"waiting in the order {keys}"


def inv_17(state: State) -> Iterator[str]:
    """INV-17: no batch exceeds the step's token budgets or names a request twice or with no token."""
    settings = state.scheduler.settings
    limit = min(settings.token_budget, settings.max_num_batched_tokens)
    for batch in state.batches:
        if batch.total_num_scheduled_tokens > limit:
            yield f"{batch.total_num_scheduled_tokens} tokens in a batch, budget {limit}"
        if any(n <= 0 for n in batch.num_scheduled_tokens.values()):
            yield f"a request without tokens in {batch.num_scheduled_tokens}"
        kinds = [*batch.scheduled_running, *batch.scheduled_new, *batch.scheduled_resumed]
        if sorted(kinds) != sorted(batch.num_scheduled_tokens):
            yield f"batch of {list(batch.num_scheduled_tokens)} lists {kinds}"
        if batch.preempted and (batch.scheduled_new or batch.scheduled_resumed):
            yield f"admissions in a step that preempted {batch.preempted}"


def inv_30(state: State) -> Iterator[str]:
    """INV-30: a request holds no more blocks of a window or chunk than the admission cap reserves for it.

    The cap does not count drafts.
    """
    drafts = state.scheduler.settings.num_speculative_tokens
    for group in state.scheduler.kv_cache_manager.managers:
        cap = group.admission_cap()
        for request_id, table in group.req_to_blocks.items():
            held = sum(not b.is_null for b in table)
            if cap is not None and held > cap + cdiv(3 * drafts, group.block_size):
                yield f"{request_id!r} holds {held} blocks in group {group.kv_cache_group_id}, at most {cap}"


def inv_31(state: State) -> Iterator[str]:
    """INV-31: a step runs no more encoder tokens than its budget.

    The encoder cache lacks at most the inputs of running requests with a batch in flight.
    """
    cache = state.scheduler.encoder_cache
    if not 0 <= cache.budget <= cache.capacity:
        yield f"a step has {cache.budget} encoder tokens left of {cache.capacity}"
    taken = sum(r.encoder_tokens for r in state.scheduler.running if r.num_in_flight_tokens)
    if cache.free_slots < cache.capacity - taken:
        yield f"{cache.free_slots} slots are free of {cache.capacity}, at most {taken} are taken"


POOL_INVARIANTS: dict[str, PoolCheck] = {
    f"INV-{i}": check for i, check in enumerate((inv_1, inv_2, inv_3, inv_4, inv_5), 1)
}
STATE_INVARIANTS: dict[str, StateCheck] = {
    f"INV-{i}": check
    for i, check in enumerate(
        (inv_6, inv_7, inv_8, inv_9, inv_10, inv_11, inv_12, inv_13, inv_14, inv_15, inv_16, inv_17), 6
    )
}
# INV-18 to INV-29 are about what only the jitted core keeps.
STATE_INVARIANTS["INV-30"] = inv_30
STATE_INVARIANTS["INV-31"] = inv_31
