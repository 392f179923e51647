"""Mooncake traces: JSON lines of timestamp (ms), input_length, output_length and hash_ids.

A hash id names the content of a block of `hash_block_size` tokens (512 in the published traces), given what
stands before it; here it is the id of a segment of that many tokens. The prompt's last block holds what is
left, so a prompt of L tokens has ceil(L / hash_block_size) ids. The simulator hashes the resulting tokens
again at its own block size, so the trace can be run at any.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np

from workloads.errors import WorkloadError
from workloads.files import Content
from workloads.readers.options import ReadOptions
from workloads.readers.parts import PART, Part, TraceParts, put_together
from workloads.readers.rows import MAX_TOKENS, integer, json_rows, refuse, seconds
from workloads.requests import Workload

NS_PER_MS = 1_000_000
MAX_HASH_ID = 2**62


def read_mooncake(content: Content, options: ReadOptions) -> Workload:
    """Read a Mooncake trace.

    Raises:
        WorkloadError: a line is broken (file:line:column), or no request is left.
    """
    trace = Mooncake(content.path, options)
    return put_together(trace, list(trace.parts(iter(content.lines()))), content.sha256)


class Mooncake(TraceParts):
    """A Mooncake trace part by part."""

    name = "mooncake"

    @property
    def own_options(self) -> dict[str, Any]:
        return {"hash_block_size": self.options.hash_block_size, **super().own_options}

    def parts(self, lines: Iterator[str]) -> Iterator[Part]:
        path, block = self.path, self.options.hash_block_size
        held = _Columns(block)
        found = False
        for number, line, row in json_rows(lines, path):
            found = True
            held.times.append(seconds(row, "timestamp", NS_PER_MS, path, number, line))
            length = integer(row, "input_length", 1, MAX_TOKENS, path, number, line)
            held.outputs.append(integer(row, "output_length", 1, MAX_TOKENS, path, number, line))
            hashes = row.get("hash_ids")
            if type(hashes) is not list or set(map(type, hashes)) != {int}:
                refuse("hash_ids must be a non-empty list of integers", path, number, line, "hash_ids")
            if len(hashes) != -(-length // block):
                refuse(
                    f"{len(hashes)} hash_ids for {length} tokens, but blocks of {block} tokens make "
                    f"{-(-length // block)}; set hash_block_size to the trace's own",
                    path,
                    number,
                    line,
                    "hash_ids",
                )
            if min(hashes) < 0 or max(hashes) >= MAX_HASH_ID:
                refuse("hash_ids must lie between 0 and 2**62", path, number, line, "hash_ids")
            held.inputs.append(length)
            held.counts.append(len(hashes))
            held.ids.extend(hashes)
            if len(held.times) >= PART:
                yield held.part()
                held = _Columns(block)
        if not found:
            raise WorkloadError("the trace has no requests", path)
        if held.times:
            yield held.part()


class _Columns:
    """Requests that have been read and not been handed out."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.times, self.inputs, self.outputs = array("q"), array("q"), array("q")
        self.counts, self.ids = array("q"), array("q")

    def part(self) -> Part:
        times, inputs, outputs, counts, ids = (
            np.array(column, dtype=np.int64)
            for column in (self.times, self.inputs, self.outputs, self.counts, self.ids)
        )
        seg_len = np.full(len(ids), self.block, dtype=np.int64)
        seg_len[np.cumsum(counts) - 1] = inputs - self.block * (counts - 1)
        return Part(times, inputs, outputs, counts, ids, seg_len)
