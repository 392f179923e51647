"""Prefill chunks that end where a Mamba state is to be cached.

Mirrors vLLM 0.32.0, ``Scheduler._mamba_block_aligned_split`` (``vllm/v1/core/sched/scheduler.py``).
"""

from __future__ import annotations

from sim.reference.managers.mamba import checkpoint_position, export_position, is_exported, tail_position
from sim.reference.request import Request, RequestStatus
from sim.reference.settings import Settings


class StateSplit:
    """Cuts chunks; without cached states it leaves them as they are.

    Args:
        settings: engine settings.
        fine_grained: prefix hits may end inside a block.

    Attributes:
        applies: there are states to cache.
    """

    def __init__(self, settings: Settings, fine_grained: bool) -> None:
        self._settings = settings
        self.applies = any(g.mamba_cache_mode == "align" for g in settings.groups)
        # Up to 0.27 chunks end at the tail even where no hit can.
        fine_grained = fine_grained or settings.rules.state_tails == "unit"
        self._fine_grained = fine_grained and settings.hash_block_size < settings.scheduler_block_size
        exporting = [g.prefill_checkpoint_alignment for g in settings.groups if g.type == "mamba"]
        self._alignment = exporting[0] if all(exporting) and exporting else None

    def cut(self, request: Request, start: int, tokens: int) -> int:
        """How many of the ``tokens`` that follow the first ``start`` ones to compute in this step.

        States exist at the ends of chunks only, so chunks end at the ends of blocks, except the last one, and
        except where a block is larger than a chunk can be. 0: such a place can't be reached in this step.
        """
        prefill_end = max(request.num_prompt_tokens, request.num_tokens - 1)
        if not self.applies or start >= prefill_end:
            return tokens
        settings = self._settings
        size, drops, rule = settings.block_size, settings.drops_hits, settings.rules.state_chunks
        if rule == "prompts" and request.num_output_tokens > 0:
            return tokens
        if rule in ("prompts", "blocks"):
            return self._cut_to_blocks(request, start, tokens)
        end = start + tokens
        exported = end >= prefill_end and self._exports(start, end, prefill_end)
        known = self._last_full_block(request)
        if rule == "to_last":
            if end < known:
                end = end // size * size
        elif end < prefill_end:
            most = settings.token_budget
            if settings.long_prefill_token_threshold > 0:
                most = min(most, settings.long_prefill_token_threshold)
            aligned = end // size * size
            if aligned > start or size <= most:
                end = aligned
        if rule == "hits":
            known = checkpoint_position(request.num_tokens, size, drops)
        last = 0 if exported else known
        stops = [last]
        next_end = (start // size + 1) * size
        if start % size and not exported and (rule != "to_last" or next_end <= last):
            stops.append(next_end)
        if self._fine_grained and not exported:
            tail = tail_position(
                settings.rules.state_tails, request.num_prompt_tokens, settings.hash_block_size, drops
            )
            if last < tail < request.num_prompt_tokens:
                stops.append(tail)
        junction = request.shared_prefix_boundary
        if start < junction < end:
            # Another request's prefix ends there: this state is worth having, too.
            stops.append(start + (junction - start) // size * size)
        return max(min((stop for stop in stops if start < stop < end), default=end) - start, 0)

    def _cut_to_blocks(self, request: Request, start: int, tokens: int) -> int:
        """The rule up to 0.25: whole blocks of tokens, wherever the chunk starts.

        A prefix of another request's counts in the chunk that follows the look-up, and from its beginning.
        """
        size = self._settings.block_size
        last = self._last_full_block(request)
        if start + tokens < last:
            tokens = tokens // size * size
        elif start < last < start + tokens:
            tokens = last - start
        if request.status != RequestStatus.RUNNING and request.shared_prefix_boundary:
            shared = request.shared_prefix_boundary - start
            if size <= shared < tokens:
                tokens = shared // size * size
        return tokens

    def _last_full_block(self, request: Request) -> int:
        """The end of the last block that the known text fills, or of the one before it with a drafter."""
        size = self._settings.block_size
        last = request.num_tokens // size * size
        return max(last - size, 0) if self._settings.drops_hits else last

    def _exports(self, start: int, end: int, prefill_end: int) -> bool:
        """Whether the kernel exports the state at the prompt's checkpoint, so that nothing is cut."""
        settings = self._settings
        unit = settings.hash_block_size if self._fine_grained else settings.scheduler_block_size
        position = export_position(
            settings.rules.state_exports, prefill_end, settings.hash_block_size, unit, settings.drops_hits
        )
        return is_exported(
            start, end, position, settings.hash_block_size, settings.block_size, self._alignment
        )
