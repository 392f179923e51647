"""vLLM's options of speculative decoding as keys of `engine:`: the drafter's kind, and how much it drafts.

How often drafts are right is no option of vLLM: `engine.draft_acceptance` says it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sim.errors import InputError, did_you_mean
from sim.models import known_name
from sim.models.drafters import OWN_CONFIG, known_head
from sim.serve_args.parse import Given
from sim.serve_args.table import SPECULATIVE

_OFF: tuple[Any, ...] = (None, False, 0, "", [], {})
_METHODS = {
    "ngram": "ngram",
    "[ngram]": "ngram",
    "eagle": "eagle",
    "eagle3": "eagle3",
    "mtp": "mtp",
    "draft_model": "draft_model",
    "medusa": "medusa",
}
#: Keys of the config that change which tokens a step has, or which blocks are hit.
_REFUSED = (
    "disable_padded_drafter_batch",
    "disable_eagle_block_drop",
    "parallel_drafting",
    "num_speculative_tokens_per_batch_size",
    "enable_adaptive_verification",
    "max_model_len",
)
#: Keys of the config that change a drafter's weights or its layers' pages.
_MEMORY = ("quantization", "kv_cache_dtype")
#: Keys that change how drafts are made and judged, which `draft_acceptance` stands for, or memory and speed.
_PASSED = (
    "enforce_eager",
    "draft_tensor_parallel_size",
    "tensor_parallel_size",
    "moe_backend",
    "attention_backend",
    "revision",
    "code_revision",
    "index_share_for_mtp_iteration",
    "use_local_argmax_reduction",
    "use_heterogeneous_vocab",
    "prompt_lookup_max",
    "prompt_lookup_min",
    "rejection_sample_method",
    "synthetic_acceptance_rates",
    "synthetic_acceptance_length",
    "draft_sample_method",
)
_KNOWN = ("method", "model", "num_speculative_tokens", *_REFUSED, *_MEMORY, *_PASSED)


def draft_keys(
    given: Mapping[str, Given], sized: bool, problems: list[InputError], notes: list[str]
) -> dict[str, tuple[Any, Given]]:
    """Key of `engine:` -> (value, the option that says it); {} without drafts.

    Args:
        given: the options, by name; others are passed over.
        sized: whether the number of blocks is given.
        problems: what is refused is added here.
        notes: sentences about what is passed over.
    """
    config, main = _config(given, problems)
    if main is None or not config:
        return {}
    before = len(problems)
    for key, value in config.items():
        if key not in _KNOWN:
            hint = did_you_mean(key, _KNOWN) or "docs/vllm-args.md says what is read"
            problems.append(main.error(f"{main.name} has no key '{key}' that is known here", hint))
        elif key in _REFUSED and value not in _OFF:
            problems.append(
                main.error(f"{main.name}: {key} is not simulated", f"leave {key} out to simulate without it")
            )
    method = _method(config, main, problems)
    tokens = config.get("num_speculative_tokens")
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        problem = "needs num_speculative_tokens" if tokens is None else "num_speculative_tokens must be >= 1"
        problems.append(main.error(f"{main.name}: {problem}", "say how many tokens are drafted in a step"))
    for key in _MEMORY:
        if config.get(key) not in _OFF and method != "ngram" and not sized:
            why = f"{main.name}: {key} of a drafter changes its share of the memory, which is not estimated"
            hint = "also give --num-gpu-blocks-override, with num_gpu_blocks as vLLM's log prints it"
            problems.append(main.error(why, hint))
    if len(problems) > before:
        return {}
    found = {"speculative_method": (method, main), "num_speculative_tokens": (tokens, main)}
    return found | _drafter(config, method, main, sized, problems, notes)


def _drafter(
    config: Mapping[str, Any],
    method: str | None,
    main: Given,
    sized: bool,
    problems: list[InputError],
    notes: list[str],
) -> dict[str, tuple[Any, Given]]:
    """The drafter as `engine.speculative_model`, where it has a config of its own."""
    model = config.get("model")
    if method not in OWN_CONFIG or not model:
        if method == "mtp" and model:
            notes.append(
                f"{main.name}: the layers for multi-token prediction are those of the model's config"
            )
        return {}
    path = Path(str(model))
    if path.exists():
        return {"speculative_model": (config_file(str(model)), main)}
    find = {"draft_model": known_name, "medusa": lambda _: None}.get(method, known_head)
    known = find(str(model))
    if known is not None:
        return {"speculative_model": (known, main)}
    if sized:
        notes.append(f"{main.name}: the drafter '{model}' is not known, so its layers are left out")
        return {}
    hint = (
        "download its config.json and name that file or its folder as the drafter's model; or give"
        " --num-gpu-blocks-override, with num_gpu_blocks as vLLM's log prints it"
    )
    problems.append(main.error(f"{main.name}: unknown drafter '{model}'", hint))
    return {}


def config_file(text: str) -> str:
    """The config.json of a model that is given as a file or a folder."""
    path = Path(text)
    return str(path / "config.json") if path.is_dir() else text


def _config(given: Mapping[str, Given], problems: list[InputError]) -> tuple[dict[str, Any], Given | None]:
    """What all options say together, and the one to name in messages."""
    config: dict[str, Any] = {}
    main = None
    for name, key in SPECULATIVE.items():
        g = given.get(name)
        if g is None or g.text.strip().lower() in ("none", "null", "{}"):
            continue
        main = main or g
        value: Any = g.text
        if key not in ("model", "method"):
            try:
                value = json.loads(g.text)
            except ValueError as e:
                wanted = "a whole number" if key else "JSON"
                problems.append(
                    g.error(f"{name} must be {wanted}: {e}", "quote it once: '{\"method\": ...}'")
                )
                return {}, None
        if key:
            config[key] = value
        elif isinstance(value, dict):
            config |= {str(k).replace("-", "_"): v for k, v in value.items()}
        else:
            problems.append(g.error(f"{name} must be a JSON object, got {g.text}"))
            return {}, None
    return config, main


def _method(config: Mapping[str, Any], main: Given, problems: list[InputError]) -> str | None:
    """As vLLM 0.32.0 tells it: by `method`, else by the drafter's name (SpeculativeConfig.__post_init__)."""
    name, model = config.get("method"), str(config.get("model") or "")
    if name is None:
        lower = model.lower()
        name = "eagle" if "eagle-" in lower else "eagle3" if "eagle3" in lower else "draft_model"
        if model in ("ngram", "[ngram]") or not model:
            name = "ngram" if model else None
    found = _METHODS.get(str(name)) or ("mtp" if str(name).endswith("_mtp") else None)
    if found is None:
        problem = f"drafts by '{name}' are not simulated" if name else "needs a method, or a model"
        problems.append(
            main.error(f"{main.name}: {problem}", f"simulated: {', '.join(sorted(set(_METHODS.values())))}")
        )
    return found
