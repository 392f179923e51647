"""The shrinker keeps what makes a case fail and drops the rest."""

from __future__ import annotations

import pytest

from validation.cli import GROUP_FAMILIES
from validation.fuzz_cases import Case, blocks_of_largest, random_case
from validation.fuzz_groups import FAMILIES, random_group_case, scheduler_block_size
from validation.shrink import shrink


def test_a_seed_determines_a_case() -> None:
    assert random_case(7) == random_case(7)
    assert random_case(7) != random_case(8)


@pytest.mark.parametrize("seed", range(200))
def test_random_cases_are_within_the_rules(seed: int) -> None:
    case = random_case(seed)
    s = case.settings
    assert s.max_num_batched_tokens >= s.max_num_seqs >= s.active_seqs >= 1
    assert s.enable_chunked_prefill or s.scheduled_tokens >= s.max_model_len
    assert s.num_gpu_blocks - 1 >= blocks_of_largest(s, case.requests)
    for request in case.requests:
        assert 1 <= len(request.prompt_token_ids) < s.max_model_len
        assert request.output_token_ids
    assert len({r.request_id for r in case.requests}) == len(case.requests)


@pytest.mark.parametrize("family", FAMILIES)
def test_cases_with_groups_are_within_the_rules(family: str) -> None:
    assert random_group_case(7, family) == random_group_case(7, family)
    for case in (random_group_case(seed, family) for seed in range(60)):
        s = case.settings
        assert s.num_gpu_blocks - 1 >= blocks_of_largest(s, case.requests)
        assert s.enable_chunked_prefill or s.scheduled_tokens >= s.max_model_len
        assert s.block_size == min(group.block_size or s.block_size for group in s.kv_cache_groups)
        interval = s.prefix_cache_retention_interval
        assert interval is None or interval % scheduler_block_size(s) == 0
        unit = s.prefix_match_unit or 1
        assert all((group.block_size or s.block_size) % unit == 0 for group in s.kv_cache_groups)
        assert all(1 <= len(r.prompt_token_ids) < s.max_model_len for r in case.requests)


def test_families_by_name() -> None:
    assert set(GROUP_FAMILIES) == {"full", "any", *FAMILIES}
    assert random_group_case(3, "full") == random_case(3)
    assert random_group_case(4, "any") == random_group_case(4, FAMILIES[4])


def test_shrink_finds_the_one_request_that_matters() -> None:
    case = next(c for c in map(random_case, range(1000)) if any(r.priority == 2 for r in c.requests))

    def fails(smaller: Case) -> bool:
        return any(r.priority == 2 for r in smaller.requests)

    small = shrink(case, fails)
    assert len(small.requests) == 1
    assert len(small.requests[0].prompt_token_ids) == len(small.requests[0].output_token_ids) == 1
    assert small.requests[0].arrival_step == 0
    assert small.requests[0].cache_salt is None
    assert small.settings.policy == "fcfs"
    assert small.settings.watermark == 0
    assert small.settings.num_gpu_blocks == 2


def test_shrink_keeps_a_setting_that_matters() -> None:
    case = next(c for c in map(random_case, range(1000)) if c.settings.async_scheduling)
    small = shrink(case, lambda c: c.settings.async_scheduling and len(c.requests) >= 2)
    assert small.settings.async_scheduling
    assert len(small.requests) == 2


def test_shrink_stops_when_its_tries_are_used_up() -> None:
    calls = []

    def fails(smaller: Case) -> bool:
        calls.append(smaller)
        return True

    shrink(random_case(3), fails, max_tries=8)
    assert len(calls) == 8
