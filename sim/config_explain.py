"""pydantic's errors told to a user: one sentence each, at the place of the key, with the nearest known word.

It works on any pydantic model, so that every section of a config tells its errors in the same way.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from pydantic import BaseModel, ValidationError

from sim.errors import did_you_mean

if TYPE_CHECKING:
    from sim.config_yaml import Document

KeyPath = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)


class Problem(NamedTuple):
    """A problem at a key, before its place is looked up."""

    path: KeyPath
    message: str
    hint: str | None = None


def validate_model(model: type[M], document: Document, path: KeyPath = ()) -> tuple[M | None, list[Problem]]:
    """Validate the document's section at `path` against a pydantic model.

    Returns:
        (the model, []) or (None, all problems with full paths).
    """
    data: Any = document.data
    for part in path:
        data = data[part]
    try:
        return model.model_validate(data), []
    except ValidationError as e:
        return None, _explain(e, model, data, path)


def _explain(error: ValidationError, model: type[BaseModel], data: Any, prefix: KeyPath) -> list[Problem]:
    by_path: dict[KeyPath, list[Problem]] = {}
    for item in error.errors(include_url=False):
        path, keys, tag_key = _locate(model, data, item["loc"])
        problem = _problem(item, prefix + path, keys, tag_key)
        if item["type"] == "extra_forbidden":
            problem = problem._replace(hint=_elsewhere(model, path) or problem.hint)
        by_path.setdefault(problem.path, []).append(problem)
    out: list[Problem] = []
    for path, found in by_path.items():
        if any(len(other) > len(path) and other[: len(path)] == path for other in by_path):
            # A list where a word would do too: what is wrong is inside the list.
            continue
        if len(found) == 1:
            out.append(found[0])
            continue
        # Several members of a union refused the same value: one sentence instead of one each.
        texts = list(dict.fromkeys(p.message for p in found))
        wants = [re.sub(r", got .*$", "", t) for t in texts]
        got = re.search(r", got .*$", texts[0])
        short = [w if i == 0 else re.sub(r"^'[^']*' must be ", "", w) for i, w in enumerate(wants)]
        message = " or ".join(dict.fromkeys(short)) + (got.group(0) if got else "")
        out.append(Problem(path, message, next((p.hint for p in found if p.hint), None)))
    return out


def _elsewhere(model: type[BaseModel], path: KeyPath) -> str | None:
    """A hint for a key that is known in another section, or at the top."""
    name = str(path[-1])
    if len(path) > 1 and name in model.model_fields:
        return f"'{name}' is a key of its own at the top, not of '{dotted(path[:-1])}'"
    for section, field in model.model_fields.items():
        inner = field.annotation
        known = inner.model_fields if isinstance(inner, type) and issubclass(inner, BaseModel) else {}
        if section != path[0] and name in known:
            return f"did you mean '{section}.{name}'?"
    return None


def _problem(item: Mapping[str, Any], path: KeyPath, keys: Sequence[str], tag_key: str | None) -> Problem:
    kind = item["type"]
    ctx = item.get("ctx", {})
    value = item.get("input")
    name = dotted(path)
    if kind == "extra_forbidden":
        hint = did_you_mean(path[-1], keys) or (f"known keys: {', '.join(keys)}" if keys else None)
        return Problem(path, f"unknown key '{name}'", hint)
    if kind == "missing":
        return Problem(path, f"the key '{name}' is missing", "see docs/config.md")
    if kind in ("union_tag_invalid", "literal_error", "enum"):
        if kind == "union_tag_invalid":
            words = re.findall(r"'([^']*)'", str(ctx.get("expected_tags", "")))
            value = ctx.get("tag")
            path = (*path, tag_key or str(ctx.get("discriminator", "")).strip("'"))
        else:
            words = re.findall(r"'([^']*)'", str(ctx.get("expected", "")))
        text = ", ".join(words) or str(ctx.get("expected", ""))
        one_of = "one of " if len(words) > 1 else ""
        hint = did_you_mean(value, words) if isinstance(value, str) else None
        return Problem(path, f"'{dotted(path)}' must be {one_of}{text}, got {show(value)}", hint)
    if kind == "union_tag_not_found":
        key = str(ctx.get("discriminator", "kind")).strip("'")
        return Problem(
            (*path, key), f"the key '{dotted((*path, key))}' is missing", "it says which kind this section is"
        )
    if kind == "value_error":
        return Problem(path, _value_error(name, str(ctx.get("error", item["msg"]))))
    want = _WANTED.get(kind)
    if want is not None:
        return Problem(path, f"'{name}' must be {want}, got {show(value)}", _TYPE_HINTS.get(kind))
    bound = _bound(kind, ctx)
    if bound is not None:
        return Problem(path, f"'{name}' must be {bound}, got {show(value)}")
    if kind == "string_pattern_mismatch":
        return Problem(
            path, f"'{name}' has the wrong form, got {show(value)}", f"expected {ctx.get('pattern')}"
        )
    return Problem(path, f"'{name}': {item['msg'][:1].lower()}{item['msg'][1:]}, got {show(value)}")


def _value_error(name: str, text: str) -> str:
    if not name or name in text:
        return text
    return f"'{name}' {text}" if text.startswith("must ") else f"'{name}': {text}"


_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a section of keys",
    "mapping_type": "a section of keys",
    "model_type": "a section of keys",
    "model_attributes_type": "a section of keys",
    "dataclass_type": "a section of keys",
}
_TYPE_HINTS = {
    "int_from_float": "write it without a point or an exponent",
    "string_type": "put it in quotes",
}


def _bound(kind: str, ctx: Mapping[str, Any]) -> str | None:
    if kind == "greater_than_equal":
        return f"at least {ctx['ge']:g}" if abs(ctx["ge"]) < 1e6 else f"at least {ctx['ge']}"
    if kind == "greater_than":
        return f"more than {ctx['gt']:g}"
    if kind == "less_than_equal":
        return f"at most {ctx['le']}"
    if kind == "less_than":
        return f"less than {ctx['lt']:g}"
    if kind == "multiple_of":
        return f"a multiple of {ctx['multiple_of']}"
    if kind in ("too_short", "string_too_short"):
        return f"at least {ctx.get('min_length')} long"
    if kind in ("too_long", "string_too_long"):
        return f"at most {ctx.get('max_length')} long"
    return None


def dotted(path: KeyPath) -> str:
    """`engine.kv_cache_groups[1].type` for a path."""
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else (f".{part}" if out else str(part))
    return out


def show(value: Any) -> str:
    """A value as a user would know it again, short."""
    if isinstance(value, Mapping):
        return "a section of keys"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        short = value if len(value) <= 40 else value[:37] + "..."
        return f"'{short}'"
    return str(value)


def _locate(model: Any, data: Any, loc: Sequence[str | int]) -> tuple[KeyPath, list[str], str | None]:
    """pydantic's location as a path of the document: its tags of unions are dropped.

    Returns:
        path, the keys known to the section in which the last key stands, and the discriminator if the
        location ends at a tagged union.
    """
    path: list[str | int] = []
    kinds: Any = model
    keys: list[str] = []
    for part in loc:
        choices = _members(kinds)
        models = [m for m in choices if isinstance(m, type) and issubclass(m, BaseModel)]
        if isinstance(part, int) and isinstance(data, list):
            path.append(part)
            data = data[part] if part < len(data) else None
            kinds = [a for c in choices for a in _item_types(c)]
            continue
        tagged = [m for m in models if _tag_of(m, part)]
        if tagged and len(models) > 1:
            kinds = tagged
            keys = list(_field_names(tagged[0]))
            continue
        owners = [m for m in models if part in _field_names(m)]
        if owners or (isinstance(data, Mapping) and part in data):
            keys = [k for m in (owners or models) for k in _field_names(m)] or keys
            path.append(part)
            data = data.get(part) if isinstance(data, Mapping) else None
            kinds = [_field_names(m)[str(part)] for m in owners] or [
                a for c in choices for a in _item_types(c)
            ]
            continue
        # Else the name of a union's member ("int", "literal['auto']"): not a key of the file.
    names = _discriminator(kinds)
    return tuple(path), list(dict.fromkeys(keys)), names


def _field_names(model: type[BaseModel]) -> dict[str, Any]:
    return {(f.alias or n): _annotation(f) for n, f in model.model_fields.items()}


def _annotation(f: Any) -> Any:
    return Annotated[f.annotation, f] if f.discriminator else f.annotation


def _members(kinds: Any) -> list[Any]:
    """The plain alternatives behind unions, Annotated and Optional."""
    if isinstance(kinds, list):
        return [m for k in kinds for m in _members(k)]
    origin = get_origin(kinds)
    if origin is Annotated:
        return _members(get_args(kinds)[0])
    if origin in (Union, types.UnionType):
        return [m for a in get_args(kinds) for m in _members(a)]
    return [kinds]


def _item_types(kind: Any) -> list[Any]:
    args = [a for a in get_args(kind) if a is not Ellipsis]
    return args[-1:] if get_origin(kind) in (dict, Mapping) else args


def _tag_of(model: type[BaseModel], tag: str | int) -> bool:
    return any(
        get_origin(f.annotation) is Literal and tag in get_args(f.annotation)
        for f in model.model_fields.values()
    )


def _discriminator(kinds: Any) -> str | None:
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        extras: tuple[Any, ...] = get_args(kind)[1:] if hasattr(kind, "__metadata__") else ()
        for extra in extras:
            name = getattr(extra, "discriminator", None)
            if isinstance(name, str):
                return name
    return None
