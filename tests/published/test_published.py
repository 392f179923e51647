"""Published tables come out of the simulator, and the cache behind one of them is plain LRU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import OrderedDict
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from sim.errors import InputError
from sim.published import __main__ as published_main
from sim.published import mooncake_lru
from sim.published.azure_waste import PUBLISHED as AZURE
from sim.published.azure_waste import waste_percent
from sim.published.mooncake_lru import replay_hits
from sim.published.registry import ENTRIES, Entry, Options
from sim.published.sliding_window import hit_rate
from sim.published.table import Row, Table
from sim.published.watermark import PUBLISHED as WATERMARK
from sim.published.watermark import RELATIVE_BOUND, preemptions
from sim.published.watermark import row as watermark_row
from workloads.builder import assemble
from workloads.requests import Workload

ROOT = Path(__file__).resolve().parents[2]


def plain_lru(requests: list[list[int]], capacity: int, tail_first: bool = False) -> int:
    """Hits of an LRU cache of hash ids; ``tail_first``: the order of use is turned round within a request."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for ids in requests:
        for h in ids:
            if h in cache:
                hits += 1
                cache.move_to_end(h)
            else:
                if len(cache) == capacity:
                    cache.popitem(last=False)
                cache[h] = None
        if tail_first:
            for h in dict.fromkeys(reversed(ids)):
                cache.move_to_end(h)
    return hits


def hash_workload(requests: list[list[int]]) -> Workload:
    """One piece of a block's tokens a hash id."""
    counts = np.array([len(ids) for ids in requests], dtype=np.int64)
    flat = np.array([h for ids in requests for h in ids], dtype=np.int64)
    return assemble(
        vocab_size=1000,
        arrival=np.arange(len(requests), dtype=np.int64),
        seg_ptr=np.concatenate([[0], np.cumsum(counts)]),
        seg_id=flat,
        seg_len=np.full(len(flat), mooncake_lru.BLOCK_SIZE, dtype=np.int64),
        prompt_len=counts * mooncake_lru.BLOCK_SIZE,
        output_len=np.ones(len(requests), dtype=np.int64),
        source={},
    )


@given(
    requests=st.lists(
        st.lists(st.integers(0, 30), min_size=1, max_size=8, unique=True), min_size=1, max_size=40
    ),
    extra=st.integers(0, 25),
    tail_first=st.booleans(),
)
def test_replay_is_lru(requests: list[list[int]], extra: int, tail_first: bool) -> None:
    """The core's free queue and prefix map, fed one request at a time, give the hits of an ordered dict."""
    capacity = max(map(len, requests)) + extra
    found = replay_hits(hash_workload(requests), capacity, tail_first=tail_first)
    assert found.hit_blocks == plain_lru(requests, capacity, tail_first)
    assert found.hit_tokens == found.hit_blocks * mooncake_lru.BLOCK_SIZE
    assert found.leading_blocks <= found.hit_blocks
    assert found.events == sum(map(len, requests))


def test_replay_refuses_a_cache_smaller_than_a_request() -> None:
    with pytest.raises(InputError, match="smaller than the longest request"):
        replay_hits(hash_workload([[1, 2, 3]]), 2)


@pytest.fixture(scope="module")
def hash_trace(data_dir: Path) -> Workload:
    """The Mooncake conversation trace, one piece a hash id."""
    return mooncake_lru.read_hash_trace(str(data_dir / mooncake_lru.TRACE))


@pytest.mark.parametrize("capacity", mooncake_lru.PUBLISHED)
def test_mooncake_lru(hash_trace: Workload, capacity: int) -> None:
    """Each published hit rate is ours, rounded to its printed digits."""
    rate = replay_hits(hash_trace, capacity).block_rate
    row = Row("", mooncake_lru.PUBLISHED[capacity], rate)
    assert round(rate, row.digits) == float(row.published)
    assert row.met


def test_mooncake_infinite_cache(hash_trace: Workload) -> None:
    found = replay_hits(hash_trace, len(np.unique(hash_trace.seg_id)))
    assert f"{found.block_rate:.4f}" == f"0{mooncake_lru.PUBLISHED_INFINITE_BLOCKS}"
    assert f"{found.token_rate:.4f}" == f"0{mooncake_lru.PUBLISHED_INFINITE_TOKENS}"


def test_mooncake_hits_of_a_plain_twin(hash_trace: Workload) -> None:
    """At one capacity, all 288,500 events: the jitted cache and an ordered dict agree to the hit."""
    pieces = np.split(hash_trace.seg_id, hash_trace.seg_ptr[1:-1])
    requests = [ids.tolist() for ids in pieces]
    for tail_first in (False, True):
        found = replay_hits(hash_trace, 5_000, tail_first=tail_first)
        assert found.hit_blocks == plain_lru(requests, 5_000, tail_first)


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [16, 256])
def test_azure_waste(data_dir: Path, block_size: int) -> None:
    """Each published share is ours, rounded to its printed digits; ``make published`` runs all sizes."""
    ours = waste_percent(block_size, str(data_dir / "azure_llm_2023_conv.csv"))
    row = Row("", AZURE[block_size], ours)
    assert round(ours, row.digits) == float(row.published)


@pytest.mark.slow
def test_azure_waste_without_the_last_token(data_dir: Path) -> None:
    """A request that stops by its length never computes its last token: 8.00 % where 8.02 % is published."""
    ours = waste_percent(256, str(data_dir / "azure_llm_2023_conv.csv"), end_token=False)
    assert f"{ours:.2f}" == "8.00"


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.02])
def test_watermark(share: float) -> None:
    """One seed of the published closed loop preempts about as often as the real vLLM did."""
    assert preemptions(share, 0) == pytest.approx(float(WATERMARK[share]), rel=RELATIVE_BOUND)


def test_sliding_window_hits_end_where_they_did() -> None:
    """All or nothing, and the rule that has ended it since."""
    assert hit_rate(34.0, "0.25") > 0.99
    assert hit_rate(38.0, "0.25") == 0
    assert hit_rate(38.0, "0.32") > 0.99


def test_table_says_what_is_met() -> None:
    rows = (
        Row("a", ".065", 0.0659, ("x",)),
        Row("b", ".065", 0.0661, ("y",)),
        Row("c", "100", 119.0, ("z",), 20.0),
    )
    table = Table("name", "Title", ("what", "published", "ours", "other"), rows, "always", "A note.")
    assert [row.met for row in rows] == [True, False, True]
    assert not table.met
    lines = table.text().splitlines()
    assert lines[0] == "Title"
    assert lines[4].split() == ["NOT", "MET", "b", ".065", "0.0661", "y"]
    assert lines[-1] == "met: always. A note."
    data = table.as_json()
    assert data["rows"][1] == {
        "label": "b",
        "published": 0.065,
        "ours": 0.0661,
        "tolerance": 0.001,
        "met": False,
        "other": "y",
    }


def test_tables_keep_to_80_columns() -> None:
    columns = (
        "what was measured",
        "published",
        "ours",
        "a column of many words indeed",
        "and one more of them",
    )
    rows = (Row("of a long label, say", ".065", 0.0659, ("0.0 %, 99.6 %", "x")),)
    lines = Table("name", "Title " * 20, columns, rows, "always", "A note. " * 30).text().splitlines()
    assert max(map(len, lines)) <= 80
    row = next(i for i, line in enumerate(lines) if line.startswith("met  of a long"))
    head = lines[lines.index("") + 1 : row]
    assert len(head) > 1
    assert sorted(" ".join(head).split()) == sorted(" ".join(columns).split())


def test_watermark_rows_are_met_by_spread_and_by_distance() -> None:
    """0.05: 187 was published; met within three deviations of one run, and within 21 % of the figure."""
    close = watermark_row(0.05, [180, 190, 200])
    assert close.met
    assert close.others == ("10", "180-200", "+2 %", "-0.3")
    narrow = watermark_row(0.05, [210, 211, 212])
    assert narrow.tolerance == pytest.approx(3 * (4 / 3) ** 0.5)
    assert not narrow.met
    assert not watermark_row(0.05, [150, 240, 330]).met
    assert watermark_row(0.05, [200]).others == ("-", "200-200", "+7 %", "-")


def test_registry() -> None:
    """Every entry has a module with `make`, and options that exist."""
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    for entry in ENTRIES:
        assert callable(import_module(entry.module).make)
        assert set(entry.takes) <= {field.name for field in fields(Options)}


def fake_table(published: str) -> Table:
    return Table("fake", "Fake", ("what", "published", "ours"), (Row("a", published, 1.0),), "equal")


def broken(_options: Options) -> Table:
    raise InputError("no such trace file", "t.jsonl")


@pytest.mark.parametrize(
    ("published", "missing", "code", "told"),
    [
        ("1.0", False, 0, "1 of 1 published figures met"),
        ("2.0", False, 1, "NOT MET  fake: a (2.0, ours 1.00)"),
        ("1.0", True, 2, "NOT RUN  absent"),
        ("2.0", True, 1, "NOT RUN  absent"),
    ],
)
def test_all_tables_are_summed_up(
    monkeypatch: pytest.MonkeyPatch, published: str, missing: bool, code: int, told: str
) -> None:
    """Exit 1 when a figure is missed, 2 when a table could not be made; the others are still shown."""
    modules = {"fakes.fine": lambda _: fake_table(published), "fakes.absent": broken}
    for name, make in modules.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(make=make))
    entries = [Entry("absent", "", "fakes.absent")] if missing else []
    monkeypatch.setattr(published_main, "ENTRIES", (*entries, Entry("fake", "", "fakes.fine")))
    done = CliRunner().invoke(published_main.main, [])
    assert done.exit_code == code, done.output
    assert told in done.stdout
    assert ("absent: t.jsonl: no such trace file" in done.stderr) == missing


@pytest.fixture
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KVPOOL_DATA names an empty folder."""
    monkeypatch.setenv("KVPOOL_DATA", str(tmp_path))


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("command", ["mooncake-lru", "azure-waste"])
def test_missing_trace_is_told(command: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sim.published", command],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no such trace file" in done.stderr
    assert str(tmp_path) in done.stderr
    assert "KVPOOL_DATA" in done.stderr
    assert done.stdout == ""


def test_command_line(data_dir: Path) -> None:
    """``mooncake-lru --json`` exits 0 with every row met."""
    trace = str((data_dir / mooncake_lru.TRACE).resolve())
    done = subprocess.run(
        [sys.executable, "-m", "sim.published", "mooncake-lru", "--trace", trace, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (table,) = json.loads(done.stdout)
    assert table["met"]
    assert len(table["rows"]) == len(mooncake_lru.PUBLISHED) + 2
