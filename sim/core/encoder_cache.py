"""Room for encoder inputs (vLLM 0.32.0, ``EncoderDecoderCacheManager`` and what ``Scheduler`` does with it).

An admission runs the encoder of its request, as far as the step's budget and the cache's slots allow. vLLM
gives a request's slots back after each of its steps, when it is preempted, when it ends, and when it was not
admitted for want of blocks: more often than it takes them. So they bind in the first steps only, the budget
always. A ``windows_only`` engine is compiled with the ``_no_*`` versions, see ``switch``.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from sim.core.cross_attention import encoder_tokens
from sim.core.jit import inner, leaf
from sim.core.state import State
from sim.core.switch import Switch

Work: TypeAlias = tuple[int, int, int, int]


@leaf
def _no_step_starts(st: State, batch: int) -> None:
    """There is no encoder."""


@leaf
def _step_starts(st: State, batch: int) -> None:
    """A schedule() call begins."""
    st.ctl.encoder_budget = st.params.encoder_budget
    st.queues.batches.encoder_tokens[batch] = 0
    st.queues.batches.encoder_pairs[batch] = 0


@leaf
def _no_has_room(st: State, r: int) -> bool:
    """There is no encoder."""
    return True


@leaf
def _has_room(st: State, r: int) -> bool:
    """Whether the request can run its encoder in this step."""
    return encoder_tokens(st.kv, r) <= min(st.ctl.encoder_budget, st.ctl.encoder_free)


@leaf
def _no_take(st: State, batch: int, r: int) -> None:
    """There is no encoder."""


@leaf
def _take(st: State, batch: int, r: int) -> None:
    """The request runs its encoder in this batch."""
    n = encoder_tokens(st.kv, r)
    st.ctl.encoder_budget -= n
    st.ctl.encoder_free -= n
    st.queues.batches.encoder_tokens[batch] += n
    st.queues.batches.encoder_pairs[batch] += n * n
    st.count.encoder_tokens += n


@leaf
def _no_give_back(st: State, r: int) -> None:
    """There is no encoder."""


@leaf
def _give_back(st: State, r: int) -> None:
    """One of the occasions at which vLLM gives the request's slots back."""
    st.ctl.encoder_free += encoder_tokens(st.kv, r)


@leaf
def _no_work(st: State, batch: int) -> Work:
    """There is no encoder."""
    return np.int64(0), np.int64(0), np.int64(0), np.int64(0)


@inner
def _work(st: State, batch: int) -> Work:
    """What the encoder and cross attention add to the work of a batch: tokens that go through the encoder,
    query-key pairs there, encoder tokens that the decoder reads, query-key pairs of that.
    """
    context = np.int64(0)
    pairs = np.int64(0)
    if st.params.encoder_budget > 0:
        for i in range(st.queues.batches.entries[batch]):
            n = np.int64(encoder_tokens(st.kv, st.queues.entries.req[batch, i]))
            context += n
            pairs += n * st.queues.entries.tokens[batch, i]
    return st.queues.batches.encoder_tokens[batch], st.queues.batches.encoder_pairs[batch], context, pairs


step_starts = Switch(_no_step_starts, _step_starts, "windows_only")
has_room = Switch(_no_has_room, _has_room, "windows_only")
take = Switch(_no_take, _take, "windows_only")
give_back = Switch(_no_give_back, _give_back, "windows_only")
work = Switch(_no_work, _work, "windows_only")
