"""The sweep file: axes of every form, names of metrics, and every problem at its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sim.advice.metrics import ALIASES
from sim.advice.metrics import METRICS as ADVISED
from sim.report.metrics import METRICS as COMPARED
from sim.sweep.axes import Axis, expand
from sim.sweep.config import AxisSpec
from sim.sweep.metrics import find_metric, named_metrics
from sim.sweep.plan import load_sweep
from tests.sweep.conftest import SWEEP, kvpool

ROOT = Path(__file__).resolve().parents[2]


def axis(spec: object, name: str = "engine.block_size") -> Axis:
    problems: list = []
    made = expand(name, AxisSpec.model_validate(spec) if isinstance(spec, dict) else spec, problems)  # type: ignore[arg-type]
    assert problems == []
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ([8, 16], [8, 16]),
        ({"values": [True, "fcfs", None]}, [True, "fcfs", None]),
        ({"range": {"from": 1, "to": 7, "step": 3}}, [1, 4, 7]),
        ({"range": {"from": 0.8, "to": 1.6, "step": 0.2}}, [0.8, 1.0, 1.2, 1.4, 1.6]),
        ({"range": {"from": 3, "to": 1, "step": -1}}, [3, 2, 1]),
        ({"log_range": {"from": 8, "to": 64, "factor": 2}}, [8, 16, 32, 64]),
        ({"log_range": {"from": 1, "to": 1000, "points": 4}}, [1, 10, 100, 1000]),
        ({"log_range": {"from": 0.1, "to": 0.001, "factor": 0.1}}, [0.1, 0.01, 0.001]),
        ({"log_range": {"from": 1.0, "to": 4.0, "points": 3}}, [1.0, 2.0, 4.0]),
    ],
)
def test_values_of_an_axis(spec: object, values: list) -> None:
    made = axis(spec)
    assert [v[0] for v in made.values] == values
    assert [type(v[0]) for v in made.values] == [type(v) for v in values]
    assert (made.label, made.keys) == ("block_size", ("engine.block_size",))


def test_zipped_axis_and_labels() -> None:
    made = axis(
        {
            "zip": {
                "engine.max_num_seqs": [64, 128],
                "engine.max_num_batched_tokens": {"range": {"from": 2048, "to": 4096, "step": 2048}},
            },
            "labels": ["small", "large"],
        },
        "batch",
    )
    assert made.values == ((64, 2048), (128, 4096))
    assert (made.label, made.labels, made.says(1)) == ("batch", ("small", "large"), "batch large")


def test_points_seeds_and_places(work: Path) -> None:
    sweep = load_sweep("sweep.yaml", ["workload.num_requests=7"])
    assert [p.positions for p in sweep.points[:4]] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert sweep.seeds == (0, 1)
    point = sweep.points[4]
    assert point.label(sweep.axes) == "block_size 8, max_num_seqs 4"
    assert point.resolved is not None
    assert (point.resolved.engine.block_size, point.resolved.engine.max_num_seqs) == (8, 4)
    assert point.resolved.spec.num_requests == 7  # type: ignore[union-attr]


def test_an_inline_base(work: Path) -> None:
    base = "".join(f"  {line}\n" for line in Path("small.yaml").read_text().splitlines())
    Path("inline.yaml").write_text(f"base:\n{base}axes: {{engine.block_size: [4, 8]}}\n")
    assert [p.resolved.engine.block_size for p in load_sweep("inline.yaml").points if p.resolved] == [4, 8]
    Path("inline.yaml").write_text(
        f"base:\n{base}axes: {{engine.block_size: [4]}}\n".replace("step: 10ms", "step: 10m")
    )
    said = kvpool("sweep", "inline.yaml")
    assert said.exit_code == 2
    assert "inline.yaml:4:37: 'step_time.step' must be seconds" in said.stderr


@pytest.mark.parametrize(
    ("old", "new", "messages"),
    [
        (
            "engine.block_size: [4, 8, 16]",
            "engine.blok_size: [4]",
            ["sweep.yaml:3:3: unknown key 'engine.blok_size'\n  hint: did you mean 'block_size'?"],
        ),
        (
            "[4, 8, 16]",
            "[4, many, -3]",
            [
                "sweep.yaml:3:26: 'engine.block_size' must be a whole number or auto, got 'many'",
                "sweep.yaml:3:32: 'engine.block_size' must be at least 1 or auto",
            ],
        ),
        ("waste,", "wast,", ["sweep.yaml:6:11: no metric 'wast'\n  hint: did you mean 'waste'?"]),
        ("seeds: 2", "seeds: 0", ["sweep.yaml:5:8: 'seeds' must be at least 1"]),
        ("seeds: 2", "seeds: [1, 2, 1]", ["sweep.yaml:5:8: a seed is given twice"]),
        ("metrics:", "metric:", ["sweep.yaml:6:1: unknown key 'metric'\n  hint: did you mean 'metrics'?"]),
        (
            "small.yaml",
            "smal.yaml",
            ["sweep.yaml:1:7: the base config 'smal.yaml' can't be read: no such config"],
        ),
        (
            "factor: 2",
            "factor: 0.5",
            ["sweep.yaml:4:36: the axis 'engine.max_num_seqs': from 2 by factors of 0.5"],
        ),
        ("factor: 2", "factr: 2", ["unknown key 'axes.engine.max_num_seqs.log_range.factr'"]),
        ("[4, 8, 16]", "[4, 8, 4]", ["sweep.yaml:3:29: the axis 'engine.block_size' has the value 4 twice"]),
        ("engine.block_size: [4, 8, 16]", "seed: [1, 2]", ["sweep.yaml:3:9: 'seed' can't be an axis"]),
        (
            "engine.block_size: [4, 8, 16]",
            "engine: [{block_size: 4}]",
            ["sweep.yaml:4:24: 'engine.max_num_seqs' is set by two axes (the other one is 'engine')"],
        ),
        (
            "engine.block_size: [4, 8, 16]",
            "b: {zip: {engine.block_size: [4, 8], engine.watermark: [0.1]}}",
            ["the zipped keys of 'b' have unequal numbers of values: engine.block_size has 2, engine.wa"],
        ),
        ("[4, 8, 16]", "{range: {from: 1, to: 3, step: 0}}", ["in steps of 0 never comes to 3"]),
    ],
)
def test_problems_have_their_place(work: Path, old: str, new: str, messages: list[str]) -> None:
    assert old in SWEEP
    Path("sweep.yaml").write_text(SWEEP.replace(old, new))
    said = kvpool("sweep", "sweep.yaml")
    assert said.exit_code == 2, said.output
    for message in messages:
        assert said.stderr.count(message) == 1, said.stderr
    assert said.stderr.count("sweep.yaml:") == len(messages), said.stderr
    assert not Path("runs").exists()


def test_all_problems_at_once(work: Path) -> None:
    text = SWEEP.replace("block_size: [4,", "blok_size: [4,").replace("waste", "wast")
    Path("sweep.yaml").write_text(text)
    Path("small.yaml").write_text(Path("small.yaml").read_text().replace("rate: 5", "rte: 5"))
    said = kvpool("sweep", "sweep.yaml", "--dry-run").stderr
    places = [line.split(": ")[0] for line in said.splitlines() if not line.startswith("  ")]
    assert places == ["small.yaml:7:3", "small.yaml:7:29", "sweep.yaml:3:3", "sweep.yaml:6:11"], said


def test_set_is_for_the_base_and_not_for_axes(work: Path) -> None:
    said = kvpool("sweep", "sweep.yaml", "--set", "engine.block_size=2")
    assert (said.exit_code, "--set engine.block_size: 'engine.block_size' is an axis" in said.stderr) == (
        2,
        True,
    )
    assert kvpool("sweep", "sweep.yaml", "--set", "workload.rate=2", "--dry-run").exit_code == 2


def test_runs_and_sweeps_are_not_confused(work: Path) -> None:
    for command in (["run", "sweep.yaml"], ["size", "sweep.yaml"], ["run", "sweep.yaml", "--gpu", "l4"]):
        said = kvpool(*command)
        assert said.exit_code == 2
        assert said.stderr == (
            "sweep.yaml:2:1: this is a sweep, not the config of one run\n"
            "  hint: python -m sim sweep sweep.yaml\n"
        )
    said = kvpool("sweep", "small.yaml")
    assert said.exit_code == 2
    assert "this is the config of one run, not a sweep" in said.stderr


def test_dry_run_lists_points_and_writes_nothing(work: Path) -> None:
    Path("sweep.yaml").write_text(SWEEP.replace("[4, 8, 16]", "[1, 8]"))
    said = kvpool("sweep", "sweep.yaml", "--dry-run")
    assert said.exit_code == 0
    lines = said.stdout.splitlines()
    assert lines[0].startswith("0  block_size 1, max_num_seqs 2   can't be run: a pool of 300 blocks")
    assert lines[3] == "3  block_size 8, max_num_seqs 2"
    assert lines[-2:] == [
        "sweep: 6 points, 2 seeds each, 6 runs",
        "3 points can't be run and would be recorded as failed",
    ]
    assert not Path("runs").exists()


def test_a_sweep_with_no_point_that_runs_is_bad_input(work: Path) -> None:
    Path("sweep.yaml").write_text(SWEEP.replace("[4, 8, 16]", "[1]"))
    said = kvpool("sweep", "sweep.yaml")
    assert said.exit_code == 2
    assert "small.yaml:2:26: a pool of 300 blocks is smaller than one" in said.stderr


@pytest.mark.parametrize("cluster", ["dask:/x", "spark://a:1", "dask://a", "dask://a:b"])
def test_clusters_that_are_none(work: Path, cluster: str) -> None:
    said = kvpool("sweep", "sweep.yaml", "--cluster", cluster)
    assert (said.exit_code, "expected dask://HOST:PORT or ray://HOST:PORT" in said.stderr) == (2, True)
    assert not Path("runs").exists()


def test_no_metric_is_defined_twice() -> None:
    named = named_metrics()
    assert set(ADVISED) <= set(named)
    for metric in COMPARED:
        twin = [n for n in named.values() if n.number.path == metric.path]
        assert [n.number for n in twin] == [metric]
    for name, metric in ADVISED.items():
        assert named[name].number.path == metric.path
        assert named[name].better in (0, -1 if metric.lower_is_better else 1)
    for alias, name in ALIASES.items():
        assert find_metric(alias) is named[name]
    assert find_metric("waste.waste_at_finish") is named["waste_at_finish"]


@pytest.mark.parametrize("path", ["block_size.yaml", "batch_and_load.yaml"])
def test_shipped_sweeps(path: str) -> None:
    sweep = load_sweep(str(ROOT / "configs" / path))
    assert all(p.resolved is not None for p in sweep.points)


def test_pages_and_schema_are_current() -> None:
    from sim.sweep.docs import json_schema, keys_page

    assert (ROOT / "docs" / "sweep_keys.md").read_text() == keys_page(), "run `make docs`"
    assert json.loads((ROOT / "configs" / "sweep.schema.json").read_text()) == json_schema()
