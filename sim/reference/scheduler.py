"""What runs in the next step, and what its output does to the state.

Mirrors vLLM 0.32.0, ``Scheduler`` (``vllm/v1/core/sched/scheduler.py``), for text-only models without
connectors, LoRA or structured output, and other releases where a rule differs (``settings.rules``).
"""

from __future__ import annotations

from collections.abc import Iterable

from sim.reference.encoder_cache import EncoderCache
from sim.reference.kv_cache_manager import KVCacheManager
from sim.reference.metrics import KVCacheMetricsCollector
from sim.reference.request import Request, RequestStatus, check_stop
from sim.reference.request_queue import create_request_queue
from sim.reference.scheduler_output import SchedulerOutput
from sim.reference.settings import Settings
from sim.reference.state_split import StateSplit


class Scheduler:
    """Synchronous scheduler: each batch's output is processed before the next is scheduled.

    Args:
        settings: engine settings.
        enable_kv_cache_events: whether the pool collects events.
        metrics_collector: optional residency metrics.

    Attributes:
        requests: unfinished requests by id.
        waiting: the queue of requests that hold nothing.
        running: requests that hold blocks, in order of admission.
        encoder_cache: room for encoder inputs.
        finished_req_ids: ended since the last ``schedule``; they keep the engine busy for one more step.
    """

    def __init__(
        self,
        settings: Settings,
        enable_kv_cache_events: bool = False,
        metrics_collector: KVCacheMetricsCollector | None = None,
    ) -> None:
        self.settings = settings
        self.rules = settings.rules
        self.kv_cache_manager = KVCacheManager(settings, enable_kv_cache_events, metrics_collector)
        self.requests: dict[str, Request] = {}
        self.waiting = create_request_queue(settings.policy)
        self.running: list[Request] = []
        self.finished_req_ids: list[str] = []
        self.num_preemptions = 0
        self.encoder_cache = EncoderCache(settings)
        self._state_split = StateSplit(settings, self.kv_cache_manager.coordinator.fine_grained)
        self._prefill_scheduled = False

    # ---- requests in and out -------------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Queue a new request.

        Raises:
            ValueError: its id is in use.
        """
        if request.request_id in self.requests:
            raise ValueError(f"request id {request.request_id!r} is in use")
        self.requests[request.request_id] = request
        self.waiting.add_request(request)

    def finish_requests(self, request_ids: Iterable[str]) -> list[str]:
        """Abort requests: all leave their queues first, then their blocks are freed in the order given.

        vLLM frees several aborted at once in the order of a set, which depends on its hash seed; the order
        given is this project's choice.

        Returns:
            The ids that were unfinished and are aborted now.
        """
        aborted = [self.requests[i] for i in dict.fromkeys(request_ids) if i in self.requests]
        self.running = [r for r in self.running if r not in aborted]
        self.waiting.remove_requests(aborted)
        for request in aborted:
            request.status = RequestStatus.FINISHED_ABORTED
            self._free_request(request)
        return [r.request_id for r in aborted]

    def get_request_counts(self) -> tuple[int, int]:
        """(running, waiting)."""
        return len(self.running), len(self.waiting)

    def has_unfinished_requests(self) -> bool:
        """Whether a request runs or waits."""
        return bool(self.running) or len(self.waiting) > 0

    def has_requests(self) -> bool:
        """Whether the engine has a step to do: unfinished requests, or ended ones to be flushed."""
        return self.has_unfinished_requests() or bool(self.finished_req_ids)

    # ---- schedule ------------------------------------------------------------------------------------------

    def schedule(self) -> SchedulerOutput:
        """Choose the next batch: running requests first, then, if nobody was preempted, waiting ones."""
        self.kv_cache_manager.new_step_starts()
        self.encoder_cache.new_step_starts()
        self._prefill_scheduled = False
        out = SchedulerOutput(finished_req_ids=self.finished_req_ids)
        threshold = self._long_prefill_threshold()
        budget = self._schedule_running(out, self.settings.token_budget, threshold)
        if not out.preempted:
            self._schedule_waiting(out, budget, threshold)
        assert out.total_num_scheduled_tokens <= self.settings.token_budget
        assert len(self.running) <= self.settings.max_num_seqs
        self.kv_cache_manager.release_copied_blocks()
        self._update_after_schedule(out)
        return out

    def _input_budget(self, out: SchedulerOutput) -> int:
        # A second limit beside the token budget: it binds where max_num_scheduled_tokens is the larger one,
        # or where a drafter wants inputs of its own.
        requests = len(out.num_scheduled_tokens) + 1
        taken = out.total_num_scheduled_tokens + requests * self.settings.num_draft_slots
        return self.settings.max_num_batched_tokens - taken

    def _long_prefill_threshold(self) -> int:
        # A request that is alone has nobody to starve, so the cap is off for it (0.31 and later).
        eligible = sum(self.get_request_counts())
        if eligible <= 1 and self.rules.single_request_exempt == "on":
            return 0
        threshold = self.settings.long_prefill_token_threshold
        if threshold > 0 and self.settings.long_prefill_token_threshold_adaptive:
            threshold = max(threshold, self.settings.max_num_batched_tokens // eligible)
        return threshold

    def _schedule_running(self, out: SchedulerOutput, budget: int, threshold: int) -> int:
        index = 0
        while index < len(self.running) and budget > 0:
            if self._input_budget(out) <= 0:
                break
            request = self.running[index]
            if self._awaits_last_token(request):
                index += 1
                continue
            known = request.num_tokens + request.num_output_placeholders
            tokens = known + request.num_draft_tokens - request.num_computed_tokens
            if 0 < threshold < tokens:
                tokens = threshold
            tokens = min(tokens, budget, self._input_budget(out))
            tokens = max(0, min(tokens, self.settings.max_model_len - request.num_computed_tokens - 1))
            tokens = self._state_split.cut(request, request.num_computed_tokens, tokens)
            if tokens == 0:
                index += 1
                continue
            while True:
                new_blocks = self.kv_cache_manager.allocate_slots(
                    request, tokens, num_lookahead_tokens=self.settings.num_lookahead_tokens
                )
                scheduled = new_blocks is not None
                if scheduled:
                    break
                victim, position = self._pop_victim()
                if self.rules.priority_mode == "old":
                    # A victim in front that was skipped in this step shifts the list all the same: the
                    # request that moves to this index misses the step (0.27 and before).
                    index -= victim.request_id in out.num_scheduled_tokens
                elif position < index:
                    index -= 1
                if victim.request_id in out.num_scheduled_tokens:
                    out.scheduled_running.remove(victim.request_id)
                    budget += out.num_scheduled_tokens.pop(victim.request_id)
                    out.num_draft_tokens.pop(victim.request_id, None)
                self._preempt_request(victim)
                out.preempted.append(victim.request_id)
                if victim is request:
                    break
            if not scheduled:
                if self.rules.priority_mode == "go_on" and self.settings.policy == "priority":
                    # Its own victim: it left the list, so the next request stands at this index (0.33).
                    continue
                break
            out.scheduled_running.append(request.request_id)
            out.num_scheduled_tokens[request.request_id] = tokens
            drafts = min(request.num_draft_tokens, request.num_computed_tokens + tokens - known)
            if drafts > 0:
                out.num_draft_tokens[request.request_id] = drafts
            request.num_draft_tokens = 0
            self._prefill_scheduled |= request.is_prefill_chunk
            budget -= tokens
            index += 1
        return budget

    def _schedule_waiting(self, out: SchedulerOutput, budget: int, threshold: int) -> None:
        set_aside: list[Request] = []
        while budget > 0 and len(self.waiting) and self._input_budget(out) > 0:
            if len(self.running) >= self.settings.active_seqs:
                break
            request = self.waiting.peek_request()
            if request.num_stale_output_tokens and not request.drop_stale_output:
                # Its old output is still to be delivered; resuming now could sample the same position twice.
                set_aside.append(self.waiting.pop_request())
                continue
            assert request.num_computed_tokens == 0, "a waiting request holds nothing"
            hit_blocks, num_hit_tokens, boundary = self.kv_cache_manager.get_computed_blocks(request)
            request.shared_prefix_boundary = boundary
            if self.rules.stats_at == "lookup":
                self.kv_cache_manager.record_prefix_cache_stats(request, num_hit_tokens)
            room = min(budget, self._input_budget(out))
            tokens = request.num_tokens - num_hit_tokens
            padded = self._pads_decode(out, request, num_hit_tokens)
            if padded:
                tokens += self.settings.num_speculative_tokens
                if tokens > room or num_hit_tokens + tokens > self.settings.max_model_len:
                    break
            if 0 < threshold < tokens:
                tokens = threshold
            if not self.settings.enable_chunked_prefill and tokens > room:
                break
            tokens = self._state_split.cut(request, num_hit_tokens, min(tokens, room))
            if tokens == 0:
                break
            if padded and tokens != 1 + self.settings.num_speculative_tokens:
                # Rows of drafts come all or not at all; where chunks are not cut for states, vLLM fails here.
                assert self._state_split.applies, "long_prefill_token_threshold cuts a padded decode"
                padded, tokens = False, 1
            if not self.encoder_cache.has_room(request):
                if self.rules.encoder_full == "skipped":
                    set_aside.append(self.waiting.pop_request())
                    continue
                break
            new_blocks = self.kv_cache_manager.allocate_slots(
                request,
                tokens,
                num_new_computed_tokens=num_hit_tokens,
                new_computed_blocks=hit_blocks,
                full_sequence_must_fit=self.settings.reserves_full_sequence,
                has_scheduled_reqs=bool(self.running),
                num_lookahead_tokens=self._admission_lookahead,
                num_encoder_tokens=self.cross_tokens(request),
            )
            if new_blocks is None:
                self.encoder_cache.give_back(request)
                break
            self.encoder_cache.take(request)
            if self.rules.stats_at == "admission":
                self.kv_cache_manager.record_prefix_cache_stats(request, num_hit_tokens)
            self.waiting.pop_request()
            self.running.append(request)
            resumed = request.status == RequestStatus.PREEMPTED
            (out.scheduled_resumed if resumed else out.scheduled_new).append(request.request_id)
            request.status = RequestStatus.RUNNING
            request.num_computed_tokens = num_hit_tokens
            out.num_scheduled_tokens[request.request_id] = tokens
            if padded:
                out.num_draft_tokens[request.request_id] = self.settings.num_speculative_tokens
            budget -= tokens
        for request in reversed(set_aside):
            self.waiting.prepend_request(request)

    def _pads_decode(self, out: SchedulerOutput, request: Request, num_hit_tokens: int) -> bool:
        """Whether an admission that computes one token gets rows for drafts too, to look like a decode.

        Not beside a prefill chunk, and only if the length limit leaves room for the rows and a token more
        (since 0.29; in 0.25 to 0.28 it is not admitted at all where the rows do not fit).
        """
        drafts = self.settings.num_speculative_tokens
        rule = self.rules.draft_padding
        return (
            drafts > 0
            and rule != "none"
            and request.num_tokens - num_hit_tokens == 1
            and not self._prefill_scheduled
            and (bool(out.scheduled_running) or (rule == "hits" and num_hit_tokens > 0))
            and (rule == "beside" or num_hit_tokens + 1 + drafts + 1 <= self.settings.max_model_len)
        )

    @property
    def _admission_lookahead(self) -> int:
        """Slots for a drafter that an admission takes."""
        return self.settings.num_lookahead_tokens if self.rules.draft_slots == "all" else 0

    def cross_tokens(self, request: Request) -> int:
        """Encoder tokens that an admission takes blocks for."""
        rule = self.rules.encoder_blocks
        if rule == "own" or request.encoder_tokens == 0:
            return request.encoder_tokens
        return self.settings.encoder_tokens if rule == "most" else self.settings.max_num_batched_tokens

    def _awaits_last_token(self, request: Request) -> bool:
        """Whether the tokens in flight are known to reach ``max_tokens``: no further step is needed."""
        return (
            request.num_output_placeholders > 0
            and request.num_computed_tokens + 2 - request.num_output_placeholders
            >= request.num_prompt_tokens + request.max_tokens
        )

    def _pop_victim(self) -> tuple[Request, int]:
        """Take the request to preempt out of ``running``; returns it and where it stood.

        First come first served: the last one. Priority: the largest (priority, arrival time), the first in
        list order where several are equal.
        """
        position = len(self.running) - 1
        if self.settings.policy == "priority":
            worst = max((r.priority, r.arrival_time) for r in self.running)
            position = next(i for i, r in enumerate(self.running) if (r.priority, r.arrival_time) == worst)
        return self.running.pop(position), position

    def _preempt_request(self, request: Request, drop_stale_output: bool = False) -> None:
        """Free the blocks of a request that was taken out of ``running``; it will be computed again.

        Its outputs stay. Tokens of its scheduled but unprocessed steps become stale: they are still
        delivered, unless ``drop_stale_output``, but no longer move its counters.
        """
        assert request.status == RequestStatus.RUNNING
        self.kv_cache_manager.free(request)
        self.encoder_cache.give_back(request)
        request.status = RequestStatus.PREEMPTED
        request.num_lost_tokens = request.num_computed_tokens
        request.num_computed_tokens = 0
        keeps_dropping = request.drop_stale_output and request.num_stale_output_tokens > 0
        request.drop_stale_output = drop_stale_output or keeps_dropping
        request.num_stale_output_tokens = request.num_in_flight_tokens
        request.num_output_placeholders = 0
        if self.rules.preempted_drafts == "dropped":
            request.num_draft_tokens = 0
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.prepend_request(request)

    def _update_after_schedule(self, out: SchedulerOutput) -> None:
        """Count the scheduled tokens as computed, so that the next batch can build on them."""
        for request_id, tokens in out.num_scheduled_tokens.items():
            request = self.requests[request_id]
            request.num_computed_tokens += tokens
            request.num_in_flight_tokens += tokens
            known = request.num_tokens + request.num_output_placeholders
            request.is_prefill_chunk = request.num_computed_tokens < known
            if self.rules.encoder_freed == "schedule":
                self.encoder_cache.give_back(request)
            if not request.is_prefill_chunk:
                out.sampling.add(request_id)
        self.finished_req_ids = []

    # ---- output --------------------------------------------------------------------------------------------

    def update_from_output(self, out: SchedulerOutput) -> list[str]:
        """Deliver the sampled tokens of a batch, in scheduling order; requests that stop free their blocks.

        Returns:
            Ids of the requests that finished, in order.
        """
        finished: list[Request] = []
        for request_id, tokens in out.num_scheduled_tokens.items():
            request = self.requests.get(request_id)
            if request is None:
                continue  # it ended while this batch was under way
            request.num_in_flight_tokens -= tokens
            is_stale = request.num_stale_output_tokens > 0
            if is_stale:
                request.num_stale_output_tokens -= tokens
                assert request.num_stale_output_tokens >= 0
                if request.drop_stale_output:
                    continue
            if request.num_computed_tokens > 0 and self.rules.encoder_freed == "output":
                self.encoder_cache.give_back(request)
            if request_id not in out.sampling:
                continue
            drafts = out.num_draft_tokens.get(request_id, 0)
            accepted = request.verify_drafts(drafts)
            if not is_stale:
                self._take_back(request, drafts - accepted)
            was_running = request.status == RequestStatus.RUNNING
            stopped = self._deliver(request, 1 + accepted, is_stale)
            if was_running and self._caches_accepted:
                # all but the newest token have been computed (0.33)
                self.kv_cache_manager.cache_blocks(request, request.num_tokens - 1)
            if stopped:
                self._free_request(request)
                finished.append(request)
        self.running = [r for r in self.running if r not in finished]
        self.waiting.remove_requests(finished)
        return [r.request_id for r in finished]

    def update_draft_tokens(self, out: SchedulerOutput) -> None:
        """After a synchronous step: the requests that sampled have drafts to verify."""
        for request_id in out.num_scheduled_tokens:
            request = self.requests.get(request_id)
            if request is not None and request_id in out.sampling:
                request.num_draft_tokens = self.settings.num_speculative_tokens

    @property
    def _caches_accepted(self) -> bool:
        settings = self.settings
        drafts = settings.num_speculative_tokens > 0 and not settings.async_scheduling
        return drafts and self.rules.accepted_cached == "output"

    def _take_back(self, request: Request, num_rejected: int) -> None:
        """Rejected drafts were never computed. Their slots stay."""
        if request.num_computed_tokens > 0:
            request.num_computed_tokens -= num_rejected
        if request.num_output_placeholders > 0:
            request.num_output_placeholders -= num_rejected

    def _deliver(self, request: Request, num_generated: int, is_stale: bool) -> bool:
        """Append the generated tokens up to one that stops the request; True when there is such a one."""
        for _ in range(num_generated):
            request.append_output_token_ids(request.next_output_token)
            if check_stop(request, self.settings.max_model_len):
                return True
        return False

    def _free_request(self, request: Request) -> None:
        assert request.is_finished()
        self.finished_req_ids.append(request.request_id)
        self.encoder_cache.give_back(request)
        self.kv_cache_manager.free(request)
        del self.requests[request.request_id]

    def reset_prefix_cache(self, reset_running_requests: bool = False) -> bool:
        """Forget all cached content.

        Args:
            reset_running_requests: preempt every running request first (their order is kept) and throw their
                tokens in flight away; otherwise the reset fails while a request holds blocks.

        Returns:
            Whether the cache was reset.
        """
        if reset_running_requests:
            while self.running:
                self._preempt_request(self.running.pop(), drop_stale_output=True)
        return self.kv_cache_manager.reset_prefix_cache()
