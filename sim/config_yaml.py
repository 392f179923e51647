"""Config files with the place of every key: readers of YAML and JSON, and `--set` overrides.

A `Document` is plain Python data and a map from the path of each key to its line and column. A `Problem`
is a path, a message and a hint; `to_input_errors` finds the places.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sim.config_explain import KeyPath, Problem, validate_model
from sim.errors import InputError, did_you_mean, raise_all

__all__ = [
    "NO_FILE",
    "Document",
    "KeyPath",
    "Place",
    "Problem",
    "apply_overrides",
    "parse_yaml",
    "read_json",
    "read_text",
    "read_yaml",
    "set_value",
    "to_input_errors",
    "validate_model",
]


#: Keys whose value on the command line is text as it stands.
_TEXT_KEYS = ("engine.vllm",)
#: Stands for the file in messages where there is none: everything came from the command line.
NO_FILE = "command line"


class Place(NamedTuple):
    """Line and column, both from 1; `file` is given where it is not the document's own (an override)."""

    line: int | None
    column: int | None
    file: str | None = None


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
        return Place(None, None) if self.file == NO_FILE else Place(1, 1)


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
            # a release is text: 0.30 must not become the number 0.3
            value = value_text.strip().strip("'\"") if key in _TEXT_KEYS else _yaml_value(value_text)
        except InputError as e:
            problems.append(InputError(f"{e.message} in '{value_text}'", f"--set {key}"))
            continue
        error = set_value(document, key, value, Place(None, None, f"--set {key}"))
        if error:
            problems.append(InputError(error, f"--set {key}"))
    raise_all(problems)


def _yaml_value(text: str) -> Any:
    return parse_yaml(f"value: {text}\n" if text.strip() else "value:\n", "--set").data["value"]


def set_value(document: Document, key: str, value: Any, place: Place) -> str | None:
    """Put `value` at the dotted path `key`, with `place` as where it stands; missing sections are made.

    Returns:
        why that is impossible, or None.
    """
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
