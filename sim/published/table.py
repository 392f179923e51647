"""Tables that set our numbers beside published ones."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

_WIDTH = 80


@dataclass(frozen=True)
class Row:
    """One published number and ours.

    Attributes:
        label: what the row is about, such as a capacity.
        published: the number as printed, such as ".0445"; its last digit sets the tolerance.
        ours: the number that the simulator gives.
        others: texts of the further columns of the table.
        bound: allowed distance from ``published``; None: one unit of its last printed digit.
    """

    label: str
    published: str
    ours: float
    others: tuple[str, ...] = ()
    bound: float | None = None

    @property
    def digits(self) -> int:
        """Printed digits after the decimal point."""
        return len(self.published.partition(".")[2])

    @property
    def tolerance(self) -> float:
        """Allowed distance between the two numbers."""
        return 10.0**-self.digits if self.bound is None else self.bound

    @property
    def met(self) -> bool:
        """Whether ours lies within the tolerance (rounding of the comparison itself forgiven)."""
        return abs(self.ours - float(self.published)) <= self.tolerance * (1 + 1e-9)

    @property
    def ours_text(self) -> str:
        """Ours with one digit more than the published number."""
        return f"{self.ours:.{self.digits + 1}f}"


@dataclass(frozen=True)
class Table:
    """A published table.

    Attributes:
        name: of the command that makes it.
        title: what is shown, and its unit.
        columns: headers of label, published, ours and the rows' ``others``.
        rows: one published number each.
        met_when: what "met" means here.
        notes: what else a reader has to know: one string, wrapped when it is shown.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    met_when: str
    notes: str = ""

    @property
    def met(self) -> bool:
        """Whether every row is met."""
        return all(row.met for row in self.rows)

    def text(self) -> str:
        """The table as aligned lines of 80 columns; headings are folded where they would not fit."""
        cells = [
            ("met" if row.met else "NOT MET", row.label, row.published, row.ours_text, *row.others)
            for row in self.rows
        ]
        head = ("", *self.columns)
        widths = [max(len(line[i]) for line in [head, *cells]) for i in range(len(head))]
        if sum(widths) + 2 * (len(widths) - 1) > _WIDTH:
            widths = [
                max(*map(len, [*name.split(), ""]), *(len(line[i]) for line in cells))
                for i, name in enumerate(head)
            ]
        folded = [textwrap.wrap(name, w) for name, w in zip(head, widths, strict=True)]
        tall = max(map(len, folded))
        heads = [tuple(([""] * (tall - len(f)) + f)[k] for f in folded) for k in range(tall)]
        shown = [
            "  ".join(f"{cell:>{w}}" for cell, w in zip(line, widths, strict=True))
            for line in [*heads, *cells]
        ]
        said = textwrap.wrap(f"met: {self.met_when}. {self.notes}".strip(), _WIDTH)
        return "\n".join([*textwrap.wrap(self.title, _WIDTH), "", *shown, "", *said])

    def as_json(self) -> dict[str, Any]:
        """The table as plain data."""
        return {
            "name": self.name,
            "title": self.title,
            "met": self.met,
            "met_when": self.met_when,
            "notes": self.notes,
            "rows": [
                {
                    "label": row.label,
                    "published": float(row.published),
                    "ours": row.ours,
                    "tolerance": row.tolerance,
                    "met": row.met,
                    **dict(zip(self.columns[3:], row.others, strict=True)),
                }
                for row in self.rows
            ],
        }
