"""What vLLM 0.32.0 refuses in the KV-cache groups of an engine, and what the core does not simulate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sim.config_yaml import Problem

if TYPE_CHECKING:
    from sim.engine_settings import EngineSettings

#: The key that a type of group can't do without.
_NEEDS = {
    "sliding_window": "sliding_window",
    "chunked_local": "attention_chunk_size",
    "cross_attention": "encoder_tokens",
}
_OWN = (
    "sliding_window",
    "attention_chunk_size",
    "mamba_cache_mode",
    "prefill_checkpoint_alignment",
    "encoder_tokens",
)
#: Keys that only a Mamba group may have.
_OF_MAMBA = ("mamba_cache_mode", "prefill_checkpoint_alignment")


def check_groups(s: EngineSettings, prefix: tuple[str | int, ...] = ()) -> list[Problem]:
    """Problems of `kv_cache_groups`, `prefix_match_unit` and `prefix_cache_retention_interval`.

    Args:
        s: the settings.
        prefix: path of the engine's section in the document, for the places of the problems.
    """
    found = [*_each_group(s, prefix)] or [*_encoder(s, prefix)]
    return found or [*_block_sizes(s, prefix), *_retention(s, prefix)]


def _each_group(s: EngineSettings, prefix: tuple[str | int, ...]) -> Iterator[Problem]:
    for i, group in enumerate(s.kv_cache_groups):
        place = (*prefix, "kv_cache_groups", i)
        name = f"kv_cache_groups[{i}]"
        needed = _NEEDS.get(group.type)
        if needed and getattr(group, needed) is None:
            yield Problem(
                (*place, "type"), f"{name}: a {group.type} group needs {needed}", f"add {needed}: N"
            )
        for key in _OWN:
            fits = needed == key or (key in _OF_MAMBA and group.type == "mamba")
            if getattr(group, key) is not None and not fits:
                yield Problem(
                    (*place, key), f"{name}: {key} means nothing for a {group.type} group", "drop it"
                )
        if group.type == "mamba" and group.mamba_cache_mode not in (None, s.mamba_cache_mode):
            yield _wrong_mode(s, group.mamba_cache_mode, name, (*place, "mamba_cache_mode"))
        if group.prefill_checkpoint_alignment is not None and s.mamba_cache_mode == "all":
            yield Problem(
                (*place, "prefill_checkpoint_alignment"),
                f"{name}: no states are exported from inside a chunk in mamba_cache_mode all",
                "drop it: every block has its state then",
            )
        drafts, size = s.num_speculative_tokens, group.block_size or s.block_size
        exports = group.prefill_checkpoint_alignment is not None and s.enable_prefix_caching
        kept = s.prefix_cache_retention_interval != 0 or s.rules.state_exports != "hits"
        if exports and drafts >= size and kept:
            yield Problem(
                place,
                f"{name}: states exported among {drafts} drafts, from blocks of {size} tokens",
                "vLLM fails an assertion there: use prefix_cache_retention_interval 0 (from 0.32 on), or"
                " fewer drafts",
            )


def _wrong_mode(s: EngineSettings, mode: str | None, name: str, place: tuple[str | int, ...]) -> Problem:
    used = s.mamba_cache_mode
    if s.enable_prefix_caching and s.rules.state_tables == "chosen" and mode == "align":
        return Problem(
            place,
            f"{name}: mamba_cache_mode {mode}, another group has {used}",
            "the mode is one for all groups: give them the same",
        )
    state = "on" if s.enable_prefix_caching else "off"
    under = f" under vLLM {s.vllm}" if s.enable_prefix_caching else ""
    return Problem(
        place,
        f"{name}: mamba_cache_mode {mode} with prefix caching {state}{under}",
        f"vLLM uses {used} then: leave the key out",
    )


def _encoder(s: EngineSettings, prefix: tuple[str | int, ...]) -> Iterator[Problem]:
    """What cross attention excludes: vLLM turns it off for such models, or fails."""
    crossing = [(i, g) for i, g in enumerate(s.kv_cache_groups) if g.type == "cross_attention"]
    if not crossing:
        return
    off = {
        "enable_prefix_caching": (False, "encoder-decoder models have no prefix cache"),
        "enable_chunked_prefill": (False, "encoder-decoder models compute each prompt in one step"),
        "long_prefill_token_threshold": (0, "encoder-decoder models compute each prompt in one step"),
    }
    for key, (value, reason) in off.items():
        if getattr(s, key) != value:
            yield Problem(
                (*prefix, key),
                f"{key} with a cross_attention group: {reason}",
                f"vLLM leaves it off for them: use {key}: {str(value).lower()}",
            )
    tokens = s.encoder_tokens
    for i, group in crossing:
        place = (*prefix, "kv_cache_groups", i, "encoder_tokens")
        if group.encoder_tokens != tokens:
            yield Problem(
                place,
                f"kv_cache_groups[{i}]: {group.encoder_tokens} encoder tokens, another group has {tokens}",
                "all groups read the output of one encoder: give them the same number",
            )
    if tokens > s.max_num_batched_tokens:
        yield Problem(
            (*prefix, "max_num_batched_tokens"),
            f"max_num_batched_tokens ({s.max_num_batched_tokens}) is smaller than an encoder input"
            f" ({tokens} tokens)",
            f"the encoder takes an input as a whole, so vLLM refuses this: raise it to {tokens}",
        )


def _block_sizes(s: EngineSettings, prefix: tuple[str | int, ...]) -> Iterator[Problem]:
    """Block sizes against each other and against the hash unit; they matter to prefix caching alone."""
    if not s.enable_prefix_caching:
        return
    if s.drops_hits or any(group.is_eagle_group for group in s.kv_cache_groups):
        for i, group in enumerate(s.kv_cache_groups):
            if group.type == "chunked_local":
                yield Problem(
                    (*prefix, "kv_cache_groups", i, "type"),
                    f"kv_cache_groups[{i}]: chunked local attention with an eagle or mtp drafter",
                    "vLLM has no prefix caching for the two: use another drafter, or turn caching off",
                )
    sizes = [g.block_size or s.block_size for g in s.kv_cache_groups]
    unit = s.prefix_match_unit
    unit_place = (*prefix, "prefix_match_unit")
    if len(sizes) == 1:
        if sizes[0] != s.block_size:
            yield Problem(
                (*prefix, "kv_cache_groups", 0, "block_size"),
                f"kv_cache_groups[0].block_size {sizes[0]} differs from block_size {s.block_size}",
                f"with a single group vLLM hashes whole blocks: use block_size {sizes[0]}",
            )
        if unit not in (None, s.block_size):
            yield Problem(
                unit_place,
                f"prefix_match_unit {unit}: with a single group hits end at blocks of {s.block_size} tokens",
                f"leave it out, or use the block size ({s.block_size})",
            )
        return
    if unit is not None and any(size % unit for size in sizes):
        yield Problem(
            unit_place,
            f"prefix_match_unit {unit} does not divide the block sizes of the groups ({sizes})",
            f"use a divisor of {math.gcd(*sizes)}",
        )
        return
    for i, (group, size) in enumerate(zip(s.kv_cache_groups, sizes, strict=True)):
        if group.type == "chunked_local" and size != math.lcm(*sizes):
            yield Problem(
                (*prefix, "kv_cache_groups", i, "type"),
                f"kv_cache_groups[{i}]: chunked local attention beside groups of another block size",
                "vLLM can't look hits up: turn enable_prefix_caching off, or use groups of one block size"
                f" (here {sizes})",
            )


def _retention(s: EngineSettings, prefix: tuple[str | int, ...]) -> Iterator[Problem]:
    interval = s.prefix_cache_retention_interval
    if not interval:
        return
    place = (*prefix, "prefix_cache_retention_interval")
    states = s.rules.state_retention == "on"
    retained = ("sliding_window", "mamba") if states else ("sliding_window",)
    if not any(g.type in retained for g in s.kv_cache_groups):
        what = "sliding-window or Mamba" if states else "sliding-window"
        yield Problem(
            place,
            f"prefix_cache_retention_interval {interval} without a {what} group",
            "it has no effect on other groups, so vLLM refuses it: use 0",
        )
        return
    common = math.lcm(*(g.block_size or s.block_size for g in s.kv_cache_groups))
    if interval % common:
        yield Problem(
            place,
            f"prefix_cache_retention_interval {interval} is not a multiple of {common} tokens",
            f"hits end at multiples of the groups' common block size: use 0, null or a multiple of {common}",
        )
