"""Errors that a user can mend, with the place where they stand.

Every check of a user's input ends in one `InputError`: it is printed as `file:line:column: message`
with a hint below it, and the command ends with exit code 2. Several problems of one file are collected
in an `InputErrors`, so that a user sees all of them at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class InputError(Exception):
    """One problem in what the user gave.

    Args:
        message: what is wrong, without the place.
        file: the file (or option, such as `--set engine.block_size`) where it stands.
        line: line in the file, from 1.
        column: column in the line, from 1.
        hint: what to do about it.
    """

    def __init__(
        self,
        message: str,
        file: str | None = None,
        line: int | None = None,
        column: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = None if file is None else str(file)
        self.line = line
        self.column = column
        self.hint = hint

    @property
    def problems(self) -> tuple[InputError, ...]:
        """All problems held by this error; an `InputErrors` holds several."""
        return (self,)

    def place(self) -> str:
        """`file:line:column`, as far as it is known; empty if nothing is."""
        if self.file is None:
            return ""
        parts = [self.file]
        if self.line is not None:
            parts.append(str(self.line))
            if self.column is not None:
                parts.append(str(self.column))
        return ":".join(parts)

    def __str__(self) -> str:
        place = self.place()
        text = f"{place}: {self.message}" if place else self.message
        return f"{text}\n  hint: {self.hint}" if self.hint else text


class InputErrors(InputError):
    """Several problems at once, in the order of their places in the file."""

    def __init__(self, problems: Sequence[InputError]) -> None:
        if not problems:
            raise ValueError("InputErrors needs at least one problem")
        first = problems[0]
        super().__init__(first.message, first.file, first.line, first.column, first.hint)
        self._problems = tuple(problems)

    @property
    def problems(self) -> tuple[InputError, ...]:
        return self._problems

    def __str__(self) -> str:
        return "\n".join(str(p) for p in self._problems)


def raise_all(problems: Sequence[InputError]) -> None:
    """Raise what was collected: nothing if empty, the one problem itself, or an `InputErrors`."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise InputErrors(sorted(problems, key=lambda p: (p.file or "", p.line or 0, p.column or 0)))


def did_you_mean(wrong: object, known: Iterable[str], near_from: float = 0.6) -> str | None:
    """A hint naming the known word nearest to `wrong`; None if none is near (`near_from` of 1 is equal)."""
    words = [str(k) for k in known]
    near = difflib.get_close_matches(str(wrong), words, n=1, cutoff=near_from)
    if not near:
        lower = {w.lower(): w for w in words}
        near = [
            lower[w]
            for w in difflib.get_close_matches(str(wrong).lower(), list(lower), n=1, cutoff=near_from)
        ]
    return f"did you mean '{near[0]}'?" if near else None
