"""Groups, pages and blocks: the examples checked through a real vLLM's planner, and what must always hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.profiles import Rules
from sim.sizing import CannotGroup, LayerSpec, Limits, group_layers, plan_pool, unread_share
from sim.sizing.groups import unify_pages
from sim.sizing.plan import largest_that
from validation.sizing.questions import random_mix

GIB = 2**30
FULL = LayerSpec("full", 16, heads=8, head_size=128, head_size_v=128, element_bytes=2)
MEMORY = 10 * GIB


def under(**changed: str) -> Rules:
    """The default rules with some changed."""
    return replace(Rules(), **changed)  # type: ignore[arg-type]


def window(tokens: int, heads: int = 8) -> LayerSpec:
    return replace(FULL, kind="sliding_window", sliding_window=tokens, heads=heads)


EVERY_SIXTH = [FULL if i % 6 == 5 else window(1024) for i in range(60)]
HALF_AND_HALF = [replace(FULL, heads=8 if i % 2 else 4) for i in range(20)]

#: Checked through a real vLLM 0.32.0: layers, group sizes, blocks, concurrency with 4096 tokens in flight.
EXAMPLES = {
    "32 full": ([FULL] * 32, (32,), 5120, 20.0),
    "every 6th full": (EVERY_SIXTH, (10,) * 6, 16384, 10.6321),
    "12 window, 13 full": ([window(128)] * 12 + [FULL] * 13, (12, 13), 12603, 24.57),
    "10 full, 13 window": ([FULL] * 10 + [window(1024)] * 13, (10, 13), 12603, 24.57),
    "10 full, 16 window": ([FULL] * 10 + [window(1024)] * 16, (10, 8, 8), 16384, 21.28),
    "8 and 4 heads": (HALF_AND_HALF, (20,), 10922, 42.66),
    "8 heads full, 4 heads window": ([FULL] * 10 + [window(1024, 4)] * 20, (10, 10, 10), 16384, 31.88),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_a_real_planner(name: str) -> None:
    specs, sizes, blocks, concurrency = EXAMPLES[name]
    plan = plan_pool(specs, MEMORY, Limits(4096, 4096))
    assert tuple(len(g.layers) for g in plan.groups) == sizes
    assert plan.num_blocks == blocks
    assert plan.max_concurrency == pytest.approx(concurrency, rel=2e-4)
    assert plan.tokens == int(plan.max_concurrency * 4096)


def test_examples_of_older_releases() -> None:
    """2048 tokens in flight until 0.25, and groups of up to 1.25 times the smallest until 0.17."""
    assert plan_pool(EVERY_SIXTH, MEMORY, Limits(4096, 2048)).max_concurrency == pytest.approx(
        13.4185, rel=1e-5
    )
    specs = [FULL] * 10 + [window(1024)] * 13
    assert plan_pool(specs, MEMORY, Limits(4096, 2048)).max_concurrency == pytest.approx(28.07, rel=2e-4)
    old = plan_pool(specs, MEMORY, Limits(4096, 2048, rules=under(group_ratio="1.25")))
    assert [len(g.layers) for g in old.groups] == [10, 7, 6]
    assert (old.num_blocks, old.max_concurrency) == (16384, pytest.approx(25.52, rel=2e-4))


def test_override_and_order() -> None:
    plan = plan_pool([FULL] * 32, MEMORY, Limits(4096, 4096), num_gpu_blocks_override=777)
    assert (plan.num_blocks, plan.max_concurrency) == (777, pytest.approx(3.0352, rel=1e-4))
    # The group of the first layer comes first, whatever its kind.
    assert [g.spec.kind for g in group_layers(EVERY_SIXTH)] == ["sliding_window"] * 5 + ["full"]
    assert group_layers(EVERY_SIXTH)[1].layers == tuple(i for i in range(60) if i % 6 != 5)[1::5]


def test_pages_are_made_equal() -> None:
    small = replace(FULL, heads=4)
    odd = replace(FULL, heads=3)
    state = LayerSpec("mamba", 16, state_bytes=1000)
    big, doubled, padded, filled = unify_pages([FULL, small, odd, state])
    assert (big, doubled.block_size, doubled.page_size_padded) == (FULL, 32, None)
    assert (padded.block_size, padded.page_bytes, filled.page_bytes) == (16, FULL.page_bytes, FULL.page_bytes)
    assert (padded.content_bytes, filled.content_bytes) == (odd.page_bytes, 1000)
    mla = LayerSpec("mla", 16, 1, 576, 0)
    with pytest.raises(CannotGroup, match="MLA pages"):
        unify_pages([FULL, mla])


def test_hybrid_manager_off() -> None:
    (group,) = group_layers(EVERY_SIXTH, hybrid_manager=False)
    assert (group.spec.kind, group.spec.sliding_window, len(group.layers)) == ("full", 1024, 60)
    state = LayerSpec("mamba", 16, state_bytes=FULL.page_bytes)
    with pytest.raises(CannotGroup, match="hybrid KV-cache manager off"):
        group_layers([FULL, window(64), state], hybrid_manager=False)
    with pytest.raises(CannotGroup, match="their windows differ"):
        group_layers([FULL, window(64), window(128)], hybrid_manager=False)
    # Windows alone stay what they are.
    assert group_layers([window(64)] * 3, hybrid_manager=False)[0].spec == window(64)


def test_start_up_check() -> None:
    need = 256 * 32 * FULL.page_bytes
    block = 32 * FULL.page_bytes
    exact = plan_pool([FULL] * 32, need, Limits(4096, 4096))
    assert not exact.starts
    assert exact.longest == 4096 - 16
    assert plan_pool([FULL] * 32, need + block, Limits(4096, 4096)).starts
    assert plan_pool([FULL] * 32, need, Limits(4096, 4096, rules=under(null_in_check="off"))).starts
    assert plan_pool([FULL] * 32, 0, Limits(4096, 4096)).longest == 0
    assert plan_pool([], MEMORY, Limits(4096, 4096)).num_blocks == 1
    assert exact.with_length(4080).starts


def test_start_up_check_of_older_releases() -> None:
    """Ten full layers and twenty windows of 1,024 tokens; 4,096 tokens, 2,048 in flight."""
    specs = [FULL] * 10 + [window(1024)] * 20
    blocks = (256, 193, 193)

    def fits(memory: int, **changed: str) -> bool:
        rules = under(null_in_check="off", **changed)
        return plan_pool(specs, memory, Limits(4096, 2048, rules=rules)).starts

    page = FULL.page_bytes
    for needs, pages in (
        ("layers", 10 * blocks[0] + 20 * blocks[1]),
        ("first_group", 10 * blocks[0]),
        ("groups", 10 * sum(blocks)),
    ):
        assert fits(pages * page, check_needs=needs)
        assert not fits(pages * page - 1, check_needs=needs)
    # half the memory of a request, but blocks for it
    rules = under(checked_memory="available")
    given = plan_pool(specs, MEMORY // 100, Limits(4096, 2048, rules=rules), num_gpu_blocks_override=9999)
    assert not given.starts
    assert plan_pool(specs, None, Limits(4096, 2048, rules=rules), num_gpu_blocks_override=9999).starts


def test_tokens_that_older_releases_print() -> None:
    specs = [FULL] * 10 + [window(1024)] * 20
    plan = plan_pool(specs, MEMORY, Limits(4096, 2048, rules=under(printed_tokens="blocks")))
    assert plan.tokens == 16384 // 3 * 16 == 87376
    assert plan_pool(specs, MEMORY, Limits(4096, 2048)).tokens == 104530


def test_unequal_pages_of_older_releases() -> None:
    odd, state = replace(FULL, heads=3), LayerSpec("mamba", 16, state_bytes=1000)
    mla = LayerSpec("mla", 16, 1, 576, 0)
    for value, refused in (
        ("grow", (odd, state, mla)),
        ("pad_attention", (state,)),
        ("pad", ()),
        ("pad_but_latent", (mla,)),
    ):
        rules = under(unequal_pages=value)
        for s in (odd, state, mla):
            if s in refused:
                with pytest.raises(CannotGroup):
                    unify_pages([FULL, s], rules)
            else:
                assert unify_pages([FULL, s], rules)[1].page_bytes == FULL.page_bytes


def test_unread_share() -> None:
    assert unread_share([FULL, window(4096)], 8192) == pytest.approx(0.25)
    assert unread_share([FULL, window(4096)], 4096) == 0.0
    cross = replace(FULL, kind="cross_attention")
    assert unread_share([FULL] * 4 + [cross], 10, 90) == pytest.approx(1 - (4 * 10 + 90) / 500)
    assert unread_share([LayerSpec("mamba", 16, state_bytes=8)], 100) == 0.0


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_bisection(limit: int, most: int) -> None:
    assert largest_that(lambda n: n <= limit, most) == min(limit, most)


@settings(max_examples=150, deadline=None)
@given(st.integers(10_000, 10_000_000))
def test_what_every_plan_has(seed: int) -> None:
    specs, available, limits, hybrid, override = random_mix(seed)
    try:
        plan = plan_pool(specs, available, limits, hybrid_manager=hybrid, num_gpu_blocks_override=override)
    except CannotGroup:
        return
    # Every layer is in one group, and no group is wider than a block.
    assert sorted(i for g in plan.groups for i in g.layers) == list(range(len(specs)))
    assert plan.block_bytes == max(g.block_bytes for g in plan.groups)
    if len(plan.groups) > 1:
        assert len({m.page_bytes for g in plan.groups for m in g.members}) == 1
    assert plan.used_bytes <= plan.available_bytes
    assert all(m.content_bytes <= m.page_bytes for g in plan.groups for m in g.members)
    if plan.starts:
        assert plan.longest == limits.max_model_len
        assert plan.max_concurrency > (1.0 if override is None else 0.99)
    elif plan.longest:
        assert plan.with_length(plan.longest).starts
        assert not plan.with_length(plan.longest + 1).starts
