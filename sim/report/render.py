"""A document as Markdown, JSON or HTML; `sim.report.terminal` shows it as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from sim.report.document import (
    Card,
    Cards,
    Chart,
    Document,
    Inline,
    Items,
    Paragraph,
    Part,
    Piece,
    Value,
    plain_text,
)
from sim.results import to_json

SCHEMA = "1"


def render(document: Document, style: str) -> str:
    """The document in one of `STYLES`."""
    return STYLES[style](document)


# ---- JSON ----


def _json_value(v: Value) -> dict[str, Any]:
    return {"value": v.value, "unit": v.unit, "text": v.text}


def _json_inline(pieces: tuple[Piece, ...]) -> dict[str, Any]:
    return {
        "text": plain_text(pieces),
        "values": [_json_value(p) for p in pieces if isinstance(p, Value)],
    }


def _json_cell(cell: str | Value | tuple[Piece, ...]) -> Any:
    if isinstance(cell, str):
        return cell
    return _json_value(cell) if isinstance(cell, Value) else _json_inline(cell)


def _json_part(part: Part) -> dict[str, Any]:
    if isinstance(part, Paragraph):
        return {"kind": part.kind, "tone": part.tone, **_json_inline(part.pieces)}
    if isinstance(part, Items):
        return {"kind": part.kind, "items": [_json_inline(i) for i in part.items]}
    if isinstance(part, Cards):
        cards = [
            {"label": c.label, "term": c.term, **_json_value(c.value), "note": _json_inline(c.note)}
            for c in part.cards
        ]
        return {"kind": part.kind, "cards": cards}
    if isinstance(part, Chart):
        says = _json_inline(part.says)
        return {
            "kind": part.kind,
            "key": part.key,
            "title": part.title,
            "says": says,
            "data": dict(part.data),
        }
    return {
        "kind": part.kind,
        "key": part.key,
        "caption": part.caption,
        "columns": [c.label for c in part.columns],
        "rows": [[_json_cell(c) for c in row] for row in part.rows],
    }


def json_text(document: Document) -> str:
    """Everything as JSON: each number with its unit and its text."""
    data = {
        "schema": SCHEMA,
        "kind": document.kind,
        "title": document.title,
        "subtitle": document.subtitle,
        "sections": [
            {"key": s.key, "title": s.title, "parts": [_json_part(p) for p in s.parts]}
            for s in document.sections
        ],
        "definitions": {k: {"name": n, "meaning": m} for k, (n, m) in document.definitions.items()},
        "provenance": dict(document.provenance),
    }
    return to_json(data).decode()


# ---- Markdown ----


def _md(text: str) -> str:
    """Text that Markdown must not take for markup."""
    for mark in "\\`*_|<>":
        text = text.replace(mark, "\\" + mark)
    return text


def _md_cell(cell: str | Value | tuple[Piece, ...]) -> str:
    if isinstance(cell, Value):
        return cell.text
    return _md(cell if isinstance(cell, str) else plain_text(cell))


def _md_item(item: Inline, labelled: bool) -> str:
    if not labelled:
        return _md(plain_text(item))
    return f"**{_md(plain_text(item[:1])).strip()}** {_md(plain_text(item[1:]))}"


def _md_card(card: Card) -> str:
    note = plain_text(card.note)
    return f"- {_md(card.label)}: **{card.value.text}**" + (f" ({_md(note)})" if note else "")


def _md_part(part: Part) -> list[str]:
    if isinstance(part, Paragraph):
        if part.only == "picture":
            return []
        text = _md(plain_text(part.pieces))
        return [f"**{text}**" if part.tone == "lead" else f"> {text}" if part.tone == "warn" else text]
    if isinstance(part, Items):
        return ["\n".join(f"- {_md_item(item, part.labelled)}" for item in part.items)]
    if isinstance(part, Cards):
        return ["\n".join(_md_card(c) for c in part.cards)]
    if isinstance(part, Chart):
        from sim.report.terminal import picture_lines

        lines = picture_lines(part)
        drawn = ["\n".join(["```text", *lines, "```"])] if lines else []
        return [f"*{_md(part.title)}*: {_md(plain_text(part.says))}", *drawn]
    lines = [
        "| " + " | ".join(_md(c.label) for c in part.columns) + " |",
        "| " + " | ".join("---" if c.words else "---:" for c in part.columns) + " |",
        *("| " + " | ".join(_md_cell(c) for c in row) + " |" for row in part.rows),
    ]
    return [*([_md(part.caption)] if part.caption else []), "\n".join(lines)]


def markdown_text(document: Document) -> str:
    """Markdown; charts are told in words."""
    blocks = [f"# {_md(document.title)}", _md(document.subtitle)]
    for section in document.sections:
        blocks.append(f"## {_md(section.title)}")
        for part in section.parts:
            blocks += _md_part(part)
    blocks.append("## Definitions")
    blocks.append("\n".join(f"- **{_md(n)}**: {_md(m)}" for n, m in document.definitions.values()))
    blocks.append("## Provenance")
    blocks.append("\n".join(f"- {_md(k)}: {_md(v)}" for k, v in document.provenance.items()))
    return "\n\n".join(b for b in blocks if b) + "\n"


# ---- HTML ----


def _slices(parts: Sequence[Part]) -> list[list[Part]]:
    """Neighbouring parts that are laid out together: charts beside charts."""
    return [list(group) for _, group in groupby(parts, key=lambda p: isinstance(p, Chart))]


def html_text(document: Document) -> str:
    """One self-contained page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("sim.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["is_value"] = lambda x: isinstance(x, Value)
    environment.filters["is_words"] = lambda x: isinstance(x, str)
    environment.filters["markup"] = Markup
    environment.filters["slices"] = _slices
    return environment.get_template("page.html.j2").render(document=document)


def _terminal(document: Document) -> str:
    from sim.report.terminal import terminal_text

    return terminal_text(document)


STYLES: dict[str, Callable[[Document], str]] = {
    "html": html_text,
    "md": markdown_text,
    "json": json_text,
    "text": _terminal,
}
