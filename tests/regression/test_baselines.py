"""Baselines of curves: their files, their comparison, and the commands as CI runs them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from sim import capacity, cli, simulate
from sim.config import load_config
from sim.config_baseline import BaselineSection, CurveTolerance, CurveTolerances
from sim.core import codes
from sim.core.state import State
from sim.errors import InputError
from sim.regression.baseline_file import Baseline, Provenance, read_baseline, to_text
from sim.regression.compare import compare, compare_curve, tolerance_of
from sim.regression.curves import BY_KEY, CURVES, rows_of
from sim.report import files

ROOT = Path(__file__).resolve().parents[2]
BASELINES = ROOT / "configs" / "baselines"

CONFIG = """\
name: small
engine: {block_size: 4, num_gpu_blocks: 41, max_num_seqs: 8, max_num_batched_tokens: 64, max_model_len: 64}
step_time: {kind: constant, step: 1s}
workload:
  kind: random
  num_requests: 60
  arrivals: {kind: constant, rate: 0.5}
  prompt_len: {kind: uniform, low: 5, high: 20}
  output_len: {kind: uniform, low: 4, high: 12}
BASELINE
"""
TRACE = """\
name: traced
engine: {block_size: 4, num_gpu_blocks: 41, max_num_seqs: 8, max_num_batched_tokens: 64, max_model_len: 64}
step_time: {kind: constant, step: 1s}
workload: {kind: trace, path: t.jsonl, format: mooncake, hash_block_size: 4}
BASELINE
"""
ROWS = '{"timestamp": 0, "input_length": 8, "output_length": 5, "hash_ids": [1, 2]}\n' * 20


@pytest.fixture
def kvpool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs commands in a folder with small.yaml, whose curves must be exact."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KVPOOL_DATA", raising=False)
    Path("small.yaml").write_text(CONFIG.replace("BASELINE", "baseline: {rows: 40, exact: true}"))
    return lambda *args: CliRunner().invoke(cli.main, list(args))


@pytest.fixture
def stored(kvpool: Callable[..., Result]) -> Path:
    """The baseline of small.yaml."""
    done = kvpool("baseline", "update", "small.yaml")
    assert done.exit_code == 0, done.output
    return Path("configs/baselines/small.csv")


@pytest.fixture
def other_free_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The core appends all freed blocks to the free queue, as if somebody had changed it."""
    allocate = capacity.allocate

    def changed(*args: object, **options: object) -> State:
        state = allocate(*args, **options)  # type: ignore[arg-type]
        state.params.free_order = codes.FREE_APPEND
        return state

    monkeypatch.setattr(simulate, "allocate", changed)


# -- files ------------------------------------------------------------------------------------------------

SOME = Provenance(
    config="a.yaml",
    overrides=("engine.block_size=32", "name=a"),
    seed=3,
    period_ns=1_500_000_000,
    sample_ns=150_000_000,
    trace="ab" * 32,
    requests=7,
    vllm="0.32",
    core="0" * 16,
    kvpool="0.1.0",
    command="python -m sim baseline update a.yaml",
)

shares = st.one_of(st.just(float("nan")), st.integers(0, 10**5).map(lambda n: n / 10**5))
counts = st.integers(0, 10**9).map(lambda n: n / 100)


@given(rows=st.lists(st.tuples(shares, counts), min_size=1, max_size=20))
def test_a_file_is_what_was_written(
    rows: list[tuple[float, float]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    values = np.array(rows)
    baseline = Baseline("a", SOME, {"usage": values[:, 0], "free_runs": values[:, 1]})
    path = tmp_path_factory.mktemp("file") / "a.csv"
    path.write_text(to_text(baseline))
    again = read_baseline(path)
    assert again.provenance == SOME
    assert list(again.curves) == ["usage", "free_runs"]
    for key, column in baseline.curves.items():
        np.testing.assert_array_equal(again.curves[key], column)
    assert to_text(again) == path.read_text()


GOOD = to_text(Baseline("a", SOME, {"usage": np.array([0.5, 0.25]), "free_runs": np.array([3.0, 12.5])}))


def damage(old: str, new: str, times: int = 1) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, times)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "a.csv:1:1: not a baseline"),
        ("time_s,usage\n", "a.csv:1:1: not a baseline"),
        (damage("# seed: 3", "# seed 3"), "a.csv:5:1: expected '# key: value'"),
        (damage("# seed: 3", "# seed: x"), "a.csv:5:9: 'seed' must be a whole number, got 'x'"),
        (damage("# seed: 3\n", ""), "a.csv:14:1: the header has no 'seed'"),
        (damage("# seed: 3", "# sede: 3"), "a.csv:5:3: unknown key 'sede'"),
        (damage("# seed: 3", "# seed: 3\n# seed: 4"), "a.csv:6:3: the key 'seed' is given twice"),
        (damage("# period: 1500ms", "# period: 7ms"), "a.csv:6:11: the period is no multiple"),
        (damage("# period: 1500ms", "# period: soon"), "a.csv:6:11: 'period' must be a duration"),
        (damage("time_s,usage", "time_s,usgae"), "a.csv:15:8: unknown curve 'usgae'"),
        (
            damage("time_s,usage,free_runs", "time_s,usage,usage"),
            "a.csv:15:14: the column 'usage' is there twice",
        ),
        (damage("time_s,", "time,"), "a.csv:15:1: the first column must be 'time_s'"),
        (
            damage("1.5,0.5,3", "1.5,O.5,3"),
            "a.csv:16:5: 'usage' must be a decimal number or empty, got 'O.5'",
        ),
        (damage("1.5,0.5,3", "1.5,0.5,3,4"), "a.csv:16:1: 4 values in a row of 3 columns"),
        (damage("1.5,0.5,3\n", ""), "a.csv:16:1: the time must be 1.5, got '3'"),
        (damage("3,0.25,12.5\n", ""), "a.csv:17:1: the file is not complete: it ends after 1 of 2 rows"),
        (GOOD[:-4], "a.csv:17:9: the last line is not complete: row 2 of 2"),
        (GOOD[: GOOD.index("time_s")], "a.csv:15:1: the file ends before the names of the columns"),
        (GOOD + "4.5,1,1\n", "a.csv:18:1: there are more rows than the 2 of the header"),
        (GOOD + "<<<<<<< HEAD\n", "a.csv:18:1: there are more rows than the 2 of the header"),
    ],
)
def test_damaged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str) -> None:
    """What is wrong is told with line and column."""
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text(text)
    with pytest.raises(InputError) as caught:
        read_baseline(Path("a.csv"))
    assert str(caught.value).startswith(told)
    assert caught.value.hint
    done = CliRunner().invoke(cli.main, ["check", "a.csv"])
    assert done.exit_code == 2
    assert told in done.stdout


# -- rows and comparison ----------------------------------------------------------------------------------


def test_rows_by_hand() -> None:
    """Two samples a row: gauges are means, counters the value at the end; shares of nothing are missing."""
    names = [
        "time_ns",
        "used_blocks",
        "num_free_blocks",
        "cached_free_blocks",
        "wasted_slots",
        "allocated_slots",
    ]
    names += ["largest_free_run", "free_runs", "table_blocks", "table_runs", "num_running", "num_waiting"]
    names += ["prefix_hits", "prefix_queries", "preemptions", "evictions", "finished"]
    steps = {name: np.zeros(5, dtype=np.int64) for name in names}
    steps["time_ns"] = np.array([1, 2, 3, 4, 5])
    steps["used_blocks"] = np.array([0, 1, 2, 4, 3])
    steps["num_free_blocks"] = 4 - steps["used_blocks"]
    steps["free_runs"] = np.array([1, 2, 2, 0, 1])
    steps["prefix_queries"] = np.array([0, 0, 3, 3, 30])
    steps["prefix_hits"] = np.array([0, 0, 1, 1, 20])
    steps["table_blocks"] = np.array([0, 3, 3, 0, 0])
    steps["num_running"] = np.array([0, 1, 1, 0, 0])
    steps["table_runs"] = np.array([0, 2, 1, 0, 0])
    rows = rows_of(steps, 2, 5)
    assert rows["usage"].tolist() == [0.125, 0.75, 0.75]
    assert rows["free_runs"].tolist() == [1.5, 1, 1]
    np.testing.assert_array_equal(rows["hit_rate"], [np.nan, 0.33333, 0.66667])
    np.testing.assert_array_equal(rows["contiguity"], [0.5, 1, np.nan])
    late = rows_of({k: v[-1:] for k, v in steps.items()}, 2, 5)
    assert np.isnan(late["usage"][:2]).all()


def judge(old: list[float], new: list[float], key: str = "usage", **section: object) -> str:
    settings = BaselineSection(**section)  # type: ignore[arg-type]
    curve = BY_KEY[key]
    return compare_curve(curve, np.array(old), np.array(new), tolerance_of(curve, settings)).verdict


def test_tolerances() -> None:
    """A row by absolute and relative distance, a curve by area; nothing where it must be exact."""
    flat = [0.5] * 10
    assert judge(flat, flat) == "same"
    assert judge(flat, [0.505, *flat[1:]]) == "within"
    assert judge(flat, [0.5051, *flat[1:]]) == "moved"
    assert judge(flat, [0.5049] * 10, area=0.01) == "within"
    assert judge(flat, [0.5049] * 10, area=0.009) == "moved"
    assert judge(flat, [0.52, *flat[1:]], relative=0.05) == "within"
    assert judge(flat, [0.50001, *flat[1:]], exact=True) == "moved"
    assert judge(flat, flat, exact=True) == "same"
    nan = float("nan")
    assert judge([nan, 0.5], [nan, 0.5]) == "same"
    assert judge([nan, 0.5], [0.0, 0.5]) == "moved"
    assert judge([100.0] * 9, [103.0] * 9, "free_runs") == "moved"
    assert judge([100.0] * 9, [102.0] * 9, "free_runs") == "within"
    assert judge([0.0] * 99, [0.0] * 98 + [1.0], "preemptions") == "within"
    assert judge([0.0] * 9, [2.0] * 9, "preemptions") == "moved"
    own = CurveTolerances(usage=CurveTolerance(exact=True), free_runs=CurveTolerance(absolute=50.0, area=1.0))
    assert judge(flat, [0.501] * 10, curves=own) == "moved"
    assert judge([100.0], [140.0], "free_runs", curves=own) == "within"
    assert judge([100.0], [140.0], "free_runs", curves=own, exact=True) == "moved"


def test_length() -> None:
    old = {"usage": np.full(100, 0.5)}
    for rows, verdict in ((100, "same"), (101, "within"), (99, "within"), (102, "moved"), (90, "moved")):
        found = compare(old, {"usage": np.full(rows, 0.5)}, BaselineSection())
        assert found.verdict == verdict
        assert not found.moved
    assert compare(old, {"usage": np.full(101, 0.5)}, BaselineSection(exact=True)).verdict == "moved"
    assert "free_runs" in compare(old, old, BaselineSection()).not_in_baseline


# -- commands ---------------------------------------------------------------------------------------------


def test_nothing_moved(kvpool: Callable[..., Result], stored: Path) -> None:
    """Quiet on an unchanged tree, whatever core and version the header names, and by path or name."""
    text = stored.read_text()
    assert len(text.splitlines()) < 60
    assert "# command: python -m sim baseline update small.yaml\n" in text
    stored.write_text(text.replace("# kvpool: ", "# kvpool: 9").replace("# core: ", "# core: 00"))
    for args in ([], ["small"], [str(stored)], ["small.yaml"]):
        done = kvpool("check", *args)
        assert done.exit_code == 0, done.output
        assert done.stdout == "small            same: 13 curves, 33 rows\n1 baseline: 1 same\n"
    assert kvpool("baseline", "update").stdout == "small            unchanged\n0 of 1 written\n"
    assert "# kvpool: 9" in stored.read_text()


@pytest.mark.usefixtures("other_free_order")
def test_another_free_order_moves_curves(
    kvpool: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the curves, and where and by how much they moved; page and JUnit XML say it too."""
    with monkeypatch.context() as as_it_was:
        as_it_was.setattr(simulate, "allocate", capacity.allocate)
        assert kvpool("baseline", "update", "small.yaml").exit_code == 0
    done = kvpool("check", "--html", "out.html", "--junit", "out.xml")
    assert done.exit_code == 1, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("small            MOVED: ")
    assert lines[1].split()[:4] == ["curve", "first", "at", "most"]
    named = [line.split()[0] for line in lines[2:-1]]
    assert "external_fragmentation" in named
    assert "free_runs" in named
    assert "finished" not in named
    row = next(line for line in lines if "free_runs" in line)
    assert " s " in row
    assert "/33" in row
    assert row.endswith("exact")
    assert "baseline update" in done.stderr

    suite = ET.parse("out.xml").getroot().find("testsuite")
    assert suite is not None
    assert suite.get("tests") == "14"
    assert suite.get("failures") == str(len(named))
    failed = {case.get("name") for case in suite if case.find("failure") is not None}
    assert failed == set(named)
    message = suite.find("testcase[@name='free_runs']/failure")
    assert message is not None
    assert "first at" in str(message.get("message"))

    html = Path("out.html").read_text()
    assert "Baselines: small moved" in html
    assert html.count("<svg") >= len(named)
    assert 'id="small-free_runs"' in html
    for remote in ("http://", "https://", "<script", "<link"):
        assert remote not in html.replace("http://www.w3.org", "")

    shown = kvpool("baseline", "update", "--diff")
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[0] == "small            changed"
    assert any(
        line.split()[0] == "free_runs" and " rows; most at " in line for line in shown.stdout.splitlines()
    )
    assert shown.stdout.splitlines()[-1] == "1 of 1 would be written"
    assert kvpool("check").exit_code == 1
    assert kvpool("baseline", "update").stdout.endswith("1 of 1 written\n")
    assert kvpool("check").exit_code == 0


def test_a_switch_of_the_config_moves_curves(kvpool: Callable[..., Result], stored: Path) -> None:
    """A changed config is compared with the baseline of the old one; another workload is told."""
    text = Path("small.yaml").read_text()
    Path("small.yaml").write_text(text.replace("num_gpu_blocks: 41", "num_gpu_blocks: 37"))
    done = kvpool("check")
    assert done.exit_code == 1
    assert "  usage " in done.stdout
    Path("small.yaml").write_text(text.replace("high: 20", "high: 19"))
    done = kvpool("check")
    assert done.exit_code == 1
    assert "note: the workload is another one (60 requests as before; trace hash " in done.stdout
    Path("small.yaml").unlink()
    done = kvpool("check")
    assert done.exit_code == 2
    assert "small            COULD NOT RUN: " in done.stdout
    assert "no such config" in done.stdout


def test_overrides_and_seed_are_kept(kvpool: Callable[..., Result]) -> None:
    done = kvpool(
        "baseline",
        "update",
        "small.yaml",
        "--set",
        "name=tight",
        "--set",
        "engine.num_gpu_blocks=30",
        "--seed",
        "4",
    )
    assert done.exit_code == 0, done.output
    text = Path("configs/baselines/tight.csv").read_text()
    assert "# set: engine.num_gpu_blocks=30\n# set: seed=4\n# seed: 4\n" in text
    assert kvpool("check").stdout.startswith("tight            same")
    assert (
        kvpool("baseline", "update", "small.yaml", "--set", "name=two", "--set", "replicas=2").exit_code == 0
    )
    assert "two              same: 13 curves" in kvpool("check").stdout
    assert kvpool("baseline", "update", "small.yaml", "--dir", "b").exit_code == 0
    assert kvpool("check", "--dir", "b").stdout.startswith("small            same")
    told = kvpool("baseline", "update", "b/small.csv", "--seed", "3")
    assert told.exit_code == 2
    assert "b/small.csv: a baseline has its own --set and --seed" in told.stderr


def test_absent_traces(kvpool: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not there: exit code 2, unless config or command say that the baseline is skipped, which is told."""
    Path("traced.yaml").write_text(TRACE.replace("BASELINE", ""))
    Path("t.jsonl").write_text(ROWS)
    assert kvpool("baseline", "update", "traced.yaml").exit_code == 0
    assert kvpool("check").exit_code == 0
    Path("data").mkdir()
    Path("t.jsonl").rename("data/t.jsonl")
    done = kvpool("check", "--junit", "out.xml")
    assert done.exit_code == 2
    assert (
        "traced           COULD NOT RUN: traced.yaml: the trace file 't.jsonl' is not there"
        in done.stdout.replace("configs/baselines/../../", "")
    )
    assert ET.parse("out.xml").getroot().get("errors") == "1"
    assert kvpool("baseline", "update").exit_code == 2

    done = kvpool("check", "--trace-absent", "skip", "--junit", "out.xml", "--html", "out.html")
    assert done.exit_code == 0
    assert "traced           skipped: the trace file 't.jsonl' is not there" in done.stdout
    assert done.stdout.endswith("1 baseline: 1 skipped\n")
    case = ET.parse("out.xml").getroot().find("testsuite/testcase/skipped")
    assert case is not None
    assert case.get("message") == "the trace file 't.jsonl' is not there"
    assert "is not there" in Path("out.html").read_text()

    Path("traced.yaml").write_text(TRACE.replace("BASELINE", "baseline: {trace_absent: skip}"))
    assert kvpool("check").exit_code == 0
    assert "traced           skipped" in kvpool("baseline", "update").stdout
    assert kvpool("check", "--trace-absent", "fail").exit_code == 2
    monkeypatch.setenv("KVPOOL_DATA", str(Path("data").resolve()))
    assert kvpool("check").stdout.startswith("traced           same")


def test_logical_time_has_no_curves(kvpool: Callable[..., Result]) -> None:
    Path("logical.yaml").write_text(
        TRACE.replace("BASELINE", "").replace("format: mooncake, hash_block_size: 4", "format: logical")
    )
    row = '{"request_id": "a", "arrival_step": 0, "prompt_token_ids": [1, 2, 3], "output_token_ids": [4]}'
    Path("t.jsonl").write_text(row)
    done = kvpool("baseline", "update", "logical.yaml")
    assert done.exit_code == 2
    assert "logical.yaml: a workload in logical time has no curves" in done.stderr


def test_updates_are_written_whole(kvpool: Callable[..., Result], stored: Path) -> None:
    """Nothing is written when one of several can't run; a damaged file is made anew."""
    text = stored.read_text()
    stored.write_text(text[: len(text) // 2])
    Path("bad.yaml").write_text(CONFIG.replace("BASELINE", "").replace("rate: 0.5", "rate: fast"))
    done = kvpool("baseline", "update", "small.yaml", "bad.yaml")
    assert done.exit_code == 2
    assert "bad.yaml:7:" in done.stderr
    assert stored.read_text() == text[: len(text) // 2]
    done = kvpool("baseline", "update", "small.yaml")
    assert done.stdout.startswith("small            damaged, made anew: configs/baselines/small.csv:")
    assert stored.read_text() == text
    assert os.listdir(stored.parent) == ["small.csv"]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["check"], "configs/baselines: there are no baselines"),
        (["baseline", "update"], "configs/baselines: there are no baselines to make again"),
        (["baseline", "update", "smal.yaml"], "smal.yaml: no such config"),
        (["baseline", "update", "--seed", "1"], "--seed: for which config?"),
        (["baseline", "update", "small.yaml", "./small.yaml"], "two configs make the baseline small.csv"),
        (["baseline", "update", "small.yaml", "--set", "baseline.rows=5"], "baseline.rows"),
        (["baseline", "update", "small.yaml", "--set", "baseline.exat=true"], "did you mean 'exact'?"),
    ],
)
def test_bad_input(kvpool: Callable[..., Result], args: list[str], told: str) -> None:
    done = kvpool(*args)
    assert done.exit_code == 2, done.output
    assert told in done.stderr
    assert os.listdir() == ["small.yaml"]


def test_full_disk(kvpool: Callable[..., Result], stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old baseline stays as it is, and nothing is left beside it."""
    text = stored.read_text()

    def full(_path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_bytes", full)
    done = kvpool("baseline", "update", "small.yaml", "--set", "engine.num_gpu_blocks=50")
    assert done.exit_code == 2
    assert "No space left on device" in done.stderr
    assert stored.read_text() == text
    assert os.listdir(stored.parent) == ["small.csv"]
    assert kvpool("check", "--html", "out.html").exit_code == 2


# -- what ships -------------------------------------------------------------------------------------------


def test_shipped_baselines() -> None:
    """Each has its config, all curves, and few enough rows to be read."""
    names = sorted(path.stem for path in BASELINES.glob("*.csv"))
    assert names == sorted(path.stem for path in BASELINES.glob("*.yaml"))
    assert {"agents", "chat", "mooncake", "rag"} <= set(names)
    for name in names:
        baseline = read_baseline(BASELINES / f"{name}.csv")
        assert baseline.rows <= 200
        assert list(baseline.curves) == [curve.key for curve in CURVES]
        assert baseline.provenance.config == f"{name}.yaml"
        assert load_config(BASELINES / f"{name}.yaml").config.baseline is not None


def test_shipped_rag_baseline_is_what_the_tree_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(cli.main, ["check", "rag"])
    assert done.exit_code == 0, done.output


@pytest.mark.usefixtures("other_free_order")
def test_shipped_baselines_notice_another_free_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(cli.main, ["check", "chat", "rag", "agents"])
    assert done.exit_code == 1
    assert done.stdout.count("MOVED") == 3
    assert done.stdout.count("  external_fragmentation ") == 3


def test_workflow_in_the_docs() -> None:
    """It is YAML, and its commands are ours."""
    from ruamel.yaml import YAML

    page = (ROOT / "docs" / "ci.md").read_text()
    block = page[page.index("```yaml") + 7 :]
    workflow = YAML(typ="safe").load(block[: block.index("```")])
    commands = [step["run"] for step in workflow["jobs"]["check"]["steps"] if "run" in step]
    ours = [command.split() for command in commands if command.startswith("python -m sim")]
    assert [words[3] for words in ours] == ["check", "baseline"]
    for words in ours:
        command: click.Command = cli.main
        for word in words[3:]:
            if isinstance(command, click.Group):
                found = command.get_command(click.Context(command), word)
                assert found is not None
                command = found
        known = {option for p in command.params for option in p.opts}
        assert {word for word in words if word.startswith("--")} <= known
