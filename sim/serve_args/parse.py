"""A `vllm serve` command line, or vLLM's YAML config, into options with their values, as vLLM 0.32.0 reads
them.

As FlexibleArgumentParser (vllm/utils/argparse_utils.py): `--opt value` and `--opt=value`, dashes and
underscores alike, `--no-opt`, unique beginnings of names, `-tp 2` and the other short names, `--opt.key
value` for JSON options, `-O3`; the last of two equal options counts; options of the config file count less
than those of the command line.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.config_yaml import Document, Place, parse_yaml, read_yaml
from sim.errors import InputError, did_you_mean
from sim.serve_args.shell import WHERE, check_variables, server_command
from sim.serve_args.table import options, spellings


@dataclass(frozen=True)
class Given:
    """One option as it was given.

    Attributes:
        name: the option, such as --max-num-seqs.
        value: True or False for switches, a text, or a list of texts.
        file, line, column: where it stands.
    """

    name: str
    value: bool | str | list[str]
    file: str = WHERE
    line: int | None = None
    column: int | None = None

    @property
    def text(self) -> str:
        """The value as text."""
        if isinstance(self.value, bool):
            return "true" if self.value else "false"
        return " ".join(self.value) if isinstance(self.value, list) else self.value

    def error(self, message: str, hint: str | None = None) -> InputError:
        """An error at this option's place."""
        return InputError(message, self.file, self.line, self.column, hint)

    @property
    def place(self) -> Place:
        """Its place, for a document that it is written into."""
        return Place(self.line, self.column, self.file)


def parse_line(text: str, problems: list[InputError], notes: list[str] | None = None) -> list[Given]:
    """Options of a command line, which may begin with `vllm serve` or only with options.

    What a shell does around the command (other commands, redirections) is left out; variables of vLLM that
    are set for it are refused if they matter here, and else noted.

    Raises:
        InputError: quotes that are not closed; a command of vLLM that is no server.
    """
    # A line copied from a shell script may be continued with backslashes.
    text = re.sub(r"\\\s*\n", " ", text)
    words = _listed(text)
    try:
        words = shlex.split(text, comments=True) if words is None else words
    except ValueError as e:
        raise InputError(f"can't be split into words: {e}".lower(), WHERE, hint="close the quotes") from None
    command, variables = server_command(words)
    check_variables(variables, problems, [] if notes is None else notes)
    return parse_words(command, problems)


def _listed(text: str) -> list[str] | None:
    """The words of a list as Kubernetes has it, `["vllm", "serve"]` or `- --model`; None: it is no list.

    Raises:
        InputError: a list that is broken.
    """
    if not re.match(r"\s*(\[\s*[\"']|- )", text):
        return None
    flow = text.lstrip().startswith("[")
    try:
        words = parse_yaml(f"value: {text.strip()}\n" if flow else f"value:\n{text}\n", WHERE).data["value"]
    except InputError as e:
        hint = "give the words as one command line"
        raise InputError(f"can't be read as a list of words: {e.message}", WHERE, hint=hint) from None
    return [_text(w) for w in words]


def parse_words(words: Sequence[str], problems: list[InputError]) -> list[Given]:
    """Options of a command line that is split into words; its first word may be the model."""
    given: list[Given] = []
    nested: dict[str, dict[str, Any]] = {}
    i = 0
    while i < len(words):
        word = words[i]
        i += 1
        if not _is_option(word):
            if not any(g.name == "--model" for g in given):
                given.append(Given("--model", word))
            else:
                problems.append(
                    InputError(f"'{word}' belongs to no option", WHERE, hint="quote values with blanks")
                )
            continue
        word, inline = _cut(word)
        spelled = re.sub(r"(?<=--)[^.]*", lambda m: m.group(0).replace("_", "-"), word, count=1)
        if "." in spelled:
            base, *keys = spelled.split(".")
            name, _ = find_option(base, problems)
            if inline is None and i < len(words):
                inline, i = words[i], i + 1
            if name is not None and inline is not None:
                _nest(nested.setdefault(name, {}), keys, inline)
            continue
        name, negated = find_option(spelled, problems)
        if name is None:
            while i < len(words) and not _is_option(words[i]):
                i += 1
            continue
        takes = options().get(name, {"takes": "one"})["takes"]
        if takes in ("none", "flag"):
            if inline is not None:
                off = "--no-" + name.removeprefix("--")
                hint = f"write {name} or {off}" if takes == "flag" else None
                problems.append(InputError(f"{spelled} takes no value, got '{inline}'", WHERE, hint=hint))
            given.append(Given(name, not negated))
            continue
        if takes == "many":
            values = [] if inline is None else [inline]
            while inline is None and i < len(words) and not _is_option(words[i]):
                values.append(words[i])
                i += 1
            if not values:
                problems.append(InputError(f"{spelled} needs a value", WHERE))
            given.append(Given(name, values))
            continue
        if inline is None and i < len(words) and not _is_option(words[i]):
            inline, i = words[i], i + 1
        if inline is None:
            if takes == "optional":
                given.append(Given(name, True))
            else:
                problems.append(InputError(f"{spelled} needs a value", WHERE))
            continue
        given.append(Given(name, inline))
    return given + [Given(name, json.dumps(value)) for name, value in nested.items()]


def _is_option(word: str) -> bool:
    """Whether argparse takes a word for an option: a dash, and no number after it."""
    return word.startswith("-") and word != "-" and not re.fullmatch(r"-\d+(\.\d*)?|-\.\d+", word)


def _cut(word: str) -> tuple[str, str | None]:
    if word.startswith("-O") and not word.startswith("--"):
        level = word[2:].removeprefix("=")
        return "--optimization-level", level or None
    name, equals, value = word.partition("=")
    return name, value if equals else None


def _nest(into: dict[str, Any], keys: Sequence[str], text: str) -> None:
    """`--opt.a.b value` as {"a": {"b": value}}; `+` at the end of a key splits the value at commas."""
    last = keys[-1]
    value: Any
    if last.endswith("+"):
        value = text.split(",")
    else:
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
    for key in keys[:-1]:
        into = into.setdefault(key, {})
    into[last.removesuffix("+")] = value


def find_option(spelled: str, problems: list[InputError], at: Given | None = None) -> tuple[str | None, bool]:
    """(the option's name, whether --no- stood before it); None and a problem if there is none."""
    known = spellings()
    negatable = {
        "--no-" + s.removeprefix("--"): n
        for s, n in known.items()
        if s.startswith("--") and options().get(n, {}).get("takes") == "flag"
    }
    if spelled in known:
        return known[spelled], False
    if spelled in negatable:
        return negatable[spelled], True
    if spelled.startswith("--"):
        starts = sorted({n for s, n in known.items() if s.startswith(spelled)})
        starts_no = sorted({n for s, n in negatable.items() if s.startswith(spelled)})
        if len(starts) + len(starts_no) == 1:
            return (starts or starts_no)[0], bool(starts_no)
        if len(starts) > 1:
            message = f"{spelled} is the beginning of several options"
            problems.append(_at(at, message, f"one of {', '.join(starts[:6])}"))
            return None, False
    hint = (
        did_you_mean(spelled, [*known, *negatable], near_from=0.8)
        or "`vllm serve --help=all` lists its options"
    )
    problems.append(_at(at, f"vllm serve 0.32.0 has no option {spelled}", hint))
    return None, False


def _at(given: Given | None, message: str, hint: str | None) -> InputError:
    return InputError(message, WHERE, hint=hint) if given is None else given.error(message, hint)


def parse_file(path: str | Path, problems: list[InputError], notes: list[str]) -> list[Given]:
    """Options of vLLM's YAML config (`vllm serve --config FILE`).

    Keys are option names without dashes; a section is a JSON value (FlexibleArgumentParser.load_config_file).
    false is meant to become --no-OPTION, but `vllm serve` 0.32.0 looks for that name in the wrong parser, and
    drops the key: it does so here, with a note.
    """
    document = read_yaml(path)
    given = []
    for key, value in document.data.items():
        place = document.place((key,), at_key=True)
        at = Given(str(key), "", document.file, place.line, place.column)
        spelled = "--" + str(key).replace("_", "-")
        name, negated = find_option(spelled, problems, at)
        if name is None:
            continue
        spot = document.place((key,))
        made = _from_yaml(name, value, negated)
        if made is None:
            if value is False and options().get(name, {}).get("takes") == "flag" and not negated:
                remedy = f"`no-{str(key).replace('_', '-')}: true` has the effect"
                notes.append(
                    f"{document.file}:{spot.line}: '{key}: false' is dropped, as vllm serve 0.32.0 drops it:"
                    f" {remedy}"
                )
            continue
        given.append(Given(name, made, document.file, spot.line, spot.column))
    return given


def _from_yaml(name: str, value: Any, negated: bool) -> bool | str | list[str] | None:
    takes = options().get(name, {"takes": "one"})["takes"]
    if isinstance(value, bool):
        if takes in ("none", "flag"):
            return value != negated if value else None
        return "true" if value else "false"
    if isinstance(value, list):
        return [_text(v) for v in value] or None
    return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, dict | list):
        return json.dumps(value)
    return "None" if value is None else str(value)


__all__ = ["WHERE", "Document", "Given", "find_option", "parse_file", "parse_line", "parse_words"]
