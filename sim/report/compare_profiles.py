"""`python -m sim compare --profiles A,B CONFIG`: one config under the rules of several vLLM releases."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sim.config import load_config
from sim.errors import InputError, did_you_mean
from sim.gpus import find_gpu
from sim.models import find_model
from sim.profiles import missing_keys, releases
from sim.report.folder import RunFolder
from sim.resolve_engine import HUGE_GPU

Say = Callable[[str], None]


def parse_profiles(text: str) -> list[str]:
    """Releases separated by commas. Raises InputError for unknown ones, all at once."""
    from sim.errors import raise_all

    names = [part.strip() for part in text.split(",") if part.strip()]
    problems = []
    for name in names:
        if name not in releases():
            hint = did_you_mean(name, releases()) or f"known: {', '.join(releases())}"
            problems.append(InputError(f"no vLLM release '{name}'", "--profiles", hint=hint))
    raise_all(problems)
    if len(dict.fromkeys(names)) < 2:
        raise InputError("there is nothing to compare: give two releases or more", "--profiles")
    return list(dict.fromkeys(names))


def run_profiles(
    config: str, profiles: Sequence[str], overrides: Sequence[str], seeds: int, folder: Path, say: Say
) -> list[str]:
    """Run a config under each release; returns the run folders, by release and seed.

    A key that a release does not have yet is left out there, and said. Raises InputError for a config that
    can't be used.
    """
    from sim import runner

    loaded = load_config(config, overrides)
    given = loaded.config.engine.model_fields_set
    first = loaded.config.seed
    prepared = []
    for release in profiles:
        sets = [*overrides, f"engine.vllm={release}"]
        for name, later in missing_keys(release).items():
            if name in given and getattr(loaded.config.engine, name) != later.absent:
                sets.append(f"engine.{name}={json.dumps(later.absent)}")
                say(f"vLLM {release} has no {name} (since {later.since}): left out there")
        runner.check(config, sets)
        prepared.append((release, sets))
    folders = []
    for release, sets in prepared:
        for seed in range(first, first + seeds):
            out = folder / (release if seeds == 1 else f"{release}-seed{seed}")
            options = runner.RunOptions(overrides=sets, seed=seed, out=str(out), plots=False, quiet=True)
            say(f"running vLLM {release}" + (f", seed {seed}" if seeds > 1 else ""))
            outcome = runner.run(config, options)
            if outcome.interrupted:
                raise KeyboardInterrupt
            outcome.write()
            folders.append(str(out))
    return folders


def features(run: RunFolder) -> set[str] | None:
    """What the engine of a run has of `sim.profiles.FEATURES`; None where the run does not tell."""
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
    from dataclasses import asdict

    from sim.profiles import rules_of

    try:
        return asdict(rules_of(str(engine.get("vllm")), tuple(dict(engine.get("switches") or {}).items())))
    except (ValueError, TypeError):
        return None
