"""Models: what a Hugging Face `config.json` says about memory and arithmetic.

Known names are the files of `sim/model_configs/` (also found as `configs/models/`); `model:` also takes the
path of another `config.json` of a family in `sim.models.families`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from sim.config_yaml import Document, read_json
from sim.errors import raise_all

from .families import FAMILIES, dense
from .reader import BY_HAND, Reader
from .shape import DTYPE_BYTES, CacheLayer, ModelShape, Parameters, StatePart, describe_model

FOLDER = Path(__file__).parent.parent / "model_configs"

#: Keys that tell that a model of an unknown type is not like Llama.
_FOREIGN = {
    "kv_lora_rank": "multi-head latent attention",
    "num_experts": "experts",
    "num_local_experts": "experts",
    "n_routed_experts": "experts",
    "ssm_cfg": "a recurrent state",
    "ssm_state_size": "a recurrent state",
    "mamba_d_state": "a recurrent state",
    "state_size": "a recurrent state",
    "linear_num_value_heads": "linear attention",
    "linear_attn_config": "linear attention",
    "full_attention_interval": "linear attention",
    "hybrid_override_pattern": "a recurrent state",
    "attention_chunk_size": "chunked attention",
    "num_kv_shared_layers": "layers that share a KV cache",
    "global_head_dim": "heads of two sizes",
    "encoder_layers": "an encoder",
}

#: Repository names that differ from our file names by more than a suffix.
ALIASES = {
    "mistral-7b-v0.3": "mistral-7b",
    "mistral-7b-v0.2": "mistral-7b",
    "mixtral-8x7b-v0.1": "mixtral-8x7b",
    "ministral-8b-2410": "ministral-8b",
    "mamba-codestral-7b-v0.1": "mamba-codestral-7b",
    "ai21-jamba-mini-1.6": "jamba-mini",
    "ai21-jamba-1.5-mini": "jamba-mini",
    "jamba-1.5-mini": "jamba-mini",
    "jamba-v0.1": "jamba-mini",
    "deepseek-r1": "deepseek-v3",
    "deepseek-r1-0528": "deepseek-v3",
    "deepseek-v3-0324": "deepseek-v3",
    "deepseek-v3-base": "deepseek-v3",
    "deepseek-v3.1": "deepseek-v3",
    "deepseek-v3.1-base": "deepseek-v3",
    "deepseek-v3.1-terminus": "deepseek-v3",
    "deepseek-v2-lite-chat": "deepseek-v2-lite",
    "llama-4-scout-17b-16e": "llama-4-scout",
    "llama-4-maverick-17b-128e": "llama-4-maverick",
    "llama-4-maverick-17b-128e-fp8": "llama-4-maverick",
    "qwen3-235b-a22b-2507": "qwen3-235b-a22b",
    "qwen3-30b-a3b-2507": "qwen3-30b-a3b",
}
_SUFFIXES = re.compile(r"-(instruct|it|chat|hf|thinking)(?=-|$)")


def model_names() -> list[str]:
    """Names of the models that come with kvpool."""
    return sorted(p.stem for p in FOLDER.glob("*.json"))


def is_path(name: str) -> bool:
    """Whether `model:` is meant as a file, not as a name."""
    return name.endswith(".json") or "/" in name or "\\" in name


def find_model(name: str) -> ModelShape | None:
    """The model of this name, in any case and with or without `-Instruct` and the like, or None."""
    found = known_name(name)
    return _known(found) if found else None


def known_name(name: str) -> str | None:
    """Our name of a model that is given by a published name, such as meta-llama/Llama-3.1-8B-Instruct."""
    low = name.lower().rsplit("/", 1)[-1]
    names = model_names()
    bare = _SUFFIXES.sub("", low)
    spellings = (low, bare, low.removeprefix("meta-"), bare.removeprefix("meta-"))
    return next((n for n in (ALIASES.get(s, s) for s in spellings) if n in names), None)


def locate(
    name: str,
    known: Callable[[str], str | None] = known_name,
    find: Callable[[str], Path] = Path,
) -> str | None:
    """What `model:` means: the path of a config.json, or a name of ours; None: a file that does not exist.

    Args:
        name: our name, a published one (google/gemma-3-27b-it), a config.json, or the folder that has one.
        known: our name of a published one.
        find: where a relative path is looked for.
    """
    if not is_path(name) and (not name or known(name)):
        return name
    file = find(name)
    inside = file / "config.json"
    if inside.exists():
        return str(inside)
    if not is_path(name):
        return name
    if not file.exists():
        return known(name)
    return str(file) if is_path(str(file)) else f"./{file}"


@lru_cache
def _known(name: str) -> ModelShape:
    data = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return shape_from_config(Document(name, data), name)


def load_model(path: str | Path) -> ModelShape:
    """Read a Hugging Face `config.json`.

    Raises:
        InputError: missing file, broken JSON, missing or wrong keys, or an architecture that is not known;
            all problems at once.
    """
    document = read_json(path)
    return shape_from_config(document, name_of(path, document))


def name_of(path: str | Path, document: Document) -> str:
    """Name of the model in this file: its own, or that of its folder or file."""
    parent = Path(path).resolve().parent.name
    name = str(document.data.get("_name_or_path") or (parent if Path(path).name == "config.json" else ""))
    return name or Path(path).stem


def shape_from_config(document: Document, name: str) -> ModelShape:
    """The shape in a Hugging Face config; see `load_model`."""
    r = Reader(document, name)
    model_type = str(document.data.get("model_type") or r.get("model_type", "llama"))
    family = FAMILIES.get(model_type)
    if family is None:
        family = dense
        foreign = next((k for k in _FOREIGN if r.get(k)), None)
        if foreign is not None:
            r.fail(foreign, f"a model of type '{model_type}' with {_FOREIGN[foreign]} is not known", BY_HAND)
            raise_all(r.problems)
        r.notes.append(f"model_type '{model_type}' is not known: taken as like Llama")
    shape = family(r)
    raise_all(r.problems)
    return shape


__all__ = [
    "ALIASES",
    "DTYPE_BYTES",
    "FOLDER",
    "CacheLayer",
    "ModelShape",
    "Parameters",
    "StatePart",
    "describe_model",
    "find_model",
    "is_path",
    "known_name",
    "load_model",
    "locate",
    "model_names",
    "name_of",
    "shape_from_config",
]
