"""Tables in 80 columns: folded headings, folded first cells, and what does not fit in a table below."""

from __future__ import annotations

from sim.report.document import Column, Document, Section, Table, as_count
from sim.report.terminal import terminal_text


def shown(columns: list[Column], rows: list[tuple[object, ...]]) -> list[str]:
    table = Table("t", tuple(columns), tuple(rows))  # type: ignore[arg-type]
    text = terminal_text(Document("report", "T", "", (Section("s", "S", (table,)),), {}, {}))
    lines = text.split("-\n", 1)[1].strip("\n").splitlines()
    assert max(map(len, lines)) <= 80
    return lines


def test_long_names_in_the_first_column_are_folded() -> None:
    numbers = [Column(f"heading {i}") for i in range(6)]
    lines = shown(
        [Column("group", words=True), *numbers],
        [("0: window of 1,024, 9 layers", *(as_count(i) for i in range(6)))],
    )
    assert lines[0].split() == ["heading"] * 6
    assert lines[1].split() == ["group", *"012345"]
    assert lines[2].split()[-6:] == list("012345")
    assert lines[3].startswith("  ")
    assert " ".join([*lines[2].split()[:-6], *lines[3].split()]) == "0: window of 1,024, 9 layers"


def test_columns_that_do_not_fit_stand_in_a_table_below() -> None:
    names = ["request", *(f"unbreakable{i}" for i in range(8)), "why"]
    columns = [Column(n, words=n in ("request", "why")) for n in names]
    lines = shown(columns, [(f"r{k}", *(as_count(i) for i in range(8)), "most blocks") for k in range(2)])
    gap = lines.index("")
    assert [line.split()[0] for line in lines[:gap]] == ["request", "r0", "most", "r1", "most"]
    assert [line.split()[0] for line in lines[gap + 1 :]] == ["request", "r0", "r1"]
    heads = lines[0].split() + lines[gap + 1].split()[1:]
    assert heads == names[:-1]


def test_narrow_tables_are_left_alone() -> None:
    assert shown([Column("a", words=True), Column("b")], [("x", as_count(1))]) == ["a  b", "x  1"]
