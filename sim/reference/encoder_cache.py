"""Room for encoder inputs: how many requests may run their encoder in one step.

Mirrors vLLM 0.32.0, ``EncoderDecoderCacheManager`` (``vllm/v1/core/encoder_cache_manager.py``) and what
``Scheduler`` does with it, for encoder-decoder models whose requests have one encoder input each.
"""

from __future__ import annotations

from sim.reference.request import Request
from sim.reference.settings import Settings


class EncoderCache:
    """The step's encoder budget, and the slots of the cache.

    vLLM gives a request's slots back after each of its steps, when it is preempted, when it ends, and when it
    was not admitted for want of blocks: more often than it takes them. So they bind in the first steps only.

    Args:
        settings: engine settings.

    Attributes:
        capacity: encoder tokens of a step at most, and slots of the cache.
        budget: encoder tokens that this step may still run.
        free_slots: encoder tokens that the cache has room for.
    """

    def __init__(self, settings: Settings) -> None:
        self.capacity = max(settings.max_num_batched_tokens, settings.encoder_tokens)
        self.budget = self.capacity
        self.free_slots = self.capacity

    def new_step_starts(self) -> None:
        """A schedule call begins."""
        self.budget = self.capacity

    def has_room(self, request: Request) -> bool:
        """Whether the request can run its encoder in this step."""
        return request.encoder_tokens <= min(self.budget, self.free_slots)

    def take(self, request: Request) -> None:
        """The request runs its encoder in this step."""
        self.budget -= request.encoder_tokens
        self.free_slots -= request.encoder_tokens

    def give_back(self, request: Request) -> None:
        """One of the occasions at which vLLM gives the request's slots back."""
        self.free_slots += request.encoder_tokens
