"""A request that was refused is looked up anew in each step, or found to be refused again before that."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from sim.core import codes as c
from sim.core import kv_cache_manager as kv_manager
from sim.core.jit import entry
from sim.core.state import State
from sim.engine_settings import KVCacheGroup
from tests.core.cases import Case, draw_case, drive, snapshot

_FORESEEN = 8


@entry
def ask_again(st: State, has_running: bool) -> int:
    """Outcome of the remembered request's admission, had it come now, and whether it was foreseen."""
    r = st.ctl.memo_req
    slot = st.requests.slot[r]
    foreseen = kv_manager.is_refused_again(st.kv, r, slot)
    hits = kv_manager.get_computed_blocks(st.kv, r, slot)
    outcome = kv_manager.can_admit(st.kv, r, slot, 1, hits, has_running)
    return outcome + _FORESEEN * foreseen


def tight_case(seed: int, clock: str) -> Case:
    """Full attention and windows in a pool so tight that requests wait."""
    rng = random.Random(seed)
    case = draw_case(60 * seed, clock)
    size = case.engine.block_size
    windows = [
        KVCacheGroup("sliding_window", sliding_window=rng.randint(1, 6 * size))
        if rng.random() < 0.7
        else KVCacheGroup("chunked_local", attention_chunk_size=rng.randint(1, 4) * size)
        for _ in range(rng.choice([1, 1, 2, 3]))
    ]
    groups = (KVCacheGroup(), *windows)
    engine = replace(
        case.engine,
        vllm=rng.choice(["0.25", "0.32", "0.33"]),
        kv_cache_groups=groups,
        num_gpu_blocks=1 + (case.engine.num_gpu_blocks - 1) * len(groups),
        num_speculative_tokens=0,
        speculative_method=None,
        draft_acceptance=None,
        enable_prefix_caching=True,
        enable_chunked_prefill=True,
        scheduler_reserve_full_isl=True,
        max_num_batched_tokens=max(case.engine.max_num_batched_tokens, 8),
        prefix_cache_retention_interval=rng.choice([0, None]),
    )
    return case._replace(engine=engine)


@pytest.mark.parametrize("clock", ["time", "logical"])
def test_what_is_foreseen_is_what_a_look_up_finds(clock: str) -> None:
    seen: Counter[str] = Counter()
    for seed in range(60):
        state = tight_case(seed, clock).state()
        rng = random.Random(seed)

        def ask(state: State = state) -> None:
            if state.ctl.memo_req < 0 or not state.kv.windows_only:
                return
            answer = ask_again(state, state.ctl.num_running > 0)
            foreseen, outcome = divmod(answer, _FORESEEN)
            seen[f"{outcome} {'foreseen' if foreseen else 'not foreseen'}"] += 1
            if foreseen:
                assert outcome == kv_manager.FAIL_RESERVE

        drive(state, rng, ask)
    assert seen[f"{kv_manager.FAIL_RESERVE} foreseen"] > 20
    assert seen[f"{kv_manager.FAIL_RESERVE} not foreseen"] > 0
    assert seen[f"{kv_manager.ALLOCATED} not foreseen"] > 0


@pytest.mark.parametrize("clock", ["time", "logical"])
def test_foresight_changes_nothing(clock: str) -> None:
    refused = 0
    for seed in range(40):
        ends = []
        for foresees in (0, 1):
            state = tight_case(seed, clock).state()
            state.params.foresees_refusals &= foresees
            assert drive(state, random.Random(seed), lambda: None) in (c.X_DONE, c.X_STUCK)
            # what the last look-up noted of a request that was never admitted
            state.requests.shared_boundary[state.requests.first_scheduled < 0] = 0
            ends.append(snapshot(state))
            refused += int(state.count.fail_reserve) if foresees and state.params.foresees_refusals else 0
        for name in ends[0]:
            assert ends[0][name] == ends[1][name], (seed, name)
    assert refused > 20
