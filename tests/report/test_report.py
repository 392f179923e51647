"""The report of a run: one content in four formats, self-contained, honest about what is missing."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sim import runner
from sim.analysis.rerun import Rerun
from sim.cli import main
from sim.report.analyse import analyse
from sim.report.content import Analysis, build_report
from sim.report.definitions import DEFINITIONS
from sim.report.document import Chart, Document, Table, values_of
from sim.report.folder import read_run
from sim.report.render import STYLES, render


def sim(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture(scope="module")
def document(small_run: Path) -> Document:
    run = read_run(small_run)
    return build_report(run, analyse(run, lambda _: None))


def json_values(data: Any) -> Iterator[dict[str, Any]]:
    """All numbers of a report's JSON, in order."""
    if isinstance(data, dict):
        if {"value", "unit", "text"} <= set(data):
            yield data
            data = data.get("note", {})
        for value in data.values():
            yield from json_values(value)
    elif isinstance(data, list):
        for value in data:
            yield from json_values(value)


class Text(HTMLParser):
    """The text of a page's body without styles and pictures, and everything that a page may load."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.links: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self._quiet = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"):
                self.links.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")
        if tag in ("style", "svg", "script"):
            self._quiet += 1

    def handle_endtag(self, tag: str) -> None:
        if tag in ("style", "svg", "script"):
            self._quiet -= 1

    def handle_data(self, data: str) -> None:
        if not self._quiet:
            self.text.append(data)


def parse(page: str) -> Text:
    parser = Text()
    parser.feed(page)
    return parser


def squeeze(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("style", ["html", "md", "text"])
def test_every_number_of_the_json_stands_in_the_other_formats_in_the_same_order(
    document: Document, style: str
) -> None:
    wanted = [v["text"] for v in json_values(json.loads(render(document, "json")))]
    assert [v.text for v in values_of(document)] == wanted
    assert len(wanted) > 100
    shown = render(document, style)
    shown = squeeze("".join(parse(shown).text) if style == "html" else shown.replace("\\", ""))
    if style == "text":
        # there the last words of a row may stand below it, so only the presence is asked for
        missing = [t for t in wanted if squeeze(t) not in shown]
        assert not missing
        return
    at = 0
    for text in wanted:
        found = shown.find(squeeze(text), at)
        assert found >= 0, f"{text!r} is not where it belongs"
        at = found + len(squeeze(text))


def test_the_numbers_are_those_of_the_summary(document: Document, small_run: Path) -> None:
    summary = json.loads((small_run / "summary.json").read_text())
    data = json.loads(render(document, "json"))
    cards = {c["label"]: c["value"] for c in data["sections"][0]["parts"][-1]["cards"]}
    assert cards["KV usage, mean"] == summary["usage"]["mean"]
    assert cards["Internal fragmentation"] == summary["internal_fragmentation"]["mean"]
    assert cards["External fragmentation"] == summary["external_fragmentation"]["mean"]
    assert cards["Free runs, mean"] == summary["free_runs"]["mean"]
    assert cards["Preemptions"] == summary["preemptions"]["preemptions"]
    assert cards["Hit rate at first lookup"] == summary["prefix_cache"]["first_lookup_token_hit_rate"]
    assert cards["Time to first token, p50"] == summary["latency"]["ttft_s"]["p50"]


def test_the_page_is_self_contained(document: Document) -> None:
    page = render(document, "html")
    found = parse(page)
    assert found.links
    for tag, name, target in found.links:
        assert target.startswith(("#", "data:image/png;base64,")), (tag, name, target)
    anchors = {t[1:] for tag, _, t in found.links if tag == "a"}
    assert anchors <= set(found.ids)
    styles = re.findall(r"<style.*?</style>", page, re.DOTALL)
    assert len(styles) == 1
    assert "@import" not in page
    for address in re.findall(r"url\(([^)]*)\)", page):
        assert address.strip("'\"").startswith("#")
    assert "http:" not in page.replace("http://www.w3.org", "")
    assert "https:" not in page
    assert "<script" not in page


def test_the_page_has_every_section_and_is_fit_for_dark_narrow_and_printed_pages(document: Document) -> None:
    page = render(document, "html")
    for section in document.sections:
        assert f'<section id="{section.key}">' in page
    for query in ("prefers-color-scheme: dark", "max-width: 44rem", "@media print"):
        assert query in page
    assert page.count("<svg") == sum("<svg" in c.markup for c in document.charts())
    # figures take their colours from the page, so that both modes are readable
    for chart in document.charts():
        for color in re.findall(r"(?:fill|stroke): (#[0-9a-f]+)", chart.markup):
            raise AssertionError(f"{chart.key} has the fixed colour {color}")


def test_terms_are_explained_on_hover_and_below(document: Document) -> None:
    page = render(document, "html")
    assert len(document.definitions) > 15
    for key, (name, meaning) in document.definitions.items():
        assert DEFINITIONS[key] == (name, meaning)
        assert f'id="def-{key}"' in page
        assert f'title="{html.escape(meaning, quote=True).replace("&#x27;", "&#39;")}"' in page


def test_markdown_tables_are_rectangular(document: Document) -> None:
    text = render(document, "md")
    for table in (p for s in document.sections for p in s.parts if isinstance(p, Table)):
        assert "| " + " | ".join(c.label for c in table.columns) + " |" in text.splitlines()
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert blocks
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_text_fits_a_terminal(document: Document) -> None:
    assert max(len(line) for line in render(document, "text").splitlines()) <= 80


def test_the_film_agrees_with_snapshots(document: Document, small_run: Path) -> None:
    chart = next(c for c in document.charts() if c.key == "pool_map")
    rerun = Rerun(small_run)
    for i in range(0, len(chart.data["time_s"]), 37):
        snapshot = rerun.snapshot(round(chart.data["time_s"][i] * 1e9))
        for name in ("free", "free and cached", "used", "used and cached"):
            shown = chart.data[name][i] * snapshot.usable_blocks
            assert shown == pytest.approx(snapshot.counts[name], abs=1e-4)


def test_without_a_rerun_the_report_says_what_is_missing(small_run: Path) -> None:
    result = sim("report", str(small_run), "--no-rerun")
    assert result.exit_code == 0
    assert "! Heat map, causes, lifetimes and failures are missing: --no-rerun was given." in result.stdout


def test_a_run_that_gives_other_rows_now_is_reported_without_the_rerun(
    small_run: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "run"
    shutil.copytree(small_run, changed)
    config = (changed / "config.yaml").read_text()
    (changed / "config.yaml").write_text(config.replace("max_num_seqs: 4", "max_num_seqs: 2"))
    result = sim("report", str(changed))
    assert result.exit_code == 0
    assert "simulated again" in result.stderr
    assert "are missing: simulated again, the run gives other results" in squeeze(result.stdout)


@pytest.mark.parametrize(
    ("name", "start"),
    [("r.html", "<!doctype html>"), ("r.md", "# "), ("r.json", "{"), ("r.txt", "small:")],
)
def test_the_format_follows_the_name_of_the_file(
    small_run: Path, tmp_path: Path, name: str, start: str
) -> None:
    result = sim("report", str(small_run), "--no-rerun", "--out", str(tmp_path / name))
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / name).read_text().startswith(start)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert result.stderr == f"written to {tmp_path / name}\n"
    assert sim("report", str(small_run), "--out", str(tmp_path / name), "-q").stderr == ""


def test_the_same_run_gives_the_same_bytes(small_run: Path) -> None:
    run = read_run(small_run)
    pages = [render(build_report(run, analyse(run, lambda _: None)), "html") for _ in range(2)]
    assert pages[0] == pages[1]


@pytest.mark.parametrize("style", sorted(STYLES))
def test_a_run_without_a_step_is_reported(small_run: Path, tmp_path: Path, style: str) -> None:
    from sim import runner

    text = (small_run / "config.yaml").read_text()
    config = tmp_path / "empty.yaml"
    config.write_text(text.replace("until: null", "until: 0s"))
    out = tmp_path / "out"
    runner.run(str(config), runner.RunOptions(out=str(out), quiet=True)).write()
    run = read_run(out)
    shown = render(build_report(run, Analysis(note="not asked for")), style)
    assert "not asked for" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("{missing}",), "there is no such folder"),
        (("{file}",), "neither a run folder nor a recording"),
        (("{empty}",), "this is not a run folder: it has no provenance.json"),
        (("{broken}",), "steps.parquet: this file of the run can't be read"),
        (("{hollow}",), "config.yaml: this file of the run holds no section of keys"),
        (("{run}", "--format", "htlm"), "unknown format 'htlm'\n  hint: did you mean 'html'?"),
        (("{run}", "--format", "pdf"), "unknown format 'pdf'\n  hint: use one of html, md, json, text"),
        (("{run}", "--no-rerun", "--out", "{empty}"), "this is a folder, not a file to write to"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    small_run: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    shutil.copytree(small_run, tmp_path / "broken")
    (tmp_path / "broken" / "steps.parquet").write_text("no Parquet")
    shutil.copytree(small_run, tmp_path / "hollow")
    (tmp_path / "hollow" / "config.yaml").write_text("")
    names = {k: str(tmp_path / k) for k in ("missing", "file", "empty", "broken", "hollow")} | {
        "run": str(small_run)
    }
    result = sim("report", *(a.format(**names) for a in arguments))
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) <= 2


def test_charts_have_words_and_unlike_ids(document: Document) -> None:
    charts = document.charts()
    assert len({c.key for c in charts}) == len(charts)
    assert all(isinstance(c, Chart) and c.says for c in charts)
    ids = [i for c in charts for i in re.findall(r' id="([^"]*)"', c.markup)]
    assert len(ids) == len(set(ids))


def test_text_has_lines_of_bars_and_letters_in_place_of_pictures_and_does_not_speak_of_them(
    document: Document,
) -> None:
    page = squeeze("".join(parse(render(document, "html")).text))
    about = ("Light: free blocks", "Block id downwards", "The numbers mark the same moments", "strokes")
    assert all(words in page for words in about[:3])
    assert "line of bars" not in page
    text = render(document, "text")
    assert "Each line of bars goes from 0 s to 39.0 s" in squeeze(text)
    assert re.search(r"^KV cache usage\n[▁-█]{60} 0 to 100.0 %$", text, re.MULTILINE)
    for shown in (text, render(document, "md")):
        assert not [words for words in about if words in shown]
        # ids downwards, time to the right; the marked moments above
        found = re.search(r"^ +[123][ 123]*\n( *\d+ [.oX#]+\n)+.*$", shown, re.MULTILINE)
        assert found
        top, *rows, legend = found[0].split("\n")
        assert sorted(top.split()) == ["1", "2", "3"]
        assert [int(row.split()[0]) for row in rows] == list(range(1, 17))
        assert {len(row.split()[1]) for row in rows} == {64}
        assert legend == ". free   o free and cached   X used   # used and cached"


LONG_PROMPTS = """\
name: long
engine: {num_gpu_blocks: 41, max_num_seqs: 8, max_model_len: 512, max_num_batched_tokens: 512}
step_time: {kind: constant, step: 1s}
workload:
  kind: random
  num_requests: 10
  arrivals: {kind: constant, rate: 1}
  prompt_len: {kind: constant, value: 340}
  output_len: {kind: constant, value: 8}
output: {plots: false}
"""


def test_memory_that_nobody_fits_into_is_short_however_much_of_it_is_free(tmp_path: Path) -> None:
    # a request takes 22 of 40 blocks, so the next one waits with 18 blocks free
    config = tmp_path / "long.yaml"
    config.write_text(LONG_PROMPTS)
    runner.run(str(config), runner.RunOptions(out=str(tmp_path / "out"), quiet=True)).write()
    for options in ((), ("--no-rerun",)):
        text = squeeze(sim("report", str(tmp_path / "out"), *options).stdout)
        assert "KV memory runs short although at most 55.0 % of it is used: in 98.8 % of the steps" in text
        assert "found too few free blocks 79 times (in 98.8 % of the steps) and had to wait" in text
        assert "never short" not in text


HYBRID = """\
name: hybrid
engine:
  num_gpu_blocks: 200
  max_num_seqs: 8
  max_model_len: 1024
  kv_cache_groups:
    - {type: full}
    - {type: sliding_window, sliding_window: 64}
    - {type: mamba}
step_time: {kind: constant, step: 1s}
workload:
  kind: random
  num_requests: 6
  arrivals: {kind: constant, rate: 0.5}
  prompt_len: {kind: constant, value: 200}
  output_len: {kind: constant, value: 40}
output: {plots: false}
"""


def test_groups_are_named_with_what_they_hold(tmp_path: Path) -> None:
    config = tmp_path / "hybrid.yaml"
    config.write_text(HYBRID)
    runner.run(str(config), runner.RunOptions(out=str(tmp_path / "out"), quiet=True)).write()
    run = read_run(tmp_path / "out")
    analysis = analyse(run, lambda _: None)
    assert analysis.layout is not None
    full, window, states = analysis.layout.groups
    assert (full.block_size, window.block_size, states.block_size) == (16, 16, 0)
    assert full.nulls == 0 < window.nulls
    assert window.blocks + window.nulls == full.blocks > window.blocks
    assert full.wasted_slots == window.wasted_slots > 0 == states.wasted_slots
    (table,) = [
        part
        for section in build_report(run, analysis).sections
        for part in section.parts
        if isinstance(part, Table) and part.key == "groups"
    ]
    assert [row[0] for row in table.rows] == ["0: full attention", "1: window of 64", "2: states"]
    text = squeeze(sim("report", str(tmp_path / "out"), "-q").stdout)
    assert "3 KV-cache groups share the pool" in text
    assert "not known with windows or states" in text


STATES = """\
name: states
engine:
  {num_gpu_blocks: 9, max_num_seqs: 4, max_model_len: 512, enable_prefix_caching: false,
   kv_cache_groups: [{type: mamba}]}
step_time: {kind: constant, step: 1s}
workload: {kind: batch, num_requests: 6, prompt_len: 200, output_len: 40}
output: {plots: false}
"""


def test_a_pool_of_states_wastes_no_slots(tmp_path: Path) -> None:
    config = tmp_path / "states.yaml"
    config.write_text(STATES)
    summary = sim("run", str(config), "--out", str(tmp_path / "out")).stdout
    assert "8 blocks, each for one state, vLLM 0.32" in summary
    assert "waste" not in summary
    text = squeeze(sim("report", str(tmp_path / "out"), "-q").stdout)
    assert "Nothing of what requests hold is wasted: a block is filled by one state." in text
    assert "Internal fragmentation" not in text
    assert "slots empty" not in text
    # all of it is there: the config that the run has written is simulated again
    assert "The pool over time" in text
    assert "9 blocks, each for one state" in sim("validate", str(config)).stdout
