"""The `workload:` section of a YAML config, read without the simulator, with the place of every problem."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads.errors import WorkloadError
from workloads.files import read

if TYPE_CHECKING:
    from workloads.spec import AnyClient


def load_section(path: str | Path) -> tuple[AnyClient, int]:
    """The workload model and the seed of a config.

    Args:
        path: a YAML file with a `workload:` section (other sections are not looked at, except `seed`).

    Raises:
        WorkloadError: the file is missing or not YAML, or the section is wrong: all its problems in one
            message, the first one's place in the error.
    """
    from pydantic import ValidationError
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    from workloads.spec import parse_spec

    content = read(path)
    text = "\n".join(content.lines())
    try:
        document = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (None, None)
        raise WorkloadError(
            f"not valid YAML: {error.problem or error.context}", content.path, line, column
        ) from None
    except YAMLError as error:
        raise WorkloadError(f"not valid YAML: {error}", content.path) from None
    if not isinstance(document, dict) or "workload" not in document:
        raise WorkloadError("has no `workload:` section", content.path, 1, 1)
    seed = _plain(document.get("seed", 0))
    if type(seed) is not int or seed < 0:
        line, column = _place(document, ("seed",))
        raise WorkloadError(
            f"seed must be an integer of at least 0, got {seed!r}", content.path, line, column
        )
    try:
        return parse_spec(_plain(document["workload"])), seed
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False):
            line, column = _place(document, ("workload", *item["loc"]))
            problems.append(WorkloadError(_message(item), content.path, line, column))
        first, *rest = problems
        message = "\n".join([first.message, *map(str, rest)])
        raise WorkloadError(message, first.file, first.line, first.column) from None


def _plain(value: Any) -> Any:
    """YAML's containers and numbers as plain Python ones."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bool):
        return bool(value)
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def _place(document: Any, loc: tuple[int | str, ...]) -> tuple[int, int]:
    """1-based line and column of what pydantic's `loc` names, or of the nearest thing around it.

    Parts of `loc` that are not keys of the document (the tags of discriminated unions) are passed over.
    """
    line, column = 0, 0
    node: Any = document
    for part in loc:
        try:
            marks: Any = node.lc
            if isinstance(node, dict) and part in node:
                line, column = marks.key(part)
            elif isinstance(node, list) and isinstance(part, int) and part < len(node):
                line, column = marks.item(part)
            else:
                continue
        except (AttributeError, KeyError, TypeError):
            break
        node = node[part]
    return line + 1, column + 1


def _message(item: Any) -> str:
    """One problem in words: the key as it is written in the file, then what is wrong."""
    from workloads.spec import KINDS

    message = str(item["msg"]).removeprefix("Value error, ")
    loc = [str(part) for part in item["loc"]]
    name = loc[-1] if loc else "workload"
    kind = item["type"]
    if kind == "missing":
        return f"the key {name!r} is missing"
    if kind == "extra_forbidden":
        return f"unknown key {name!r}{_nearest(name, loc[0])}"
    if kind == "union_tag_invalid":
        expected = item["ctx"]["expected_tags"]
        return f"kind {item['ctx']['tag']!r} is not known; use one of {expected}"
    if kind == "union_tag_not_found":
        tags = f"; use one of {', '.join(KINDS)}" if not loc else ""
        return f"{name}: the key 'kind' is missing{tags}"
    if kind in {"model_type", "model_attributes_type"}:
        return f"{name}: expected a mapping with a `kind`, got {item['input']!r}"
    return f"{name}: {message[:1].lower()}{message[1:]}"


def _nearest(name: str, kind: str) -> str:
    import difflib

    from workloads.spec import KINDS

    model = KINDS.get(kind)
    near = difflib.get_close_matches(name, list(model.model_fields) if model is not None else [], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
