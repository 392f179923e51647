"""A request and its life: waiting, running, preempted, finished.

Mirrors vLLM 0.32.0, ``Request`` and ``RequestStatus`` (``vllm/v1/request.py``), without what a text-only
model does not need.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from sim.reference.block_hash import BlockHasher


class RequestStatus(enum.IntEnum):
    """Everything after PREEMPTED is finished."""

    WAITING = 1
    RUNNING = 2
    PREEMPTED = 3
    FINISHED_STOPPED = 4
    FINISHED_LENGTH_CAPPED = 5
    FINISHED_ABORTED = 6


class Request:
    """State of one request.

    Args:
        request_id: unique name.
        prompt_token_ids: non-empty.
        output_token_ids: the tokens that the model will sample, in order; non-empty.
        max_tokens: length limit; None means as many as ``output_token_ids`` has. When it is larger, the last
            of ``output_token_ids`` acts as the end-of-sequence token.
        priority: lower is served first.
        arrival_time: orders requests of equal priority.
        cache_salt: separates prefix caches; None or empty for none.
        accepted_drafts: how many drafts the request's verifying steps accept, in turn and again from the
            beginning; at most as many as were scheduled. Empty: none.
        encoder_tokens: tokens of its encoder's input; 0: there is none.
        block_hasher: hashes full blocks as tokens arrive; None when prefix caching is off.

    Attributes:
        num_computed_tokens: tokens whose KV is computed or being computed by a scheduled step.
        num_output_placeholders: sampled tokens that a scheduled step will deliver (async scheduling only).
        num_in_flight_tokens: tokens of scheduled steps whose output was not processed yet.
        num_stale_output_tokens: those of them that were scheduled before the last preemption.
        drop_stale_output: stale output is thrown away instead of delivered.
        shared_prefix_boundary: length of a prefix that some KV-cache group had cached beyond the hit when
            the request was last looked up; 0 if there was none. States and windows there are worth keeping.
        num_lost_tokens: tokens that were computed when it was last preempted.
        num_draft_tokens: tokens that a drafter proposed to verify with the next step.
        is_prefill_chunk: the last scheduled step did not reach the request's last known token.
    """

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        output_token_ids: Sequence[int],
        max_tokens: int | None = None,
        priority: int = 0,
        arrival_time: int = 0,
        cache_salt: str | None = None,
        block_hasher: BlockHasher | None = None,
        accepted_drafts: Sequence[int] = (),
        encoder_tokens: int = 0,
    ) -> None:
        if not prompt_token_ids or not output_token_ids:
            raise ValueError(f"request {request_id!r}: prompt and output must not be empty")
        self.request_id = request_id
        self.forced_output = list(output_token_ids)
        self.max_tokens = len(self.forced_output) if max_tokens is None else max_tokens
        if self.max_tokens < len(self.forced_output):
            raise ValueError(f"request {request_id!r}: max_tokens is below the number of output tokens")
        self.priority = priority
        self.arrival_time = arrival_time
        self.cache_salt = cache_salt
        self.encoder_tokens = encoder_tokens
        self.status = RequestStatus.WAITING
        self.num_prompt_tokens = len(prompt_token_ids)
        self.all_token_ids: list[int] = list(prompt_token_ids)
        self.num_computed_tokens = 0
        self.num_output_placeholders = 0
        self.num_in_flight_tokens = 0
        self.num_stale_output_tokens = 0
        self.drop_stale_output = False
        self.shared_prefix_boundary = 0
        self.num_lost_tokens = 0
        self.num_draft_tokens = 0
        self.is_prefill_chunk = False
        self.num_preemptions = 0
        self.block_hashes: list[int] = []
        self._accepted_drafts = list(accepted_drafts)
        self._num_verifications = 0
        self._block_hasher = block_hasher
        self.update_block_hashes()

    @property
    def num_tokens(self) -> int:
        """Known tokens: the prompt and the outputs delivered so far."""
        return len(self.all_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Outputs delivered so far."""
        return len(self.all_token_ids) - self.num_prompt_tokens

    @property
    def next_output_token(self) -> int:
        """The token that the model samples next."""
        return self.forced_output[self.num_output_tokens]

    @property
    def stops_by_token(self) -> bool:
        """Whether the last forced output is an end-of-sequence token rather than the length limit."""
        return self.max_tokens > len(self.forced_output)

    def verify_drafts(self, num_drafts: int) -> int:
        """How many of a step's drafts turn out to be right."""
        if not num_drafts:
            return 0
        turn = self._num_verifications
        self._num_verifications += 1
        if not self._accepted_drafts:
            return 0
        return min(self._accepted_drafts[turn % len(self._accepted_drafts)], num_drafts)

    def append_output_token_ids(self, token_id: int) -> None:
        """Deliver one sampled token; a block that it completes gets its hash now."""
        self.all_token_ids.append(token_id)
        self.update_block_hashes()

    def update_block_hashes(self) -> None:
        """Hash the blocks that became full."""
        if self._block_hasher is not None:
            self.block_hashes.extend(
                self._block_hasher.new_block_hashes(self.block_hashes, self.all_token_ids, self.cache_salt)
            )

    def is_finished(self) -> bool:
        """Whether the request has left the engine."""
        return self.status > RequestStatus.PREEMPTED

    def sort_key(self) -> tuple[int, int, str]:
        """Order of the priority queue: smaller is served first."""
        return (self.priority, self.arrival_time, self.request_id)

    def __repr__(self) -> str:
        return f"Request({self.request_id!r}, {self.status.name}, computed={self.num_computed_tokens})"


def check_stop(request: Request, max_model_len: int) -> bool:
    """Set the finished status if the token just delivered ends the request.

    vLLM 0.32.0, ``check_stop`` (``vllm/v1/core/sched/utils.py``): end of sequence first, then length.
    """
    if request.stops_by_token and request.num_output_tokens == len(request.forced_output):
        request.status = RequestStatus.FINISHED_STOPPED
        return True
    if request.num_tokens >= max_model_len or request.num_output_tokens >= request.max_tokens:
        request.status = RequestStatus.FINISHED_LENGTH_CAPPED
        return True
    return False
