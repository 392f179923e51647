"""Config files with the place of every key: YAML and JSON readers, and pydantic's errors told with places.

A `Document` is plain Python data and a map from the path of each key to its line and column. A `Problem`
is a path, a message and a hint; `to_input_errors` finds the places. Both work on any pydantic model, so that
every section of a config tells its errors in the same way.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from sim.errors import InputError, did_you_mean, raise_all

KeyPath = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)


class Place(NamedTuple):
    """Line and column, both from 1; `file` is given where it is not the document's own (an override)."""

    line: int | None
    column: int | None
    file: str | None = None


class Problem(NamedTuple):
    """A problem at a key, before its place is looked up."""

    path: KeyPath
    message: str
    hint: str | None = None


@dataclass
class Document:
    """A config file as plain data.

    Attributes:
        file: its name as the user gave it.
        data: dicts, lists, str, int, float, bool and None.
        keys: place of each key by its path (of the item, for a list).
        values: place of each value by its path.
    """

    file: str
    data: dict[str, Any]
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    values: dict[KeyPath, Place] = field(default_factory=dict)

    def place(self, path: KeyPath, at_key: bool = False) -> Place:
        """Where `path` stands, or the nearest enclosing key that is in the file."""
        first, second = (self.keys, self.values) if at_key else (self.values, self.keys)
        while path:
            found = first.get(path) or second.get(path)
            if found is not None:
                return found
            path = path[:-1]
            first, second = self.keys, self.values
        return Place(1, 1)


def read_text(path: str | Path, what: str = "config") -> str:
    """A text file, or an `InputError` that says why it can't be read."""
    name = str(path)
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"no such {what} file", name, hint=_near_files(Path(path))) from None
    except IsADirectoryError:
        raise InputError(f"this is a folder, not a {what} file", name) from None
    except UnicodeDecodeError as e:
        line = e.object[: e.start].count(b"\n") + 1
        raise InputError("not UTF-8 text", name, line, None, "is this the right file?") from None
    except OSError as e:
        raise InputError(f"can't be read: {e.strerror or e}", name) from None


def _near_files(path: Path) -> str | None:
    try:
        names = sorted(p.name for p in path.parent.iterdir() if p.is_file())
    except OSError:
        return f"the folder '{path.parent}' does not exist"
    return did_you_mean(path.name, names)


def read_yaml(path: str | Path) -> Document:
    """Read a YAML config (YAML 1.2: `12:30` stays text; duplicate keys are refused)."""
    return parse_yaml(read_text(path), str(path))


def read_json(path: str | Path) -> Document:
    """Read a JSON config with the places of its keys."""
    text = read_text(path)
    try:
        json.loads(text)
    except json.JSONDecodeError as e:
        raise InputError(f"not valid JSON: {e.msg}", str(path), e.lineno, e.colno) from None
    # JSON is YAML with tabs as white space; each becomes one blank so that columns stay.
    return parse_yaml(text.replace("\t", " "), str(path), "JSON")


def parse_yaml(text: str, name: str, language: str = "YAML") -> Document:
    """Parse `text`; `name` is the file's name in messages."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    loader = YAML(typ="rt", pure=True)
    loader.allow_duplicate_keys = False
    try:
        root = loader.load(text)
    except DuplicateKeyError as e:
        mark = e.problem_mark
        key = re.search(r'found duplicate key "([^"]*)"', str(e.problem))
        first = f"first given in line {e.context_mark.line + 1} or below" if e.context_mark else None
        raise InputError(
            f"the key '{key.group(1) if key else '?'}' is given twice",
            name,
            mark.line + 1,
            mark.column + 1,
            first,
        ) from None
    except MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
        raise InputError(f"not valid {language}: {e.problem or e.context}", name, line, column) from None
    except YAMLError as e:
        raise InputError(f"not valid {language}: {e}".splitlines()[0], name) from None
    if root is None:
        raise InputError("the file is empty", name, 1, 1, "see docs/config.md for the keys of a config")
    if not isinstance(root, dict):
        raise InputError("expected `key: value` lines at the top", name, 1, 1)
    document = Document(name, {})
    document.data = _plain(root, (), document)
    return document


def _plain(node: Any, path: KeyPath, document: Document) -> Any:
    """ruamel's annotated tree as plain data, noting the places on the way."""
    if isinstance(node, dict):
        out: dict[str, Any] = {}
        for key, value in node.items():
            child = (*path, str(key))
            lc = getattr(node, "lc", None)
            try:
                line, column = lc.key(key)  # type: ignore[union-attr]
                document.keys[child] = Place(line + 1, column + 1)
                line, column = lc.value(key)  # type: ignore[union-attr]
                document.values[child] = Place(line + 1, column + 1)
            except (KeyError, TypeError, AttributeError):
                pass  # a key merged in with `<<` has no place of its own
            out[str(key)] = _plain(value, child, document)
        return out
    if isinstance(node, list):
        items = []
        for i, value in enumerate(node):
            child = (*path, i)
            lc = getattr(node, "lc", None)
            try:
                line, column = lc.item(i)  # type: ignore[union-attr]
                document.keys[child] = document.values[child] = Place(line + 1, column + 1)
            except (KeyError, TypeError, AttributeError):
                pass
            items.append(_plain(value, child, document))
        return items
    return plain_scalar(node)


def plain_scalar(value: Any) -> Any:
    """A scalar without ruamel's subclasses."""
    if isinstance(value, bool) or value is None:
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if type(value).__name__ == "ScalarBoolean":
        return bool(value)
    return str(value)


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Apply `--set a.b=c` to the document, in order; values are typed as in YAML.

    Raises:
        InputError: not of the form key=value, or a value that is not YAML; the place is `--set a.b`.
    """
    problems: list[InputError] = []
    for text in overrides:
        key, equals, value_text = text.partition("=")
        key = key.strip()
        if not equals or not key or any(not part for part in key.split(".")):
            problems.append(
                InputError(
                    f"expected KEY=VALUE, got '{text}'", "--set", hint="as in --set engine.block_size=32"
                )
            )
            continue
        try:
            value = _yaml_value(value_text)
        except InputError as e:
            problems.append(InputError(f"{e.message} in '{value_text}'", f"--set {key}"))
            continue
        error = _set(document, key, value)
        if error:
            problems.append(InputError(error, f"--set {key}"))
    raise_all(problems)


def _yaml_value(text: str) -> Any:
    return parse_yaml(f"value: {text}\n" if text.strip() else "value:\n", "--set").data["value"]


def _set(document: Document, key: str, value: Any) -> str | None:
    place = Place(None, None, f"--set {key}")
    target: Any = document.data
    parts = key.split(".")
    path: KeyPath = ()
    for n, part in enumerate(parts):
        last = n == len(parts) - 1
        index: str | int = part
        if isinstance(target, list):
            if not part.isdigit() or int(part) >= len(target):
                return f"'{'.'.join(parts[:n])}' is a list of {len(target)}: there is no item '{part}'"
            index = int(part)
        elif not isinstance(target, dict):
            return f"'{'.'.join(parts[:n])}' is a value, not a section"
        path = (*path, index)
        if last:
            target[index] = value
            for known in (document.keys, document.values):
                for old in [p for p in known if p[: len(path)] == path]:
                    del known[old]
                known[path] = place
            return None
        if isinstance(target, dict) and target.get(part) is None:
            target[part] = {}
            document.keys[path] = document.values[path] = place
        target = target[index]
    return None


def to_input_errors(problems: Iterable[Problem], document: Document) -> list[InputError]:
    """Problems with their places in the document."""
    out = []
    for p in problems:
        at_key = p.message.startswith("unknown key")
        place = document.place(p.path, at_key)
        out.append(InputError(p.message, place.file or document.file, place.line, place.column, p.hint))
    return out


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


# -- pydantic's errors, told to a user -----------------------------------------------------------------------


def _explain(error: ValidationError, model: type[BaseModel], data: Any, prefix: KeyPath) -> list[Problem]:
    by_path: dict[KeyPath, list[Problem]] = {}
    for item in error.errors(include_url=False):
        path, keys, tag_key = _locate(model, data, item["loc"])
        problem = _problem(item, prefix + path, keys, tag_key)
        by_path.setdefault(problem.path, []).append(problem)
    out: list[Problem] = []
    for path, found in by_path.items():
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
