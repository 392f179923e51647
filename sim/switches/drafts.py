"""Rules about speculative decoding."""

from __future__ import annotations

from sim.switches.kind import Onset, Switch

DRAFTS: tuple[Switch, ...] = (
    Switch(
        "state_draft_retention",
        "Drafts by eagle or mtp, Mamba beside attention: which states are cached where the config does not"
        " say.",
        {"as_retention": "as in other engines", "dense": "all (interval null)"},
        (Onset("0.13", "as_retention"), Onset("0.29", "dense"), Onset("0.30", "as_retention")),
        ("states", "drafts", "caching"),
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
)
