"""Mooncake traces: JSON lines of timestamp (ms), input_length, output_length and hash_ids.

A hash id names the content of a block of `hash_block_size` tokens (512 in the published traces), given what
stands before it; here it is the id of a segment of that many tokens. The prompt's last block holds what is
left, so a prompt of L tokens has ceil(L / hash_block_size) ids. The simulator hashes the resulting tokens
again at its own block size, so the trace can be run at any.
"""

from __future__ import annotations

import numpy as np

from workloads.builder import assemble
from workloads.errors import WorkloadError
from workloads.files import Content
from workloads.readers.options import ReadOptions, arrange, provenance
from workloads.readers.rows import MAX_TOKENS, integer, json_rows, refuse, seconds
from workloads.requests import Workload

NS_PER_MS = 1_000_000
MAX_HASH_ID = 2**62


def read_mooncake(content: Content, options: ReadOptions) -> Workload:
    """Read a Mooncake trace.

    Raises:
        WorkloadError: a line is broken (file:line:column), or no request is left.
    """
    path, block = content.path, options.hash_block_size
    times: list[int] = []
    inputs: list[int] = []
    outputs: list[int] = []
    counts: list[int] = []
    ids: list[int] = []
    for number, line, row in json_rows(content.lines(), path):
        times.append(seconds(row, "timestamp", NS_PER_MS, path, number, line))
        length = integer(row, "input_length", 1, MAX_TOKENS, path, number, line)
        outputs.append(integer(row, "output_length", 1, MAX_TOKENS, path, number, line))
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
        inputs.append(length)
        counts.append(len(hashes))
        ids += hashes
    if not times:
        raise WorkloadError("the trace has no requests", path)

    arrivals = arrange(np.array(times, dtype=np.int64), options)
    order = arrivals.order
    ends = np.cumsum(np.array(counts, dtype=np.int64))
    piece_counts = np.array(counts, dtype=np.int64)[order]
    seg_ptr = np.concatenate([[0], np.cumsum(piece_counts)])
    # Index of each piece in the file: where its request begins there, plus its place in the request.
    begin = (ends - np.array(counts, dtype=np.int64))[order]
    pieces = np.arange(seg_ptr[-1]) + np.repeat(begin - seg_ptr[:-1], piece_counts)
    prompt_len = np.array(inputs, dtype=np.int64)[order]
    seg_len = np.full(int(seg_ptr[-1]), block, dtype=np.int64)
    seg_len[seg_ptr[1:] - 1] = prompt_len - block * (piece_counts - 1)
    return assemble(
        vocab_size=options.vocab_size,
        arrival=arrivals.arrival,
        seg_ptr=seg_ptr,
        seg_id=np.array(ids, dtype=np.int64)[pieces],
        seg_len=seg_len,
        prompt_len=prompt_len,
        output_len=np.array(outputs, dtype=np.int64)[order],
        request_ids=arrivals.request_ids,
        source=provenance(
            content,
            "mooncake",
            {"hash_block_size": block, "time_scale": options.time_scale},
            arrivals.notes,
        ),
    )
