"""Waiting requests, in the order in which they are served.

Mirrors vLLM 0.32.0, ``FCFSRequestQueue`` and ``PriorityRequestQueue``
(``vllm/v1/core/sched/request_queue.py``).
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Collection, Iterator
from typing import Protocol

from sim.reference.request import Request


class RequestQueue(Protocol):
    """Common face of the two queues."""

    def add_request(self, request: Request) -> None:
        """A new request."""
        ...

    def prepend_request(self, request: Request) -> None:
        """A request that comes back, to be served first where the policy knows a first."""
        ...

    def peek_request(self) -> Request:
        """The next request; IndexError when empty."""
        ...

    def pop_request(self) -> Request:
        """Take the next request; IndexError when empty."""
        ...

    def remove_requests(self, requests: Collection[Request]) -> None:
        """Drop these; absent ones are ignored."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Request]: ...


class FCFSRequestQueue:
    """First come, first served."""

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()

    def add_request(self, request: Request) -> None:
        """Put last."""
        self._requests.append(request)

    def prepend_request(self, request: Request) -> None:
        """Put first."""
        self._requests.appendleft(request)

    def peek_request(self) -> Request:
        """The first; IndexError when empty."""
        return self._requests[0]

    def pop_request(self) -> Request:
        """Take the first; IndexError when empty."""
        return self._requests.popleft()

    def remove_requests(self, requests: Collection[Request]) -> None:
        """Drop these."""
        self._requests = deque(r for r in self._requests if r not in requests)

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)


class PriorityRequestQueue:
    """Smallest (priority, arrival time, request id) first; vLLM keeps a heap, here a sorted list."""

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def add_request(self, request: Request) -> None:
        """Put where the order wants it."""
        bisect.insort(self._requests, request, key=Request.sort_key)

    def prepend_request(self, request: Request) -> None:
        """The same: a priority queue has no front of its own."""
        self.add_request(request)

    def peek_request(self) -> Request:
        """The smallest; IndexError when empty."""
        return self._requests[0]

    def pop_request(self) -> Request:
        """Take the smallest; IndexError when empty."""
        return self._requests.pop(0)

    def remove_requests(self, requests: Collection[Request]) -> None:
        """Drop these."""
        self._requests = [r for r in self._requests if r not in requests]

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)


def create_request_queue(policy: str) -> RequestQueue:
    """The queue of ``policy``: ``fcfs`` or ``priority``."""
    return PriorityRequestQueue() if policy == "priority" else FCFSRequestQueue()
