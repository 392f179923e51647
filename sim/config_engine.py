"""Models of the engine's keys, and the reader of config.json.

`EngineKeys` are the keys of a validation config.json, with exactly its defaults; `EngineConfig` are those of
a user's YAML, where the size of the pool and the batch limits may be left to the model and the GPU, as in
vLLM. Both become `sim.engine_settings.EngineSettings`.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from sim.config_explain import validate_model
from sim.config_switches import Release, SwitchKeys
from sim.config_types import Bytes, Positive, Share, Strict, key
from sim.config_yaml import Problem, read_json, to_input_errors
from sim.engine_checks import check_settings
from sim.engine_settings import EngineSettings, KVCacheGroup
from sim.errors import raise_all
from sim.profiles import DEFAULT_RELEASE, Rules, default_retention, missing_keys, rules_of

GroupType = Literal["full", "sliding_window", "chunked_local", "mamba", "cross_attention"]
AttentionBackend = Literal[
    "auto",
    "FLASH_ATTN",
    "FLASHINFER",
    "TRITON_ATTN",
    "FLEX_ATTENTION",
    "FLASH_ATTN_MLA",
    "FLASHMLA",
    "FLASHINFER_MLA",
    "TOKENSPEED_MLA",
    "CUTLASS_MLA",
    "TRITON_MLA",
]
KVCacheDtype = Literal["auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"]


#: Methods of speculative decoding without async scheduling, and what messages call them.
SYNCHRONOUS = {"ngram": "n-grams", "medusa": "Medusa"}


class GroupConfig(Strict):
    """One KV-cache group of a hybrid model."""

    type: GroupType = key("full", "Kind of attention that the group's layers do.")
    block_size: Positive | None = key(
        None, "Tokens of one block of this group; null: as `engine.block_size`.", "tokens"
    )
    sliding_window: Positive | None = key(None, "Window of a `sliding_window` group.", "tokens")
    attention_chunk_size: Positive | None = key(None, "Chunk of a `chunked_local` group.", "tokens")
    mamba_cache_mode: Literal["align", "all", "none"] | None = key(None, "Caching of a `mamba` group.")
    prefill_checkpoint_alignment: Positive | None = key(
        None,
        "A `mamba` group's kernel can export a state from inside a chunk at multiples of so many tokens"
        " (Mamba 2: 1); null: it can't.",
        "tokens",
    )
    encoder_tokens: Positive | None = key(
        None, "Encoder tokens of each request, for a `cross_attention` group (Whisper: 1500).", "tokens"
    )
    is_eagle_group: bool = key(
        False,
        "The group has layers of an `eagle` or `mtp` drafter; where no group says so, all count as such.",
    )


class SharedKeys(Strict):
    """The engine's keys that mean the same in a config.json and in a user's YAML."""

    vllm: Release = key(DEFAULT_RELEASE, "The vLLM release whose rules apply, as `0.MINOR` in quotes.")
    switches: SwitchKeys = key(
        SwitchKeys, "Single rules that differ from those of the release in `vllm`; see docs/fidelity.md."
    )
    max_num_scheduled_tokens: Positive | None = key(
        None,
        "Tokens that the scheduler gives out in one step; null: as `max_num_batched_tokens`.",
        "tokens",
    )
    max_num_active_seqs: Positive | None = key(
        None, "Requests that may be running at once; null: as `max_num_seqs`.", "requests"
    )
    enable_prefix_caching: bool = key(True, "Reuse the blocks of equal prefixes.")
    enable_chunked_prefill: bool = key(True, "Compute a long prompt over several steps.")
    long_prefill_token_threshold: Annotated[int, Field(ge=0, le=2**31 - 1)] = key(
        0, "A prefill gets at most so many tokens in one step unless it is alone; 0: no limit.", "tokens"
    )
    long_prefill_token_threshold_adaptive: bool = key(
        False,
        "Raise the long-prefill threshold to a fair share of the budget among queued and running requests.",
    )
    policy: Literal["fcfs", "priority"] = key(
        "fcfs", "Order of the waiting queue: first come first served, or lowest priority number first."
    )
    scheduler_reserve_full_isl: bool = key(
        True,
        "Admit a request only if blocks for its whole known text are free, not just for its first chunk;"
        " before 0.19 vLLM never does.",
    )
    watermark: Share = key(
        0.0,
        "Share of the pool that an admission must leave free while other requests run.",
        "fraction of blocks",
    )
    prefix_cache_retention_interval: Annotated[int, Field(ge=0)] | None = key(
        0,
        "For sliding-window groups: which blocks keep their hash (0: only the last needed ones; n: also those"
        " at every n tokens; null: all). Before 0.29 the default is null, and in 0.29 with Mamba states,"
        " attention and drafts by eagle or mtp.",
        "tokens",
    )
    prefix_match_unit: Positive | None = key(
        None,
        "Tokens of one hash, a divisor of the groups' block sizes; null: the greatest one. Where it is below"
        " the block size of Mamba groups, and the others are full attention, prefix hits may end inside a"
        " block.",
        "tokens",
    )
    num_speculative_tokens: Annotated[int, Field(ge=0, le=1024)] = key(
        0, "Draft tokens that a decode step verifies; needs `speculative_method`.", "tokens"
    )
    speculative_method: Literal["eagle", "eagle3", "mtp", "draft_model", "medusa", "ngram"] | None = key(
        None,
        "Where drafts come from. All but `ngram` and `medusa` write slots beyond the scheduled tokens; with"
        " `eagle`, `eagle3` and `mtp` the last block of a prefix hit is computed again.",
    )
    arrival_time: Literal["seq", "step"] = key(
        "seq",
        "Arrival stamp that orders requests of equal priority: unique in file order, or the step's index"
        " (requests of one step tie).",
    )
    idle_steps: Literal["skip", "run"] = key(
        "skip",
        "In logical time: whether a step index with nothing queued or in flight runs a schedule call.",
    )

    def rules(self) -> Rules:
        """The rules of the release, with the switches that are changed."""
        return rules_of(self.vllm, self.switches.changed())

    def release_defaults(self, hybrid_model: bool = False) -> dict[str, Any]:
        """Keys that are not given and whose default differs between releases, with their defaults.

        Args:
            hybrid_model: the engine's model has Mamba states and attention; written groups speak for
                themselves.
        """
        rules = self.rules()
        kinds = {group.type for group in self.groups() or ()}
        hybrid = hybrid_model or ("mamba" in kinds and len(kinds) > 1)
        defaults: dict[str, Any] = {
            "prefix_cache_retention_interval": default_retention(rules, self.speculative_method, hybrid),
            "scheduler_reserve_full_isl": rules.full_sequence_reserve == "on",
        }
        return {name: value for name, value in defaults.items() if name not in self.model_fields_set}

    def groups(self) -> tuple[KVCacheGroup, ...] | None:
        """The KV-cache groups as the core takes them, or None if they are to come from the model."""
        given: list[GroupConfig] | str = getattr(self, "kv_cache_groups", "auto")
        return None if isinstance(given, str) else tuple(KVCacheGroup(**g.model_dump()) for g in given)

    def later_key_problems(self, prefix: tuple[str | int, ...] = ()) -> list[Problem]:
        """Keys that are given and that the release does not have, unless they say what it does anyway."""
        return [
            Problem(
                (*prefix, name),
                f"vLLM {self.vllm} has no {name}: it came with {later.since}",
                f"leave it out, or use engine.vllm from '{later.since}' on",
            )
            for name, later in missing_keys(self.vllm).items()
            if name in self.model_fields_set and getattr(self, name) != later.absent
        ]

    def values(self) -> dict[str, Any]:
        """The keys of `EngineSettings` as they are in force; numbers that are left to vLLM stay `auto`."""
        found = {f.name: getattr(self, f.name) for f in fields(EngineSettings) if hasattr(self, f.name)}
        found |= {"kv_cache_groups": self.groups() or (KVCacheGroup(),), "switches": self.switches.changed()}
        # Their drafters are others, their rules are the same.
        method = {"eagle3": "eagle", "medusa": "ngram"}.get(self.speculative_method or "")
        if method:
            found["speculative_method"] = method
        return found | self.release_defaults()


class EngineKeys(SharedKeys):
    """The keys of an engine configuration file (config.json) and their defaults."""

    block_size: Positive = key(16, "Token slots of one KV block.", "tokens")
    kv_cache_groups: Annotated[list[GroupConfig], Field(min_length=1)] = key(
        lambda: [GroupConfig()], "KV-cache groups of the model, in vLLM's order."
    )
    num_gpu_blocks: Annotated[int, Field(ge=2, le=2**31 - 2)] = key(
        1024, "Blocks in the pool, INCLUDING the null block (block id 0), as vLLM counts them.", "blocks"
    )
    max_num_seqs: Positive = key(64, "Requests in one batch at most.", "requests")
    max_num_batched_tokens: Positive = key(2048, "Tokens computed in one step at most.", "tokens")
    max_model_len: Positive = key(4096, "Longest sequence, prompt and output together.", "tokens")
    async_scheduling: bool = key(
        False, "Schedule step k+1 while step k executes (vLLM's batch queue of two)."
    )

    def settings(self) -> EngineSettings:
        """The frozen dataclass of these keys; only for models whose keys are all numbers."""
        return EngineSettings(**self.values())


Auto = Literal["auto"]


class EngineConfig(SharedKeys):
    """The `engine:` section of a user's YAML: vLLM's arguments; `auto` leaves a number to vLLM's rules."""

    block_size: Positive | Auto = key(
        "auto",
        "Token slots of one KV block. `auto`, as vLLM: what the attention backend of the GPU prefers, 16"
        " (multi-head latent attention: 32 on Blackwell; 64 with an FP8 cache on Hopper). In models with"
        " recurrent states vLLM raises it until a block is as large as a state, also where it is given.",
        "tokens",
    )
    kv_cache_groups: Annotated[list[GroupConfig], Field(min_length=1)] | Auto = key(
        "auto",
        "KV-cache groups, in vLLM's order. `auto`: from the layers of `model`, as vLLM groups them; one"
        " group of full attention if no `model` is given.",
    )
    disable_hybrid_kv_cache_manager: bool = key(
        False, "Keep the blocks of all tokens in window and chunk layers too, as in full attention."
    )
    mamba_block_size: Positive | None = key(
        None,
        "Tokens that one block of states covers without prefix caching; null: `max_model_len`.",
        "tokens",
    )
    mamba_cache_mode: Literal["align", "all", "none"] | None = key(
        None,
        "With a `model` that has recurrent states, and prefix caching: which of them are cached"
        " (docs/groups.md). null, and vLLM's own default `none`: as the release does for the model.",
    )
    mamba_cache_dtype: Literal["auto", "float32", "float16", "bfloat16"] = key(
        "auto", "Type of the convolution part of recurrent states; `auto`: as `dtype`."
    )
    mamba_ssm_cache_dtype: Literal["auto", "float32", "float16", "bfloat16"] = key(
        "auto",
        "Type of the recurrent part of states; `auto`: as the model's config says, or `mamba_cache_dtype`.",
    )
    enforce_eager: bool = key(False, "Capture no CUDA graphs: their memory is left out of the estimate.")
    num_gpu_blocks: Annotated[int, Field(ge=2, le=2**31 - 2)] | Auto = key(
        "auto",
        "Blocks in the pool, INCLUDING the null block (block id 0), as vLLM counts them. `auto`: from"
        " `kv_cache_memory_bytes`, or estimated from `model`, `gpu` and `gpu_memory_utilization`. The exact"
        " number is printed by vLLM at start-up.",
        "blocks",
    )
    kv_cache_memory_bytes: Bytes | None = key(
        None,
        "Memory of the pool on each GPU (needs `model`); vLLM prints it as 'Available KV cache memory'."
        " null: estimated.",
        "bytes, or text such as 40GiB",
    )
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = key(
        0.92,
        "Share of the GPU's memory that vLLM may use, for the estimate; before 0.20 the default is 0.9.",
        "fraction of memory",
    )
    tensor_parallel_size: Positive = key(1, "GPUs over which each layer is split.", "GPUs")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = key(
        "auto", "Type of weights and activations; `auto`: as the model's config says."
    )
    quantization: Literal["fp8"] | None = key(
        None, "`fp8`: the layers' weights take one byte each and are multiplied at the GPU's FP8 rate."
    )
    kv_cache_dtype: KVCacheDtype = key("auto", "Type of the cached keys and values; `auto`: as `dtype`.")
    attention_backend: AttentionBackend = key(
        "auto",
        "vLLM's attention backend: the block sizes of its kernels decide the default of `block_size`, and in"
        " models with states what it is raised to. `auto`: vLLM's choice for the GPU.",
    )
    performance_mode: Literal["balanced", "interactivity", "throughput"] = key(
        "balanced", "`throughput` doubles the default batch limits, as in vLLM."
    )
    usage_context: Literal["server", "offline"] = key(
        "server", "Whose defaults of the batch limits apply: the API server's or the offline `LLM` class's."
    )
    max_num_seqs: Positive | Auto = key(
        "auto",
        "Requests in one batch at most. `auto`, as vLLM: 1024 on GPUs from 70 GiB (but not A100), else 256;"
        " 64 if no `gpu` is given.",
        "requests",
    )
    max_num_batched_tokens: Positive | Auto = key(
        "auto",
        "Tokens computed in one step at most. `auto`, as vLLM: server 8192 and offline 16384 on GPUs from"
        " 70 GiB (but not A100), 16384 for both from 160 GiB, else 2048 and 8192; never more than"
        " `max_num_seqs` * `max_model_len`; 2048 if no `gpu` is given.",
        "tokens",
    )
    max_model_len: Positive | Literal["auto", "fit"] = key(
        "auto",
        "Longest sequence, prompt and output together. `auto`: what the model's config allows; 4096 if no"
        " `model` is given. `fit`: the longest that fits the pool, up to that (vLLM's `--max-model-len"
        " auto`).",
        "tokens",
    )
    speculative_model: str | None = key(
        None,
        "The drafter of `eagle`, `eagle3`, `medusa` and `draft_model`: a known name, or the path of its"
        " config.json. Its layers join the KV-cache groups, and its weights take memory (docs/sizing.md)."
        " Layers for `mtp` are in the `model`'s own config.",
    )
    draft_acceptance: Annotated[float, Field(ge=0.0, le=1.0)] | None = key(
        None,
        "Chance that a draft behind right ones is right; wanted with `num_speculative_tokens`. With chance p"
        " and n drafts a decode step yields 1 + p + p**2 + ... + p**n tokens on average. Drawn from the"
        " request's output and the step's place in it, so that the same config gives the same run.",
        "probability",
    )
    async_scheduling: bool = key(
        True,
        "Schedule step k+1 while step k executes (vLLM's batch queue of two); vLLM's default since 0.14:"
        ' with `vllm: "0.13"`, and with drafts of n-grams or Medusa, it is false.',
    )

    def draft_problems(self, prefix: tuple[str | int, ...] = ()) -> list[Problem]:
        """A drafter without an acceptance rate, or the other way round; one that async scheduling lacks."""
        if (
            self.speculative_method in SYNCHRONOUS
            and "async_scheduling" in self.model_fields_set
            and self.async_scheduling
        ):
            drafts = SYNCHRONOUS[self.speculative_method]
            return [
                Problem(
                    (*prefix, "async_scheduling"),
                    f"async_scheduling with drafts of {drafts}: vLLM refuses this",
                    "leave async_scheduling out: it is off for them",
                )
            ]
        if (self.num_speculative_tokens > 0) == (self.draft_acceptance is not None):
            return []
        if self.num_speculative_tokens:
            hint = (
                "add engine.draft_acceptance: 0.8, say (--set engine.draft_acceptance=0.8); it depends on"
                " drafter, model and text: no default"
            )
            return [Problem((*prefix, "num_speculative_tokens"), "drafts need draft_acceptance", hint)]
        message = f"draft_acceptance {self.draft_acceptance} without drafts"
        return [
            Problem((*prefix, "draft_acceptance"), message, "add num_speculative_tokens, or leave it out")
        ]

    def release_defaults(self, hybrid_model: bool = False) -> dict[str, Any]:
        """As in the shared keys, and vLLM's own default of `async_scheduling` and of the memory share."""
        rules = self.rules()
        defaults: dict[str, Any] = {
            # VllmConfig turns it off for some drafts
            "async_scheduling": rules.async_default == "on" and self.speculative_method not in SYNCHRONOUS,
            "gpu_memory_utilization": float(rules.memory_utilization),
        }
        mine = {name: value for name, value in defaults.items() if name not in self.model_fields_set}
        return super().release_defaults(hybrid_model) | mine


class EngineJson(EngineKeys):
    """A config.json of the validation harness: the engine's keys, and a name."""

    name: str | None = key(None, "Name of the case; not used.")


def load_engine_json(path: str | Path) -> EngineSettings:
    """Read an engine configuration file (config.json), as written for the validation harness.

    Pools smaller than one request of `max_model_len` are accepted here.

    Raises:
        InputError: missing file, broken JSON, unknown key, wrong type or an impossible combination; all
            problems of the file at once, each with its line and column.
    """
    document = read_json(path)
    parsed, problems = validate_model(EngineJson, document)
    if parsed is None:
        raise_all(to_input_errors(problems, document))
        raise AssertionError("a failed validation has problems")
    settings = parsed.settings()
    problems = parsed.later_key_problems() + check_settings(settings)
    raise_all(to_input_errors(problems, document))
    return settings
