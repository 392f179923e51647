"""A document as text for a terminal: 80 columns, tables up to 100."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from itertools import pairwise

from sim.report.document import (
    Cards,
    Chart,
    Document,
    Items,
    Paragraph,
    Part,
    Piece,
    Table,
    Value,
    plain_text,
)
from sim.report.units import count, share

WIDTH, TABLE_WIDTH = 80, 100
_SPARK = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 60


def wrap(text: str, width: int = WIDTH, first: str = "", indent: str = "") -> str:
    """Lines of at most `width` columns; a number stays with its unit."""
    rows: list[str] = []
    row = first
    empty = True
    for word in re.sub(r"(\d) (%|[GMK]iB|ms|us|s|min|h)\b|(\d) (%)", _glue, text).split(" "):
        if not empty and len(row) + 1 + len(word) > width:
            rows.append(row)
            row, empty = indent, True
        row += word if empty else f" {word}"
        empty = False
    return "\n".join([*rows, row]).replace("\xa0", " ")


def _glue(match: re.Match[str]) -> str:
    return match.group(0).replace(" ", "\xa0")


def sparkline(values: Sequence[float]) -> str:
    """The values as bars of eight heights, thinned to 60 columns by the mean."""
    means = _thinned(values)
    high = max([*means, 1e-300])
    return "".join(_SPARK[min(7, int(8 * max(v, 0.0) / high))] for v in means)


def _thinned(values: Sequence[float]) -> list[float]:
    n = len(values)
    edges = [i * n // min(n, _SPARK_WIDTH) for i in range(min(n, _SPARK_WIDTH) + 1)] if n else [0]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]


def picture_lines(chart: Chart) -> list[str]:
    """What stands in the place of a picture: letters, or a line of bars with its scale."""
    if chart.letters:
        return list(chart.letters)
    if not chart.spark:
        return []
    high = max([*_thinned(chart.spark), 0.0])
    top = share(high) if chart.spark_unit == "fraction" else count(high)
    return [f"{sparkline(chart.spark)} 0 to {top}"]


def _cell(cell: str | Value | tuple[Piece, ...]) -> str:
    if isinstance(cell, Value):
        return cell.text
    return cell if isinstance(cell, str) else plain_text(cell)


def _total(widths: Sequence[int]) -> int:
    """Columns of a row: two blanks between cells."""
    return sum(w + 2 for w in widths) - 2


def _table(table: Table) -> list[str]:
    """Aligned columns; where they would not fit, headings take several lines, then words go below the row."""
    head = [c.label for c in table.columns]
    rows = [[_cell(c) for c in row] for row in table.rows]
    loose = [i for i, c in enumerate(table.columns) if c.words and i > 0]
    widths = [max(len(head[i]), *(len(r[i]) for r in rows), 0) for i in range(len(head))]
    heads = [head]
    if _total(widths) > TABLE_WIDTH:
        widths = [
            max(*(len(word) for word in [*h.split(" "), h[:12]]), *(len(r[i]) for r in rows))
            for i, h in enumerate(head)
        ]
        lines = [textwrap.wrap(h, w) or [""] for h, w in zip(head, widths, strict=True)]
        tall = max(len(t) for t in lines)
        heads = [[([""] * (tall - len(t)) + t)[k] for t in lines] for k in range(tall)]
    below: list[int] = []
    while loose and _total([w for i, w in enumerate(widths) if i not in below]) > TABLE_WIDTH:
        below.append(loose.pop())
    kept = [i for i in range(len(head)) if i not in below]

    def line(cells: list[str]) -> str:
        parts = [
            cells[i].ljust(widths[i]) if table.columns[i].words else cells[i].rjust(widths[i]) for i in kept
        ]
        return "  ".join(parts).rstrip()

    out = [line(h) for h in heads] if any(head[i] for i in kept) else []
    for row in rows:
        out.append(line(row))
        more = "; ".join(row[i] for i in sorted(below) if row[i])
        out += [wrap(more, WIDTH, "    ", "    ")] if more else []
    return [*([wrap(table.caption)] if table.caption else []), "\n".join(out)]


def _part(part: Part) -> list[str]:
    if isinstance(part, Paragraph):
        if part.only == "picture":
            return []
        mark = {"warn": "! "}.get(part.tone, "")
        return [wrap(plain_text(part.pieces), WIDTH, mark, "  " if mark else "")]
    if isinstance(part, Items):
        return ["\n".join(wrap(plain_text(item), WIDTH, "- ", "  ") for item in part.items)]
    if isinstance(part, Cards):
        width = max(len(c.label) for c in part.cards) + 2
        out = []
        for c in part.cards:
            note = plain_text(c.note)
            text = c.value.text + (f"   {note}" if note else "")
            out.append(wrap(text, WIDTH, c.label.ljust(width), " " * width))
        return ["\n".join(out)]
    if isinstance(part, Chart):
        return ["\n".join([part.title, *picture_lines(part), wrap(plain_text(part.says))])]
    return _table(part)


def terminal_text(document: Document) -> str:
    """The whole document; charts are told in words, curves also as a line of bars."""
    blocks = [f"{document.title}\n{wrap(document.subtitle)}"]
    for section in document.sections:
        blocks.append(f"{section.title}\n{'-' * len(section.title)}")
        for part in section.parts:
            blocks += _part(part)
    if document.definitions:
        blocks.append("Definitions\n-----------")
        blocks.append("\n".join(wrap(f"{n}: {m}", WIDTH, "", "  ") for n, m in document.definitions.values()))
    blocks.append("\n".join(wrap(f"{k}: {v}", WIDTH, "", "  ") for k, v in document.provenance.items()))
    return "\n\n".join(b for b in blocks if b) + "\n"
