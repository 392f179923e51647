"""A pool that is larger than this machine's memory is refused before anything is allocated."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from sim import memory
from sim.capacity import LogOptions, allocate, pool_bytes
from sim.cli import main
from sim.engine_settings import EngineSettings
from sim.errors import InputError
from sim.step_time import constant
from workloads.builder import WorkloadBuilder

CONFIG = """\
engine:
  num_gpu_blocks: {blocks}
replicas: {replicas}
step_time: {{kind: constant, step: 1ms}}
workload:
  {{kind: random, arrivals: {{kind: poisson, rate: 9}}, num_requests: 3, prompt_len: 9, output_len: 1}}
"""


@pytest.mark.parametrize(
    ("blocks", "replicas", "message"),
    [
        (
            2_000_000_000,
            1,
            "a pool of 2,000,000,000 blocks takes 75.8 GiB here to simulate, and 16.0 GiB are free",
        ),
        (50_000_000, 10, "a pool of 50,000,000 blocks in 10 replicas takes"),
    ],
)
def test_too_large_for_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int, replicas: int, message: str
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 16 * 2**30)
    config = tmp_path / "big.yaml"
    config.write_text(CONFIG.format(blocks=blocks, replicas=replicas))
    for command in (["run", str(config), "--out", str(tmp_path / "out")], ["validate", str(config)]):
        answer = CliRunner().invoke(main, command)
        assert answer.exit_code == 2
        assert f"{config}:2:19: {message}" in answer.output
    assert not (tmp_path / "out").exists()


def test_without_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 16 * 2**30)
    builder = WorkloadBuilder(vocab_size=8, clock="logical")
    piece = builder.add_tokens([1])
    builder.add([piece], [1], output_len=1, out_seg=piece, arrival=0)
    with pytest.raises(InputError, match="a pool of 2,000,000,000 blocks"):
        allocate(
            EngineSettings(num_gpu_blocks=2_000_000_000),
            builder.build({"kind": "none"}),
            constant(1),
            LogOptions(),
        )


def test_what_is_free() -> None:
    free = memory.free_bytes()
    assert free is None or free > 2**20
    assert 36 * 10**8 < pool_bytes(10**8) < 50 * 10**8
