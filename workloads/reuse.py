"""What a workload's prompts have in common: what a prefix cache without limit would hit, on which prefixes.

A radix tree over pieces finds, for each prompt, the longest prefix that an earlier request has computed (its
prompt and its output but the last token, whose KV is never computed). Nothing depends on the length of the
prompts in tokens, only on the number of pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from workloads.requests import Int64Array, Workload
from workloads.tokens import tokens_of

Piece = tuple[int, int, int]


@dataclass
class Reuse:
    """Prefix reuse of a workload at one block size, all requests in order, a cache without limit."""

    block_size: int
    prompt_tokens: int
    """Tokens of all prompts."""
    vllm_hit_tokens: int
    """Hits as vLLM counts them: full blocks, never the whole prompt (its last token is always computed)."""
    blocks: int
    """Blocks of all prompts, a partial last block counting as one (as the Mooncake trace does)."""
    block_hits: int
    """Of them, blocks seen before in the same place behind the same prefix; a partial one when the very same
    prompt has been seen."""
    block_hit_tokens: int
    """Tokens in those blocks."""
    distinct_blocks: int
    """Full blocks of prompts and outputs that differ: a cache that never evicts ends with so many."""
    prefixes: list[SharedPrefix]
    """Prefixes that most requests have in common, by tokens saved."""

    @property
    def vllm_hit_rate(self) -> float:
        """Hit tokens / prompt tokens, vLLM's definition."""
        return self.vllm_hit_tokens / self.prompt_tokens

    @property
    def block_hit_rate(self) -> float:
        """Hits / blocks, partial blocks included."""
        return self.block_hits / self.blocks

    @property
    def token_hit_rate(self) -> float:
        """Tokens in hit blocks / prompt tokens, partial blocks included."""
        return self.block_hit_tokens / self.prompt_tokens


@dataclass(frozen=True)
class SharedPrefix:
    """A prefix after which the prompts that have it in common part."""

    tokens: int
    requests: int


class _Node:
    """A run of tokens of one segment, and what follows it."""

    __slots__ = ("children", "depth", "length", "requests")

    def __init__(self, length: int, depth: int) -> None:
        self.length = length
        self.depth = depth  # tokens from the beginning of the prompt to the end of this run
        self.requests = 0  # prompts that pass through it
        self.children: dict[tuple[int, int], _Node] = {}


def measure(workload: Workload, block_size: int, top: int = 5) -> Reuse:
    """Prefix reuse of all requests, in the order of the workload.

    Args:
        block_size: tokens of a block, >= 1.
        top: how many shared prefixes to name.
    """
    roots: dict[int, _Node] = {}
    seen: set[tuple[object, ...]] = set()
    n = len(workload)
    matched = np.zeros(n, dtype=np.int64)
    repeated = np.zeros(n, dtype=np.bool_)
    salts = workload.salt.tolist()
    for i, (prompt, path, counted) in enumerate(sequences(workload, block_size)):
        root = roots.get(salts[i])
        if root is None:
            root = roots[salts[i]] = _Node(0, 0)
        identity = (salts[i], *prompt)
        repeated[i] = identity in seen
        seen.add(identity)
        matched[i] = _insert(root, path, counted)
    return _totals(workload, block_size, matched, repeated, roots, top)


def _totals(
    workload: Workload,
    block_size: int,
    matched: Int64Array,
    repeated: np.ndarray[tuple[int], np.dtype[np.bool_]],
    roots: dict[int, _Node],
    top: int,
) -> Reuse:
    prompt = workload.prompt_len.astype(np.int64)
    matched = np.minimum(matched, prompt)
    full = matched // block_size
    partial = repeated & (prompt % block_size > 0)
    return Reuse(
        block_size=block_size,
        prompt_tokens=int(prompt.sum()),
        vllm_hit_tokens=int((np.minimum(matched, prompt - 1) // block_size).sum()) * block_size,
        blocks=int((-(-prompt // block_size)).sum()),
        block_hits=int(full.sum() + partial.sum()),
        block_hit_tokens=int((full * block_size).sum() + (prompt % block_size)[partial].sum()),
        distinct_blocks=sum(_distinct(root, block_size) for root in roots.values()),
        prefixes=_top_prefixes(roots, top),
    )


def sequences(workload: Workload, block_size: int) -> Iterator[tuple[list[Piece], list[Piece], int]]:
    """For each request: the prompt's pieces; the pieces of what it computes (prompt and output but the last
    token); and how many of the latter lie in the prompt.

    Neighbours that continue one segment are one piece. Explicit tokens have no names that say what they
    share: each full block of them is named by its content, so prefixes are compared by whole blocks there.
    """
    ids, starts, lens = workload.seg_id.tolist(), workload.seg_start.tolist(), workload.seg_len.tolist()
    ptr, outs, out_lens = workload.seg_ptr.tolist(), workload.out_seg.tolist(), workload.output_len.tolist()
    names: dict[bytes, int] = {}
    for i in range(len(workload)):
        own = range(ptr[i], ptr[i + 1])
        prompt = [(ids[j], starts[j], lens[j]) for j in own]
        output = [(outs[i], 0, out_lens[i] - 1)] if out_lens[i] > 1 else []
        if outs[i] < 0 or any(piece[0] < 0 for piece in prompt):
            yield _named_blocks(workload, prompt, output, block_size, names)
        else:
            prompt = _merged(prompt)
            yield prompt, prompt + output, len(prompt)


def _merged(pieces: list[Piece]) -> list[Piece]:
    merged = [pieces[0]]
    for segment, start, length in pieces[1:]:
        last = merged[-1]
        if segment == last[0] and start == last[1] + last[2]:
            merged[-1] = (segment, last[1], last[2] + length)
        else:
            merged.append((segment, start, length))
    return merged


def _named_blocks(
    workload: Workload, prompt: list[Piece], output: list[Piece], block_size: int, names: dict[bytes, int]
) -> tuple[list[Piece], list[Piece], int]:
    """Blocks of the materialised tokens as segments of their own, named (below 0) by content."""
    prompt_len = sum(piece[2] for piece in prompt)
    data = np.concatenate(
        [tokens_of(s, start, n, workload.vocab_size, workload.tokens) for s, start, n in prompt + output]
    )

    def blocks(begin: int, end: int) -> list[Piece]:
        cuts = range(begin, end, block_size)
        chunks = [data[cut : min(cut + block_size, end)] for cut in cuts]
        return [(-1 - names.setdefault(chunk.tobytes(), len(names)), 0, len(chunk)) for chunk in chunks]

    computed = blocks(0, len(data) // block_size * block_size)
    whole = prompt_len // block_size
    return computed[:whole] + blocks(whole * block_size, prompt_len), computed, whole


def _insert(root: _Node, path: list[Piece], counted: int) -> int:
    """Put a sequence into the tree, its first `counted` pieces as part of a prompt.

    Returns:
        Length of its longest prefix that was there.
    """
    node, matched = root, -1
    for k, (segment, begin, size) in enumerate(path):
        start, left = begin, size
        while left:
            child = node.children.get((segment, start))
            if child is None:
                if matched < 0:
                    matched = node.depth
                child = _Node(left, node.depth + left)
                node.children[segment, start] = child
            elif left < child.length:
                _split(child, segment, start, left)
            if k < counted:
                child.requests += 1
            start += child.length
            left -= child.length
            node = child
    return node.depth if matched < 0 else matched


def _split(node: _Node, segment: int, start: int, length: int) -> None:
    """Cut a run after `length` tokens; its rest becomes its only child."""
    rest = _Node(node.length - length, node.depth)
    rest.requests, rest.children = node.requests, node.children
    node.depth -= rest.length
    node.length = length
    node.children = {(segment, start + length): rest}


def _distinct(root: _Node, block_size: int) -> int:
    """Full blocks in a tree: those that end inside each run."""
    total = 0
    stack = [root]
    while stack:
        node = stack.pop()
        total += node.depth // block_size - (node.depth - node.length) // block_size
        stack.extend(node.children.values())
    return total


def _top_prefixes(roots: dict[int, _Node], top: int) -> list[SharedPrefix]:
    """Runs that several prompts have in common and no single continuation shares as often."""
    found = []
    stack = list(roots.values())
    while stack:
        node = stack.pop()
        stack.extend(child for child in node.children.values() if child.requests > 1)
        follow = max((child.requests for child in node.children.values()), default=0)
        if node.requests > max(follow, 1):
            found.append(SharedPrefix(node.depth, node.requests))
    found.sort(key=lambda prefix: (-(prefix.requests - 1) * prefix.tokens, prefix.tokens))
    return found[:top]
