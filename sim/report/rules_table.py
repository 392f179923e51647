"""The rules of vLLM in which the sides of a comparison differ: those that concern their engines, and what the
others are about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sim.gpus import find_gpu
from sim.models import find_model
from sim.profiles import rules_of
from sim.report.document import Column, Paragraph, Part, Table
from sim.report.folder import RunFolder
from sim.report.run_groups import Group
from sim.report.units import plural
from sim.resolve_engine import HUGE_GPU
from sim.switches import FEATURES, SWITCHES


def features(run: RunFolder) -> set[str] | None:
    """What the engine of a run has of `sim.switches.FEATURES`; None where the run does not tell."""
    summary, engine = run.summary["engine"], dict(run.config.get("engine") or {})
    types = summary.get("kv_cache_groups")
    if types is None or not engine:
        return None
    windows = not {"sliding_window", "chunked_local"}.isdisjoint(types)
    found = {
        "async": engine.get("async_scheduling"),
        "caching": engine.get("enable_prefix_caching"),
        "priority": engine.get("policy") == "priority",
        "threshold": engine.get("long_prefill_token_threshold"),
        "watermark": engine.get("watermark"),
        "memory": dict(run.provenance.get("pool") or {}).get("how") == "estimated",
        "model": summary.get("model") and engine.get("kv_cache_groups") in (None, "auto"),
        "blocks": dict(run.provenance.get("pool") or {}).get("how") == "given",
        "huge": _is_huge(summary.get("gpu")),
        "latent": _is_latent(summary.get("model")),
        "groups": len(types) > 1,
        "windows": windows,
        "sparse": windows or "mamba" in types,
        "states": "mamba" in types,
        "drafts": engine.get("num_speculative_tokens"),
        "encoder": "cross_attention" in types,
    }
    return {name for name, value in found.items() if value}


def _is_huge(name: str | None) -> bool:
    """Whether the GPU of a run has 160 GiB; one that is not known may have."""
    gpu = find_gpu(name) if name else None
    return name is not None and (gpu is None or gpu.memory_bytes >= HUGE_GPU)


def _is_latent(name: str | None) -> bool:
    """Whether the model of a run has latent attention; one that is not known may have."""
    model = find_model(name) if name else None
    return name is not None and (model is None or model.is_mla)


def rules_in_force(engine: dict[str, Any]) -> dict[str, str] | None:
    """Switch -> value of a resolved config's engine section; None where it names no known release."""
    try:
        return asdict(rules_of(str(engine.get("vllm")), tuple(dict(engine.get("switches") or {}).items())))
    except (ValueError, TypeError):
        return None


def rules_table(groups: Sequence[Group]) -> list[Part]:
    """The rules of vLLM that concern the sides and in which they differ, and what the others are about.

    Nothing where the rules are the same or not known.
    """
    found = [rules_in_force(dict(g.runs[0].config.get("engine", {}))) for g in groups]
    if any(rules is None for rules in found):
        return []
    has = [features(g.runs[0]) for g in groups]
    rows, elsewhere = [], []
    for switch in SWITCHES:
        values = [rules[switch.name] for rules in found if rules is not None]
        if len(set(values)) == 1:
            continue
        if any(one is None or one.issuperset(switch.concerns) for one in has):
            rows.append((switch.name, *values, switch.effect))
        else:
            elsewhere.append(switch)
    parts: list[Part] = []
    if rows:
        sides = (Column(g.letter, words=True) for g in groups)
        columns = (Column("rule", words=True), *sides, Column("what it is", words=True))
        parts.append(Table("rules", columns, tuple(rows)))
    if elsewhere:
        known = [one for one in has if one is not None]
        missing = [name for s in elsewhere for name in s.concerns if not any(name in one for one in known)]
        others = ", ".join(FEATURES[name] for name in FEATURES if name in missing)
        text = f"{plural(len(elsewhere), 'more rule')} differ, about what these engines don't have: {others}."
        parts.append(Paragraph((text,), "note"))
    return parts
