"""The logical-time workload file, read for a real vLLM.

The simulator reads the same file through `workloads`; this reader is separate on purpose, so that a mistake
in one of them shows up as a difference instead of cancelling out.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.errors import InputError, did_you_mean


@dataclass(frozen=True)
class LogicalRequest:
    """One request of a logical-time workload.

    arrival_step: added just before the engine loop's step with this index.
    output_token_ids: the tokens that the model is made to produce.
    accepted_drafts: drafts that its verifying steps accept, in turn and again from the beginning; (): none.
    encoder_tokens: tokens of its encoder's input, where there is one; None: as the engine says.
    max_tokens: None or len(output_token_ids): stops by length; larger: its last output token is an end token.
    """

    request_id: str
    arrival_step: int
    prompt_token_ids: tuple[int, ...]
    output_token_ids: tuple[int, ...]
    priority: int = 0
    cache_salt: str | None = None
    max_tokens: int | None = None
    accepted_drafts: tuple[int, ...] = ()
    encoder_tokens: int | None = None

    @property
    def stops_by_end_token(self) -> bool:
        """Whether the last output token ends the request before its length limit does."""
        return self.max_tokens is not None and self.max_tokens > len(self.output_token_ids)

    def to_json(self) -> dict[str, Any]:
        """The object of one line; the last three keys only where they say something."""
        line: dict[str, Any] = {
            "request_id": self.request_id,
            "arrival_step": self.arrival_step,
            "prompt_token_ids": list(self.prompt_token_ids),
            "output_token_ids": list(self.output_token_ids),
            "priority": self.priority,
            "cache_salt": self.cache_salt,
        }
        if self.stops_by_end_token:
            line["max_tokens"] = self.max_tokens
        if self.accepted_drafts:
            line["accepted_drafts"] = list(self.accepted_drafts)
        if self.encoder_tokens is not None:
            line["encoder_tokens"] = self.encoder_tokens
        return line


_KEYS = ("request_id", "arrival_step", "prompt_token_ids", "output_token_ids")
_OPTIONAL = ("priority", "cache_salt", "max_tokens", "accepted_drafts", "encoder_tokens")


def read_requests(path: str | os.PathLike[str]) -> list[LogicalRequest]:
    """Read `workload.jsonl` (or `.jsonl.gz`).

    Raises InputError, with file and line, for anything that can't be used.
    """
    source = Path(path)
    requests: list[LogicalRequest] = []
    seen: dict[str, int] = {}
    number = 0
    try:
        with gzip.open(source, "rt") if source.suffix == ".gz" else open(source) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                request = _parse(json.loads(line, object_pairs_hook=_keys_once), str(source), number)
                if request.request_id in seen:
                    first = seen[request.request_id]
                    raise InputError(
                        f"request_id {request.request_id!r} is also in line {first}", str(source), number
                    )
                seen[request.request_id] = number
                requests.append(request)
    except json.JSONDecodeError as exc:
        raise InputError(f"not JSON: {exc.msg}", str(source), number, exc.colno) from exc
    except _KeyTwiceError as exc:
        raise InputError(
            f"the key '{exc}' is given twice", str(source), number, hint="leave one out"
        ) from exc
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as exc:
        raise InputError(f"damaged file: {exc}", str(source), number + 1) from exc
    except OSError as exc:
        raise InputError(f"can't read the workload: {exc.strerror or exc}", str(source)) from exc
    if not requests:
        raise InputError("the workload has no requests", str(source))
    return requests


class _KeyTwiceError(ValueError):
    """A key that is twice in one object."""


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in pairs:
        if key in row:
            raise _KeyTwiceError(key)
        row[key] = value
    return row


def _parse(line: Any, file: str, number: int) -> LogicalRequest:
    def wrong(message: str, hint: str | None = None) -> InputError:
        return InputError(message, file, number, hint=hint)

    if not isinstance(line, dict):
        raise wrong(f"expected a JSON object, got {type(line).__name__}")
    for key in line:
        if key not in _KEYS and key not in _OPTIONAL:
            raise wrong(f"unknown key {key!r}", did_you_mean(key, _KEYS + _OPTIONAL))
    for key in _KEYS:
        if key not in line:
            raise wrong(f"no key {key!r}")

    def tokens(key: str) -> tuple[int, ...]:
        value = line[key]
        if not isinstance(value, list) or not value or any(type(t) is not int or t < 0 for t in value):
            what = "numbers" if key == "accepted_drafts" else "token ids"
            raise wrong(f"{key} must be a non-empty list of {what} (integers >= 0)")
        return tuple(value)

    def integer(key: str, low: int | None) -> int:
        value = line.get(key, 0)
        if type(value) is not int or (low is not None and value < low):
            raise wrong(f"{key} must be an integer" + ("" if low is None else f" >= {low}"))
        return value

    if not isinstance(line["request_id"], str) or not line["request_id"]:
        raise wrong("request_id must be a non-empty string")
    if not isinstance(line.get("cache_salt"), str | None) or line.get("cache_salt") == "":
        raise wrong("cache_salt must be null or a non-empty string")
    output = tokens("output_token_ids")
    limit = integer("max_tokens", len(output)) if line.get("max_tokens") is not None else None
    return LogicalRequest(
        request_id=line["request_id"],
        arrival_step=integer("arrival_step", 0),
        prompt_token_ids=tokens("prompt_token_ids"),
        output_token_ids=output,
        priority=integer("priority", None),
        cache_salt=line.get("cache_salt"),
        max_tokens=limit,
        accepted_drafts=tokens("accepted_drafts") if "accepted_drafts" in line else (),
        encoder_tokens=integer("encoder_tokens", 0) if "encoder_tokens" in line else None,
    )


def dump_requests(requests: Sequence[LogicalRequest]) -> bytes:
    """The lines of a workload file, the same bytes for the same requests."""
    return "".join(json.dumps(r.to_json(), separators=(",", ":")) + "\n" for r in requests).encode()
