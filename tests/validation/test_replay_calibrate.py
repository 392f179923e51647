"""Fits of the step time: known models come back, outliers and odd files do no harm, `sim run` reads them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sim.config import load_config
from sim.errors import InputError
from sim.resolve import resolve
from sim.step_time import duration_ns
from tests.validation.replay_fakes import CONFIG
from validation.cli import main
from validation.replay.calibrate import fit, predict, quality, read_steps, robust_fit, steps_of
from validation.replay.calibrate_server import fit_server
from validation.replay.report import read_step_time

TRUE = (2e6, 4e4, 3e5, 150.0)


def batches(n: int = 600, seed: int = 0, noise: float = 0.0, stalls: float = 0.0) -> dict[str, np.ndarray]:
    """Made-up batches whose durations follow TRUE, with relative noise and some steps ten times as long."""
    rng = np.random.default_rng(seed)
    prefill = np.where(rng.random(n) < 0.3, rng.integers(1, 500, n), 0)
    decodes = rng.integers(1, 24, n)
    context = decodes * rng.integers(50, 900, n)
    duration = TRUE[0] + TRUE[1] * prefill + TRUE[2] * decodes + TRUE[3] * context
    duration = duration * (1 + noise * rng.standard_normal(n).clip(-3, 3))
    duration = np.where(rng.random(n) < stalls, duration * 10, duration)
    return {
        "scheduled_tokens": prefill + decodes,
        "context_tokens": context + prefill,
        "prefill_tokens": prefill,
        "decode_seqs": decodes,
        "decode_context": context,
        "duration_ns": duration,
    }


def write_csv(path: Path, columns: dict[str, np.ndarray]) -> Path:
    with open(path, "w", newline="") as f:
        out = csv.writer(f)
        out.writerow(columns)
        out.writerows(zip(*columns.values(), strict=True))
    return path


def test_an_exact_model_comes_back() -> None:
    found, held_out = fit(steps_of(batches()))
    assert found.kind == "affine"
    assert np.allclose(found.model.coef[:4], TRUE, rtol=1e-6)
    assert held_out["affine"].mean_abs_error < 1e-6
    assert held_out["constant"].mean_abs_error > 0.2
    assert found.scale == pytest.approx(1.0, abs=1e-6)


def test_stalls_move_the_scale_and_not_the_shape() -> None:
    steps = steps_of(batches(2000, noise=0.1, stalls=0.03))
    found, _ = fit(steps, "affine")
    assert np.allclose(found.model.coef[:4] / found.scale, TRUE, rtol=0.2)
    assert 1.1 < found.scale < 1.5
    assert predict(found.model, steps).sum() == pytest.approx(steps.duration.sum(), rel=1e-9)


def test_coefficients_are_never_negative() -> None:
    rng = np.random.default_rng(1)
    features = np.column_stack([np.ones(300), rng.random(300), rng.random(300)])
    target = 5 + 3 * features[:, 1] - 2 * features[:, 2]
    coef = robust_fit(features, target)
    assert (coef >= 0).all()
    assert coef[2] == 0
    assert coef[1] == pytest.approx(3, rel=0.2)


def test_steps_without_work_or_end_are_left_out() -> None:
    columns = batches(100)
    columns["scheduled_tokens"][:5] = 0
    columns["duration_ns"][5:8] = -1
    assert len(steps_of(columns)) == 92


def test_the_table_of_the_yaml_is_the_fitted_table(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "steps.csv", batches(800, noise=0.05))
    out = tmp_path / "st.yaml"
    done = CliRunner().invoke(main, ["calibrate", str(source), "--out", str(out), "--fit", "table"])
    assert done.exit_code == 0, done.output
    assert "residuals" in done.output
    steps = read_steps(source)
    fitted, _ = fit(steps, "table")
    loaded, section = read_step_time(out)
    assert section["kind"] == "table"
    assert np.allclose(loaded.table, fitted.model.table, rtol=1e-5)
    assert predict(loaded, steps).sum() == pytest.approx(steps.duration.sum(), rel=1e-5)


def test_sim_run_takes_the_section(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "steps.csv", batches())
    out = tmp_path / "step_time.yaml"
    done = CliRunner().invoke(main, ["calibrate", str(source), "--out", str(out)])
    assert done.exit_code == 0, done.output
    config = tmp_path / "config.yaml"
    without = "".join(x for x in CONFIG.splitlines(keepends=True) if not x.startswith("step_time"))
    config.write_text(without + out.read_text())
    model = resolve(load_config(config)).step_time
    assert duration_ns(model, (110, 100, 10, 5000, 0, 0, 11)) == pytest.approx(
        TRUE[0] + 100 * TRUE[1] + 10 * TRUE[2] + 5000 * TRUE[3], rel=1e-6
    )


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (("scheduled_tokens", "duration_ns"), [], "'context_tokens' is missing"),
        (("scheduled_tokens", "context_tokens"), [], "one of the columns duration_ns"),
        (("scheduled_tokens", "context_tokens", "duration_ns"), ["--fit", "affine"], "needs the columns"),
    ],
)
def test_missing_columns(tmp_path: Path, columns: tuple[str, ...], options: list[str], message: str) -> None:
    data = batches(50)
    source = write_csv(tmp_path / "steps.csv", {name: data[name] for name in columns})
    done = CliRunner().invoke(main, ["calibrate", str(source), "--out", str(tmp_path / "x.yaml"), *options])
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "x.yaml").exists()


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no recorded steps"):
        read_steps(tmp_path / "none")
    bad = tmp_path / "bad.csv"
    bad.write_text("scheduled_tokens,context_tokens,duration_ns\n1,2,3\n1,x,3\n")
    with pytest.raises(InputError, match="expected 3 numbers") as e:
        read_steps(bad)
    assert e.value.line == 3
    few = write_csv(tmp_path / "few.csv", batches(10))
    with pytest.raises(InputError, match="10 usable steps"):
        read_steps(few)
    no_section = tmp_path / "c.yaml"
    no_section.write_text("engine: {}\n")
    with pytest.raises(InputError, match="no `step_time:` section"):
        read_step_time(no_section)


def test_quality_of_a_perfect_and_of_a_biased_prediction() -> None:
    recorded = np.array([1.0, 2.0, 3.0, 4.0])
    assert quality(recorded, recorded).r2 == 1.0
    q = quality(recorded * 1.1, recorded)
    assert q.mean_abs_error == pytest.approx(0.1)
    assert q.total_error == pytest.approx(0.1)
    assert q.p50 == pytest.approx(0.1)


def test_a_server_is_fitted_from_its_counters() -> None:
    rng = np.random.default_rng(2)
    steps = rng.integers(10, 30, 300)
    prefill = rng.integers(0, 2000, 300)
    tokens = steps * rng.integers(1, 20, 300)
    length = 2_000_000 * steps + 50_000 * prefill + 300_000 * tokens
    timeline = {
        "time_ns": np.cumsum(np.r_[0, length]),
        "num_running": np.full(301, 3),
        "engine_steps": np.cumsum(np.r_[0, steps]),
        "computed_prompt_tokens": np.cumsum(np.r_[0, prefill]),
        "generated_tokens": np.cumsum(np.r_[0, tokens]),
    }
    found = fit_server(timeline)
    assert found is not None
    assert np.allclose(found.model.coef[:3], [2e6, 5e4, 3e5], rtol=1e-6)
    timeline["num_running"] = np.zeros(301, int)
    assert fit_server(timeline) is None
