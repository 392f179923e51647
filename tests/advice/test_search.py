"""The search and its verdict on made-up engines, whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from sim.advice.evaluate import Job, Outcome
from sim.advice.metrics import METRICS, parse_constraint
from sim.advice.pairs import paired
from sim.advice.search import BASE, Found, Plan, search
from sim.advice.settings import Candidate, Space, overrides_of, serve_flags
from sim.advice.verdict import Verdict, judge

Model = Callable[[dict[str, float], int], dict[str, float] | str]

SPACE = Space(
    base={"max_num_batched_tokens": 512, "watermark": 0.0, "block_size": 16, "enable_prefix_caching": True},
    tried={
        "max_num_batched_tokens": (128, 256, 1024, 2048),
        "watermark": (0.01, 0.05),
        "block_size": (32, 64),
        "enable_prefix_caching": (False,),
    },
    given_blocks=1001,
)
PLAN = Plan(METRICS["e2e_s.mean"], (), (0, 1, 2, 3), tuple(range(4, 12)))


class Engine:
    """Runs jobs on a made-up engine and may be interrupted after some of them."""

    def __init__(self, model: Model, stop_after: int | None = None) -> None:
        self.model, self.found, self.stop_after = model, Found(done={}), stop_after

    def __call__(self, jobs: Sequence[Job]) -> None:
        for candidate, seed in jobs:
            if (candidate, seed) in self.found.done:
                continue
            if self.stop_after is not None and len(self.found.done) >= self.stop_after:
                raise KeyboardInterrupt
            outcome: Outcome = self.model({**SPACE.base, **dict(candidate.changes)}, seed)
            self.found.done[candidate, seed] = outcome


def run(model: Model, plan: Plan = PLAN, stop_after: int | None = None) -> tuple[Found, Verdict]:
    engine = Engine(model, stop_after)
    found = search(SPACE, plan, engine, engine.found)
    return found, judge(found, plan, SPACE)


def noise(s: dict[str, float], seed: int, scale: float, stream: int = 0) -> float:
    """A draw of the seed and the settings, the same whenever it is asked for."""
    key = [seed, stream, *(round(100 * float(v)) for v in s.values())]
    return scale * float(np.random.default_rng(key).standard_normal())


def result(e2e: float, ttft: float = 1.0, finished: float = 100.0) -> dict[str, float]:
    return {"e2e_s.mean": e2e, "ttft_s.p99": ttft, "finished": finished}


def test_paired_interval_has_the_numbers_of_a_textbook() -> None:
    # differences 1, 2, 3, 4: mean 2.5, standard error sqrt(5/3)/2, t(0.975, 3) = 3.182446
    p = paired([10, 10, 10, 10], [11, 12, 13, 14], 0.95)
    half = 3.182446305284263 * (5 / 3) ** 0.5 / 2
    assert p.difference == 2.5
    assert p.low == pytest.approx(2.5 - half, rel=1e-9)
    assert p.high == pytest.approx(2.5 + half, rel=1e-9)
    assert p.relative == 0.25
    corrected = paired([10, 10, 10, 10], [11, 12, 13, 14], 0.95, comparisons=20)
    assert corrected.level == pytest.approx(0.9975)
    assert corrected.low is not None
    assert p.low is not None
    assert corrected.low < p.low


def test_one_pair_has_no_interval() -> None:
    p = paired([2.0], [1.0], 0.95)
    assert (p.difference, p.low, p.high) == (-1.0, None, None)


def test_planted_gain_is_found_and_told_without_flattery() -> None:
    def model(s: dict[str, float], seed: int) -> dict[str, float]:
        slow = 10.0 if s["max_num_batched_tokens"] < 1024 else 8.0
        return result(slow + seed % 5 + noise(s, seed, 0.2), ttft=1.0 + (s["max_num_batched_tokens"] >= 1024))

    _, verdict = run(model)
    assert verdict.change
    assert dict(verdict.candidate.changes).keys() == {"max_num_batched_tokens"}
    gain = next(s for s in verdict.sentences if s.kind == "gain").evidence[0]
    assert gain.seeds == PLAN.confirm
    assert gain.numbers.low is not None
    assert gain.numbers.high is not None
    assert gain.numbers.low < -2.0 < gain.numbers.high
    costs = [s for s in verdict.sentences if s.kind == "cost"]
    assert [c.evidence[0].metric.name for c in costs] == ["ttft_s.p99"]
    assert "1 s -> 2 s" in costs[0].text


def test_two_gains_are_combined_and_told_apart() -> None:
    def model(s: dict[str, float], seed: int) -> dict[str, float]:
        e2e = 10.0 - (s["max_num_batched_tokens"] == 2048) - 0.5 * (s["watermark"] == 0.05)
        return result(e2e + seed + noise(s, seed, 0.02))

    _, verdict = run(model)
    assert verdict.change
    assert dict(verdict.candidate.changes) == {"max_num_batched_tokens": 2048, "watermark": 0.05}
    shares = [s for s in verdict.sentences if s.kind == "share"]
    assert [round(s.evidence[0].numbers.difference, 1) for s in shares] == [-1.0, -0.5]
    assert all(s.evidence[0].numbers.comparisons == 2 for s in shares)


def test_a_change_that_another_makes_useless_is_left_out() -> None:
    def model(s: dict[str, float], seed: int) -> dict[str, float]:
        helped = s["max_num_batched_tokens"] == 2048 or s["watermark"] == 0.05
        return result(10.0 - helped + seed)

    _, verdict = run(model)
    assert verdict.change
    assert len(verdict.candidate.changes) == 1


def test_the_range_is_followed_beyond_its_end() -> None:
    _, verdict = run(lambda s, seed: result(seed + 16384 / s["max_num_batched_tokens"] ** 0.5))
    assert dict(verdict.candidate.changes)["max_num_batched_tokens"] > 2048


def test_no_effect_at_all_keeps_the_config() -> None:
    _, verdict = run(lambda s, seed: result(10.0 + seed))
    assert not verdict.change
    assert verdict.flags(SPACE) == []
    assert "none of 9 tried changes changes the mean end-to-end latency" in verdict.sentences[0].text


def test_noise_is_rarely_taken_for_a_gain() -> None:
    """Settings that do nothing but shake the result: a change is advised in about 2.5 % of the searches."""
    false = 0
    trials = 150
    for trial in range(trials):

        def model(s: dict[str, float], seed: int, trial: int = trial) -> dict[str, float]:
            return result(10.0 + noise(s, seed, 1.0, trial))

        _, verdict = run(model)
        false += verdict.change
    # 2.5 % of 150 is 3.75; more than 10 has a probability below 0.2 %
    assert false <= 10


def test_a_gain_too_small_to_matter_is_not_advised() -> None:
    def model(s: dict[str, float], seed: int) -> dict[str, float]:
        return result(10.0 - 0.05 * (s["max_num_batched_tokens"] == 1024) + seed)

    _, verdict = run(model)
    assert not verdict.change
    assert "by 1 % or more; the most gives max_num_batched_tokens=1024" in verdict.sentences[0].text


def test_constraint_keeps_a_faster_setting_out() -> None:
    def model(s: dict[str, float], seed: int) -> dict[str, float]:
        tokens = s["max_num_batched_tokens"]
        return result({1024: 8.0, 2048: 6.0}.get(int(tokens), 10.0) + seed, ttft=tokens / 512)

    _, verdict = run(model, replace(PLAN, constraints=(parse_constraint("ttft_s.p99<=2"),)))
    assert dict(verdict.candidate.changes) == {"max_num_batched_tokens": 1024}
    assert any(s.text.startswith("Constraint ttft_s.p99 <= 2 is met") for s in verdict.sentences)


def test_a_kept_config_is_held_against_the_constraints() -> None:
    def model(s: dict[str, float], seed: int) -> dict[str, float]:
        return result(10.0 - 3 * (s["watermark"] == 0.05) + seed, ttft=1.0 + 4 * (s["watermark"] == 0.05))

    _, verdict = run(model, replace(PLAN, constraints=(parse_constraint("ttft_s.p99<=2"),)))
    assert not verdict.change
    assert "watermark=0.05 would give" in verdict.sentences[0].text
    assert "time to first token 1 s -> 5 s" in verdict.sentences[0].text
    assert verdict.sentences[1].text.startswith("As configured it meets ttft_s.p99 <= 2")


def test_a_broken_constraint_comes_before_the_objective() -> None:
    def model(s: dict[str, float], seed: int) -> dict[str, float]:
        tokens = s["max_num_batched_tokens"]
        return result(10.0 + 512 / tokens + seed, ttft=tokens / 256 + noise(s, seed, 0.01))

    _, verdict = run(model, replace(PLAN, constraints=(parse_constraint("ttft_s.p99<=1.5"),)))
    assert verdict.change
    assert dict(verdict.candidate.changes) == {"max_num_batched_tokens": 256}
    gains = [s.evidence[0].metric.name for s in verdict.sentences if s.kind == "gain"]
    assert gains == ["ttft_s.p99", "e2e_s.mean"]


def test_latency_is_not_bought_by_leaving_requests_unfinished() -> None:
    def model(s: dict[str, float], seed: int) -> dict[str, float]:
        small = s["max_num_batched_tokens"] < 512
        return result((5.0 if small else 10.0) + seed, finished=50.0 if small else 100.0)

    _, verdict = run(model)
    assert not verdict.change
    assert "finished requests 100 -> 50" in verdict.sentences[0].text


def test_a_trace_gets_no_confidence() -> None:
    plan = replace(PLAN, screen=(0,), confirm=())
    _, verdict = run(lambda s, seed: result(10.0 - (s["watermark"] == 0.05)), plan)
    assert verdict.change
    evidence = verdict.sentences[0].evidence[0]
    assert evidence.numbers.low is None
    assert "no interval" in evidence.text()


def test_refused_candidates_do_not_stop_the_search() -> None:
    def model(s: dict[str, float], seed: int) -> dict[str, float] | str:
        if s["max_num_batched_tokens"] < 512:
            return "max_num_batched_tokens is smaller than max_num_seqs"
        return result(10.0 - (s["max_num_batched_tokens"] == 1024) + seed)

    found, verdict = run(model)
    assert verdict.change
    assert found.refusal(Candidate((("max_num_batched_tokens", 128),)))


@pytest.mark.parametrize("stop", [0, 3, 20, 40, 43, 47])
def test_interrupted_search_says_what_is_known(stop: int) -> None:
    def model(s: dict[str, float], seed: int) -> dict[str, float]:
        return result(10.0 - 2 * (s["max_num_batched_tokens"] == 1024) + seed + noise(s, seed, 0.01))

    found, verdict = run(model, stop_after=stop)
    assert found.interrupted
    assert len(found.done) == stop
    if verdict.change:
        assert any("Interrupted: confirmed on" in s.text for s in verdict.sentences)
    else:
        assert "nterrupted" in verdict.sentences[0].text


def test_budget_bounds_the_search() -> None:
    plan = replace(PLAN, max_runs=12)
    found, _ = run(lambda s, seed: result(10.0 + seed), plan)
    assert len(found.done) <= 12
    assert found.out_of_runs == 7


def test_serve_flags_are_vllms() -> None:
    candidate = (
        BASE.having("max_num_batched_tokens", 4096)
        .having("watermark", 0.05)
        .having("enable_prefix_caching", False)
        .having("max_num_seqs", 32)
        .having("gpu_memory_utilization", 0.95)
    )
    assert serve_flags(candidate, SPACE) == [
        "--no-enable-prefix-caching",
        "--gpu-memory-utilization",
        "0.95",
        "--max-num-batched-tokens",
        "4096",
        "--max-num-seqs",
        "32",
        "--watermark",
        "0.05",
    ]


def test_another_block_size_keeps_the_tokens_of_a_given_pool() -> None:
    candidate = BASE.having("block_size", 64)
    assert overrides_of(candidate, SPACE) == ["engine.block_size=64", "engine.num_gpu_blocks=251"]
    assert serve_flags(candidate, SPACE) == ["--block-size", "64", "--num-gpu-blocks-override", "251"]
    assert serve_flags(candidate, replace(SPACE, given_blocks=None)) == ["--block-size", "64"]
