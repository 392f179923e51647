"""The settings of one simulated engine, resolved to numbers: what capacity, core and twin are given.

Names and meaning are vLLM's. Models that read them from a file are in `sim.config_engine`, combinations
that are refused in `sim.engine_checks`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sim.profiles import DEFAULT_RELEASE, Rules, missing_group_keys, missing_keys, rules_of


@dataclass(frozen=True)
class KVCacheGroup:
    """One KV-cache group: layers that share block tables.

    Attributes:
        type: "full" (multi-head latent attention too), "sliding_window", "chunked_local", "mamba" or
            "cross_attention".
        block_size: tokens of one block of this group; None: the engine's block size.
        sliding_window: window in tokens (type sliding_window).
        attention_chunk_size: chunk in tokens (type chunked_local).
        mamba_cache_mode: "align", "all" (up to 0.31) or "none" (type mamba); None: as the release has it.
        prefill_checkpoint_alignment: tokens after a chunk's beginning, or multiples of them, at which the
            kernel can export a state (type mamba; Mamba 2: 1); None: it can't.
        encoder_tokens: tokens of an encoder input (type cross_attention): the longest, and what a request has
            that says nothing else.
        is_eagle_group: has layers of a drafter (where no group is marked they all count as such).
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
class EngineSettings:
    """Resolved settings of one simulated engine; names and meaning are vLLM's.

    `num_gpu_blocks` includes the null block (block id 0). Lengths are in tokens. `None` in
    `max_num_scheduled_tokens` and `max_num_active_seqs` means "as max_num_batched_tokens" and
    "as max_num_seqs"; `scheduled_tokens` and `active_seqs` give the number in force. `switches` are (name,
    value) pairs that differ from the release's own rules; `rules` has the rules in force.
    """

    vllm: str = DEFAULT_RELEASE
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
    draft_acceptance: float | None = None
    kv_cache_groups: tuple[KVCacheGroup, ...] = (KVCacheGroup(),)
    arrival_time: str = "seq"
    idle_steps: str = "skip"
    switches: tuple[tuple[str, str], ...] = ()

    @property
    def rules(self) -> Rules:
        """The rules in force, see `sim.profiles`; ValueError for a release without any."""
        return rules_of(self.vllm, self.switches)

    @property
    def reserves_full_sequence(self) -> bool:
        """Whether an admission wants free blocks for all known tokens."""
        return self.scheduler_reserve_full_isl and self.rules.full_sequence_reserve == "on"

    def without_later_keys(self) -> EngineSettings:
        """These settings as the release can have them: keys that it does not know mean nothing."""
        missing = missing_keys(self.vllm)
        of_groups = {name: later.absent for name, later in missing_group_keys(self.vllm).items()}
        groups = tuple(replace(group, **of_groups) for group in self.kv_cache_groups)
        values = {name: later.absent for name, later in missing.items()}
        return replace(self, kv_cache_groups=groups, **values)

    @property
    def uses_eagle(self) -> bool:
        """Whether the drafter reads the model's hidden states, and the token behind each of them."""
        return self.speculative_method in ("eagle", "mtp")

    @property
    def drops_hits(self) -> bool:
        """Whether hits lose their last block to the drafter (0.32 and before)."""
        return self.uses_eagle and self.rules.draft_hits == "drop"

    @property
    def num_lookahead_tokens(self) -> int:
        """Slots beyond the scheduled tokens, which the drafter writes (vLLM 0.32.0, VllmConfig)."""
        writes = self.uses_eagle or self.speculative_method == "draft_model"
        return self.num_speculative_tokens if writes else 0

    @property
    def num_draft_slots(self) -> int:
        """Input tokens that the drafter adds to each scheduled request (vLLM 0.32.0, SpeculativeConfig)."""
        return int(self.speculative_method == "draft_model" and self.rules.draft_inputs == "each")

    @property
    def encoder_tokens(self) -> int:
        """Encoder tokens of a request that says nothing else; 0 for models without cross attention."""
        return max(group.encoder_tokens or 0 for group in self.kv_cache_groups)

    @property
    def admitted_encoder_tokens(self) -> int:
        """Encoder tokens that an admission takes blocks for where they are not its own; 0: they are."""
        rule = self.rules.encoder_blocks
        if rule == "own" or not self.encoder_tokens:
            return 0
        return self.encoder_tokens if rule == "most" else self.max_num_batched_tokens

    @property
    def encoder_budget(self) -> int:
        """Encoder tokens that one step may run, and that the encoder cache has room for; 0: no encoder.

        vLLM 0.32.0, ``compute_mm_encoder_budget``: the token budget, but room for one input in any case.
        """
        return max(self.max_num_batched_tokens, self.encoder_tokens) if self.encoder_tokens else 0

    @property
    def scheduled_tokens(self) -> int:
        """Token budget of one schedule() call."""
        if self.max_num_scheduled_tokens is not None:
            return self.max_num_scheduled_tokens
        left = self.max_num_batched_tokens - self.reserved_inputs
        if left == 0 and self.rules.draft_inputs == "if_left":
            return self.max_num_batched_tokens
        return left

    @property
    def reserved_inputs(self) -> int:
        """Tokens of a step that are kept for a draft model's own inputs, whoever is scheduled."""
        reserving = self.rules.draft_inputs in ("if_left", "reserved")
        return self.max_num_seqs if reserving and self.speculative_method == "draft_model" else 0

    @property
    def active_seqs(self) -> int:
        """Requests that may be running at once."""
        return self.max_num_seqs if self.max_num_active_seqs is None else self.max_num_active_seqs

    @property
    def mamba_cache_mode(self) -> str:
        """Which states the tables of Mamba groups have: "none" without prefix caching, else "align" or "all".

        One mode for all groups, as in vLLM (``CacheConfig.mamba_cache_mode``).
        """
        if not self.enable_prefix_caching:
            return "none"
        tables = self.rules.state_tables
        if tables != "chosen":
            return tables
        modes = {group.mamba_cache_mode for group in self.kv_cache_groups if group.type == "mamba"}
        return "all" if "all" in modes else "align"

    @property
    def has_token_slots(self) -> bool:
        """Whether some group keeps something of each token; blocks of states do not."""
        return any(group.type != "mamba" for group in self.kv_cache_groups)

    @property
    def usable_blocks(self) -> int:
        """Blocks that requests can hold: all but the null block."""
        return self.num_gpu_blocks - 1
