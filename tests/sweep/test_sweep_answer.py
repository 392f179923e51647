"""What the points say: best, ties, noise, circumstances, the Pareto front, on made-up numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.report.confidence import t_quantile
from sim.report.document import plain_text, values_of
from sim.sweep.answer import Grid, Row
from sim.sweep.metrics import find_metric
from sim.sweep.page import build_document, terminal
from sim.sweep.plan import Sweep, load_sweep
from sim.sweep.point import CURVE_POINTS, Failure, Result
from sim.sweep.sentences import answer_parts
from sim.sweep.tables import CURVE_COLUMNS

META = {"version": "0", "core_digest": "c"}
SERVED = {"rejected": 0, "unservable": 0, "unfinished": 0}


def result(waste: float, hits: float, preemptions: int, e2e: float = 1.0) -> Result:
    summary: dict[str, Any] = {
        "waste": {"waste_at_finish": waste},
        "prefix_cache": {"first_lookup_token_hit_rate": hits},
        "preemptions": {"preemptions": preemptions},
        "latency": {"e2e_s": {"mean": e2e}},
        "requests": SERVED,
    }
    curves = {name: np.linspace(0.0, 1.0, CURVE_POINTS) for name in CURVE_COLUMNS}
    return Result(summary, curves, 0.1, "here:1")


@pytest.fixture
def sweep(work: Path) -> Sweep:
    """Block sizes 4, 8, 16 and three seeds."""
    text = "base: small.yaml\naxes: {engine.block_size: [4, 8, 16]}\nseeds: 3\n"
    Path("one.yaml").write_text(text + "metrics: [waste, hit_rate, preemptions]\n")
    return load_sweep("one.yaml")


def grid(sweep: Sweep, table: list[list[Result | Failure]]) -> Grid:
    return Grid(
        [
            Row(p, seed, "id", outcome)
            for p, outcomes in zip(sweep.points, table, strict=True)
            for seed, outcome in zip(sweep.seeds, outcomes, strict=True)
        ]
    )


def told(sweep: Sweep, g: Grid) -> str:
    parts = []
    for part in answer_parts(sweep, g):
        items = getattr(part, "items", None) or (getattr(part, "pieces", ()),)
        parts += [plain_text(i) for i in items]
    return "\n".join(parts)


def test_best_rivals_and_next(sweep: Sweep) -> None:
    # the seeds differ by far more than the points: only pairing tells them apart
    table: list[list[Result | Failure]] = [
        [result(0.01 + 0.1 * s, 0.5 + 0.01 * s, 7) for s in range(3)],
        [result(0.01 + 0.1 * s + 0.001 * (s % 2), 0.5, 7) for s in range(3)],
        [result(0.05 + 0.1 * s + 0.0001 * s, 0.1, 7) for s in range(3)],
    ]
    g = grid(sweep, table)
    best = g.best(find_metric("waste"))
    assert best is not None
    assert (best.point.index, [p.index for p in best.rivals]) == (0, [1])
    assert best.cell.mean == pytest.approx(0.11)
    assert best.cell.half == pytest.approx(t_quantile(2) * 0.1 / np.sqrt(3))
    assert best.next is not None
    point, pair = best.next
    assert (point.index, pair.comparisons) == (2, 2)
    assert pair.difference == pytest.approx(0.0401)
    assert pair.low is not None
    assert pair.low > 0
    text = told(sweep, g)
    assert (
        "Lowest waste at finish: 11.0 % ± 24.8 % with block_size 4; block_size 8 is within noise of it;"
        in text
    )
    assert "clearly worse, next: block_size 16 with 15.0 % (+4.01 points" in text
    assert "Preemptions: 7 at every point." in text
    assert "Highest hit rate at first lookup: 51.0 %" in text


def test_ties_one_seed_and_failures(sweep: Sweep) -> None:
    one = replace(sweep, seeds=(0,))
    g = grid(one, [[result(0.1, 0.2, 0)], [result(0.1, 0.3, 4)], [Failure("out of memory")]])
    text = told(one, g)
    assert "Lowest waste at finish: 10.0 % at every point" not in text
    assert "Waste at finish: 10.0 % at every point." in text
    assert "Lowest preemptions: 0 with block_size 4; next: block_size 8 with 4 (+4)." in text
    assert "1 of 3 runs failed" in text
    assert "One seed: differences are exact for this workload" in text
    document = build_document(one, g, META, charts=True)
    assert "out of memory" in terminal(document)
    assert [s.key for s in document.sections] == [
        "answer",
        "points",
        "metrics",
        "front",
        "time",
        "failed",
        "axes",
    ]
    everything = grid(one, [[Failure("no")]] * 3)
    text = terminal(build_document(one, everything, META, charts=True))
    assert "Every run failed; the messages are below." in text


def test_pareto_front(sweep: Sweep) -> None:
    table = [[result(w, h, p)] * 3 for w, h, p in ((0.1, 0.5, 3), (0.2, 0.9, 3), (0.3, 0.4, 9))]
    weighed, front = grid(sweep, table).pareto()  # type: ignore[arg-type]
    assert [m.name for m in weighed] == ["waste_at_finish", "first_lookup_token_hit_rate", "preemptions"]
    assert [p.index for p in front] == [0, 1]
    weighed, front = grid(sweep, [[result(0.1 * i, 0.5, 0)] * 3 for i in (1, 2, 3)]).pareto()
    assert ([m.name for m in weighed], [p.index for p in front]) == (["waste_at_finish"], [0])


def test_the_best_choice_depends_on_circumstances(work: Path) -> None:
    axes = "axes: {engine.block_size: [4, 8], workload.arrivals.rate: [1, 2], workload.num_requests: [30]}\n"
    Path("two.yaml").write_text(f"base: small.yaml\n{axes}seeds: 2\nmetrics: [latency, waste]\n")
    sweep = load_sweep("two.yaml")
    table: list[list[Result | Failure]] = [
        [result(0.1, 0.5, 0, latency + 0.01 * s) for s in range(2)] for latency in (1.0, 4.0, 2.0, 3.0)
    ]
    g = grid(sweep, table)
    text = told(sweep, g)
    assert "Lowest mean end-to-end latency: the best block_size depends on rate: 4 at 1, 8 at 2." in text
    document = build_document(sweep, g, META, charts=True)
    choices = next(p for p in document.sections[0].parts if p.kind == "table")
    assert [plain_text(row[1]) for row in choices.rows] == ["4: 1 s", "8: 3 s"]  # type: ignore[union-attr]
    assert "num_requests" not in sweep.points[0].label(sweep.axes)
    assert "heat" in [s.key for s in document.sections]


def test_every_number_has_a_unit(sweep: Sweep) -> None:
    g = grid(sweep, [[result(0.1 * i, 0.5 - 0.01 * i, i)] * 3 for i in (1, 2, 3)])
    document = build_document(sweep, g, META, charts=True)
    assert all(v.unit for v in values_of(document))
    known = set(document.definitions)
    for section in document.sections:
        for part in section.parts:
            if part.kind == "table":
                assert {c.term for c in part.columns} - {""} <= known
