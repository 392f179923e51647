"""Wrappers around the methods of live objects.

Methods are wrapped on the objects, not on their classes, so that taking the wrappers off leaves the objects
as they were. Each wrapper calls the method exactly once and passes on what it returns or raises; what it
notes may fail without anybody but the recorder hearing of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

_clock = time.perf_counter_ns


class Wrappers:
    """A set of wrappers that come off together.

    Attributes:
        off: the wrappers that are still there only pass calls on.
    """

    def __init__(self, fail: Callable[[], None]) -> None:
        self.off = False
        self._fail = fail
        self._wrapped: list[tuple[Any, str, Any, Any]] = []

    def _set(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        before = vars(owner).get(name)
        setattr(owner, name, wrapper)
        self._wrapped.append((owner, name, wrapper, before))

    def call(self, owner: Any, name: str, note: Callable[[Any, Any, int], None]) -> None:
        """Note the result, the first argument and the time (ns) when the call began."""
        inner = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if self.off:
                return inner(*args, **kwargs)
            began = _clock()
            result = inner(*args, **kwargs)
            try:
                note(result, args[0] if args else kwargs.get("scheduler_output"), began)
            except Exception:
                self._fail()
            return result

        self._set(owner, name, wrapper)

    def before(self, owner: Any, name: str, note: Callable[..., None]) -> None:
        """Note the arguments before the call changes them. Absent in this release: nothing."""
        inner = getattr(owner, name, None)
        if inner is None:
            return

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not self.off:
                try:
                    note(*args, **kwargs)
                except Exception:
                    self._fail()
            return inner(*args, **kwargs)

        self._set(owner, name, wrapper)

    def after(self, owner: Any, name: str, note: Callable[..., None]) -> None:
        """Note the result and the arguments. Absent in this release: nothing."""
        inner = getattr(owner, name, None)
        if inner is None:
            return

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = inner(*args, **kwargs)
            if not self.off:
                try:
                    note(result, *args, **kwargs)
                except Exception:
                    self._fail()
            return result

        self._set(owner, name, wrapper)

    def list_argument(self, owner: Any, name: str, note: Callable[[list[Any]], None]) -> None:
        """For a method whose argument may be an iterator, read once: it gets a list of the same in its
        place."""
        inner = getattr(owner, name)

        def wrapper(iterable: Any, *more: Any, **named: Any) -> Any:
            if self.off:
                return inner(iterable, *more, **named)
            items = list(iterable)
            result = inner(items, *more, **named)
            try:
                note(items)
            except Exception:
                self._fail()
            return result

        self._set(owner, name, wrapper)

    def take_off(self) -> None:
        """Give the objects their own methods back; a wrapper that is itself wrapped passes calls on."""
        self.off = True
        for owner, name, wrapper, before in reversed(self._wrapped):
            if vars(owner).get(name) is not wrapper:
                continue
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
        self._wrapped.clear()
