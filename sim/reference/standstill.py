"""When an engine gets nowhere: it would repeat its last steps until another request arrives.

vLLM has no such rules, it goes on; they are those by which this project ends a run.
"""

from __future__ import annotations

from sim.reference.request import Request
from sim.reference.scheduler import Scheduler
from sim.reference.scheduler_output import SchedulerOutput
from sim.reference.settings import Settings

ALONE_ROUNDS = 8
"""Times that a request alone may outgrow the pool and come no further."""

PATIENCE = 1000
"""Calls that preempt and bring no token, beside those that the requests' own tokens explain."""


class Standstill:
    """Watches an engine's schedule calls.

    Args:
        settings: engine settings.
        scheduler: the engine's scheduler.

    Attributes:
        reason: why nothing will ever change, None while something may. Set it to None when a request arrives
            or is aborted.
    """

    def __init__(self, settings: Settings, scheduler: Scheduler) -> None:
        self.reason: str | None = None
        self._settings = settings
        self._scheduler = scheduler
        self._alone: Request | None = None
        self._furthest = (0, 0)
        self._rounds = 0
        self._fruitless = 0
        self._tokens_came = True
        usable, size = settings.num_gpu_blocks - 1, settings.block_size
        self._pool = f"in a pool of {usable} usable blocks of {size},"
        kinds = {(g.type, g.block_size or size) for g in settings.groups}
        drafts = settings.num_speculative_tokens
        self._plain = kinds == {("full", size)} and not drafts and settings.hash_block_size == size

    def note(self, batch: SchedulerOutput, in_flight: bool, flushed: bool) -> None:
        """Judge a schedule call.

        Args:
            batch: what it scheduled.
            in_flight: tokens of earlier batches are on their way.
            flushed: it told the workers of requests that ended.
        """
        self._tokens_came |= bool(batch.sampling)
        if batch.preempted:
            victim = self._scheduler.requests[batch.preempted[-1]]
            self._note_fruitless(victim)
            self._note_hopeless(victim)
        elif batch.total_num_scheduled_tokens == 0 and not flushed:
            self._note_empty(in_flight)

    def _note_empty(self, in_flight: bool) -> None:
        """The head of the queue is never admitted, or a running request never continued."""
        running, waiting = self._scheduler.running, self._scheduler.waiting
        if running and not in_flight:
            self._give_up(running[0], "can never be continued")
        elif not running and len(waiting) and self._all_free():
            self._give_up(waiting.peek_request(), "can never be admitted")

    def _note_hopeless(self, request: Request) -> None:
        """A request that outgrows the pool preempts itself over and over, alone.

        One whose next token is on its way comes further, and so may one that gives blocks up or has drafts,
        though not each time.
        """
        if self._scheduler.running or not self._all_free():
            return
        known, lost = request.num_tokens, request.num_lost_tokens
        if lost >= known:
            return
        if self._plain:
            hopeless = not self._settings.reserves_full_sequence
        else:
            furthest = self._furthest
            if request is not self._alone or known > furthest[0] or lost > furthest[1]:
                self._alone, self._furthest, self._rounds, self._fruitless = request, (known, lost), 0, 0
            else:
                self._rounds += 1
            hopeless = self._rounds >= ALONE_ROUNDS
        if hopeless and self._scheduler.waiting.peek_request() is request:
            self._give_up(request, "is preempted again and again, alone")

    def _note_fruitless(self, victim: Request) -> None:
        """Requests of equal priority and arrival time preempt each other in turn.

        Without such ties the most urgent one is never preempted but when it is alone, and has computed all
        its tokens after twice as many calls.
        """
        if self._tokens_came:
            self._tokens_came, self._fruitless = False, 0
            return
        self._fruitless += 1
        known = sum(r.num_tokens for r in self._scheduler.requests.values())
        if self._fruitless % PATIENCE == 0 and self._fruitless >= PATIENCE + 2 * known:
            what = f"is one of those that preempt each other: no token in {self._fruitless} such steps"
            self._fruitless = 0
            self._give_up(victim, what)

    def _all_free(self) -> bool:
        pool = self._scheduler.kv_cache_manager.block_pool
        return pool.get_num_free_blocks() == self._settings.num_gpu_blocks - 1

    def _give_up(self, request: Request, why: str) -> None:
        self.reason = f"request {request.request_id!r} with {request.num_tokens} tokens, {self._pool} {why}"
