"""What stands around vLLM's options on a command line as people keep it: other commands, `docker run`,
`sudo`, redirections, and variables that are set for the server.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from sim.errors import InputError

WHERE = "--vllm-args"
#: An image of vLLM's server: vllm/vllm-openai:latest.
_IMAGE = re.compile(r"(^|/)vllm-openai[\w.-]*([:@]\S+)?$")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.S)
#: `2>&1`, `>log.txt`; a sign alone is followed by the file.
_REDIRECTION = re.compile(r"(\d|&)?(>>?|<)(&\d|[^>&|].*)?")
_SEPARATORS = ("&&", "||", "|", ";", "&")
#: Commands of vLLM beside `serve`.
_OTHER_COMMANDS = ("bench", "chat", "complete", "collect-env", "launch", "run-batch")

#: Variables that change the pool or the schedule (vLLM 0.32.0, vllm/envs.py): harmless values, and why others
#: are refused.
_VARIABLES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "VLLM_KV_CACHE_LAYOUT": (
        ("", "NHD", "HND", "LBNHC", "LBHNC", "LHBNC"),
        "layouts whose blocks lie outermost pack unequal pages, which is not covered",
        "leave it out",
    ),
    "VLLM_MLA_DISABLE": (("", "0"), "latent attention without its kernels has other pages", "leave it out"),
    "VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE": (
        ("", "1"),
        "chunked attention is one of several groups here",
        "give --disable-hybrid-kv-cache-manager instead",
    ),
}


def server_command(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The words after `vllm serve`, `python -m vllm.entrypoints...` or an image of vLLM's that `docker run`
    starts, or all words where there is none of these; and the variables that are set before them.

    Raises:
        InputError: a command of vLLM that is no server.
    """
    variables: dict[str, str] = {}
    first: list[str] | None = None
    for command in _commands(_unwrapped(words)):
        start = _start(command)
        before = command if start is None else command[:start]
        rest = list(command) if start is None else command[start:]
        variables |= _assigned(before)
        if start is not None:
            return rest, variables
        while rest and _ASSIGNMENT.fullmatch(rest[0]):
            rest.pop(0)
        if first is None and rest and rest[0] not in ("export", "cd", "source", "set"):
            first = rest[1:] if rest[0] == "serve" else rest
    return first or [], variables


def _unwrapped(words: Sequence[str]) -> list[str]:
    """The words of a command that is given to a shell as text: `bash -c "vllm serve ..."`."""
    out: list[str] = []
    for i, word in enumerate(words):
        shell = i > 1 and Path(words[i - 2]).name in ("sh", "bash") and re.fullmatch(r"-\w*c", words[i - 1])
        out += shlex.split(word, comments=True) if shell else [word]
    return out


def _commands(words: Sequence[str]) -> list[list[str]]:
    """The commands of a line, without redirections."""
    out: list[list[str]] = [[]]
    file_follows = False
    for word in words:
        if file_follows:
            file_follows = False
        elif redirection := _REDIRECTION.fullmatch(word):
            file_follows = not redirection.group(3)
        elif word in _SEPARATORS:
            out.append([])
        elif word.endswith(";"):
            out[-1].append(word[:-1])
            out.append([])
        else:
            out[-1].append(word)
    return [command for command in out if command]


def _start(command: list[str]) -> int | None:
    """Where the options of the server begin in a command, None if it starts no server."""
    image = next((i for i, word in enumerate(command) if _IMAGE.search(word)), None)
    inside = 0
    if image is not None and _in_container(command[:image]):
        inside = image + 1
    for at in range(inside, len(command)):
        word, following = Path(command[at]).name, command[at + 1 :]
        if word == "vllm" and following[:1] == ["serve"]:
            return at + 2
        if word == "vllm" and following and following[0] in _OTHER_COMMANDS:
            message = f"vllm {following[0]} is not a server"
            raise InputError(message, WHERE, hint="give a `vllm serve` command")
        if word.startswith("python") and following[:1] == ["-m"] and following[1].startswith("vllm."):
            return at + 3
    if inside:
        return inside + 1 if command[inside : inside + 1] == ["serve"] else inside
    if _in_container(command):
        message = "no image or command of vLLM's is seen in this line"
        raise InputError(message, WHERE, hint="give the `vllm serve` command that runs inside")
    return 1 if Path(command[0]).name == "vllm" else None


def _in_container(words: Sequence[str]) -> bool:
    return any(Path(word).name in ("docker", "podman", "nerdctl") for word in words[:3])


def _assigned(words: Sequence[str]) -> dict[str, str]:
    """Variables that are set by the words before a command, `-e NAME=VALUE` of docker among them."""
    found: dict[str, str] = {}
    for word in words:
        bare = re.sub(r"^(--env=|-e)(?=[A-Za-z_])", "", word)
        if _ASSIGNMENT.fullmatch(bare):
            name, _, value = bare.partition("=")
            found[name] = value
    return found


def check_variables(variables: dict[str, str], problems: list[InputError], notes: list[str]) -> None:
    """Variables that matter are refused, others of vLLM's noted."""
    ignored = []
    for name, value in variables.items():
        if name not in _VARIABLES:
            ignored += [name] if name.startswith("VLLM_") else []
            continue
        harmless, why, hint = _VARIABLES[name]
        if value.strip() not in harmless:
            problems.append(InputError(f"{name}={value}: {why}", WHERE, hint=hint))
    if ignored:
        notes.append(f"ignored: {' '.join(ignored)} (variables)")


__all__ = ["WHERE", "check_variables", "server_command"]
