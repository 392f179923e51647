"""The rules of vLLM in which the sides of a comparison differ: those that can matter for their configs, and
the names of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sim.errors import InputError
from sim.models import find_model, is_path, load_model, locate
from sim.profiles import SWITCHES
from sim.report.compare_profiles import rules_in_force
from sim.report.document import Column, Paragraph, Part, Table
from sim.report.run_groups import Group

_DRAFTS, _STATES, _ENCODER = "drafts", "Mamba states", "an encoder"
_WINDOWS, _SEVERAL = "windows or chunks", "several KV-cache groups"
#: What a config must have for a rule to matter, by the beginning of its name; the other rules always can.
_NEEDS = {
    "draft": _DRAFTS,
    "mtp_group": _DRAFTS,
    "preempted_drafts": _DRAFTS,
    "accepted_cached": _DRAFTS,
    "state": _STATES,
    "encoder": _ENCODER,
    "window_free_basis": _WINDOWS,
    "admission_cap": _WINDOWS,
    "retention": _WINDOWS,
    "hybrid": _SEVERAL,
    "shared_prefix_boundary": _SEVERAL,
    "partial_tail_keys": _SEVERAL,
    "trimmed_hits": _SEVERAL,
    "skipped_hits": _SEVERAL,
    "group_ratio": _SEVERAL,
}
_KINDS = {
    "sliding_window": _WINDOWS,
    "chunked_local": _WINDOWS,
    "mamba": _STATES,
    "cross_attention": _ENCODER,
}


def _need(rule: str) -> str | None:
    return next((need for start, need in _NEEDS.items() if rule.startswith(start)), None)


def features(config: Mapping[str, Any]) -> set[str] | None:
    """What a config (resolved, keys with dots) has of the things that rules need; None: it does not tell."""
    groups = config.get("engine.kv_cache_groups")
    layers: set[Any]
    if isinstance(groups, list):
        kinds = [g.get("type") for g in groups if isinstance(g, dict)]
        several = len(groups) > 1
    elif groups is not None and config.get("model") is None:
        kinds, several = ["full"], False
    else:
        found = locate(str(config.get("model") or ""))
        try:
            model = load_model(found) if found and is_path(found) else find_model(found or "")
        except (InputError, OSError):
            model = None
        if model is None:
            return None
        layers = set(model.cache_layers)
        kinds, several = [layer.kind for layer in layers], len(layers) > 1
    out = {_KINDS[k] for k in kinds if k in _KINDS}
    if config.get("engine.num_speculative_tokens"):
        # a drafter's layers may be further groups
        out |= {_DRAFTS, _SEVERAL}
    return out | {_SEVERAL} if several else out


def rules_table(groups: Sequence[Group]) -> list[Part]:
    """The rules in which the sides differ; nothing where they have the same or are not known."""
    found = [rules_in_force(dict(g.runs[0].config.get("engine", {}))) for g in groups]
    if any(rules is None for rules in found):
        return []
    known = [features(g.config) for g in groups]
    have = None if any(f is None for f in known) else {x for f in known if f is not None for x in f}
    rows, others = [], []
    for switch in SWITCHES:
        values = [rules[switch.name] for rules in found if rules is not None]
        need = _need(switch.name)
        if len(set(values)) == 1:
            continue
        if have is None or need is None or need in have:
            rows.append((switch.name, *values, switch.effect))
        else:
            others.append((need, switch.name))
    out: list[Part] = []
    if rows:
        sides = (Column(g.letter, words=True) for g in groups)
        columns = (Column("rule", words=True), *sides, Column("what it is", words=True))
        out.append(Table("rules", columns, tuple(rows)))
    if others:
        needs = dict.fromkeys(need for need, _ in others)
        told = "; ".join(f"{need} ({', '.join(n for k, n in others if k == need)})" for need in needs)
        says = f"Further rules differ that need what these configs do not have: {told}."
        out.append(Paragraph((says,), tone="note"))
    return out


__all__ = ["features", "rules_table"]
