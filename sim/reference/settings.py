"""Engine settings of the reference twin: the keys and defaults of the engine configuration file format.

Kept apart from the shell's settings on purpose: the twin depends on nothing but the standard library and the
table of releases.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from sim.profiles import Rules, default_retention, rules_of


@dataclass(frozen=True)
class KVCacheGroup:
    """One group of layers that share block tables.

    Attributes:
        type: ``full``, ``sliding_window``, ``chunked_local``, ``mamba`` or ``cross_attention``.
        block_size: tokens per block, or None for the engine's.
        sliding_window: tokens that a token reads, itself included (type ``sliding_window``).
        attention_chunk_size: tokens of a chunk (type ``chunked_local``).
        mamba_cache_mode: ``align`` or ``all`` (up to 0.31) with prefix caching, ``none`` without; None for
            what applies.
        prefill_checkpoint_alignment: the kernel of a ``mamba`` group can export a state from inside a chunk,
            so many tokens or a multiple of them after its beginning (Mamba 2: 1); None: it can't.
        encoder_tokens: tokens of the longest encoder input, which a request has that says nothing else (type
            ``cross_attention``).
        is_eagle_group: has layers of a drafter. Where no group is marked they all count as such.
    """

    type: str = "full"
    block_size: int | None = None
    sliding_window: int | None = None
    attention_chunk_size: int | None = None
    mamba_cache_mode: str | None = None
    prefill_checkpoint_alignment: int | None = None
    encoder_tokens: int | None = None
    is_eagle_group: bool = False


@dataclass(frozen=True)
class Settings:
    """Resolved engine settings; the names are vLLM's, ``num_gpu_blocks`` counts the null block."""

    vllm: str = "0.32"
    block_size: int = 16
    num_gpu_blocks: int = 1024
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_num_scheduled_tokens: int | None = None
    max_num_active_seqs: int | None = None
    max_model_len: int = 4096
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    long_prefill_token_threshold_adaptive: bool = False
    async_scheduling: bool = False
    policy: str = "fcfs"
    scheduler_reserve_full_isl: bool = True
    watermark: float = 0.0
    prefix_cache_retention_interval: int | None = 0
    prefix_match_unit: int | None = None
    num_speculative_tokens: int = 0
    speculative_method: str | None = None
    kv_cache_groups: tuple[KVCacheGroup, ...] = (KVCacheGroup(),)
    arrival_time: str = "seq"
    idle_steps: str = "skip"
    switches: tuple[tuple[str, str], ...] = ()

    @property
    def rules(self) -> Rules:
        """The rules of the release, with the switches that are changed (a table, see ``sim.profiles``)."""
        return rules_of(self.vllm, self.switches)

    @property
    def reserves_full_sequence(self) -> bool:
        """Whether an admission wants free blocks for all known tokens."""
        return self.scheduler_reserve_full_isl and self.rules.full_sequence_reserve == "on"

    @property
    def watermark_blocks(self) -> int:
        """Blocks that an admission leaves free while something runs."""
        return int(self.watermark * self.num_gpu_blocks) if self.rules.watermark == "on" else 0

    @property
    def token_budget(self) -> int:
        """Most tokens that one step may schedule."""
        if self.max_num_scheduled_tokens is not None:
            return self.max_num_scheduled_tokens
        rule = self.rules.draft_inputs if self.speculative_method == "draft_model" else "free"
        left = self.max_num_batched_tokens - (self.max_num_seqs if rule in ("if_left", "reserved") else 0)
        # Up to 0.19 a budget of 0 is taken for none that was given.
        return self.max_num_batched_tokens if left == 0 and rule == "if_left" else left

    @property
    def active_seqs(self) -> int:
        """Most requests that may run at once."""
        return self.max_num_seqs if self.max_num_active_seqs is None else self.max_num_active_seqs

    @property
    def encoder_tokens(self) -> int:
        """Encoder tokens of a request that says nothing else; 0 for models without cross attention."""
        return max(group.encoder_tokens or 0 for group in self.kv_cache_groups)

    @property
    def use_eagle(self) -> bool:
        """Whether the drafter reads the model's hidden states, and the token behind each of them."""
        return self.speculative_method in ("eagle", "mtp")

    @property
    def drops_hits(self) -> bool:
        """Whether hits lose their last block to the drafter (0.32 and before)."""
        return self.use_eagle and self.rules.draft_hits == "drop"

    @property
    def hash_lookahead(self) -> int:
        """Tokens behind a block that its hash covers, too.

        vLLM 0.33.0, ``VllmConfig.num_hash_lookahead_tokens`` (``vllm/config/vllm.py``).
        """
        return int(self.use_eagle and self.enable_prefix_caching and not self.drops_hits)

    @property
    def num_lookahead_tokens(self) -> int:
        """Slots beyond the scheduled tokens, which the drafter writes.

        vLLM 0.32.0, ``VllmConfig.num_lookahead_tokens`` (``vllm/config/vllm.py``).
        """
        return (
            self.num_speculative_tokens if self.use_eagle or self.speculative_method == "draft_model" else 0
        )

    @property
    def num_draft_slots(self) -> int:
        """Input tokens that the drafter adds to each scheduled request.

        vLLM 0.32.0, ``SpeculativeConfig.max_num_new_slots_for_drafting`` (``vllm/config/speculative.py``).
        """
        return int(self.speculative_method == "draft_model" and self.rules.draft_inputs == "each")

    @property
    def mamba_cache_mode(self) -> str:
        """Which states the tables of Mamba groups have, one mode for all of them.

        vLLM 0.31.0, ``CacheConfig.mamba_cache_mode`` (``vllm/config/cache.py``).
        """
        if not self.enable_prefix_caching:
            return "none"
        if self.rules.state_tables != "chosen":
            return self.rules.state_tables
        modes = {group.mamba_cache_mode for group in self.kv_cache_groups if group.type == "mamba"}
        return "all" if "all" in modes else "align"

    @property
    def groups(self) -> tuple[KVCacheGroup, ...]:
        """The groups with everything filled in that the engine decides; equal ones are looked up together."""
        return tuple(
            replace(
                group,
                block_size=group.block_size or self.block_size,
                mamba_cache_mode=self.mamba_cache_mode if group.type == "mamba" else None,
                is_eagle_group=False,
            )
            for group in self.kv_cache_groups
        )

    @property
    def scheduler_block_size(self) -> int:
        """Least common multiple of the groups' block sizes: where hits of several groups can end."""
        if len(self.groups) == 1:
            return self.block_size
        return math.lcm(*(group.block_size or 0 for group in self.groups))

    @property
    def hash_block_size(self) -> int:
        """Tokens per hash: what all block sizes are multiples of.

        vLLM 0.32.0, ``resolve_kv_cache_block_sizes`` (``vllm/v1/core/kv_cache_utils.py``).
        """
        states = any(group.mamba_cache_mode == "all" for group in self.groups)
        whole = states and self.rules.state_units == "common"
        if len(self.groups) == 1 or not self.enable_prefix_caching or whole:
            return self.scheduler_block_size
        return self.prefix_match_unit or math.gcd(*(group.block_size or 0 for group in self.groups))

    @property
    def max_in_flight_tokens(self) -> int:
        """Most tokens in the batches under way."""
        return self.max_num_batched_tokens * (2 if self.async_scheduling else 1)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Settings:
        """Settings from the mapping of a configuration file; ``name`` is ignored.

        Raises:
            ValueError: an unknown key (the nearest known one is named) or a value out of its range.
        """
        values = {key: value for key, value in raw.items() if key != "name"}
        _refuse_unknown(values, cls)
        if "kv_cache_groups" in values:
            groups = []
            for group in values["kv_cache_groups"]:
                _refuse_unknown(group, KVCacheGroup)
                groups.append(KVCacheGroup(**group))
            values["kv_cache_groups"] = tuple(groups)
        if "switches" in values:
            values["switches"] = tuple(dict(values["switches"]).items())
        settings = cls(**values)
        if "prefix_cache_retention_interval" not in values:
            kinds = {group.type for group in settings.kv_cache_groups}
            hybrid = "mamba" in kinds and len(kinds) > 1
            interval = default_retention(settings.rules, settings.speculative_method, hybrid)
            settings = replace(settings, prefix_cache_retention_interval=interval)
        settings._check()
        return settings

    def _check(self) -> None:
        if self.policy not in ("fcfs", "priority"):
            raise ValueError(f"policy must be fcfs or priority, got {self.policy!r}")
        if self.arrival_time not in ("seq", "step"):
            raise ValueError(f"arrival_time must be seq or step, got {self.arrival_time!r}")
        if self.idle_steps not in ("skip", "run"):
            raise ValueError(f"idle_steps must be skip or run, got {self.idle_steps!r}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) is below "
                f"max_num_seqs ({self.max_num_seqs})"
            )
        if self.active_seqs > self.max_num_seqs:
            raise ValueError(
                f"max_num_active_seqs ({self.active_seqs}) exceeds max_num_seqs ({self.max_num_seqs})"
            )
        if (self.num_speculative_tokens > 0) != (self.speculative_method is not None):
            raise ValueError("num_speculative_tokens and speculative_method go together")
        if self.speculative_method not in (None, "eagle", "mtp", "draft_model", "ngram"):
            raise ValueError(f"there is no speculative_method {self.speculative_method!r}")
        self._check_groups()

    def _check_groups(self) -> None:
        needed = {
            "sliding_window": "sliding_window",
            "chunked_local": "attention_chunk_size",
            "cross_attention": "encoder_tokens",
        }
        for group in self.kv_cache_groups:
            if group.type not in ("full", "sliding_window", "chunked_local", "mamba", "cross_attention"):
                raise ValueError(f"kv_cache_groups: there are no groups of type {group.type!r}")
            if group.type in needed and not getattr(group, needed[group.type]):
                raise ValueError(f"kv_cache_groups: a {group.type} group needs {needed[group.type]}")
        for group, resolved in zip(self.kv_cache_groups, self.groups, strict=True):
            if group.mamba_cache_mode not in (None, resolved.mamba_cache_mode):
                raise ValueError(f"mamba_cache_mode {group.mamba_cache_mode!r} does not go with this engine")
        if self.enable_prefix_caching:
            self._check_cached_groups()

    def _check_cached_groups(self) -> None:
        groups = self.groups
        sizes = [group.block_size or 0 for group in groups]
        types = {group.type for group in groups}
        if len(groups) == 1 and self.prefix_match_unit not in (None, self.block_size):
            raise ValueError(
                f"prefix_match_unit {self.prefix_match_unit} differs from block_size {self.block_size}: "
                "with one group hits end on blocks; leave it out"
            )
        if len(groups) == 1 and sizes[0] != self.block_size:
            raise ValueError(f"one group of block size {sizes[0]} in an engine of {self.block_size}")
        if any(size % self.hash_block_size for size in sizes):
            raise ValueError(
                f"prefix_match_unit {self.prefix_match_unit} does not divide block sizes {sizes}"
            )
        if "cross_attention" in types:
            raise ValueError("cross attention has no prefix cache: turn enable_prefix_caching off")
        if "chunked_local" in types and (len(set(sizes)) > 1 or self.use_eagle):
            raise ValueError("chunked local attention wants groups of one block size, and no eagle or mtp")
        interval = self.prefix_cache_retention_interval
        states = self.rules.state_retention == "on"
        sparse = bool(types & ({"sliding_window", "mamba"} if states else {"sliding_window"}))
        if interval and (not sparse or interval % self.scheduler_block_size):
            raise ValueError(
                f"prefix_cache_retention_interval {interval} needs a sliding window"
                f"{' or mamba' if states else ''} group, and "
                f"must be a multiple of {self.scheduler_block_size}"
            )


def _refuse_unknown(values: Mapping[str, Any], cls: type) -> None:
    known = [f.name for f in fields(cls)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown key {key!r}{hint}")
