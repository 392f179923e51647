"""Windows, chunks, mixtures and mixed block sizes, each in a small story that was computed by hand."""

from __future__ import annotations

import pytest

from sim.reference import Settings
from tests.reference.stories import Story, text

FULL = {"type": "full"}


def window(size: int, **changed: int) -> dict[str, object]:
    return {"type": "sliding_window", "sliding_window": size, **changed}


# ---- sliding window ----------------------------------------------------------------------------------------


def test_a_window_that_moved_on_gives_blocks_back_before_it_takes_one() -> None:
    story = Story([window(8)], num_gpu_blocks=9)
    story.add("a", text(16))
    story.step()
    # A repeat resumes at 12 tokens and reads 7 before that: the second and third block are kept.
    assert story.keyed == [2, 3]
    story.step()
    # 16 - 8 + 1 tokens are out: blocks 2 and 1. The one without a key is free first, and taken at once.
    assert story.tables("a") == [[0, 0, 3, 4, 1]]
    assert story.queue == [5, 6, 7, 8, 2]


def test_dense_retention_keeps_every_block() -> None:
    story = Story([window(8)], num_gpu_blocks=9, prefix_cache_retention_interval=None)
    story.add("a", text(16))
    story.step()
    assert story.keyed == [1, 2, 3, 4]
    story.step()
    assert story.tables("a") == [[0, 0, 3, 4, 5]]
    assert story.queue == [6, 7, 8, 2, 1]


def test_an_interval_keeps_a_window_at_each_multiple() -> None:
    story = Story([window(5)], prefix_cache_retention_interval=8)
    story.add("a", text(23))
    story.step()
    # A window needs one block: those that end at 8 and 16, and the one before the replay at 20.
    assert story.keyed == [2, 4, 5]


def test_a_hit_is_the_rightmost_window_or_starts_at_the_beginning() -> None:
    story = Story([window(8)], num_gpu_blocks=9)
    story.add("a", text(16))
    story.step()
    assert story.hit(text(16)) == ([[0, 2, 3]], 12, 0)
    # Of the first 8 tokens a window is one block, and the beginning is not cached: sharing them hits nothing.
    assert story.hit(text(12, own=4)) == ([[]], 0, 0)
    dense = Story([window(8)], num_gpu_blocks=9, prefix_cache_retention_interval=None)
    dense.add("a", text(16))
    dense.step()
    assert dense.hit(text(21, own=5)) == ([[0, 0, 3, 4]], 16, 0)
    assert dense.hit(text(8, own=4)) == ([[1]], 4, 0)


def test_hits_left_of_the_window_stay_in_the_free_queue() -> None:
    story = Story([window(5)], num_gpu_blocks=9, prefix_cache_retention_interval=None)
    story.add("a", text(16), output=1)
    story.step()
    assert story.queue == [5, 6, 7, 8, 4, 3, 2, 1]
    story.add("b", text(20, own=4))
    assert story.step() == {"b": 4}
    assert story.tables("b") == [[0, 0, 0, 4, 5]]
    assert story.queue == [6, 7, 8, 3, 2, 1]


@pytest.mark.parametrize(("asynchronous", "admitted"), [(False, True), (True, False)])
def test_the_reserve_of_a_window_counts_what_can_be_in_flight(asynchronous: bool, admitted: bool) -> None:
    # 4 tokens before the next one, and 8 or 16 in flight: 3 or 5 blocks, and one more for the offset.
    story = Story(
        [window(5)],
        num_gpu_blocks=6,
        max_num_batched_tokens=8,
        async_scheduling=asynchronous,
        max_model_len=64,
    )
    assert story.kv.managers[0].admission_cap() == (6 if asynchronous else 4)
    assert (
        story.kv.allocate_slots(story.request("a", text(40)), 8, full_sequence_must_fit=True) is not None
    ) == (admitted)


# ---- chunked local -----------------------------------------------------------------------------------------


def test_chunks_are_freed_whole() -> None:
    story = Story([FULL, {"type": "chunked_local", "attention_chunk_size": 8}])
    story.add("a", text(15))
    story.step()
    assert story.tables("a") == [[1, 2, 3, 4], [5, 6, 7, 8]]
    story.step()  # 15 computed: the first chunk is out
    assert story.tables("a") == [[1, 2, 3, 4], [0, 0, 7, 8]]
    story.step()  # 16 computed: the second one too
    assert story.tables("a") == [[1, 2, 3, 4, 9], [0, 0, 0, 0, 10]]


def test_chunks_alone_hit_in_an_empty_cache() -> None:
    story = Story([{"type": "chunked_local", "attention_chunk_size": 8}])
    assert story.hit(text(20)) == ([[0, 0, 0, 0]], 16, 0)
    assert Story([FULL, {"type": "chunked_local", "attention_chunk_size": 8}]).hit(text(20)) == (
        [[], []],
        0,
        0,
    )


# ---- several groups ----------------------------------------------------------------------------------------


def test_groups_take_and_give_back_in_their_order() -> None:
    story = Story([window(64), FULL], num_gpu_blocks=9)
    story.add("a", text(6), output=1)
    story.step()
    # Both last blocks are half empty: each group puts its own in front, the second group's comes first.
    assert story.queue == [4, 2, 5, 6, 7, 8, 1, 3]


def test_a_prefix_that_only_full_attention_has_is_kept_next_time() -> None:
    story = Story([FULL, window(5)])
    story.add("a", text(12))
    story.step()
    assert story.tables("a") == [[1, 2, 3], [4, 5, 6]]
    assert story.keyed == [1, 2, 3, 5]
    b = story.add("b", text(20, own=8))
    story.step()
    # Full attention hits 12 tokens, the window only 8: the junction at 12 is noted, and its window kept. The
    # running request came first: its window gave up 5 and 4, and 4 was the next free block.
    assert b.shared_prefix_boundary == 12
    assert story.tables("a") == [[1, 2, 3, 4], [0, 0, 6, 7]]
    assert story.tables("b") == [[1, 2, 8, 9, 10], [0, 5, 11, 12, 13]]
    assert story.keyed == [1, 2, 3, 5, 8, 9, 10, 11, 12]
    assert story.hit(text(20, own=7))[1:] == (12, 0)


def test_equal_groups_hit_together() -> None:
    story = Story([FULL, FULL])
    story.add("a", text(12), output=1)
    story.step()
    story.pool.evict_blocks([5])  # the second group's second block
    assert story.hit(text(13)) == ([[1], [4]], 4, 0)


def test_three_types_agree_on_a_length() -> None:
    # Full attention has 16 tokens, the large window 12, the small one 8.
    story = Story([window(9), window(5), FULL], prefix_cache_retention_interval=None)
    story.add("a", text(16))
    story.step()
    assert story.tables("a") == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    story.pool.evict_blocks([4, 7])
    assert story.hit(text(17)) == ([[1, 2], [0, 6], [9, 10]], 8, 16)


def test_without_caching_freed_blocks_are_used_last_in_first_out() -> None:
    story = Story([FULL, window(5)], enable_prefix_caching=False, num_gpu_blocks=12)
    story.add("a", text(8), output=2)
    story.step()
    assert story.tables("a") == [[1, 2], [3, 4]]
    story.step()  # the window's first block is freed, and is the next one that is taken
    assert story.queue == [5, 4, 3, 2, 1, *range(6, 12)]


# ---- mixed block sizes -------------------------------------------------------------------------------------

MIXED = [{"type": "full", "block_size": 8}, window(5)]


def test_units_and_steps_of_mixed_block_sizes() -> None:
    settings = Settings.from_dict(
        {"kv_cache_groups": [{"type": "full", "block_size": 24}, window(9, block_size=32)], "block_size": 24}
    )
    assert (settings.hash_block_size, settings.scheduler_block_size) == (8, 96)
    assert Settings.from_dict({"block_size": 24}).hash_block_size == 24


def test_only_what_ends_at_a_common_multiple_is_cached() -> None:
    story = Story(MIXED)
    story.add("a", text(14))
    story.step()
    assert story.tables("a") == [[1, 2], [3, 4, 5, 6]]
    assert story.keyed == [1, 4]  # 8 of 14 tokens, and of the window what ends there


def test_the_end_of_a_prompt_gets_a_further_key() -> None:
    story = Story(MIXED)
    story.add("a", text(14))
    for _ in range(3):
        story.step()
    # 16 tokens are there now: the second block is full, and stands for the prompt's first 12 tokens, too.
    assert story.keyed == [1, 2, 4]
    assert [b.block_hash_num_tokens for b in story.pool.blocks[1:3]] == [8, 16]
    assert len(story.pool.keys_of(story.pool.blocks[2])) == 2
    assert len(story.pool.cached_block_hash_to_block) == 4
    story.pool.evict_blocks([2])
    assert len(story.pool.cached_block_hash_to_block) == 2
    assert story.keyed == [1, 4]


def test_a_further_key_is_replaced_by_that_of_the_whole_block() -> None:
    story = Story(MIXED)
    a = story.request("a", text(16))
    (block,) = story.pool.get_new_blocks(1)
    short = story.pool.cache_partial_block(a, block, 4, 0)
    assert (block.block_hash, block.block_hash_num_tokens) == (short, 4)
    story.pool.cache_full_blocks(a, [block], 0, 1, 8, 0)
    assert block.block_hash_num_tokens == 8
    assert short not in story.pool.cached_block_hash_to_block
    again = story.pool.cache_partial_block(a, block, 4, 0)
    assert story.pool.keys_of(block) == [block.block_hash, again]


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kv_cache_groups": [{"type": "sliding_window"}]}, "needs sliding_window"),
        ({"kv_cache_groups": [{"type": "rotary"}]}, "no groups of type 'rotary'"),
        ({"kv_cache_groups": [{"type": "mamba", "mamba_cache_mode": "none"}]}, "does not go with"),
        ({"kv_cache_groups": [{"type": "mamba", "mamba_cache_mode": "all"}]}, "does not go with"),
        ({"kv_cache_groups": [FULL, FULL], "prefix_match_unit": 3}, "does not divide"),
        ({"kv_cache_groups": [FULL], "prefix_match_unit": 3}, "with one group hits end on blocks"),
        ({"kv_cache_groups": [FULL], "prefix_cache_retention_interval": 16}, "needs a sliding window"),
        ({"kv_cache_groups": [window(8)], "prefix_cache_retention_interval": 17}, "multiple of 16"),
        ({"kv_cache_groups": [window(8, block_size=8)]}, "block size 8 in an engine of 16"),
        ({"num_speculative_tokens": 2}, "go together"),
    ],
)
def test_settings_that_vllm_refuses(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings.from_dict(settings)
