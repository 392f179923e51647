"""The logical-time workload: explicit token ids, arrival as an index of the engine's loop (JSON lines).

The format is a contract with the validation harness; requests stay in file order, because requests of one
step are added in it.
"""

from __future__ import annotations

import difflib
from array import array

import numpy as np

from workloads.builder import assemble, salt_id
from workloads.errors import WorkloadError
from workloads.files import Content
from workloads.readers.options import ReadOptions, provenance
from workloads.readers.rows import encoder_input, integer, json_rows, optional_text, refuse, token_list
from workloads.requests import Workload

KEYS = (
    "request_id",
    "arrival_step",
    "prompt_token_ids",
    "output_token_ids",
    "priority",
    "cache_salt",
    "accepted_drafts",
    "encoder_tokens",
)


def read_logical(content: Content, options: ReadOptions) -> Workload:
    """Read a logical-time workload; options: max_requests.

    Raises:
        WorkloadError: a line is broken (file:line:column), an id is used twice, or there are no requests.
    """
    path = content.path
    names: dict[str, int] = {}
    steps, priorities, salts = array("q"), array("q"), array("q")
    prompt_lens, output_lens = array("q"), array("q")
    tokens = array("q")
    salt_names: dict[str, str] = {}
    accepted: list[tuple[int, ...]] = []
    encoder = array("q")
    unknown: dict[str, int] = {}
    known = set(KEYS)
    for number, line, row in json_rows(content.lines(), path):
        if options.max_requests is not None and len(names) >= options.max_requests:
            break
        for key in row.keys() - known:
            near = difflib.get_close_matches(key, KEYS, n=1)
            if near and near[0] not in row:
                refuse(f"unknown key {key!r}; did you mean {near[0]}?", path, number, line, key)
            unknown[key] = unknown.get(key, 0) + 1
        name = optional_text(row, "request_id", path, number, line)
        if not name:
            refuse("request_id must be a non-empty string", path, number, line, "request_id")
        if name in names:
            refuse(
                f"request_id {name!r} is already that of line {names[name]}; ids must be unique",
                path,
                number,
                line,
                "request_id",
            )
        names[name] = number
        steps.append(integer(row, "arrival_step", 0, 2**62, path, number, line))
        prompt = token_list(row, "prompt_token_ids", path, number, line)
        output = token_list(row, "output_token_ids", path, number, line)
        prompt_lens.append(len(prompt))
        output_lens.append(len(output))
        tokens.extend(prompt)
        tokens.extend(output)
        given = "accepted_drafts" in row
        accepted.append(tuple(token_list(row, "accepted_drafts", path, number, line)) if given else ())
        encoder.append(encoder_input(row, path, number, line))
        priority = row.get("priority")
        priorities.append(
            0 if priority is None else integer(row, "priority", -(2**31), 2**31 - 1, path, number, line)
        )
        salt = optional_text(row, "cache_salt", path, number, line)
        salts.append(salt_id(salt))
        if salt:
            salt_names[str(salt_id(salt))] = salt
    if not names:
        raise WorkloadError("the workload has no requests", path)

    prompt_len = np.array(prompt_lens, dtype=np.int64)
    output_len = np.array(output_lens, dtype=np.int64)
    ends = np.cumsum(prompt_len + output_len)
    begins = ends - prompt_len - output_len
    pool = np.array(tokens, dtype=np.int64)
    notes = [f"{count} lines have a key {key!r}, which is ignored" for key, count in sorted(unknown.items())]
    source = provenance(path, content.sha256, "logical", {}, notes)
    if salt_names:
        source["cache_salts"] = dict(sorted(salt_names.items()))
    return assemble(
        clock="logical",
        vocab_size=int(pool.max()) + 1,
        arrival=np.array(steps, dtype=np.int64),
        seg_id=-begins - 1,
        seg_len=prompt_len,
        out_seg=-(begins + prompt_len) - 1,
        output_len=output_len,
        priority=np.array(priorities, dtype=np.int64),
        salt=np.array(salts, dtype=np.int64),
        tokens=pool,
        request_ids=tuple(names),
        accepted_drafts=tuple(accepted) if any(accepted) else None,
        encoder_tokens=np.array(encoder, dtype=np.int64),
        source=source,
    )
