"""The one exception that user input to this package can raise."""

from __future__ import annotations

from pathlib import Path


class WorkloadError(ValueError):
    """Bad input: a trace, a workload section or a request that cannot be used.

    The text of the exception is one message of the form ``file:line:column: what is wrong; what to do``,
    with the parts that are not known left out.

    Attributes:
        message: what is wrong and what to do, without the position.
        file: the file that holds the problem, or None.
        line: 1-based line, or None.
        column: 1-based column, or None.
    """

    def __init__(
        self,
        message: str,
        file: str | Path | None = None,
        line: int | None = None,
        column: int | None = None,
    ) -> None:
        self.message = message
        self.file = None if file is None else str(file)
        self.line = line
        self.column = column
        super().__init__(self.position + message)

    @property
    def position(self) -> str:
        """``"file:line:column: "`` with the unknown parts left out, or an empty string."""
        parts = [str(p) for p in (self.file, self.line, self.column) if p is not None]
        return ":".join(parts) + ": " if parts else ""

    def __reduce__(self) -> tuple[type[WorkloadError], tuple[object, ...]]:
        return type(self), (self.message, self.file, self.line, self.column)
