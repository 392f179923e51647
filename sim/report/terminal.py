"""A document as text for a terminal, in 80 columns."""

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

WIDTH = 80
#: The first column of a table is folded down to this.
_FOLDED = 20
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
    """Aligned columns; those that don't fit side by side are folded, and then stand in a table below."""
    head = [c.label for c in table.columns]
    rows = [[_cell(c) for c in row] for row in table.rows]
    loose = [i for i, c in enumerate(table.columns) if c.words and i > 0]
    widths = [max(len(head[i]), *(len(r[i]) for r in rows), 0) for i in range(len(head))]
    for narrowest in (12, 0):
        if _total(widths) > WIDTH:
            widths = [
                max(*(len(word) for word in [*h.split(" "), h[:narrowest]]), *(len(r[i]) for r in rows), 0)
                for i, h in enumerate(head)
            ]
    below: list[int] = []
    while loose and _total([w for i, w in enumerate(widths) if i not in below]) > WIDTH:
        below.append(loose.pop())
    kept = [i for i in range(len(head)) if i not in below]
    over = _total([widths[i] for i in kept]) - WIDTH
    if table.columns[0].words and 0 < over <= widths[0] - _FOLDED:
        widths[0] -= over

    out: list[str] = []
    for n, part in enumerate(_side_by_side(kept, widths)):
        columns = [(widths[i], table.columns[i].words) for i in part]
        lines = _line([head[i] for i in part], columns, bottom=True) if any(head[i] for i in part) else []
        for row in rows:
            lines += _line([row[i] for i in part], columns)
            more = "; ".join(row[i] for i in sorted(below) if row[i] and not n)
            lines += [wrap(more, WIDTH, "    ", "    ")] if more else []
        out.append("\n".join(lines))
    return [*([wrap(table.caption)] if table.caption else []), *out]


def _side_by_side(kept: Sequence[int], widths: Sequence[int]) -> list[list[int]]:
    """Columns that fit beside each other; those of a further table come behind the first column again."""
    parts: list[list[int]] = [[]]
    for i in kept:
        if len(parts[-1]) > 1 and _total([widths[k] for k in [*parts[-1], i]]) > WIDTH:
            parts.append([kept[0]])
        parts[-1].append(i)
    return parts


def _line(cells: Sequence[str], columns: Sequence[tuple[int, bool]], bottom: bool = False) -> list[str]:
    """A row as one line, or as several where a cell is wider than its column (a heading at the bottom).

    Args:
        cells: of the row.
        columns: their widths, and whether they hold words (left).
        bottom: short cells stand in the last line, not in the first.
    """
    folded = [
        textwrap.wrap(cell, width, subsequent_indent="  " if words and not bottom else "") or [""]
        for cell, (width, words) in zip(cells, columns, strict=True)
    ]
    tall = max(len(f) for f in folded)
    full = [[""] * (tall - len(f)) + f if bottom else f + [""] * (tall - len(f)) for f in folded]
    return [
        "  ".join(
            f[k].ljust(width) if words else f[k].rjust(width)
            for f, (width, words) in zip(full, columns, strict=True)
        ).rstrip()
        for k in range(tall)
    ]


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
