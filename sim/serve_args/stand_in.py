"""Traffic where neither a config nor vLLM's options, which have none, say what arrives."""

from __future__ import annotations

from typing import Any

from sim.config_yaml import Document
from sim.errors import InputError
from sim.models import ModelShape, find_model, is_path, load_model, locate

#: A note about it begins so.
NOTE = "no config gives a workload"
#: Tokens of the chat's longest context; a shorter `max_model_len` shortens all of it.
_CONTEXT = 8000


def stand_in(document: Document) -> tuple[dict[str, Any], str]:
    """The `workload:` section for a document without one, and the note that says so."""
    model = _model(document.data.get("model"))
    if model is not None and model.is_encoder_decoder:
        return _transcriptions(model), f"{NOTE}: 4 transcriptions a second for 5 minutes stand in"
    engine = document.data.get("engine")
    length = engine.get("max_model_len") if isinstance(engine, dict) else None
    if not isinstance(length, int) or length < 1:
        length = model.max_position if model is not None else _CONTEXT
    more = "" if length >= _CONTEXT else f", shortened to max_model_len {length},"
    note = f"{NOTE}: a chat of 1 session a second for 5 minutes{more} stands in (see docs/vllm-args.md)"
    return _chat(min(length, _CONTEXT)), note


def _model(name: object) -> ModelShape | None:
    """The model, if it is known; what is wrong with it is told when the config is resolved."""
    if not isinstance(name, str):
        return None
    found = locate(name)
    if found is None or not is_path(found):
        return find_model(found) if found else None
    try:
        return load_model(found)
    except InputError:
        return None


def _chat(context: int) -> dict[str, Any]:
    def tokens(n: int) -> int:
        return max(1, n * context // _CONTEXT)

    return {
        "kind": "chat",
        "arrivals": {"kind": "poisson", "rate": 1.0},
        "duration": "5min",
        "personas": 4,
        "system_len": tokens(800),
        "user_len": {"kind": "lognormal", "p50": tokens(120), "p90": tokens(400), "max": tokens(4000)},
        "output_len": {"kind": "lognormal", "mean": tokens(300), "cv": 0.8, "max": tokens(2000)},
        "turns": 4.0,
        "max_turns": 10,
        "think_time": {"kind": "lognormal", "mean": "12s", "cv": 1.0, "max": "60s"},
        "max_context": context,
    }


def _transcriptions(model: ModelShape) -> dict[str, Any]:
    most = max(1, model.max_position - 4)
    return {
        "kind": "random",
        "arrivals": {"kind": "poisson", "rate": 4.0},
        "duration": "5min",
        "prompt_len": min(4, most),
        "output_len": {"kind": "lognormal", "p50": 90, "p90": 200, "max": most},
    }


__all__ = ["NOTE", "stand_in"]
