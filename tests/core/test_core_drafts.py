"""Drafts on the real clock: what the acceptance rate does, and that draws depend on nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sim.capacity import LogOptions
from sim.config_engine import EngineConfig
from sim.engine_settings import EngineSettings
from sim.groups import layout_of
from sim.simulate import RunResult, Simulation
from sim.step_time import affine
from workloads.builder import WorkloadBuilder

ENGINE = EngineSettings(
    num_gpu_blocks=400,
    max_num_seqs=8,
    max_num_batched_tokens=256,
    max_model_len=512,
    num_speculative_tokens=3,
    speculative_method="mtp",
    draft_acceptance=0.8,
)
PROMPT, OUTPUT = 64, 120


def run(**changes: Any) -> RunResult:
    builder = WorkloadBuilder(vocab_size=1000)
    for i in range(24):
        # every prompt is there twice
        builder.add([i // 2], [PROMPT], output_len=OUTPUT, arrival=i * 5_000)
    simulation = Simulation(
        replace(ENGINE, **changes), builder.build(), affine(1000, 5, 20, 0.1), LogOptions(sample_period_ns=0)
    )
    assert simulation.run() == "finished"
    return simulation.result()


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_a_draft_is_right_as_often_as_the_rate_says(async_scheduling: bool) -> None:
    totals = run(async_scheduling=async_scheduling).totals
    assert totals["finished"] == 24
    per_step = totals["accepted_tokens"] / (totals["draft_tokens"] / 3)
    # p + p**2 + p**3 of three drafts, within four standard errors of some 1,000 steps
    assert per_step == pytest.approx(0.8 + 0.8**2 + 0.8**3, abs=0.15)
    assert totals["sampled_tokens"] >= 24 * OUTPUT


def test_all_or_none_are_right() -> None:
    every, none = run(draft_acceptance=1.0).totals, run(draft_acceptance=0.0).totals
    assert every["accepted_tokens"] == every["draft_tokens"]
    assert none["accepted_tokens"] == 0
    assert every["steps"] < none["steps"]


def test_the_draws_are_those_of_the_request_whatever_else_happens() -> None:
    """The first tokens come at other times and in other batches, and yet each step accepts the same."""
    wide, narrow = run(), run(max_num_seqs=2)
    assert np.array_equal(wide.requests["output_tokens"], narrow.requests["output_tokens"])
    assert wide.totals["accepted_tokens"] == narrow.totals["accepted_tokens"]
    assert wide.totals["steps"] < narrow.totals["steps"]


def test_a_drafter_that_reads_hidden_states_costs_the_last_block_of_a_hit() -> None:
    hits = {method: run(speculative_method=method).totals["prefix_hits"] for method in ("mtp", "ngram")}
    # 64 tokens are four blocks of 16; the last token is computed anyway: three blocks hit, or two
    assert hits == {"mtp": 12 * 32, "ngram": 12 * 48}


def test_drafts_need_a_rate_and_the_rate_drafts() -> None:
    drafts = {"num_speculative_tokens": 2, "speculative_method": "ngram"}
    assert EngineConfig(**drafts, draft_acceptance=0.5).draft_problems() == []
    assert EngineConfig().draft_problems() == []
    (without,) = EngineConfig(**drafts).draft_problems(("engine",))
    assert without.path == ("engine", "num_speculative_tokens")
    (alone,) = EngineConfig(draft_acceptance=0.5).draft_problems(("engine",))
    assert alone.path == ("engine", "draft_acceptance")


def test_an_engine_without_drafts_is_compiled_without_their_rules() -> None:
    plain = replace(ENGINE, num_speculative_tokens=0, speculative_method=None, draft_acceptance=None)
    assert layout_of(plain).plain
    assert not layout_of(ENGINE).plain
