"""One batch, as the scheduler describes it.

Mirrors vLLM 0.32.0, ``SchedulerOutput`` (``vllm/v1/core/sched/output.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class SchedulerOutput:
    """One batch.

    Attributes:
        num_scheduled_tokens: tokens by request id, in scheduling order.
        num_draft_tokens: how many of the tokens are drafts to verify, by request id; absent: none.
        sampling: ids of the requests for which the model will sample a token.
        preempted: ids of the requests that lost their blocks in this call, in order.
        scheduled_running, scheduled_new, scheduled_resumed: ids by kind, in order.
        finished_req_ids: requests that ended since the previous batch (workers are told).
    """

    num_scheduled_tokens: dict[str, int] = field(default_factory=dict)
    num_draft_tokens: dict[str, int] = field(default_factory=dict)
    sampling: set[str] = field(default_factory=set)
    preempted: list[str] = field(default_factory=list)
    scheduled_running: list[str] = field(default_factory=list)
    scheduled_new: list[str] = field(default_factory=list)
    scheduled_resumed: list[str] = field(default_factory=list)
    finished_req_ids: list[str] = field(default_factory=list)

    @property
    def total_num_scheduled_tokens(self) -> int:
        """Tokens in the batch."""
        return sum(self.num_scheduled_tokens.values())
