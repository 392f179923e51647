"""Which rule belongs to which vLLM release: a table of named switches, and nothing but data.

A switch is one rule that has changed between releases, with the release in which each of its values came in.
The rules of a release are the values whose onset it has passed, so releases in between need no entry of
their own; a user can set single switches on top (`engine.switches`). `docs/fidelity.md` prints the table.

Standard library only: the core's settings, the plain-Python twin and the recorder of real releases all read
the rules from here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

DEFAULT_RELEASE = "0.32"

#: Every minor release between the first and the last, and the patch release that stands for it.
VERSIONS = {
    "0.13": "0.13.0",
    "0.14": "0.14.0",
    "0.15": "0.15.1",
    "0.16": "0.16.0",
    "0.17": "0.17.1",
    "0.18": "0.18.1",
    "0.19": "0.19.1",
    "0.20": "0.20.2",
    "0.21": "0.21.0",
    "0.22": "0.22.1",
    "0.23": "0.23.0",
    "0.24": "0.24.0",
    "0.25": "0.25.1",
    "0.26": "0.26.0",
    "0.27": "0.27.1",
    "0.28": "0.28.0",
    "0.29": "0.29.0",
    "0.30": "0.30.0",
    "0.31": "0.31.0",
    "0.32": "0.32.0",
    "0.33": "0.33.0",
}
#: Those that stand for the others where all would take too long: `validation releases fetch` and `check`.
PROFILES = ("0.13", "0.14", "0.19", "0.25", "0.27", "0.32", "0.33")
FIRST_RELEASE, LAST_RELEASE = "0.13", "0.33"
#: The first release with drafts by a separate model; its drafts under eagle or mtp follow windows of blocks
#: smaller than the common size only since the second.
DRAFT_MODEL_SINCE, UNEVEN_DRAFTS_SINCE = "0.15", "0.19"
#: The first release that hashes units smaller than its block size, and the first that takes every hash unit
#: and every block size beside Mamba groups.
UNEVEN_SINCE, STATES_INSIDE_SINCE = "0.20", "0.28"
#: The first release that takes several groups that are all alike under prefix caching.
ALIKE_SINCE = "0.29"


#: What an engine may have, and rules may be about.
FEATURES = {
    "async": "async scheduling",
    "caching": "prefix caching",
    "priority": "the priority policy",
    "threshold": "long_prefill_token_threshold",
    "watermark": "a watermark",
    "memory": "a pool sized by memory",
    "model": "a model that gives the groups",
    "blocks": "a given number of blocks",
    "huge": "a GPU of 160 GiB",
    "latent": "latent attention",
    "groups": "several KV-cache groups",
    "windows": "sliding windows or chunks",
    "sparse": "windows, chunks or Mamba states",
    "states": "Mamba states",
    "drafts": "drafts",
    "encoder": "an encoder",
}


@dataclass(frozen=True)
class Onset:
    """Since which release a switch has a value.

    Attributes:
        release: "0.MINOR", the first release with it.
        value: one of the switch's values.
        pull: number of the vLLM pull request, None where it was not found.
    """

    release: str
    value: str
    pull: int | None = None


@dataclass(frozen=True)
class Switch:
    """One rule that differs between releases.

    Attributes:
        name: as in `engine.switches`.
        effect: what it changes, one sentence.
        values: value -> what vLLM does then.
        onsets: in order of release; the first is that of `FIRST_RELEASE`.
        concerns: keys of `FEATURES`: what an engine must have, all of it, for the rule to decide anything.
    """

    name: str
    effect: str
    values: Mapping[str, str]
    onsets: tuple[Onset, ...]
    concerns: tuple[str, ...] = ()

    def value_of(self, release: str) -> str:
        """Its value in a release."""
        passed = [o.value for o in self.onsets if release_key(o.release) <= release_key(release)]
        return passed[-1]


SWITCHES: tuple[Switch, ...] = (
    Switch(
        "free_order",
        "Where freed blocks enter the free queue: which block is used next, which cached one is lost.",
        {
            "append": "all at the tail",
            "append_window_split": "all at the tail; but in front, if unhashed: what left a window or chunk,"
            " and all of a sliding-window group",
            "split": "unhashed blocks in front, hashed ones at the tail",
            "split_if_caching": "as split; with prefix caching off all at the tail",
        },
        (
            Onset("0.13", "append"),
            Onset("0.23", "append_window_split", 43447),
            Onset("0.24", "split", 42656),
            Onset("0.27", "split_if_caching", 48017),
            Onset("0.28", "split", 51482),
        ),
    ),
    Switch(
        "full_sequence_reserve",
        "Whether an admission wants free blocks for all known tokens (scheduler_reserve_full_isl).",
        {"off": "only for this step's tokens", "on": "as scheduler_reserve_full_isl says"},
        (Onset("0.13", "off"), Onset("0.19", "on", 37307)),
    ),
    Switch(
        "watermark",
        "Whether an admission can be made to leave a share of the pool free.",
        {"off": "no such option", "on": "as watermark says"},
        (Onset("0.13", "off"), Onset("0.24", "on", 44594)),
        ("watermark",),
    ),
    Switch(
        "async_default",
        "Whether async_scheduling is on where the config does not say.",
        {"off": "off", "on": "on"},
        (Onset("0.13", "off"), Onset("0.14", "on", 27614)),
    ),
    Switch(
        "empty_batch",
        "Asynchronous engines: what happens to a batch without tokens while none is in flight.",
        {
            "at_once": "its update follows at once",
            "queued": "it waits in the batch queue while requests are left",
        },
        (Onset("0.13", "at_once"), Onset("0.23", "queued")),
        ("async",),
    ),
    Switch(
        "priority_mode",
        "Priority policy: what the running phase does after it has taken a victim.",
        {
            "old": "a victim before the current request that was not scheduled shifts the list: one request"
            " misses the step; a request that is its own victim ends the phase",
            "fixed_index": "nobody is missed; a request that is its own victim ends the phase",
            "go_on": "nobody is missed; after a self-victim the phase goes on with the next request",
        },
        (Onset("0.13", "old"), Onset("0.28", "fixed_index", 49206), Onset("0.33", "go_on")),
        ("priority",),
    ),
    Switch(
        "single_request_exempt",
        "Whether long_prefill_token_threshold spares a request that is alone.",
        {"off": "no", "on": "yes"},
        (Onset("0.13", "off"), Onset("0.31", "on", 57951)),
        ("threshold",),
    ),
    Switch(
        "stats_at",
        "When a prefix look-up enters the statistics.",
        {
            "lookup": "at every look-up: again in each step in which the head of the queue is not admitted",
            "admission": "once, when the request is admitted",
        },
        (Onset("0.13", "lookup"), Onset("0.27", "admission", 48860)),
        ("caching",),
    ),
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
        "window_free_basis",
        "Sliding-window and chunked-local groups, async: which tokens count when blocks leave the window.",
        {"optimistic": "those in flight too", "processed": "only those that were processed"},
        (Onset("0.13", "optimistic"), Onset("0.26", "processed", 47728)),
        ("windows", "async"),
    ),
    Switch(
        "admission_cap",
        "Full-sequence reserve of window groups: tokens beyond the window that the reserve counts at most.",
        {
            "none": "all known tokens",
            "batch": "max_num_batched_tokens",
            "in_flight": "max_num_batched_tokens for each batch in flight",
        },
        (Onset("0.13", "none"), Onset("0.20", "batch", 40946), Onset("0.26", "in_flight", 47728)),
        ("windows",),
    ),
    Switch(
        "retention",
        "Which blocks of sliding-window groups are cached where the config does not say.",
        {
            "all": "every full block; prefix_cache_retention_interval does not exist",
            "uneven": "those that a hit of some length needs where other groups have larger blocks, else all",
            "dense": "those that a hit of some length needs (interval null)",
            "boundary": "those that a hit of the whole prompt needs (interval 0)",
        },
        (
            Onset("0.13", "all"),
            Onset("0.22", "uneven", 42258),
            Onset("0.23", "dense", 43447),
            Onset("0.29", "boundary", 52216),
        ),
        ("sparse", "caching"),
    ),
    Switch(
        "state_draft_retention",
        "Drafts by eagle or mtp, Mamba beside attention: which states are cached where the config does not"
        " say.",
        {"as_retention": "as in other engines", "dense": "all (interval null)"},
        (Onset("0.13", "as_retention"), Onset("0.29", "dense"), Onset("0.30", "as_retention")),
        ("states", "drafts", "caching"),
    ),
    Switch(
        "hybrid_cacheable",
        "Several groups: up to where tokens are cached.",
        {
            "all": "every full block of each group",
            "common": "rounded down to the common block size",
            "aligned": "rounded down to the common block size, and the block that a drafter drops behind it",
        },
        (Onset("0.13", "all"), Onset("0.22", "common", 42258), Onset("0.23", "aligned", 44082)),
        ("groups", "caching"),
    ),
    Switch(
        "shared_prefix_boundary",
        "Several groups: whether a prefix that only some groups hit is remembered as worth retaining.",
        {"off": "no", "chunks": "no, but a first chunk ends there for a Mamba state", "on": "yes"},
        (Onset("0.13", "off"), Onset("0.24", "chunks", 37898), Onset("0.26", "on", 47782)),
        ("groups", "caching"),
    ),
    Switch(
        "partial_tail_keys",
        "Groups of unequal block size: whether the prompt's last part of a block gets a key too.",
        {
            "off": "no",
            "whole": "yes, at the last hash unit of the whole prompt",
            "on": "yes, at the last hash unit that a hit on the same prompt can use",
        },
        (Onset("0.13", "off"), Onset("0.26", "whole", 46384), Onset("0.32", "on")),
        ("groups", "caching"),
    ),
    Switch(
        "hybrid_rounds",
        "Full attention beside one other kind of group: how often the two are asked for a common hit.",
        {"one": "once each", "until_equal": "until none of them shortens it"},
        (Onset("0.13", "one"), Onset("0.14", "until_equal", 31707), Onset("0.15", "one", 33524)),
        ("groups", "caching"),
    ),
    Switch(
        "trimmed_hits",
        "Full-attention groups of several block sizes: whose hits are cut to the common hit.",
        {
            "all": "those of each",
            "first": "those of the first size; the others keep, and use, blocks beyond the hit",
        },
        (Onset("0.13", "all"), Onset("0.15", "first", 33524), Onset("0.29", "all")),
        ("groups", "caching"),
    ),
    Switch(
        "skipped_hits",
        "Hits that lie before what attention will read.",
        {"taken": "are taken with the others, and given up in the next step", "left": "stay where they are"},
        (Onset("0.13", "taken"), Onset("0.14", "left", 30166)),
        ("sparse", "caching"),
    ),
    Switch(
        "draft_hits",
        "Drafts by eagle or mtp: what keeps a hit from slots that were written under another next token.",
        {
            "drop": "the last block of a hit is computed again",
            "next_token": "the key of a block covers the token behind it too; nothing is dropped",
        },
        (Onset("0.13", "drop"), Onset("0.33", "next_token")),
        ("drafts", "caching"),
    ),
    Switch(
        "mtp_group",
        "Drafts by mtp, groups of a model: which of them lose the last block of a hit.",
        {
            "all": "all of them, since none is marked",
            "marked": "the group of the layers that draft",
        },
        (Onset("0.13", "all"), Onset("0.31", "marked", 55390)),
        ("drafts", "groups"),
    ),
    Switch(
        "draft_lookup",
        "Drafts by eagle or mtp, several groups: what is looked up so that a block can be dropped from it.",
        {
            "each_round": "what is asked for; each round drops a block, and windows end where hits may end",
            "prompt": "a block more, within the text that may hit; dropped once for each length tried",
            "attention": "as prompt, but no state is looked up so",
            "behind": "a block more, within what is known; dropped once, and no state is looked up so",
        },
        (
            Onset("0.13", "each_round"),
            Onset("0.20", "prompt", 40860),
            Onset("0.26", "attention", 46384),
            Onset("0.32", "behind"),
        ),
        ("drafts", "groups", "caching"),
    ),
    Switch(
        "draft_replay",
        "Drafts by eagle or mtp: which blocks prefix_cache_retention_interval keeps for the same prompt.",
        {
            "last_token": "those before its last token, as without drafts",
            "dropped": "those that a hit ends in once a block is dropped, of it and of a longer prompt",
        },
        (Onset("0.13", "last_token"), Onset("0.30", "dropped", 54713)),
        ("drafts", "sparse", "caching"),
    ),
    Switch(
        "draft_padding",
        "Drafts: which admissions of one token get rows for drafts, so that they look like a decode.",
        {
            "none": "none",
            "beside": "those beside decodes alone; where the rows exceed max_model_len, nobody gets in",
            "fits": "those beside decodes alone, if max_model_len has room for the rows and a token more",
            "hits": "those beside decodes, or behind a prefix hit, if there is room",
        },
        (
            Onset("0.13", "none"),
            Onset("0.25", "beside", 45237),
            Onset("0.29", "fits", 53962),
            Onset("0.30", "hits", 55126),
        ),
        ("drafts",),
    ),
    Switch(
        "preempted_drafts",
        "Drafts: what becomes of those of a request that is preempted.",
        {
            "kept": "they are verified in its first step as a running request, if that still has prompt to"
            " compute",
            "dropped": "they are dropped",
        },
        (Onset("0.13", "kept"), Onset("0.14", "dropped", 31944)),
        ("drafts",),
    ),
    Switch(
        "draft_slots",
        "Drafts: whether an admission takes the slots that the drafter writes beyond its tokens.",
        {"running": "no: they come with its next step", "all": "yes"},
        (Onset("0.13", "running"), Onset("0.23", "all", 43733)),
        ("drafts",),
    ),
    Switch(
        "draft_inputs",
        "Drafts by a draft model: what its own inputs take from a step.",
        {
            "free": "nothing",
            "if_left": "as reserved; where that leaves no token, nothing",
            "reserved": "one token for each of max_num_seqs, where max_num_scheduled_tokens is not given",
            "each": "one token for each scheduled request",
        },
        (
            Onset("0.13", "free"),
            Onset("0.17", "if_left", 34898),
            Onset("0.20", "reserved"),
            Onset("0.28", "each", 51725),
        ),
        ("drafts",),
    ),
    Switch(
        "accepted_cached",
        "Drafts, synchronous engines: when the blocks that accepted drafts fill are cached.",
        {"schedule": "with the request's next step", "output": "at once"},
        (Onset("0.13", "schedule"), Onset("0.33", "output")),
        ("drafts", "caching"),
    ),
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

#: Switches that decide how layers are grouped and a pool is sized, and nothing that a step does.
SIZE_SWITCHES = tuple(s.name for s in SWITCHES if "model" in s.concerns)


@dataclass(frozen=True)
class LaterKey:
    """A key of the engine that the oldest releases do not have.

    Attributes:
        since: first release that has it.
        absent: the value that means what releases without it do.
    """

    since: str
    absent: Any


#: By name. The retention interval was an environment variable from 0.23 to 0.28.
LATER_KEYS = {
    "max_num_scheduled_tokens": LaterKey("0.17", None),
    "scheduler_reserve_full_isl": LaterKey("0.19", False),
    "prefix_cache_retention_interval": LaterKey("0.23", None),
    "watermark": LaterKey("0.24", 0.0),
    "prefix_match_unit": LaterKey("0.26", None),
    "max_num_active_seqs": LaterKey("0.31", None),
    "long_prefill_token_threshold_adaptive": LaterKey("0.31", False),
}

#: The same for keys of a KV-cache group.
LATER_GROUP_KEYS = {
    "is_eagle_group": LaterKey("0.20", False),
    "prefill_checkpoint_alignment": LaterKey("0.30", None),
}


@dataclass(frozen=True)
class Rules:
    """The rules in force: one attribute for each switch, with its value."""

    free_order: Literal["append", "append_window_split", "split", "split_if_caching"] = "split"
    full_sequence_reserve: Literal["off", "on"] = "on"
    watermark: Literal["off", "on"] = "on"
    async_default: Literal["off", "on"] = "on"
    empty_batch: Literal["at_once", "queued"] = "queued"
    priority_mode: Literal["old", "fixed_index", "go_on"] = "fixed_index"
    single_request_exempt: Literal["off", "on"] = "on"
    stats_at: Literal["lookup", "admission"] = "admission"
    null_in_check: Literal["off", "on"] = "on"
    memory_utilization: Literal["0.9", "0.92"] = "0.92"
    graph_estimate: Literal["off", "on"] = "on"
    window_free_basis: Literal["optimistic", "processed"] = "processed"
    admission_cap: Literal["none", "batch", "in_flight"] = "in_flight"
    retention: Literal["all", "uneven", "dense", "boundary"] = "boundary"
    state_draft_retention: Literal["as_retention", "dense"] = "as_retention"
    hybrid_cacheable: Literal["all", "common", "aligned"] = "aligned"
    shared_prefix_boundary: Literal["off", "chunks", "on"] = "on"
    partial_tail_keys: Literal["off", "whole", "on"] = "on"
    hybrid_rounds: Literal["one", "until_equal"] = "one"
    trimmed_hits: Literal["all", "first"] = "all"
    skipped_hits: Literal["taken", "left"] = "left"
    draft_hits: Literal["drop", "next_token"] = "drop"
    mtp_group: Literal["all", "marked"] = "marked"
    draft_lookup: Literal["each_round", "prompt", "attention", "behind"] = "behind"
    draft_replay: Literal["last_token", "dropped"] = "dropped"
    draft_padding: Literal["none", "beside", "fits", "hits"] = "hits"
    preempted_drafts: Literal["kept", "dropped"] = "dropped"
    draft_slots: Literal["running", "all"] = "all"
    draft_inputs: Literal["free", "if_left", "reserved", "each"] = "each"
    accepted_cached: Literal["schedule", "output"] = "schedule"
    state_renewal: Literal["on", "off"] = "on"
    state_tables: Literal["all", "chosen", "align"] = "align"
    state_units: Literal["asked", "common"] = "common"
    state_wait: Literal["off", "on"] = "on"
    state_free_basis: Literal["scheduled", "less_drafts", "windows"] = "windows"
    state_chunks: Literal["prompts", "blocks", "to_last", "ends", "hits"] = "hits"
    state_retention: Literal["off", "on"] = "on"
    state_tails: Literal["off", "unit", "inside", "marked", "dropped", "on"] = "on"
    state_copies: Literal["two", "one"] = "one"
    state_replay: Literal["common", "hits"] = "hits"
    state_exports: Literal["each", "prompt", "hits"] = "hits"
    states_retired: Literal["never", "to_gap", "all"] = "all"
    encoder_freed: Literal["schedule", "output"] = "output"
    encoder_blocks: Literal["budget", "most", "own"] = "own"
    encoder_full: Literal["ends", "skipped"] = "ends"
    group_ratio: Literal["1.25", "1.5"] = "1.5"
    bucket_specs: Literal["equal", "mergeable"] = "mergeable"
    unequal_pages: Literal["grow", "pad_attention", "pad", "pad_but_latent"] = "pad_but_latent"
    unequal_states: Literal["one_group", "apart"] = "apart"
    latent_shapes: Literal["first", "equal"] = "equal"
    promoted_blocks: Literal["own", "full"] = "full"
    chunked_hybrid: Literal["off", "on"] = "on"
    check_needs: Literal["layers", "first_group", "groups"] = "groups"
    checked_memory: Literal["available", "blocks"] = "blocks"
    printed_tokens: Literal["blocks", "concurrency"] = "concurrency"
    window_blocks: Literal["engine", "smallest", "largest"] = "largest"
    latent_blocks: Literal["cutlass", "flashinfer", "preferred"] = "preferred"
    state_blocks: Literal["kernel_wide", "kernel", "asked", "asked_latent"] = "asked_latent"
    free_state_blocks: Literal["length", "unset", "engine"] = "engine"
    state_needs: Literal["tables", "mode", "drafts"] = "drafts"
    state_checkpoints: Literal["off", "on"] = "on"
    hybrid_caching: Literal["off", "on"] = "on"
    state_mode: Literal["all_or_off", "all", "all_undrafted", "align"] = "align"
    states_drafted: Literal["gated", "gated_unless_align", "all"] = "all"
    huge_gpu: Literal["off", "on"] = "on"


def default_retention(rules: Rules, method: str | None, hybrid: bool) -> int | None:
    """`prefix_cache_retention_interval` where a config does not say.

    Args:
        rules: of the release.
        method: of the drafter, None without one.
        hybrid: there are Mamba states and attention.
    """
    drafts = hybrid and method in ("eagle", "eagle3", "mtp") and rules.state_draft_retention == "dense"
    return 0 if rules.retention == "boundary" and not drafts else None


def release_key(release: str) -> tuple[int, ...]:
    """A sort key: "0.9" < "0.13"."""
    return tuple(int(part) for part in release.split("."))


def releases() -> tuple[str, ...]:
    """Every minor release whose rules can be composed, oldest first."""
    first, last = release_key(FIRST_RELEASE)[1], release_key(LAST_RELEASE)[1]
    return tuple(f"0.{minor}" for minor in range(first, last + 1))


def find_switch(name: str) -> Switch | None:
    """The switch of a name, None if there is none."""
    return next((s for s in SWITCHES if s.name == name), None)


@functools.cache
def rules_of(release: str, changed: tuple[tuple[str, str], ...] = ()) -> Rules:
    """The rules of a release, with single switches changed.

    Args:
        release: one of `releases()`.
        changed: (switch, value) pairs; both must be known.

    Raises:
        ValueError: an unknown release, switch or value.
    """
    if release not in releases():
        raise ValueError(f"unknown release {release!r}")
    values = {s.name: s.value_of(release) for s in SWITCHES}
    for name, value in changed:
        switch = find_switch(name)
        if switch is None:
            raise ValueError(f"unknown switch {name!r}")
        if value not in switch.values:
            raise ValueError(f"switch {name}: unknown value {value!r}")
        values[name] = value
    return Rules(**values)  # type: ignore[arg-type]


def missing_keys(release: str) -> dict[str, LaterKey]:
    """The engine's keys that a release does not have."""
    return {k: v for k, v in LATER_KEYS.items() if release_key(release) < release_key(v.since)}


def missing_group_keys(release: str) -> dict[str, LaterKey]:
    """The keys of KV-cache groups that a release does not have."""
    return {k: v for k, v in LATER_GROUP_KEYS.items() if release_key(release) < release_key(v.since)}


def changes_between(older: str, newer: str) -> list[tuple[Switch, Onset]]:
    """The switches that change on the way from one release to a newer one, by release."""
    low, high = release_key(older), release_key(newer)
    found = [(s, o) for s in SWITCHES for o in s.onsets if low < release_key(o.release) <= high]
    return sorted(found, key=lambda pair: release_key(pair[1].release))
