"""The speed comparison with a real vLLM is honest: both sides do the same. Runs where vLLM is (`make
validate`)."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

pytest.importorskip("vllm", reason="no vLLM in this environment: `make validate` runs these tests")

from validation.bench import cases, compare_speed
from validation.cli import main
from validation.vllm_setup import require_vllm

# torch and vLLM warn about themselves while they are imported
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", ["plain", "tight", "shared"])
def test_both_sides_agree_in_every_counter(name: str) -> None:
    require_vllm()
    case = next(case for case in cases(0.08) if case.name == name)
    result = compare_speed(case, repeats=1)
    assert result.differing == []
    assert set(result.vllm) == set(result.simulator)
    assert result.simulator["finished"] == len(case.workload)
    assert result.simulator["request_steps"] == int(case.workload.output_len.sum())
    if name == "tight":
        assert result.simulator["preemptions"] > 0
    if name == "shared":
        assert result.simulator["prefix_hits"] > 0
    assert result.ratio > 1


def test_json_and_unknown_case() -> None:
    run = CliRunner().invoke
    done = run(main, ["bench", "--scale", "0.004", "--repeats", "1", "--case", "plain", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["equal"]
    assert run(main, ["bench", "--case", "plane"]).exit_code == 2
