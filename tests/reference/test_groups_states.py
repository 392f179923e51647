"""States, hits that end inside a block, drafts and cross attention, in stories that were computed by hand."""

from __future__ import annotations

import pytest

from sim.reference import Settings
from tests.reference.stories import Story, text

FULL = {"type": "full"}
MAMBA = {"type": "mamba"}


# ---- states ------------------------------------------------------------------------------------------------


def test_a_prefill_ends_where_its_state_is_cached() -> None:
    story = Story([FULL, MAMBA])
    story.add("a", text(10))
    assert story.step() == {"a": 8}  # a repeat can resume after 8 of 10 tokens: the state there is kept
    assert story.tables("a") == [[1, 2], [0, 3]]
    assert story.keyed == [1, 2, 3]
    assert story.step() == {"a": 2}
    assert story.tables("a") == [[1, 2, 4], [0, 3, 5]]
    assert story.step() == {"a": 1}
    assert story.tables("a") == [[1, 2, 4], [0, 0, 5]]
    assert story.queue == [*range(6, 20), 3]


def test_a_state_is_not_hit_in_the_step_that_computes_it() -> None:
    story = Story([FULL, MAMBA])
    story.add("a", text(10))
    story.add("b", text(10))
    assert story.step() == {"a": 8}  # full attention's blocks could be hit at once
    assert story.hit(text(10)) == ([[1, 2], [0, 3]], 8, 0)
    # Nor in the one after it: as long as the state is in a's table, each step of a notes it again.
    assert story.step() == {"a": 2}
    assert story.step() == {"a": 1, "b": 2}
    assert story.tables("b") == [[1, 2, 6], [0, 3, 7]]


def test_chunks_end_at_blocks_unless_a_block_is_larger_than_a_chunk() -> None:
    story = Story([FULL, MAMBA], max_num_batched_tokens=10, max_num_scheduled_tokens=10)
    story.add("a", text(30))
    assert [story.step()["a"] for _ in range(4)] == [8, 8, 8, 4]
    small = Story([FULL, MAMBA], max_num_batched_tokens=8, max_num_scheduled_tokens=3)
    small.add("a", text(12))
    assert [small.step()["a"] for _ in range(4)] == [3, 1, 3, 1]


def test_a_chunk_ends_at_a_prefix_that_another_request_shares() -> None:
    story = Story([FULL, MAMBA], num_gpu_blocks=40)
    story.add("a", text(30), output=1)
    story.step()
    story.step()
    b = story.add("b", text(22, own=8))
    # Full attention hits 12 tokens; a state is there at 28 only. The chunk ends at 12, and the state is kept.
    assert story.step() == {"b": 12}
    assert b.shared_prefix_boundary == 12
    assert story.hit(text(20, own=6))[1:] == (12, 0)


def test_in_mode_all_each_block_has_its_state_and_no_chunk_is_cut() -> None:
    story = Story(
        [FULL, {**MAMBA, "mamba_cache_mode": "all"}], vllm="0.25", prefix_cache_retention_interval=None
    )
    story.add("a", text(10))
    assert story.step() == {"a": 10}
    assert story.tables("a") == [[1, 2, 3], [4, 5, 6]]
    assert story.keyed == [1, 2, 4, 5]
    assert story.hit(text(10)) == ([[1, 2], [0, 5]], 8, 0)
    assert story.hit(text(7)) == ([[1], [4]], 4, 0)  # a state in the middle of the prompt, too
    assert story.step() == {"a": 1}
    # What lies behind the running state is given up, its keys stay.
    assert story.tables("a") == [[1, 2, 3], [0, 0, 6]]
    assert story.queue == [*range(7, 20), 5, 4]
    assert story.hit(text(7)) == ([[1], [4]], 4, 0)


def test_without_caching_only_the_last_state_is_held() -> None:
    story = Story([MAMBA], enable_prefix_caching=False)
    story.add("a", text(10))
    assert story.step() == {"a": 10}
    assert story.tables("a") == [[1, 2, 3]]
    story.step()
    assert story.tables("a") == [[0, 0, 3]]


def test_an_interval_keeps_a_state_at_each_multiple() -> None:
    story = Story([MAMBA], max_num_batched_tokens=8, prefix_cache_retention_interval=8)
    story.add("a", text(23))
    tables = []
    for _ in range(3):
        story.step()
        tables.append(story.tables("a")[0])
    assert tables == [[0, 1], [0, 1, 0, 2], [0, 0, 0, 2, 3]]
    assert story.keyed == [1, 2, 3]  # after 8 and 16 tokens, and where a repeat resumes: after 20


def test_a_kernel_that_exports_states_needs_no_cut() -> None:
    story = Story([FULL, {**MAMBA, "prefill_checkpoint_alignment": 1}])
    story.add("a", text(10))
    assert story.step() == {"a": 10}
    # Block 4 holds the state after 8 tokens, block 5 the running one.
    assert story.tables("a") == [[1, 2, 3], [0, 4, 5]]
    assert story.keyed == [1, 2, 4]
    assert story.hit(text(10)) == ([[1, 2], [0, 4]], 8, 0)


# ---- hits that end inside a block --------------------------------------------------------------------------


def partial_story() -> Story:
    """8 tokens a block, hits at multiples of 2; a request of 13 tokens has been prefilled."""
    story = Story([FULL, MAMBA], block_size=8, prefix_match_unit=2)
    story.add("a", text(13))
    assert [story.step()["a"] for _ in range(2)] == [8, 4]
    assert story.tables("a") == [[1, 3], [2, 4]]
    assert [story.pool.blocks[i].block_hash_num_tokens for i in (1, 2, 3, 4)] == [8, 8, 12, 12]
    return story


def test_the_state_at_the_end_of_a_prompt_is_copied_before_it_is_overwritten() -> None:
    story = partial_story()
    assert story.step() == {"a": 1}
    # The running state stays in block 4; what it was is cached in block 5, which nobody holds any more.
    assert story.tables("a") == [[1, 3], [0, 4]]
    assert story.keyed == [1, 2, 3, 5]
    assert story.queue == [*range(6, 20), 2, 5]


def test_a_hit_inside_a_block_is_copied() -> None:
    story = partial_story()
    story.step()
    assert story.hit(text(16, own=3)) == ([[1, 3], [0, 5]], 12, 0)
    story.add("b", text(16, own=3))
    assert story.step() == {"a": 1, "b": 2}  # b ends at 14, where a repeat of it can resume
    assert story.tables("b") == [[1, 6], [0, 7]]
    # The shared blocks are given up when the copies are made: block 3 is a's, block 5 nobody's.
    assert [story.pool.blocks[i].ref_cnt for i in (3, 5, 6, 7)] == [1, 0, 1, 1]
    assert story.queue == [*range(8, 20), 2, 5]


def test_a_window_in_whole_blocks_turns_such_hits_off() -> None:
    groups = [FULL, MAMBA, {"type": "sliding_window", "sliding_window": 8}]
    story = Story(groups, block_size=8, prefix_match_unit=2)
    story.add("a", text(13))
    assert [story.step()["a"] for _ in range(2)] == [8, 5]
    assert story.hit(text(16, own=3))[1] == 8


# ---- drafts ------------------------------------------------------------------------------------------------

EAGLE = {"num_speculative_tokens": 2, "speculative_method": "eagle"}


def test_drafts_take_slots_and_wrong_ones_are_taken_back() -> None:
    story = Story([FULL], **EAGLE)
    a = story.add("a", text(8), accepted_drafts=[1, 0, 2])
    assert story.step() == {"a": 8}
    assert story.tables("a") == [[1, 2, 3]]  # room for 2 more tokens
    seen = []
    for _ in range(3):
        assert story.step() == {"a": 3}
        seen.append((a.num_tokens, a.num_computed_tokens, story.tables("a")[0]))
    assert seen == [
        (11, 10, [1, 2, 3, 4]),  # of 11 computed one is taken back
        (12, 11, [1, 2, 3, 4]),  # of 13 two; slots for 15 tokens fit
        (15, 14, [1, 2, 3, 4]),
    ]
    assert story.keyed == [1, 2, 3]


def test_a_drafters_hit_loses_its_last_block() -> None:
    story = Story([FULL], **EAGLE)
    story.add("a", text(12))
    story.step()
    assert story.hit(text(16, own=4)) == ([[1, 2]], 8, 0)
    plain = Story([FULL], num_speculative_tokens=2, speculative_method="ngram")
    plain.add("a", text(12))
    plain.step()
    assert plain.tables("a") == [[1, 2, 3]]  # no slots for a drafter
    assert plain.hit(text(16, own=4)) == ([[1, 2, 3]], 12, 0)


def test_a_window_keeps_the_block_that_is_dropped_and_the_one_before() -> None:
    story = Story([{"type": "sliding_window", "sliding_window": 5}], **EAGLE)
    story.add("a", text(16))
    story.step()
    # A repeat matches 12 tokens and resumes at 8, a longer text matches 16 and resumes at 12.
    assert story.keyed == [2, 3, 4]
    assert story.hit(text(16)) == ([[0, 2]], 8, 0)
    assert story.hit(text(20, own=4)) == ([[0, 0, 3]], 12, 0)


def test_an_admission_of_one_token_looks_like_a_decode() -> None:
    story = Story([FULL], **EAGLE, prefix_cache_retention_interval=None)
    story.add("a", text(4))
    assert story.step() == {"a": 4}
    story.add("b", [5])
    assert story.step() == {"a": 3, "b": 3}
    story.add("c", [6, 7])
    assert story.step()["c"] == 2


def test_a_threshold_below_the_rows_of_a_padded_decode_is_fatal_as_in_vllm() -> None:
    story = Story([FULL], **EAGLE, long_prefill_token_threshold=2)
    story.add("a", text(4))
    for _ in range(2):
        story.step()
    story.add("b", [5])
    with pytest.raises(AssertionError, match="long_prefill_token_threshold"):
        story.step()


def test_a_drafter_with_inputs_of_its_own_leaves_less_budget() -> None:
    story = Story(
        [FULL], num_speculative_tokens=2, speculative_method="draft_model", max_num_batched_tokens=10
    )
    for name in "ab":
        story.add(name, text(6))
    assert story.step() == {"a": 6, "b": 2}  # 10 inputs, two of them for drafting


# ---- cross attention ---------------------------------------------------------------------------------------

CROSS = {"type": "cross_attention", "encoder_tokens": 10}
ENCODER = {"enable_prefix_caching": False, "enable_chunked_prefill": False, "max_model_len": 64}


def test_encoder_tokens_get_their_blocks_with_the_first_step() -> None:
    story = Story([FULL, CROSS], **ENCODER)
    story.add("a", text(5), output=2)
    story.step()
    assert story.tables("a") == [[1, 2], [3, 4, 5]]
    story.step()
    assert story.queue == [5, 4, 3, 2, 1, *range(6, 20)]


def test_encoders_run_within_a_budget() -> None:
    story = Story([FULL, {**CROSS, "encoder_tokens": 30}], **ENCODER, num_gpu_blocks=80)
    for name in "abc":
        story.add(name, text(5))
    assert list(story.step()) == ["a", "b"]  # 64 encoder tokens a step
    assert list(story.step()) == ["a", "b", "c"]


def test_cross_attention_has_no_prefix_cache() -> None:
    with pytest.raises(ValueError, match="turn enable_prefix_caching off"):
        Settings.from_dict({"kv_cache_groups": [FULL, CROSS]})
