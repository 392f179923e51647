"""Comparing runs: grouping, differences, intervals, what is written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sim.cli import main
from sim.report.confidence import difference, spread, t_quantile
from sim.report.metrics import METRICS
from sim.report.run_groups import flatten

# with two degrees of freedom, P(|T| < t) = t / sqrt(2 + t^2)
T_2 = 0.95 * math.sqrt(2 / (1 - 0.95**2))
Runs = dict[tuple[int, int], Path]


def compare(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["compare", *arguments])


def table(data: dict[str, Any], key: str) -> dict[str, Any]:
    found = [p for s in data["sections"] for p in s["parts"] if p.get("key") == key]
    assert len(found) == 1
    return dict(found[0])


def difference_rows(data: dict[str, Any], side: str = "B") -> dict[str, list[Any]]:
    """Metric -> cells: A, B, difference, relative; with several seeds interval and verdict."""
    return {row[0]: row[1:] for row in table(data, f"difference_{side}")["rows"]}


def test_a_run_against_itself_is_all_zeros(small_run: Path) -> None:
    result = compare(str(small_run), str(small_run), "--format", "json")
    assert result.exit_code == 0, result.stderr
    rows = difference_rows(json.loads(result.stdout))
    assert len(rows) > 20
    for a, b, d, relative in rows.values():
        assert a["value"] == b["value"]
        assert (d["value"], relative["value"]) == (0, 0)
    assert "every number is the same" in result.stdout


def test_one_run_a_side_has_no_confidence_and_names_the_keys_that_differ(seeded_runs: Runs) -> None:
    result = compare(str(seeded_runs[0, 17]), str(seeded_runs[0, 25]), "--format", "json")
    data = json.loads(result.stdout)
    assert table(data, "configs")["rows"] == [["engine.num_gpu_blocks", "17", "25"]]
    rows = difference_rows(data)
    # no column says nothing in every row
    assert {len(r) for r in rows.values()} == {4}
    # a definition for each row and none for what is not there
    assert set(data["definitions"]) == set(rows)
    assert "A side with one run gives no confidence" in result.stdout
    summaries = [json.loads((seeded_runs[0, b] / "summary.json").read_text()) for b in (17, 25)]
    usage = [s["usage"]["mean"] for s in summaries]
    assert rows["KV usage, mean"][2]["value"] == usage[1] - usage[0]


def test_seeds_of_one_config_are_one_side_and_pair_up(seeded_runs: Runs) -> None:
    result = compare(*(str(p) for p in seeded_runs.values()), "--format", "json")
    data = json.loads(result.stdout)
    assert [row[0] for row in table(data, "runs")["rows"]] == ["A"] * 3 + ["B"] * 3
    assert "paired by seed" in result.stdout
    values = {
        blocks: [
            json.loads((seeded_runs[seed, blocks] / "summary.json").read_text())["usage"]["mean"]
            for seed in (0, 1, 2)
        ]
        for blocks in (17, 25)
    }
    d = spread([b - a for a, b in zip(values[17], values[25], strict=True)])
    assert d.sd is not None
    half = T_2 * d.sd / math.sqrt(3)
    _, _, shown, _, interval, verdict = difference_rows(data)["KV usage, mean"]
    assert shown["value"] == pytest.approx(d.mean, rel=1e-12)
    assert [v["value"] for v in interval["values"]] == pytest.approx([d.mean - half, d.mean + half], rel=1e-9)
    assert verdict == ("clear" if abs(d.mean) > half else "within noise")


def test_two_seeds_of_one_config_are_set_side_by_side(seeded_runs: Runs) -> None:
    result = compare(str(seeded_runs[0, 17]), str(seeded_runs[1, 17]))
    assert result.exit_code == 0
    assert "All runs have the same config" in result.stdout
    assert "The configs are the same." in result.stdout


def test_what_is_written(seeded_runs: Runs, tmp_path: Path) -> None:
    out = tmp_path / "new" / "cmp"
    result = compare(str(seeded_runs[0, 17]), str(seeded_runs[0, 25]), "--out", str(out))
    assert result.exit_code == 0, result.stderr
    assert sorted(p.name for p in out.iterdir()) == [
        "compare.html",
        "compare.json",
        "compare.md",
        "curves.png",
        "curves.svg",
    ]
    page = (out / "compare.html").read_text()
    assert page.count("<svg") == 8
    assert "https:" not in page
    data = json.loads((out / "compare.json").read_text())
    charts = [p for s in data["sections"] for p in s["parts"] if p["kind"] == "chart"]
    assert {"A", "B", "time_s"} == set(charts[0]["data"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("{run}",), "give two runs or more"),
        (("{run}", "{none}"), "there is no such folder"),
        (("{run}", "{run}", "--format", "html"), "unknown format 'html'"),
        (("{run}", "{run}", "--out", "{file}"), "this is a file, not a folder for results"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    small_run: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    (tmp_path / "file").write_text("x")
    names = {"run": str(small_run), "none": str(tmp_path / "none"), "file": str(tmp_path / "file")}
    result = compare(*(a.format(**names) for a in arguments))
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) <= 2


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    # of any printed table of Student's t, two-sided 95 %
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (10, 2.2281), (30, 2.0423), (1000, 1.9623)],
)
def test_quantiles_of_students_t(freedom: int, quantile: float) -> None:
    assert t_quantile(freedom) == pytest.approx(quantile, abs=5e-5)


def test_other_levels_and_fractions_of_freedom() -> None:
    assert t_quantile(5, 0.99) == pytest.approx(4.0321, abs=5e-5)
    assert t_quantile(3) < t_quantile(2.5) < t_quantile(2)


def test_intervals_by_hand() -> None:
    paired = difference([1, 2, 3], [2, 4, 6], paired=True)
    # differences 1, 2, 3: mean 2, standard error 1/sqrt(3)
    assert paired.mean == 2
    assert paired.low == pytest.approx(2 - T_2 / math.sqrt(3), rel=1e-9)
    assert paired.clear is False
    welch = difference([1, 2, 3], [11, 12, 13], paired=False)
    # equal variances and numbers: 4 degrees of freedom, standard error sqrt(2/3)
    assert welch.high == pytest.approx(10 + 2.7764451051977987 * math.sqrt(2 / 3), rel=1e-8)
    assert welch.clear is True
    assert difference([1], [3], paired=False) == difference([1], [3], paired=True)
    assert difference([1], [3], paired=False).clear is None
    assert difference([1, 1], [1, 1], paired=False).low == 0


def test_metrics_have_unlike_names_and_a_meaning() -> None:
    assert len({m.label for m in METRICS}) == len(METRICS)
    assert all(m.meaning.endswith(".") for m in METRICS)


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None}) == {"a.b": 1, "a.c.d": [1, 2], "e": None}
