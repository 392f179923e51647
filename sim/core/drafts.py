"""Speculative decoding: drafts that a step verifies (vLLM 0.32.0, ``Scheduler`` and ``AsyncScheduler``).

A drafter proposes tokens behind the known ones; the next step computes them all and keeps those that are
right. Rejected ones were never computed; their slots stay. What drafts change in tables and look-ups is in
``kv_groups`` and ``cache_hit``. A ``windows_only`` engine is compiled with the ``_no_*`` versions, see
``switch``.
"""

from __future__ import annotations

import numpy as np

from sim.core import codes as c
from sim.core.block_hash import mix64
from sim.core.jit import inner, leaf
from sim.core.kv_tables import hold_tokens
from sim.core.state import State
from sim.core.switch import Switch

_REQUEST = np.uint64(0x9E3779B97F4A7C15)
_TURN = np.uint64(0xD1342543DE82EF95)
_DRAFT = np.uint64(0xA0761D6478BD642F)
_ONE = np.uint64(1)


@leaf
def _no_room(st: State, batch: int, budget: int) -> int:
    """The input budget binds like the token budget."""
    return budget


@leaf
def _room(st: State, batch: int, budget: int) -> int:
    """Tokens that the next request of the batch may have: a draft model adds an input of its own to each."""
    if st.params.draft_slots == 0:
        return budget
    taken = min(st.params.max_num_scheduled_tokens, st.params.max_num_batched_tokens) - budget
    taken += (st.queues.batches.entries[batch] + 1) * st.params.draft_slots
    return min(budget, st.params.max_num_batched_tokens - taken)


@leaf
def _no_step_starts(st: State) -> None:
    """Nothing to note."""


@leaf
def _step_starts(st: State) -> None:
    """A schedule() call begins."""
    st.ctl.prefill_scheduled = 0


@leaf
def _no_proposed(st: State, r: int) -> int:
    """No drafts."""
    return 0


@leaf
def _proposed(st: State, r: int) -> int:
    """Drafts that the next step of a running request verifies."""
    return st.drafts.proposed[r] if st.params.num_drafts else 0


@leaf
def _no_runs(st: State, r: int) -> None:
    """Nothing to note."""


@leaf
def _runs(st: State, r: int) -> None:
    """A running request was scheduled: note whether its last step was part of a prefill."""
    if st.params.num_drafts and st.drafts.prefill[r]:
        st.ctl.prefill_scheduled = 1


@leaf
def _no_padding(st: State, r: int, hit_tokens: int, num_decoding: int) -> int:
    """No rows for drafts."""
    return 0


@leaf
def _padding(st: State, r: int, hit_tokens: int, num_decoding: int) -> int:
    """Rows for drafts of an admission that computes one token, so that it looks like a decode; 0: none.

    Not beside a prefill chunk, and only if the length limit leaves room for the rows and a token more (from
    0.25 to 0.28 the caller refuses it where it does not). ``num_decoding`` running requests were scheduled in
    this step.
    """
    n = st.params.num_drafts
    rule = st.params.draft_padding
    if rule == c.PADS_NONE or st.requests.num_tokens[r] - hit_tokens != 1 or st.ctl.prefill_scheduled:
        return 0
    if num_decoding == 0 and (hit_tokens == 0 or rule != c.PADS_HITS):
        return 0
    if rule == c.PADS_BESIDE:
        return n
    return n if hit_tokens + n + 2 <= st.params.max_model_len else 0


@leaf
def _no_set_proposed(st: State, r: int, n: int) -> None:
    """No drafts."""


@leaf
def _set_proposed(st: State, r: int, n: int) -> None:
    """The next step of the request verifies n drafts: rows of an admission, or none after a preemption.

    In 0.13 those of a preempted request are kept, below 0, for the step behind its admission.
    """
    if st.params.keeps_drafts and n == 0:
        n = -abs(np.int64(st.drafts.proposed[r]))
    st.drafts.proposed[r] = n


@leaf
def _no_forget(st: State, r: int) -> None:
    """No drafts."""


@leaf
def _forget(st: State, r: int) -> None:
    """The request leaves the batch that was to verify its drafts."""
    st.drafts.proposed[r] = 0


@leaf
def _no_take_along(st: State, batch: int, i: int, r: int, n: int) -> int:
    """No drafts."""
    return 0


@leaf
def _take_along(st: State, batch: int, i: int, r: int, n: int) -> int:
    """Drafts among the n tokens of entry i, before they count as computed (``_update_after_schedule``).

    An asynchronous engine knows at once that there will be drafts for the step behind this one.
    """
    if st.params.num_drafts == 0:
        return 0
    rq = st.requests
    behind = rq.num_computed[r] + n - rq.num_tokens[r] - rq.placeholders[r]
    drafts = max(min(np.int64(st.drafts.proposed[r]), behind), 0)
    st.queues.entries.drafts[batch, i] = drafts
    st.drafts.prefill[r] = behind < 0
    kept = max(-np.int64(st.drafts.proposed[r]), 0) if behind < 0 else 0
    st.drafts.proposed[r] = st.params.num_drafts if behind >= 0 and st.params.async_scheduling else kept
    st.count.draft_tokens += drafts
    return drafts


@inner
def _num_right(st: State, r: int, drafts: int) -> int:
    """How many of a step's drafts turn out to be right: the request's own numbers in turn, or drawn.

    Each draft behind right ones is right with the acceptance rate. A draw is a hash of the output's segment,
    the turn and the place, so that it depends on nothing else.
    """
    if drafts == 0:
        return 0
    turn = np.int64(st.drafts.turn[r])
    st.drafts.turn[r] = turn + 1
    own = st.drafts.pattern_len[r]
    if own > 0:
        return min(np.int64(st.accepted_drafts[st.drafts.pattern[r] + turn % own]), drafts)
    x = np.uint64(st.requests.out_seg[r]) * _REQUEST + np.uint64(turn + 1) * _TURN
    for k in range(drafts):
        if np.int64(mix64(x + np.uint64(k + 1) * _DRAFT) >> _ONE) > st.params.draft_threshold:
            return k
    return drafts


@leaf
def _no_deliver(st: State, batch: int, i: int, r: int, stale: bool) -> int:
    """A step that samples yields one token."""
    return 1


@inner
def _deliver(st: State, batch: int, i: int, r: int, stale: bool) -> int:
    """Verify the drafts of entry i and take rejected ones back; returns how many tokens the step yields.

    Tokens behind one that stops the request are not delivered. Stale ones no longer move the counters.
    """
    if st.params.num_drafts == 0:
        return 1
    rq = st.requests
    drafts = np.int64(st.queues.entries.drafts[batch, i])
    accepted = _num_right(st, r, drafts)
    rejected = drafts - accepted
    if not stale and rejected > 0:
        if rq.num_computed[r] > 0:
            rq.num_computed[r] -= rejected
            hold_tokens(st.kv, -rejected)
        if rq.placeholders[r] > 0:
            rq.placeholders[r] -= rejected
    if st.params.async_scheduling == 0:
        st.drafts.proposed[r] = st.params.num_drafts
    known = rq.num_tokens[r]
    room = min(st.params.max_model_len - known, rq.output_len[r] - (known - rq.prompt_len[r]))
    tokens = min(1 + accepted, room)
    st.count.accepted_tokens += accepted
    st.count.sampled_tokens += tokens - 1
    return tokens


room = Switch(_no_room, _room, "windows_only")
step_starts = Switch(_no_step_starts, _step_starts, "windows_only")
proposed = Switch(_no_proposed, _proposed, "windows_only")
runs = Switch(_no_runs, _runs, "windows_only")
padding = Switch(_no_padding, _padding, "windows_only")
set_proposed = Switch(_no_set_proposed, _set_proposed, "windows_only")
forget = Switch(_no_forget, _forget, "windows_only")
take_along = Switch(_no_take_along, _take_along, "windows_only")
deliver = Switch(_no_deliver, _deliver, "windows_only")
