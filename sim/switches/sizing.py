"""Rules that decide how layers are grouped and a pool is sized."""

from __future__ import annotations

from sim.switches.kind import Onset, Switch

SIZING: tuple[Switch, ...] = (
    Switch(
        "null_in_check",
        "Start-up check of the pool: whether a request of max_model_len must fit beside the null block.",
        {"off": "the null block counts as room", "on": "it does not"},
        (Onset("0.13", "off"), Onset("0.29", "on", 47272)),
    ),
    Switch(
        "memory_utilization",
        "Default of gpu_memory_utilization.",
        {"0.9": "0.9", "0.92": "0.92"},
        (Onset("0.13", "0.9"), Onset("0.20", "0.92", 38284)),
        ("memory",),
    ),
    Switch(
        "graph_estimate",
        "Whether memory of CUDA graphs is left out of the pool.",
        {"off": "no: graphs are captured in what is left", "on": "yes, an estimate of it"},
        (Onset("0.13", "off"), Onset("0.20", "on", 38284)),
        ("memory",),
    ),
    Switch(
        "group_ratio",
        "Layers in groups: up to which ratio of layer counts the larger kind decides the group size.",
        {"1.25": "1.25", "1.5": "1.5"},
        (Onset("0.13", "1.25"), Onset("0.18", "1.5", 36684)),
        ("model", "groups"),
    ),
    Switch(
        "bucket_specs",
        "Layers in groups: which layers are counted as one kind.",
        {
            "equal": "equal ones",
            "mergeable": "those that may share a group, such as full attention that remembers a window",
        },
        (Onset("0.13", "equal"), Onset("0.27", "mergeable")),
        ("model", "groups"),
    ),
    Switch(
        "unequal_pages",
        "Layers in groups: what becomes of a page that is smaller than the largest.",
        {
            "grow": "it takes more tokens if it divides the largest; if not, or for a state, it is refused",
            "pad_attention": "it takes more tokens, or is padded; a state is refused",
            "pad": "it takes more tokens, or is padded; a state is padded",
            "pad_but_latent": "as pad, but not of latent attention: what does not divide is refused",
        },
        (
            Onset("0.13", "grow"),
            Onset("0.24", "pad_attention", 45181),
            Onset("0.26", "pad", 45207),
            Onset("0.29", "pad_but_latent"),
        ),
        ("model", "groups"),
    ),
    Switch(
        "unequal_states",
        "Models with states alone: whether states of unequal size share one group.",
        {"one_group": "yes, with pages of their own size", "apart": "no: they are padded"},
        (Onset("0.13", "one_group"), Onset("0.29", "apart")),
        ("model", "states"),
    ),
    Switch(
        "latent_shapes",
        "Layers of latent attention of several shapes.",
        {"first": "the first one's stands for all", "equal": "each keeps its own"},
        (Onset("0.13", "first"), Onset("0.27", "equal")),
        ("model", "latent"),
    ),
    Switch(
        "promoted_blocks",
        "Hybrid KV-cache manager off: block size of window and chunk layers beside full attention.",
        {
            "own": "their own; if it differs from that of full attention, vLLM refuses the model",
            "full": "that of full attention",
        },
        (Onset("0.13", "own"), Onset("0.27", "full")),
        ("model", "windows"),
    ),
    Switch(
        "chunked_hybrid",
        "Models with chunked local attention: whether the hybrid KV-cache manager is on by default.",
        {"off": "off", "on": "on, but with drafts by eagle or mtp"},
        (Onset("0.13", "off"), Onset("0.14", "on")),
        ("model", "windows"),
    ),
    Switch(
        "check_needs",
        "Start-up check of the pool: what a request of max_model_len is taken to need.",
        {
            "layers": "what each layer needs, before layers share blocks",
            "first_group": "the blocks of the first group",
            "groups": "the blocks of all groups",
        },
        (Onset("0.13", "layers"), Onset("0.14", "first_group"), Onset("0.19", "groups")),
        ("model", "groups"),
    ),
    Switch(
        "checked_memory",
        "Start-up check of the pool where the number of blocks is given: which memory counts.",
        {"available": "what there is", "blocks": "that of the blocks"},
        (Onset("0.13", "available"), Onset("0.20", "blocks")),
        ("model", "blocks"),
    ),
    Switch(
        "printed_tokens",
        "The size of the KV cache in tokens that is printed at start-up.",
        {
            "blocks": "blocks for each group, times the smallest block size",
            "concurrency": "the maximum concurrency times max_model_len",
        },
        (Onset("0.13", "blocks"), Onset("0.20", "concurrency")),
        ("model",),
    ),
    Switch(
        "window_blocks",
        "Block size of sliding-window layers, before pages are made equal.",
        {
            "engine": "block_size",
            "smallest": "the smallest of the attention kernel",
            "largest": "the largest of the attention kernel that is not above block_size",
        },
        (Onset("0.13", "engine"), Onset("0.25", "smallest"), Onset("0.30", "largest")),
        ("model", "windows"),
    ),
    Switch(
        "latent_blocks",
        "Models with latent attention: the default block size, and the backend on Blackwell.",
        {
            "cutlass": "64 on Hopper, 128 (CUTLASS_MLA) on Blackwell, whatever block_size says",
            "flashinfer": "64 on Hopper, 64 (FLASHINFER_MLA) on Blackwell, whatever block_size says",
            "preferred": "what the backend prefers, unless block_size is given",
        },
        (Onset("0.13", "cutlass"), Onset("0.15", "flashinfer"), Onset("0.18", "preferred")),
        ("model", "latent"),
    ),
    Switch(
        "state_blocks",
        "Models with states and attention: what the block size is a multiple of.",
        {
            "kernel_wide": "16 tokens (heads of 256 on Blackwell 32; latent attention 64, CUTLASS_MLA 128)",
            "kernel": "16 tokens (latent attention 64, CUTLASS_MLA 128)",
            "asked": "the block size without states",
            "asked_latent": "the block size without states, and 128 tokens for latent attention",
        },
        (
            Onset("0.13", "kernel_wide"),
            Onset("0.18", "kernel"),
            Onset("0.20", "asked"),
            Onset("0.27", "asked_latent"),
        ),
        ("model", "states", "groups"),
    ),
    Switch(
        "free_state_blocks",
        "Models with states alone, prefix caching: block size where none is given.",
        {
            "length": "max_model_len",
            "unset": "none: the start-up fails",
            "engine": "16",
        },
        (Onset("0.13", "length"), Onset("0.15", "unset"), Onset("0.18", "engine")),
        ("model", "states", "caching"),
    ),
    Switch(
        "state_needs",
        "Mamba: states that a request of max_model_len is taken to need.",
        {
            "tables": "one for each block of its tokens",
            "mode": "mode all: one for each block; align: two, none: one, and one for each draft token",
            "drafts": "as mode, and one for each draft token in mode all too",
        },
        (Onset("0.13", "tables"), Onset("0.15", "mode", 30877), Onset("0.22", "drafts")),
        ("model", "states"),
    ),
    Switch(
        "state_checkpoints",
        "Mamba 2, mode align: whether a block more is set aside for a state from the middle of a prefill.",
        {"off": "no", "on": "yes"},
        (Onset("0.13", "off"), Onset("0.32", "on")),
        ("model", "states", "caching"),
    ),
    Switch(
        "hybrid_caching",
        "Models with states and attention: whether prefix caching is on by default.",
        {"off": "off", "on": "on"},
        (Onset("0.13", "off"), Onset("0.28", "on", 50991)),
        ("model", "states"),
    ),
    Switch(
        "state_mode",
        "Mamba with prefix caching: the mode by default. Some models can do mode all (Jamba, Mamba 2).",
        {
            "all_or_off": "all; other models have no prefix caching",
            "all": "all; align for other models",
            "all_undrafted": "all; align for other models, and with speculative decoding",
            "align": "align",
        },
        (
            Onset("0.13", "all_or_off"),
            Onset("0.15", "all", 30877),
            Onset("0.20", "all_undrafted"),
            Onset("0.22", "all"),
            Onset("0.28", "align", 50991),
        ),
        ("model", "states"),
    ),
    Switch(
        "states_drafted",
        "Models with states: which of them can have speculative decoding.",
        {
            "gated": "Qwen3-Next",
            "gated_unless_align": "Qwen3-Next, without prefix caching",
            "all": "all",
        },
        (Onset("0.13", "gated"), Onset("0.15", "gated_unless_align"), Onset("0.17", "all")),
        ("model", "states", "drafts"),
    ),
    Switch(
        "huge_gpu",
        "GPUs of 160 GiB and more: default of max_num_batched_tokens of a server.",
        {"off": "8192, as from 70 GiB on", "on": "16384"},
        (Onset("0.13", "off"), Onset("0.28", "on")),
        ("model", "huge"),
    ),
)
