"""Settings of an engine that vLLM refuses, or that the core does not simulate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from sim.config_groups import check_groups
from sim.config_yaml import Problem
from sim.engine_settings import EngineSettings, KVCacheGroup
from sim.errors import InputError, raise_all
from sim.profiles import (
    ALIKE_SINCE,
    DRAFT_MODEL_SINCE,
    FIRST_RELEASE,
    LAST_RELEASE,
    NULL_KEYLESS_SINCE,
    STATES_INSIDE_SINCE,
    UNEVEN_DRAFTS_SINCE,
    UNEVEN_SINCE,
    missing_group_keys,
    releases,
)
from sim.sizing.plan import largest_that
from sim.sizing.specs import LayerSpec
from sim.switches import release_key


def check_settings(s: EngineSettings, prefix: tuple[str | int, ...] = ()) -> list[Problem]:
    """Combinations that vLLM 0.32.0 refuses (SchedulerConfig.verify_max_model_len) or we can't simulate yet.

    Args:
        s: the settings.
        prefix: path of the engine's section in the document, for the places of the problems.
    """
    out: list[Problem] = []

    def add(key: str, message: str, hint: str) -> None:
        out.append(Problem((*prefix, key), message, hint))

    if s.max_num_batched_tokens < s.max_num_seqs:
        add(
            "max_num_batched_tokens",
            f"max_num_batched_tokens ({s.max_num_batched_tokens}) is smaller than"
            f" max_num_seqs ({s.max_num_seqs})",
            "each running request needs a token in every step, so vLLM refuses this:"
            " raise the first or lower the second",
        )
    if s.max_num_batched_tokens < s.max_model_len and not s.enable_chunked_prefill:
        add(
            "max_num_batched_tokens",
            f"max_num_batched_tokens ({s.max_num_batched_tokens}) is smaller than"
            f" max_model_len ({s.max_model_len}) and enable_chunked_prefill is false",
            "a long prompt could never be scheduled: raise max_num_batched_tokens or turn chunked prefill on",
        )
    if s.max_num_active_seqs is not None and s.max_num_active_seqs > s.max_num_seqs:
        add(
            "max_num_active_seqs",
            f"max_num_active_seqs ({s.max_num_active_seqs}) is greater than max_num_seqs ({s.max_num_seqs})",
            "lower max_num_active_seqs or raise max_num_seqs",
        )
    if s.long_prefill_token_threshold > s.max_model_len:
        add(
            "long_prefill_token_threshold",
            f"long_prefill_token_threshold ({s.long_prefill_token_threshold}) is greater than"
            f" max_model_len ({s.max_model_len})",
            "use 0 to turn the threshold off",
        )
    if (s.num_speculative_tokens > 0) != (s.speculative_method is not None):
        add(
            "speculative_method",
            f"speculative_method is {s.speculative_method} and num_speculative_tokens"
            f" {s.num_speculative_tokens}",
            "give both or none of them",
        )
    return out + check_simulated(s, prefix)


def check_simulated(s: EngineSettings, prefix: tuple[str | int, ...] = ()) -> list[Problem]:
    """What a config may say but the core does not simulate yet: the one place to lift such a limit."""
    out: list[Problem] = []
    if s.vllm not in releases():
        known = f"known: '{FIRST_RELEASE}' to '{LAST_RELEASE}'"
        out.append(Problem((*prefix, "vllm"), f"the rules of vLLM {s.vllm} are not known", known))
        return out
    out += _missing_in(s, (*prefix, "vllm"))
    return out + check_groups(s, prefix)


def _missing_in(s: EngineSettings, place: tuple[str | int, ...]) -> Iterator[Problem]:
    """What the release itself does not have, or fails at."""
    engine = place[:-1]
    for i, group in enumerate(s.kv_cache_groups):
        for name, later in missing_group_keys(s.vllm).items():
            if getattr(group, name) != later.absent:
                yield Problem(
                    (*engine, "kv_cache_groups", i, name),
                    f"vLLM {s.vllm} has no {name} of a group: it came with {later.since}",
                    f"leave it out, or use engine.vllm from '{later.since}' on",
                )
    if s.speculative_method == "draft_model" and _is_before(s.vllm, DRAFT_MODEL_SINCE):
        yield Problem(
            (*engine, "speculative_method"),
            f"vLLM {s.vllm} has no drafts by a model of their own: they came with {DRAFT_MODEL_SINCE}",
            f"use another speculative_method, or engine.vllm from '{DRAFT_MODEL_SINCE}' on",
        )
    if s.reserved_inputs:
        left = s.max_num_batched_tokens - s.reserved_inputs
        asked = s.max_num_scheduled_tokens
        unlimited = left == 0 and asked is None and s.rules.draft_inputs == "if_left"
        if not unlimited and (left <= 0 or (asked is not None and asked > left)):
            yield Problem(
                (*engine, "max_num_batched_tokens"),
                f"max_num_batched_tokens ({s.max_num_batched_tokens}) leaves {left} tokens a step beside the"
                f" draft model's own inputs, one for each of max_num_seqs ({s.max_num_seqs})",
                "raise max_num_batched_tokens, or lower max_num_seqs or max_num_scheduled_tokens",
            )
    sizes = [g.block_size or s.block_size for g in s.kv_cache_groups]
    smaller = any(
        g.type == "sliding_window" and size != math.lcm(*sizes)
        for g, size in zip(s.kv_cache_groups, sizes, strict=True)
    )
    if smaller and s.drops_hits and s.enable_prefix_caching and _is_before(s.vllm, UNEVEN_DRAFTS_SINCE):
        yield Problem(
            (*engine, "speculative_method"),
            f"vLLM {s.vllm} fails at {s.speculative_method} with windows whose blocks are smaller than those"
            f" of other groups ({sizes} tokens)",
            f"give all groups one block size, or use engine.vllm from '{UNEVEN_DRAFTS_SINCE}' on",
        )
    yield from _all_alike(s, engine)
    yield from _null_keys(s, engine)
    states = any(g.type == "mamba" for g in s.kv_cache_groups)
    unit = s.prefix_match_unit or math.gcd(*sizes)
    if states and s.enable_prefix_caching and len(sizes) > 1:
        yield from _states_in_blocks(s, engine, sizes)
    token_by_token = states and s.mamba_cache_mode == "align" and unit == 1
    if token_by_token and s.num_speculative_tokens and s.rules.draft_padding == "beside":
        yield Problem(
            (*engine, "num_speculative_tokens"),
            f"vLLM {s.vllm} gives steps over one token rows for {s.num_speculative_tokens} drafts where Mamba"
            " states are hashed token by token, and fails at them",
            "use larger blocks and hash units, or engine.vllm from '0.29' on",
        )


def _all_alike(s: EngineSettings, engine: tuple[str | int, ...]) -> Iterator[Problem]:
    """Several groups of one kind under prefix caching, at which releases before 0.29 fail."""
    kinds = {
        replace(g, is_eagle_group=False, block_size=g.block_size or s.block_size) for g in s.kv_cache_groups
    }
    several = len(s.kv_cache_groups) > 1 and s.enable_prefix_caching
    if several and len(kinds) == 1 and _is_before(s.vllm, ALIKE_SINCE):
        yield Problem(
            (*engine, "kv_cache_groups"),
            f"vLLM {s.vllm} fails at {len(s.kv_cache_groups)} groups that are all alike with prefix caching",
            f"make them one group, turn caching off, or use engine.vllm from '{ALIKE_SINCE}' on",
        )


def _null_keys(s: EngineSettings, engine: tuple[str | int, ...]) -> Iterator[Problem]:
    """Blocks that leave a window before their tokens are known: 0.13 caches the null block in their place,
    and ends with an assertion at the second one.

    Tokens are known a step late with async scheduling, and those of rejected drafts have to be made again.
    """
    known_late = s.async_scheduling and s.enable_prefix_caching
    if not known_late or not _is_before(s.vllm, NULL_KEYLESS_SINCE):
        return
    for i, group in enumerate(s.kv_cache_groups):
        short = group.sliding_window is not None and group.sliding_window <= 1 + s.num_speculative_tokens
        if group.type == "chunked_local" or (group.type == "sliding_window" and short):
            what = "a window as short as this" if short else "attention chunks"
            yield Problem(
                (*engine, "kv_cache_groups", i),
                f"vLLM {s.vllm} fails at {what} with async scheduling and prefix caching: it caches null"
                " blocks",
                f"turn one of the two off, or use engine.vllm from '{NULL_KEYLESS_SINCE}' on",
            )


def _states_in_blocks(
    s: EngineSettings, engine: tuple[str | int, ...], sizes: list[int]
) -> Iterator[Problem]:
    """Block sizes and hash units beside Mamba groups at which the release fails: before 0.28, and later under
    mode all, where hashes are those of whole common blocks.
    """
    if not _is_before(s.vllm, STATES_INSIDE_SINCE):
        if s.mamba_cache_mode == "all" and len(set(sizes)) > 1:
            yield Problem(
                (*engine, "kv_cache_groups"),
                f"vLLM {s.vllm} fails at groups of unequal block sizes ({sizes} tokens) with mamba_cache_mode"
                " all",
                "give all groups one block size, or use mamba_cache_mode align",
            )
        return
    hint = f"give all groups one block size, or use engine.vllm from '{STATES_INSIDE_SINCE}' on"
    unit = s.prefix_match_unit or math.gcd(*sizes)
    inside = False
    for i, (group, size) in enumerate(zip(s.kv_cache_groups, sizes, strict=True)):
        if group.type != "mamba":
            continue
        inside = inside or (size > unit and s.mamba_cache_mode == "align")
        resolved = not _is_before(s.vllm, UNEVEN_SINCE)
        if resolved and size != s.block_size and any(other != unit for other in sizes):
            yield Problem(
                (*engine, "kv_cache_groups", i, "block_size"),
                f"vLLM {s.vllm} fails at a Mamba group with blocks of {size} tokens where block_size is"
                f" {s.block_size} ({sizes})",
                hint,
            )
            return
    for i, (group, size) in enumerate(zip(s.kv_cache_groups, sizes, strict=True)):
        windowed = group.type in ("sliding_window", "chunked_local")
        if windowed and inside and size != unit and s.rules.state_tails != "off":
            yield Problem(
                (*engine, "kv_cache_groups", i),
                f"vLLM {s.vllm} fails at a {group.type} group with blocks of {size} tokens beside Mamba"
                f" states inside blocks (hash unit {unit})",
                f"use prefix_match_unit {size}, or engine.vllm from '{STATES_INSIDE_SINCE}' on",
            )
            return


def _is_before(release: str, other: str) -> bool:
    return release_key(release) < release_key(other)


def require_simulated(s: EngineSettings) -> None:
    """Raise `InputError` if the core can't simulate these settings yet."""
    raise_all([InputError(p.message, hint=p.hint) for p in check_simulated(s)])


def blocks_of_longest_request(s: EngineSettings, length: int) -> int:
    """Blocks wanted at start-up: those of a request of `length` tokens in all groups (0.14 to 0.18: in the
    first) and, since 0.29, the null block.
    """
    in_flight = s.max_num_batched_tokens
    if s.async_scheduling and s.rules.admission_cap == "in_flight":
        in_flight *= 2
    null = 1 if s.rules.null_in_check == "on" else 0
    counted = s.kv_cache_groups[:1] if s.rules.check_needs == "first_group" else s.kv_cache_groups
    return null + sum(
        _spec(s, group).blocks_per_request(length, in_flight, s.max_num_batched_tokens, s.rules.state_needs)
        for group in counted
    )


def _spec(s: EngineSettings, group: KVCacheGroup) -> LayerSpec:
    return LayerSpec(
        kind=group.type,
        block_size=group.block_size or s.block_size,
        sliding_window=group.sliding_window,
        attention_chunk_size=group.attention_chunk_size,
        mamba_cache_mode=s.mamba_cache_mode,
        speculative_blocks=s.num_speculative_tokens,
        checkpoint_blocks=1 if group.prefill_checkpoint_alignment else 0,
    )


def check_pool(
    s: EngineSettings, prefix: tuple[str | int, ...] = (), key: str = "num_gpu_blocks"
) -> list[Problem]:
    """The start-up check of vLLM: a request of max_model_len must fit, since 0.29 beside the null block.

    Args:
        s: the settings.
        prefix: path of the engine's section in the document.
        key: of the section, which decides the pool's size; with another one than `num_gpu_blocks` the number
            of blocks follows from memory.
    """
    need = blocks_of_longest_request(s, s.max_model_len)
    if s.num_gpu_blocks >= need:
        return []
    fits = largest_that(lambda n: blocks_of_longest_request(s, n) <= s.num_gpu_blocks, s.max_model_len)
    groups = len(s.kv_cache_groups)
    blocks = f"{need} blocks"
    if groups > 1:
        blocks += " in the first group" if s.rules.check_needs == "first_group" else f" in {groups} groups"
    elif s.kv_cache_groups[0].type == "full":
        blocks += f" of {s.kv_cache_groups[0].block_size or s.block_size}"
    more = f"raise num_gpu_blocks to {need}" if key == "num_gpu_blocks" else "give the pool more memory"
    with_null = ", the null block included" if s.rules.null_in_check == "on" else ""
    return [
        Problem(
            (*prefix, key),
            f"a pool of {s.num_gpu_blocks} blocks is smaller than one request of max_model_len"
            f" ({s.max_model_len} tokens need {blocks}{with_null})",
            f"{more}, or lower max_model_len to {fits}" if fits else more,
        )
    ]
