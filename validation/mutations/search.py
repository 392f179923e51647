"""Finds a small case that a fault changes: random cases on the faulty kernel and on the faultless twin.

Runs in a copy of the project that has the fault, with Numba switched off.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from validation.diff import compare
from validation.fuzz_cases import Case, random_case, settings_to_json
from validation.logical import dump_requests
from validation.record import record
from validation.shrink import shrink

_CASE_SECONDS = 10


class _TooLong(Exception):
    """A faulty kernel can run for ever."""


@contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise _TooLong

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def differs(case: Case) -> bool:
    """Whether the kernel's log of a case that can be served differs from the twin's.

    A kernel that hangs or raises does not count: the test should show a difference in behaviour, in a table.
    """
    try:
        with _alarm(_CASE_SECONDS):
            expected = record("reference", case.settings, case.requests)
            if expected.stuck is not None:
                return False
            found = record("sim", case.settings, case.requests)
            comparison = compare(expected.log, found.log)
    except Exception:
        return False
    return comparison.first is not None


def _seeds(first: int, count: int, wanted: Callable[[Case], bool]) -> Iterator[Case]:
    for seed in range(first, first + count):
        case = random_case(seed)
        if wanted(case):
            yield case


def search(
    name: str, first: int, count: int, max_tries: int, only_async: bool | None = None
) -> dict[str, str] | None:
    """The smallest case that was found, as the contents of its two files; None when no seed shows the
    fault."""

    def wanted(case: Case) -> bool:
        small = sum(len(r.output_token_ids) for r in case.requests) < 600
        return small and only_async in (None, case.settings.async_scheduling)

    for case in _seeds(first, count, wanted):
        if differs(case):
            small = replace(shrink(case, differs, max_tries), name=name)
            return {
                "config.json": settings_to_json(small.settings, name),
                "workload.jsonl": dump_requests(small.requests).decode(),
            }
    return None
