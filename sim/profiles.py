"""Which rule belongs to which vLLM release, by the table of switches (`sim.switches`).

A switch is one rule that has changed between releases, with the release in which each of its values came in.
The rules of a release are the values whose onset it has passed, so releases in between need no entry of
their own; a user can set single switches on top (`engine.switches`). `docs/fidelity.md` prints the table.

Standard library only: the core's settings, the plain-Python twin and the recorder of real releases all read
the rules from here.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

from sim.switches import SWITCHES, Onset, Switch, release_key

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
#: The first release that gives the null block no key.
NULL_KEYLESS_SINCE = "0.14"


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
    window_free_basis: Literal["optimistic", "processed"] = "processed"
    admission_cap: Literal["none", "batch", "in_flight"] = "in_flight"
    retention: Literal["all", "uneven", "dense", "boundary"] = "boundary"
    hybrid_cacheable: Literal["all", "common", "aligned"] = "aligned"
    shared_prefix_boundary: Literal["off", "chunks", "on"] = "on"
    partial_tail_keys: Literal["off", "whole", "on"] = "on"
    hybrid_rounds: Literal["one", "until_equal"] = "one"
    trimmed_hits: Literal["all", "first"] = "all"
    skipped_hits: Literal["taken", "left"] = "left"
    state_draft_retention: Literal["as_retention", "dense"] = "as_retention"
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
    null_in_check: Literal["off", "on"] = "on"
    memory_utilization: Literal["0.9", "0.92"] = "0.92"
    graph_estimate: Literal["off", "on"] = "on"
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
