"""Sizes under the rules of other vLLM releases, against recorded answers of their own planners."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sim.models import find_model
from sim.profiles import releases, rules_of
from sim.sizing import CacheArgs, Refusal, cache_layout, hybrid_manager, mamba_cache_mode, prefix_caching
from sim.switches import SIZE_SWITCHES, SWITCHES
from validation.sizing.recordings import RecordedReleases

RECORDED = RecordedReleases(Path(__file__).parents[1] / "recorded_vllm" / "sizing_releases.json")

#: Switches that the recorded answers show.
SHOWN = ("null_in_check", "admission_cap", *(n for n in SIZE_SWITCHES if n != "huge_gpu"))


def test_every_release_is_recorded() -> None:
    assert RECORDED.releases == list(releases())


@pytest.mark.parametrize("release", RECORDED.releases)
def test_recorded_answers(release: str) -> None:
    """Groups, their order, block and page sizes, blocks, tokens, concurrency, refusals, caching and mode."""
    asked = list(RECORDED.answers(release))
    different = [f"{what}\n  vLLM {real}\n  ours {ours}" for what, real, ours in asked if real != ours]
    assert different == []
    assert len(asked) > 250
    assert 30 < sum("refused" in real for _, real, _ in asked) < len(asked) / 2


@pytest.mark.parametrize("name", SHOWN)
def test_each_value_of_a_switch_shows(name: str) -> None:
    """Under the value of the release before, some answer of the release that changed it differs."""
    switch = next(s for s in SWITCHES if s.name == name)
    for before, onset in zip(switch.onsets, switch.onsets[1:], strict=False):
        if name == "admission_cap" and onset.value == "batch":
            continue  # it caps the scheduler's reserve alone
        if onset.value == "asked_latent":
            continue  # no shipped model has states and latent attention: test_blocks_of_latent_hybrids
        old = replace(rules_of(onset.release), **{name: before.value})
        asked = RECORDED.answers(onset.release, old)
        assert any(real != ours for _, real, ours in asked), (onset.release, before.value)


def caching_and_mode(
    name: str, release: str, caching: bool | None = None, **more: object
) -> tuple[bool, str]:
    model, rules = find_model(name), rules_of(release)
    assert model is not None
    on = prefix_caching(model, caching, rules)
    return on, mamba_cache_mode(model, on, rules, **more)  # type: ignore[arg-type]


def test_prefix_caching_of_states_by_default() -> None:
    """Off beside attention before 0.28, and in models of states alone everywhere."""
    assert caching_and_mode("jamba-mini", "0.13") == caching_and_mode("jamba-mini", "0.27") == (False, "none")
    assert caching_and_mode("jamba-mini", "0.28") == caching_and_mode("jamba-mini", "0.33") == (True, "align")
    assert caching_and_mode("mamba-codestral-7b", "0.33") == (False, "none")
    assert caching_and_mode("llama-3.1-8b", "0.13") == (True, "none")
    assert caching_and_mode("whisper-large-v3", "0.13") == (False, "none")


def test_modes_of_states() -> None:
    """With prefix caching: `all` alone, then by default where the kernels can do it, then only on demand."""
    modes = {r: caching_and_mode("jamba-mini", r, True)[1] for r in releases()}
    assert [r for r, mode in modes.items() if mode == "all"] == list(releases())[:15]
    assert set(modes.values()) == {"all", "align"}
    # Qwen3-Next's kernels can't: 0.13 and 0.14 turn prefix caching off
    assert caching_and_mode("qwen3-next-80b-a3b", "0.14", True) == (False, "none")
    assert caching_and_mode("qwen3-next-80b-a3b", "0.15", True) == (True, "align")
    assert caching_and_mode("qwen3-next-80b-a3b", "0.15", True, asked="all") == (True, "align")
    assert caching_and_mode("jamba-mini", "0.28", True, asked="all") == (True, "all")
    assert caching_and_mode("jamba-mini", "0.15", True, asked="align") == (True, "align")
    # 0.20 and 0.21 leave mode all with drafts
    with_drafts = [caching_and_mode("jamba-mini", r, True, drafts=True)[1] for r in ("0.19", "0.20", "0.22")]
    assert with_drafts == ["all", "align", "all"]


def layout_of(name: str, release: str, **changes: object) -> tuple[int, set[int]]:
    """Block size of the engine and of the states."""
    model = find_model(name)
    assert model is not None
    args = CacheArgs(None, rules=rules_of(release), **changes)  # type: ignore[arg-type]
    layout = cache_layout(model, args)
    return layout.block_size, {s.block_size for s in layout.specs if s.kind == "mamba"}


def test_blocks_of_states_in_every_block() -> None:
    """Jamba: a multiple of the chunk of 2,048 tokens that its kernels take; else 80 tokens hold a state."""
    assert layout_of("jamba-mini", "0.14") == (2048, {2048})
    assert layout_of("jamba-mini", "0.15") == (2048, {2048})
    assert layout_of("jamba-mini", "0.15", mamba_cache_mode="align") == (80, {80})
    assert layout_of("jamba-mini", "0.28") == (80, {80})
    # the user's block of states takes the chunk's place
    assert layout_of("jamba-mini", "0.15", mamba_block_size=64) == (128, {128})
    # states alone
    assert layout_of("mamba-codestral-7b", "0.13", max_model_len=4096) == (16, {4096})
    assert layout_of("mamba-codestral-7b", "0.18") == (16, {16})
    with pytest.raises(Refusal, match="without a block size"):
        layout_of("mamba-codestral-7b", "0.15")


def test_blocks_of_latent_hybrids() -> None:
    """Jamba with latent attention in the place of its own: a state of 304 KiB, 1,152 bytes a token."""
    jamba = find_model("jamba-mini")
    assert jamba is not None
    layers = tuple(
        replace(c, kind="mla", heads=1, head_size=576, head_size_v=0) if c.kind == "full" else c
        for c in jamba.cache_layers
    )
    model = replace(jamba, cache_layers=layers)

    def block(release: str, **changes: object) -> int:
        args = CacheArgs(None, rules=rules_of(release), enable_prefix_caching=False, **changes)  # type: ignore[arg-type]
        return cache_layout(model, args).block_size

    # the next multiples of 64, of 16 and of 128 from 270.2 tokens on
    assert [block(r) for r in ("0.17", "0.20", "0.27", "0.32")] == [320, 272, 384, 384]
    assert block("0.17", attention_backend="CUTLASS_MLA") == 384


def test_drafts_of_models_with_states() -> None:
    with pytest.raises(Refusal, match="states of this type"):
        layout_of("jamba-mini", "0.16", num_speculative_tokens=2)
    with pytest.raises(Refusal, match="turn one of them off"):
        layout_of("qwen3-next-80b-a3b", "0.16", num_speculative_tokens=2)
    off = layout_of("qwen3-next-80b-a3b", "0.16", num_speculative_tokens=2, enable_prefix_caching=False)
    assert off == (560, {4096})
    assert layout_of("jamba-mini", "0.17", num_speculative_tokens=2)[0] == 2048


def test_hybrid_manager_of_chunked_attention() -> None:
    model = find_model("llama-4-scout")
    assert model is not None
    assert not hybrid_manager(model, False, None, rules_of("0.13"))
    assert hybrid_manager(model, False, None, rules_of("0.14"))
    assert not hybrid_manager(model, False, "eagle3", rules_of("0.33"))
    assert hybrid_manager(model, False, "ngram", rules_of("0.33"))
    assert not hybrid_manager(model, True, None, rules_of("0.33"))
