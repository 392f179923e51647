"""Room for encoder inputs: how many requests may run their encoder in one step.

Mirrors vLLM 0.32.0, ``EncoderDecoderCacheManager`` (``vllm/v1/core/encoder_cache_manager.py``) and what
``Scheduler`` does with it, for encoder-decoder models whose requests have one encoder input each.
"""

from __future__ import annotations

from sim.reference.settings import Settings


class EncoderCache:
    """The step's encoder budget, and the slots of the cache.

    vLLM gives a request's slots back after each of its steps, when it is preempted, when it ends, and when it
    was not admitted for want of blocks: more often than it takes them. So they bind in the first steps only.

    Args:
        settings: engine settings.

    Attributes:
        input_tokens: encoder tokens of a request; 0: there is no encoder.
        budget: encoder tokens that this step may still run.
        free_slots: encoder tokens that the cache has room for.
    """

    def __init__(self, settings: Settings) -> None:
        self.input_tokens = settings.encoder_tokens
        self._budget_of_a_step = max(settings.max_num_batched_tokens, self.input_tokens)
        self.budget = self._budget_of_a_step
        self.free_slots = self._budget_of_a_step

    def new_step_starts(self) -> None:
        """A schedule call begins."""
        self.budget = self._budget_of_a_step

    def has_room(self) -> bool:
        """Whether one more request can run its encoder in this step."""
        return self.input_tokens <= min(self.budget, self.free_slots)

    def take(self) -> None:
        """A request runs its encoder in this step."""
        self.budget -= self.input_tokens
        self.free_slots -= self.input_tokens

    def give_back(self) -> None:
        """One of the occasions at which vLLM gives slots back."""
        self.free_slots += self.input_tokens
