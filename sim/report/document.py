"""A report as data: built once, shown as HTML, Markdown, text or JSON.

Every number is a `Value`: the exact value and the text that all four show. The renderers know these parts and
nothing of what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sim.report.units import count, seconds, share, size, span

Number = int | float | None


@dataclass(frozen=True)
class Value:
    """A number: as it is, in which unit, and as people read it.

    Attributes:
        value: the exact number; None where there is none.
        text: what every rendering shows.
        unit: of `value`: "fraction", "s", "bytes", or a plural noun.
    """

    value: Number
    text: str
    unit: str = ""


Piece = str | Value
Inline = tuple[Piece, ...]


def as_share(x: float | None) -> Value:
    """A fraction, shown in percent."""
    return Value(x, share(x), "fraction")


def as_seconds(x: float | None) -> Value:
    """Seconds, shown as a span in at most two units."""
    return Value(x, seconds(x), "s")


def as_span(x: float | None) -> Value:
    """Seconds, shown as one number (for tables)."""
    return Value(x, span(x), "s")


def as_size(x: float | None) -> Value:
    """Bytes."""
    return Value(x, size(x), "bytes")


def as_count(x: float | None, unit: str = "") -> Value:
    """A count; the unit is shown by the text around it."""
    return Value(x, count(x), unit)


def as_plural(n: int, word: str) -> Value:
    """A whole number with its noun: `1 block`, `12,031 blocks`."""
    return Value(n, f"{n:,} {word}" + ("" if n == 1 else "s"), f"{word}s")


def plain_text(pieces: Sequence[Piece]) -> str:
    """The text of a sentence."""
    return "".join(p if isinstance(p, str) else p.text for p in pieces)


@dataclass(frozen=True)
class Paragraph:
    """A sentence or a few; `tone` is "lead", "note", "warn" or "" (plain).

    `only` is "picture" where it is about pictures, "text" where it is about what stands in their place.
    """

    pieces: Inline
    tone: str = ""
    only: str = ""
    kind: str = "paragraph"


@dataclass(frozen=True)
class Card:
    """One key number: what it is called, the number, a line below it, the definition's key."""

    label: str
    value: Value
    note: Inline = ()
    term: str = ""


@dataclass(frozen=True)
class Cards:
    """The key numbers."""

    cards: tuple[Card, ...]
    kind: str = "cards"


@dataclass(frozen=True)
class Column:
    """A column of a table: heading, definition's key, whether it holds words (left) or numbers (right)."""

    label: str
    term: str = ""
    words: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells; a cell is a word, a number, or a sentence made of both."""

    key: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str | Value | Inline, ...], ...]
    caption: str = ""
    kind: str = "table"


@dataclass(frozen=True)
class Chart:
    """A picture with what it says in words.

    Attributes:
        key: names it in JSON and as a file.
        title: of the chart.
        says: in words what a reader should see; also shown where pictures are not.
        markup: HTML of the picture (inline SVG, or a heat map), without any outer resource.
        data: series behind it, for JSON.
        wide: takes the page's whole width.
        term: the definition's key.
        look: how to read the picture, shown with it only.
        spark: a small line of the values over time, for text; none below zero.
        spark_unit: "fraction" or a plural noun.
        letters: the picture in letters, line by line, for text.
    """

    key: str
    title: str
    says: Inline
    markup: str
    data: Mapping[str, Any] = field(default_factory=dict)
    wide: bool = False
    term: str = ""
    look: str = ""
    spark: tuple[float, ...] = ()
    spark_unit: str = ""
    letters: tuple[str, ...] = ()
    kind: str = "chart"


@dataclass(frozen=True)
class Items:
    """A list of sentences; labelled: the first piece of each names it."""

    items: tuple[Inline, ...]
    labelled: bool = False
    kind: str = "items"


Part = Paragraph | Cards | Table | Chart | Items


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    key: str
    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
        kind: "report" or "compare".
        title: of the page.
        subtitle: a line below it.
        sections: the answer first.
        definitions: key -> (name, meaning) of every term that is used.
        provenance: name -> text: where the numbers come from.
    """

    kind: str
    title: str
    subtitle: str
    sections: tuple[Section, ...]
    definitions: Mapping[str, tuple[str, str]]
    provenance: Mapping[str, str]

    def charts(self) -> list[Chart]:
        """All charts, in order."""
        return [p for s in self.sections for p in s.parts if isinstance(p, Chart)]


def values_of(document: Document) -> list[Value]:
    """Every number of a document, in order."""
    out: list[Value] = []

    def walk(x: object) -> None:
        if isinstance(x, Value):
            out.append(x)
        elif isinstance(x, tuple):
            for y in x:
                walk(y)
        elif isinstance(x, Section | Cards | Card | Table | Items | Paragraph | Chart):
            for name in ("value", "pieces", "says", "items", "cards", "note", "rows", "parts"):
                walk(getattr(x, name, ()))

    walk(document.sections)
    return out
