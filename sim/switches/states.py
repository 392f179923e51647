"""Rules about recurrent states (Mamba, linear attention) and encoder inputs."""

from __future__ import annotations

from sim.switches.kind import Onset, Switch

STATES: tuple[Switch, ...] = (
    Switch(
        "state_renewal",
        "Mamba: whether the state at a prompt's end counts as new in each step while its request is there.",
        {"on": "yes: an equal prompt waits a step longer", "off": "only when it gets its key"},
        (Onset("0.13", "on"), Onset("0.33", "off")),
        ("states", "caching"),
    ),
    Switch(
        "state_tables",
        "Mamba with prefix caching: what a block table has.",
        {
            "all": "a state in every block, as tokens in other kinds (mode all)",
            "chosen": "as mamba_cache_mode says; where it says nothing as align",
            "align": "the running state, and those at the ends of chunks that are still wanted (mode align)",
        },
        (Onset("0.13", "all"), Onset("0.15", "chosen", 30877), Onset("0.32", "align")),
        ("states", "caching"),
    ),
    Switch(
        "state_units",
        "Mamba, mode all, beside other groups: the unit of hashes.",
        {"asked": "as in other engines", "common": "the common block size, whatever prefix_match_unit says"},
        (Onset("0.13", "asked"), Onset("0.28", "common")),
        ("states", "groups", "caching"),
    ),
    Switch(
        "state_wait",
        "Mamba: whether a hit on a state that another request computes in this step waits for the next one.",
        {"off": "no", "on": "yes"},
        (Onset("0.13", "off"), Onset("0.17", "on", 29387)),
        ("states", "caching"),
    ),
    Switch(
        "state_free_basis",
        "Mamba: which tokens count when states are given up.",
        {
            "scheduled": "all that were scheduled, drafts too",
            "less_drafts": "all that were scheduled but the drafts of a step",
            "windows": "those that window_free_basis says",
        },
        (Onset("0.13", "scheduled"), Onset("0.17", "less_drafts", 33997), Onset("0.26", "windows", 47728)),
        ("states",),
    ),
    Switch(
        "state_chunks",
        "Mamba: where prefill chunks end for their states to be cached.",
        {
            "prompts": "as blocks, but a request that was preempted after its first token is not cut",
            "blocks": "at whole blocks of tokens, and at the last block that the known text fills",
            "to_last": "at the ends of blocks up to the last that the known text fills, and at state_tails",
            "ends": "at the ends of blocks, where the known text fills one last, and at state_tails",
            "hits": "at the ends of blocks, and at the last place where an equal prompt can resume",
        },
        (
            Onset("0.13", "prompts"),
            Onset("0.17", "blocks", 33706),
            Onset("0.26", "to_last", 46384),
            Onset("0.27", "ends", 51113),
            Onset("0.32", "hits"),
        ),
        ("states", "caching"),
    ),
    Switch(
        "state_retention",
        "Mamba: whether prefix_cache_retention_interval says which states are cached.",
        {"off": "no: it is about sliding windows alone", "on": "yes"},
        (Onset("0.13", "off"), Onset("0.24", "on", 45845)),
        ("states", "caching"),
    ),
    Switch(
        "state_tails",
        "Mamba: whether the state at the last hash unit of a prompt gets a key, and hits end inside blocks.",
        {
            "off": "no",
            "unit": "as inside; chunks end there even where no hit can end inside a block",
            "inside": "yes, if it lies inside a block; a drafter's lost block is not thought of",
            "marked": "yes, inside a block; a unit earlier in groups whose hits lose a block to the drafter",
            "dropped": "yes, inside a block; a unit earlier where hits lose a block to the drafter",
            "on": "yes, at the last unit that a hit on the same prompt can use, at the end of a block too",
        },
        (
            Onset("0.13", "off"),
            Onset("0.26", "unit", 46384),
            Onset("0.28", "inside", 51843),
            Onset("0.30", "marked", 53945),
            Onset("0.31", "dropped"),
            Onset("0.32", "on"),
        ),
        ("states", "caching"),
    ),
    Switch(
        "state_copies",
        "Mamba: blocks that a step must find free where it copies a state whose block it also goes on with.",
        {"two": "two, though it takes one", "one": "one"},
        (Onset("0.13", "two"), Onset("0.31", "one", 57050)),
        ("states", "caching"),
    ),
    Switch(
        "state_replay",
        "Mamba, hits inside blocks: where retention takes the place at which an equal prompt resumes to be.",
        {"common": "at a multiple of the common block size", "hits": "where hits may end"},
        (Onset("0.13", "common"), Onset("0.29", "hits", 53598)),
        ("states", "caching"),
    ),
    Switch(
        "state_exports",
        "Mamba, exported states: which steps export one, where, and whether it gets a key.",
        {
            "each": "every step, at its last hash unit; with retention 0 no key before the prompt's end",
            "prompt": "steps that reach the end of what is known, at the last hash unit",
            "hits": "at the last place where a hit may end; with retention 0 steps as under prompt",
        },
        (Onset("0.13", "each"), Onset("0.31", "prompt"), Onset("0.32", "hits")),
        ("states", "caching"),
    ),
    Switch(
        "states_retired",
        "Mamba: which states that lie behind are given up.",
        {
            "never": "none",
            "to_gap": "those up to the first gap in the table, from the right",
            "all": "all of them",
        },
        (Onset("0.13", "never"), Onset("0.14", "to_gap", 28047), Onset("0.30", "all", 55450)),
        ("states",),
    ),
    Switch(
        "encoder_freed",
        "Encoder-decoder models: when the slots of an encoder input in the encoder cache are given back.",
        {"schedule": "as soon as the step is scheduled", "output": "with the step's output"},
        (Onset("0.13", "schedule"), Onset("0.20", "output", 38907)),
        ("encoder",),
    ),
    Switch(
        "encoder_blocks",
        "Cross attention: how many blocks an admission takes.",
        {
            "budget": "those of max_num_batched_tokens",
            "most": "those of the longest input that there may be",
            "own": "those of the request's own input",
        },
        (Onset("0.13", "budget"), Onset("0.14", "most", 30772), Onset("0.17", "own", 31058)),
        ("encoder",),
    ),
    Switch(
        "encoder_full",
        "Encoder-decoder models: a request whose encoder input has no room in this step.",
        {"ends": "ends the scan of the waiting ones", "skipped": "is passed over"},
        (Onset("0.13", "ends"), Onset("0.33", "skipped")),
        ("encoder",),
    ),
)
