"""Each benchmark in its smallest form: that it still runs, not how fast (`make bench` measures)."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from tests.benchmarks import cases, hybrid, scale, table, tracking_overhead
from tests.benchmarks.lifecycle import LifeCycle
from tests.benchmarks.processes import first_step, run_simulation

FEW = "workload.num_requests=30"


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of the format that the Mooncake case reads."""
    file = tmp_path_factory.mktemp("trace") / "m.jsonl"
    row = {"input_length": 600, "output_length": 3, "hash_ids": [1, 2]}
    file.write_text("".join(json.dumps({"timestamp": 10 * i, **row}) + "\n" for i in range(20)))
    return file


def test_life_cycle() -> None:
    pool = LifeCycle(256)
    assert pool.run(640) == 640
    assert table._life(pool) > 0


def test_table_of_small_cases(trace: Path) -> None:
    workload = cases.control_workload(12)
    control = cases.run_control(workload)
    twin = cases.run_twin(workload, cases.control_lines(workload))
    assert twin.steps == control.steps
    ten_thousand = cases.run_config(cases.TEN_THOUSAND, [FEW])
    assert ten_thousand.requests == 30
    mooncake = cases.run_config(table.MOONCAKE, [f"workload.path={trace}"])
    assert mooncake.requests == 20
    command = run_simulation(cases.TEN_THOUSAND, [FEW])
    step = first_step(table.CHAT)
    groups = hybrid.ready(["workload.duration=2s"], [f"workload.path={trace}"])
    for case in groups.values():
        case.measure()
    measured = table.Rounds(
        life={n: [50.0] for n in table.POOLS},
        control=[control],
        twin=[twin],
        vllm=[{"cpu_s": 1.0}],
        ten_thousand=[ten_thousand],
        ten_thousand_command=[command],
        mooncake=[mooncake],
        mooncake_command=[command],
        first_step=[step],
        hybrid=groups,
    )
    shown = table.render(table.to_rows(measured, {**step, "cached": False}))
    assert "Mooncake hour" in shown
    assert "first run ever" in shown
    assert "chat: five groups by one" in shown


def test_hybrid(trace: Path) -> None:
    found = hybrid.ready(["workload.duration=2s"], [f"workload.path={trace}"])
    for case in found.values():
        case.measure()
    assert [line.split(":")[0] for line in hybrid.lines(found)] == ["chat", "Mooncake hour"]
    assert all(case.pair.blocks[0] < case.pair.blocks[1] for case in found.values())


def test_scale(tmp_path: Path) -> None:
    found = [scale.measure(20, 1_000, stream) for stream in (True, False)]
    assert found[0]["requests"] == found[1]["requests"] > 0
    assert "streamed" in scale.line(found[0])
    drawn = [
        {**found[0], "requests": 4 * sessions, "blocks": blocks, "streamed": stream}
        for sessions, blocks, stream in scale.points(small=False)
    ]
    scale.draw(drawn, tmp_path / "scale.png")
    assert (tmp_path / "scale.png").stat().st_size > 10_000


def test_tracking_overhead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(tracking_overhead.VARIANTS)))
    tracking_overhead.work(str(cases.TEN_THOUSAND), [FEW])
    answers = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == len(tracking_overhead.VARIANTS)
    assert len({steps for _, steps in answers}) == 1
    assert tracking_overhead.median_interval([1.0, 3.0, 2.0])[0] == 2.0
    # the copy without probes is made; compiling it would take half a minute
    tracking_overhead.without_probes(tmp_path)
    for file, names in tracking_overhead.PROBES.items():
        source = (tmp_path / "sim" / "core" / file).read_text()
        compile(source, file, "exec")
        assert source.count(") -> None:\n    return\n") >= len(names)


def test_worker_of_a_real_vllm_loads() -> None:
    from tests.benchmarks import vllm_worker

    assert vllm_worker.control_lines(cases.control_workload(1))[0]["output_token_ids"]
