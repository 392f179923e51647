"""Options of `vllm serve` as an edit of a config: what they set, what is refused, what was ignored."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from sim.config_engine import AttentionBackend
from sim.config_yaml import Document, Place
from sim.errors import InputError, did_you_mean, raise_all
from sim.models import known_name, model_names
from sim.serve_args.drafts import config_file, draft_keys
from sim.serve_args.parse import WHERE, Given, parse_file, parse_line
from sim.serve_args.stand_in import stand_in
from sim.serve_args.table import ENGINE, MEMORY, REFUSED, SPECULATIVE, Refusal, ignored

#: Keys of `engine:` that no option of vLLM sets and that a config keeps: which release's rules apply, and how
#: often drafts are right.
KEPT = ("vllm", "switches", "draft_acceptance")

_KV_DTYPES = ("auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2")
_DTYPES = {"half": "float16", "float": "float32"}


@dataclass
class ServeSource:
    """What the command line says beside a config.

    Attributes:
        args: text of --vllm-args, or None.
        file: of --vllm-config, or None.
        gpu: of --gpu, or None.
        model: of --model, or None.
        notes: sentences about what was ignored and assumed, filled in while the config is read.
    """

    args: str | None = None
    file: str | None = None
    gpu: str | None = None
    model: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def given(self) -> bool:
        """Whether there is anything of vLLM's."""
        return self.args is not None or self.file is not None


def serve_edit(source: ServeSource) -> Callable[[Document], None]:
    """An edit that puts vLLM's options into a config's document; see `apply`."""

    def edit(document: Document) -> None:
        if source.given:
            problems: list[InputError] = []
            given = read_options(source, problems)
            apply(document, given, source.notes, problems)
            raise_all(problems)
        for key in ("model", "gpu"):
            name = getattr(source, key)
            if name is not None:
                _put(document, (key,), name, Place(None, None, f"--{key}"))
        if "workload" not in document.data:
            document.data["workload"], note = stand_in(document)
            source.notes.append(note)

    return edit


def read_options(source: ServeSource, problems: list[InputError]) -> list[Given]:
    """All options: those of the file first, then those of the command line, which count more.

    Unknown options and missing values are added to `problems`.

    Raises:
        InputError: a file that can't be read, quotes that are not closed.
    """
    line = parse_line(source.args, problems, source.notes) if source.args is not None else []
    files = [g.text for g in line if g.name == "--config"]
    if source.file is not None:
        files.insert(0, source.file)
    given: list[Given] = []
    for file in files:
        given += parse_file(file, problems, source.notes)
    return [*given, *(g for g in line if g.name != "--config")]


def apply(document: Document, given: list[Given], notes: list[str], problems: list[InputError]) -> None:
    """Replace the document's model and `engine:` section by what vLLM's options say.

    Options that are not given have vLLM's defaults, as on its command line: what `engine:` said before is
    dropped, but for `KEPT`. `model:` stays if no model is named. Options that are
    refused and values of the wrong form are added to `problems`.
    """
    last = {g.name: g for g in given}
    exact = "--kv-cache-memory-bytes" in last or "--num-gpu-blocks-override" in last
    before = document.data.get("engine")
    kept = {k: v for k, v in before.items() if k in KEPT} if isinstance(before, dict) else {}
    if isinstance(before, dict) and len(before) > len(kept):
        dropped = ", ".join(f"engine.{k}" for k in before if k not in kept)
        notes.append(f"replaced by vLLM's options: {dropped} of {document.file}")
    document.data["engine"] = kept
    drafts = draft_keys(last, "--num-gpu-blocks-override" in last, problems, notes)
    for key, (value, g) in drafts.items():
        _put(document, ("engine", key), value, g.place)
    if not drafts:
        kept.pop("draft_acceptance", None)
    passed: dict[str, list[str]] = {}
    for name, g in last.items():
        if name == "--model" and "--hf-config-path" in last:
            continue
        if name in SPECULATIVE:
            continue
        if name in ENGINE:
            _set(document, g, problems, notes, exact)
        elif name in REFUSED:
            _refuse(g, REFUSED[name], problems)
        elif name in MEMORY:
            if not exact:
                _refuse(g, MEMORY[name], problems)
        else:
            passed.setdefault(ignored()[name], []).append(name)
    if passed:
        names = "; ".join(f"{' '.join(v)} ({why})" for why, v in passed.items())
        notes.append(f"ignored: {names}")


def _refuse(g: Given, refusal: Refusal, problems: list[InputError]) -> None:
    if g.text.strip().lower() in refusal.harmless:
        return
    hint = refusal.hint or f"leave {g.name} out to simulate without it"
    problems.append(g.error(f"{g.name}: {refusal.why}", hint))


def _set(document: Document, g: Given, problems: list[InputError], notes: list[str], exact: bool) -> None:
    key, how = ENGINE[g.name]
    if how == "config_path":
        _put(document, ("model",), config_file(g.text), g.place)
        return
    if key == "model":
        _model(document, g, problems)
        return
    try:
        value = _READ[how](g.text)
    except _Refused as why:
        if exact and how == "quantization":
            notes.append(f"ignored: {g.name} {g.text}, since the pool's size is given")
            return
        problems.append(g.error(f"{g.name}: {why.message}", why.hint))
        return
    except ValueError:
        problems.append(g.error(f"{g.name} must be {_WANTED[how]}, got '{g.text}'"))
        return
    if value is not _UNSET:
        _put(document, ("engine", key), value, g.place)


def _model(document: Document, g: Given, problems: list[InputError]) -> None:
    path = Path(g.text)
    if path.exists():
        _put(document, ("model",), config_file(g.text), g.place)
        return
    known = known_name(g.text)
    if known is None:
        if "$" in g.text:
            problems.append(g.error(f"'{g.text}' is a variable of a shell", "write the model's name instead"))
            return
        near = did_you_mean(g.text.rsplit("/", 1)[-1].lower(), model_names())
        hint = (
            "download its config.json and name that file or its folder instead: `serve path/to/config.json`"
            + (f"; {near}" if near else "")
        )
        problems.append(g.error(f"unknown model '{g.text}'", hint))
        return
    _put(document, ("model",), known, g.place)


def _put(document: Document, path: tuple[str, ...], value: Any, place: Place) -> None:
    node = document.data
    for part in path[:-1]:
        node = node.setdefault(part, {})
    node[path[-1]] = value
    document.keys[path] = document.values[path] = place


class _Refused(Exception):
    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


_UNSET = object()
_SUFFIXES = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def human_int(text: str) -> int:
    """A whole number, also as 1k (1000), 1K (1024) or 25.6k; only small letters take decimals
    (human_readable_int).

    Raises:
        ValueError: anything else.
    """
    text = text.strip()
    factor = _SUFFIXES.get(text[-1:])
    if factor is None:
        return int(text)
    number = text[:-1]
    return int(float(number) * factor) if text[-1].islower() else int(number) * factor


def _or_none(read: Callable[[str], int]) -> Callable[[str], int | None]:
    """As vLLM's optional_type: `None` and nothing, spelled so and not otherwise, are none."""
    return lambda text: None if text in ("None", "") else read(text)


def _length(text: str) -> Any:
    return "fit" if text.strip().lower() in ("-1", "auto") else human_int(text)


def _flag(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else _bad()


def _bad() -> Any:
    raise ValueError


def _quantization(text: str) -> Any:
    if text.lower() in ("none", "null"):
        return _UNSET
    if text == "fp8":
        return "fp8"
    hint = "the weights can't be estimated: also give --kv-cache-memory-bytes, as vLLM's log prints it"
    raise _Refused(f"'{text}' is not known here", hint)


def _backend(text: str) -> str:
    name = text.upper()
    known = get_args(AttentionBackend)
    if text.lower() in ("auto", "none", "null"):
        return "auto"
    if name not in known:
        raise _Refused(f"the block sizes of '{text}' are not known here", f"known: {', '.join(known)}")
    return name


def _backend_config(text: str) -> Any:
    """The backend in the JSON of --attention-config; the other keys change step times only."""
    given = json.loads(text)
    if not isinstance(given, dict):
        raise ValueError
    if given.get("backend_per_kind") or given.get("backend-per-kind"):
        raise _Refused("backends by kind of group are not covered", "leave backend_per_kind out")
    name = given.get("backend")
    return _UNSET if name is None else _backend(str(name))


def _kv_dtype(text: str) -> str:
    if text not in _KV_DTYPES:
        raise _Refused(f"'{text}' has pages that are not covered", f"covered: {', '.join(_KV_DTYPES)}")
    return text


_READ: dict[str, Callable[[str], Any]] = {
    "text": str,
    "int": int,
    "human_int": human_int,
    "int_or_none": _or_none(int),
    "human_int_or_none": _or_none(human_int),
    "length": _length,
    "float": float,
    "flag": _flag,
    "dtype": lambda text: _DTYPES.get(text, text),
    "quantization": _quantization,
    "kv_cache_dtype": _kv_dtype,
    "backend": _backend,
    "backend_config": _backend_config,
}
_WANTED = {
    "int": "a whole number",
    "human_int": "a whole number, or one such as 8k (8000) or 8K (8192)",
    "int_or_none": "a whole number or None",
    "human_int_or_none": "a whole number, one such as 8k (8000) or 8K (8192), or None",
    "length": "a whole number, one such as 32k (32000) or 32K (32768), or auto",
    "float": "a number",
    "flag": "true or false",
    "backend_config": "a JSON object",
}

__all__ = ["WHERE", "ServeSource", "apply", "human_int", "read_options", "serve_edit"]
