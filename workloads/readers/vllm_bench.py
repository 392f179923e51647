"""Files of `vllm bench serve`: request lists in JSON lines, and the result file of `--save-detailed`.

A line of a request list is an object with a prompt and an output:

- the prompt is `prompt_token_ids`, or `prompt` as a list of token ids, or a length (`prompt_len` or
  `input_len`). A prompt given as text only is refused: its length in tokens depends on a tokenizer;
- the output is `output_token_ids`, or a length (`output_len`, `output_tokens`, `expected_output_len`);
- `timestamp`, `arrival_s` or `start_time` (seconds) say when; without any, everything arrives at once, as at
  an infinite request rate;
- `request_id`, `priority`, `cache_salt` and `encoder_tokens` (of models with cross attention) are optional,
  other keys are ignored.

The result file (vLLM 0.32.0, `vllm.benchmarks.serve`) is one object with the lists `input_lens`,
`output_lens` and `start_times`; requests that failed have no output and are left out, with a note.
"""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from workloads.builder import WorkloadBuilder, assemble, salt_id
from workloads.errors import WorkloadError
from workloads.files import Content
from workloads.readers.options import ReadOptions, arrange, provenance
from workloads.readers.rows import (
    MAX_TOKENS,
    encoder_input,
    integer,
    json_rows,
    optional_text,
    refuse,
    seconds,
    token_list,
)
from workloads.requests import Workload
from workloads.units import NS_PER_SECOND

PROMPT_LENGTHS = ("prompt_len", "input_len")
OUTPUT_LENGTHS = ("output_len", "output_tokens", "expected_output_len")
TIMES = ("timestamp", "arrival_s", "start_time")
RESULT_LISTS = ("input_lens", "output_lens", "start_times")


def read_vllm(content: Content, options: ReadOptions) -> Workload:
    """Read a request list or a detailed result of `vllm bench serve`.

    Raises:
        WorkloadError: a line is broken or gives only text (file:line:column), or there are no requests.
    """
    result = _as_result(content)
    if result is not None:
        return _read_result(content, options, result)
    return _read_list(content, options)


def _as_result(content: Content) -> dict[str, Any] | None:
    """The result object, or None when the file is not one."""
    if b'"input_lens"' not in content.data:
        return None
    try:
        value = json.loads(content.data)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise WorkloadError(
            "holds results of several runs (--append-result) or is cut off; keep one JSON object",
            content.path,
        ) from None
    return value if isinstance(value, dict) else None


def _read_result(content: Content, options: ReadOptions, result: dict[str, Any]) -> Workload:
    path = content.path
    columns = {}
    for name in RESULT_LISTS:
        values = result.get(name)
        numbers = isinstance(values, list) and all(type(v) in {int, float} for v in values)
        if not numbers or not values:
            raise WorkloadError(
                f"the result has no list of numbers {name!r}; write it with vllm bench serve --save-detailed",
                path,
            )
        columns[name] = np.array(values, dtype=np.float64)
    if len({len(values) for values in columns.values()}) != 1:
        raise WorkloadError(f"the lists {', '.join(RESULT_LISTS)} differ in length", path)
    works = (columns["input_lens"] >= 1) & (columns["output_lens"] >= 1)
    notes = []
    if not works.all():
        notes.append(f"{int((~works).sum())} of {len(works)} requests have no output (failed); left out")
    if not works.any():
        raise WorkloadError("no request of the result has an output", path)
    rows = np.flatnonzero(works)
    times = np.rint((columns["start_times"] - columns["start_times"].min()) * NS_PER_SECOND).astype(np.int64)
    arrivals = arrange(times[rows], options)
    rows = rows[arrivals.order]
    return assemble(
        vocab_size=options.vocab_size,
        arrival=arrivals.arrival,
        seg_id=rows.astype(np.int64),
        seg_len=columns["input_lens"][rows].astype(np.int64),
        output_len=columns["output_lens"][rows].astype(np.int64),
        request_ids=arrivals.request_ids,
        source=provenance(
            path, content.sha256, "vllm", {"time_scale": options.time_scale}, notes + arrivals.notes
        ),
    )


def _read_list(content: Content, options: ReadOptions) -> Workload:
    path = content.path
    rows: list[tuple[dict[str, Any], int]] = []
    times = array("q")
    names: dict[str, int] = {}
    time_key: str | None = None
    for number, line, row in json_rows(content.lines(), path):
        found = next((key for key in TIMES if key in row), None)
        if not rows:
            time_key = found
        if found != time_key:
            refuse(
                f"expected the time as {time_key!r}, as on the first line" if time_key is not None
                else f"has a time ({found!r}), but the first line has none",
                path, number, line, found or "",
            )  # fmt: skip
        times.append(0 if found is None else seconds(row, found, NS_PER_SECOND, path, number, line))
        name = optional_text(row, "request_id", path, number, line)
        if name is not None:
            if name in names:
                refuse(
                    f"request_id {name!r} is already that of line {names[name]}",
                    path,
                    number,
                    line,
                    "request_id",
                )
            names[name] = number
        rows.append((_checked(row, path, number, line, options), number))
    if not rows:
        raise WorkloadError("the file has no requests", path)
    if names and len(names) != len(rows):
        raise WorkloadError(
            f"{len(names)} of {len(rows)} requests have a request_id; give one to all or none", path
        )

    notes = [] if time_key is not None else ["the file gives no times; every request arrives at time 0"]
    arrivals = arrange(np.array(times, dtype=np.int64), options)
    builder = WorkloadBuilder(vocab_size=_vocabulary([row for row, _ in rows], options.vocab_size))
    file_names = list(names) if names else arrivals.request_ids
    salts: dict[str, str] = {}
    for i, (at, arrival) in enumerate(zip(arrivals.order.tolist(), arrivals.arrival.tolist(), strict=True)):
        row = rows[at][0]
        prompt, output = row["prompt"], row["output"]
        salt = row["cache_salt"]
        if salt:
            salts[str(salt_id(salt))] = salt
        name = None if file_names is None else file_names[at if names else i]
        builder.add(
            [at if isinstance(prompt, int) else builder.add_tokens(prompt)],
            [prompt if isinstance(prompt, int) else len(prompt)],
            output_len=output if isinstance(output, int) else len(output),
            out_seg=None if isinstance(output, int) else builder.add_tokens(output),
            arrival=arrival,
            priority=row["priority"],
            salt=salt_id(salt),
            request_id=name,
            encoder_tokens=None if row["encoder_tokens"] < 0 else row["encoder_tokens"],
        )
    source = provenance(
        path, content.sha256, "vllm", {"time_scale": options.time_scale}, notes + arrivals.notes
    )
    if salts:
        source["cache_salts"] = dict(sorted(salts.items()))
    return builder.build(source)


def _source(content: Content, options: ReadOptions, notes: list[str]) -> dict[str, Any]:
    return provenance(content.path, content.sha256, "vllm", {"time_scale": options.time_scale}, notes)


def _checked(row: dict[str, Any], path: Path, number: int, line: str, options: ReadOptions) -> dict[str, Any]:
    """prompt and output (a length or token ids), priority, cache_salt and encoder input of one line."""
    at = (path, number, line)
    length_key = next((key for key in PROMPT_LENGTHS if key in row), None)
    prompt: int | list[int]
    if "prompt_token_ids" in row:
        prompt = token_list(row, "prompt_token_ids", *at)
    elif isinstance(row.get("prompt"), list):
        prompt = token_list(row, "prompt", *at)
    elif length_key is not None:
        prompt = integer(row, length_key, 1, MAX_TOKENS, *at)
    elif "prompt" in row:
        refuse(
            "the prompt is text, whose length in tokens depends on a tokenizer; add prompt_token_ids, or "
            "prompt_len for prompts that share nothing",
            *at,
            "prompt",
        )
    else:
        refuse("no prompt: give prompt_token_ids or prompt_len", *at, "prompt")
    output: int | list[int]
    output_key = next((key for key in OUTPUT_LENGTHS if row.get(key) is not None), None)
    if "output_token_ids" in row:
        output = token_list(row, "output_token_ids", *at)
    elif output_key is not None:
        output = integer(row, output_key, 1, MAX_TOKENS, *at)
    elif options.output_len is not None:
        output = options.output_len
    else:
        refuse("no output: give output_token_ids or output_len, or set the option output_len", *at, "prompt")
    priority = row.get("priority")
    return {
        "prompt": prompt,
        "output": output,
        "priority": 0 if priority is None else integer(row, "priority", -(2**31), 2**31 - 1, *at),
        "cache_salt": optional_text(row, "cache_salt", *at),
        "encoder_tokens": encoder_input(row, *at),
    }


def _vocabulary(rows: list[dict[str, Any]], least: int) -> int:
    """A vocabulary that holds every explicit token of the rows."""
    lists = (row[key] for row in rows for key in ("prompt", "output") if isinstance(row[key], list))
    return max(least, max((max(tokens) + 1 for tokens in lists), default=0))
