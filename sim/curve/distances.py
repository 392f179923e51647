"""From a workload to its hit curve: the arrays of the jitted pass, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError
from workloads.requests import Workload

Int64Array = NDArray[np.int64]
FloatArray = NDArray[np.float64]
Sizes = Sequence[float] | FloatArray | Int64Array

Rule = Literal["lru", "vllm"]
_FIRST_TABLE = 1 << 16
_ACCESSES_A_CALL = 2_000_000
_ERROR_POINTS = 96


@dataclass(frozen=True)
class CurveOptions:
    """What is counted.

    Attributes:
        block_size: tokens of a block, >= 1.
        rule: "lru": each block of each prompt is looked up, a partial last one too, and becomes the most
            recently used: the definition behind published hit rates of traces. "vllm": full blocks only,
            never the last token of a prompt; outputs are cached (all but their last token); a request's
            blocks are freed last first, so that the end of a prompt is evicted before its beginning.
        sample: share of the blocks that is followed, in (0, 1]; 1: all, exactly.
        salt: other samples of the same rate.
    """

    block_size: int
    rule: Rule = "lru"
    sample: float = 1.0
    salt: int = 0


@dataclass(frozen=True, eq=False)
class HitCurve:
    """Hit rates at every size, from one pass.

    Attributes:
        options: what was counted.
        requests: of the workload.
        lookups: blocks looked up.
        tokens: prompt tokens.
        distinct: different blocks, outputs included under the vLLM rule (estimated from a sample).
        distances: float64[k], ascending: sizes in blocks at which the hit rate rises (scaled in a sample).
        hit_blocks: float64[k], lookups that hit from that size on and not below.
        hit_tokens: float64[k], their tokens.
        missed_blocks: lookups that miss at every size: the compulsory misses.
        sampled: lookups of the sample; all of them in an exact pass.
        error_sizes: float64[s], sizes at which the error was estimated; empty in an exact pass.
        error_values: float64[s], standard errors of the block hit rate there.
    """

    options: CurveOptions
    requests: int
    lookups: int
    tokens: int
    distinct: int
    distances: FloatArray
    hit_blocks: FloatArray
    hit_tokens: FloatArray
    missed_blocks: float
    sampled: int
    error_sizes: FloatArray
    error_values: FloatArray

    @property
    def exact(self) -> bool:
        """Whether every block was followed."""
        return self.options.sample >= 1.0

    def _rate(self, sizes: Sizes, hits: FloatArray, total: float) -> FloatArray:
        cumulative = np.concatenate([[0.0], np.cumsum(hits)])
        at = np.searchsorted(self.distances, np.asarray(sizes, np.float64), side="right")
        return np.asarray(np.clip(cumulative[at] / max(total, 1), 0.0, 1.0))

    def hit_rates(self, sizes: Sizes) -> FloatArray:
        """Hits / blocks looked up in caches of so many blocks, float64[len(sizes)]."""
        return self._rate(sizes, self.hit_blocks, self.lookups)

    def token_hit_rates(self, sizes: Sizes) -> FloatArray:
        """Tokens of hit blocks / prompt tokens, float64[len(sizes)]."""
        return self._rate(sizes, self.hit_tokens, self.tokens)

    def errors(self, sizes: Sizes) -> FloatArray:
        """Standard errors of ``hit_rates``; zeros in an exact pass."""
        if self.exact or len(self.error_sizes) == 0:
            return np.zeros(len(sizes))
        wanted = np.maximum(np.asarray(sizes, np.float64), 1.0)
        return np.asarray(np.interp(np.log(wanted), np.log(self.error_sizes), self.error_values))

    @property
    def ceiling(self) -> float:
        """Block hit rate of a cache without limit."""
        return float(self.hit_rates([np.inf])[0])

    @property
    def token_ceiling(self) -> float:
        """Token hit rate of a cache without limit."""
        return float(self.token_hit_rates([np.inf])[0])

    @property
    def largest_distance(self) -> int:
        """Smallest size that hits as much as a cache without limit; 0: nothing is ever used again."""
        return int(np.ceil(self.distances[-1])) if len(self.distances) else 0

    def size_for(self, share: float) -> int:
        """Smallest size that reaches a share of the ceiling, in blocks; 0 where nothing hits."""
        if len(self.distances) == 0 or self.ceiling <= 0:
            return 0
        cumulative = np.cumsum(self.hit_blocks)
        at = int(np.searchsorted(cumulative, share * cumulative[-1] * (1 - 1e-12)))
        return int(np.ceil(self.distances[min(at, len(self.distances) - 1)]))

    def knee(self) -> int | None:
        """Size where the next block begins to bring less than the average block of the smallest cache that
        holds everything that is used again; None where nothing hits.
        """
        if len(self.distances) == 0 or self.ceiling <= 0:
            return None
        gain = np.cumsum(self.hit_blocks) / self.hit_blocks.sum() - self.distances / self.distances[-1]
        return int(np.ceil(self.distances[int(np.argmax(gain))]))


def measure(
    workload: Workload,
    options: CurveOptions,
    progress: Callable[[int], None] | None = None,
) -> HitCurve:
    """The hit curve of a workload's blocks, request after request in its order.

    Args:
        progress: called with the number of requests done, every few million blocks.

    Raises:
        InputError: the sample holds no block that is looked up.
    """
    from sim.curve import stack as s

    size, exact = options.block_size, options.sample >= 1.0
    prompt = workload.prompt_len.astype(np.int64)
    computed = workload.output_len.astype(np.int64) - 1
    all_tokens = prompt + computed if options.rule == "vllm" else prompt
    blocks = -(-all_tokens // size)
    places = int(blocks.sum())
    rule = np.zeros(s.RULE_FIELDS, dtype=np.int64)
    rule[s.BLOCK_SIZE], rule[s.VLLM] = size, int(options.rule == "vllm")
    rule[s.THRESHOLD] = s.EVERYTHING if exact else max(1, round(options.sample * s.EVERYTHING))
    rule[s.SALT] = options.salt
    rate = float(rule[s.THRESHOLD]) / s.EVERYTHING
    table = np.zeros(2 * _FIRST_TABLE, dtype=np.uint64)
    bits = np.zeros(places // 64 + s.PLACES // 64 + 1, dtype=np.uint64)
    tree = np.zeros(places // s.PLACES + 2, dtype=np.int64)
    histogram = np.zeros((places + 2, 2), dtype=np.int64)
    sizes = np.zeros(0) if exact else np.geomspace(1.0, max(places, 2), _ERROR_POINTS)
    # a sampled distance d stands for 1 + (d - 1) / rate
    edges = np.floor((sizes - 1) * rate).astype(np.int64) + 1
    group_hits = np.zeros((s.GROUPS, len(edges) + 1), dtype=np.int64)
    group_lookups = np.zeros(s.GROUPS, dtype=np.int64)
    longest = int(blocks.max()) + 1
    at = np.zeros(s.FIELDS, dtype=np.int64)
    fixed = (
        workload.seg_ptr,
        np.stack([workload.seg_id, workload.seg_start, workload.seg_len], axis=1, dtype=np.int64),
        np.stack([workload.salt, prompt, workload.out_seg, computed], axis=1, dtype=np.int64),
        workload.tokens if workload.tokens.size else np.zeros(1, dtype=np.int32),
        rule,
    )
    scratch = (np.zeros(longest, dtype=np.uint64), np.zeros(longest, dtype=np.int64))
    while at[s.NEXT] < len(workload):
        before = (int(at[s.NEXT]), int(at[s.TIME]))
        s.follow(
            *fixed,
            table,
            bits,
            tree,
            histogram,
            edges,
            group_hits,
            group_lookups,
            *scratch,
            _ACCESSES_A_CALL,
            at,
        )
        if at[s.NEXT] < len(workload) and at[s.TIME] - before[1] < _ACCESSES_A_CALL:
            larger = np.zeros(4 * len(table), dtype=np.uint64)
            s.rehash(table, larger)
            table = larger
        if progress:
            progress(int(at[s.NEXT]))
    if at[s.SAMPLED] == 0 and not exact:
        raise InputError(
            f"none of {int(at[s.LOOKUPS]):,} blocks looked up is in the sample",
            "--sample",
            hint="take a larger share, or leave --sample out",
        )
    return _curve(workload, options, rate, at, histogram, sizes, group_hits, group_lookups)


def _curve(
    workload: Workload,
    options: CurveOptions,
    rate: float,
    at: Int64Array,
    histogram: Int64Array,
    sizes: FloatArray,
    group_hits: Int64Array,
    group_lookups: Int64Array,
) -> HitCurve:
    from sim.curve import stack as s

    lookups, tokens = int(at[s.LOOKUPS]), int(at[s.TOKENS])
    found = np.flatnonzero(histogram[: int(at[s.DISTINCT]) + 2, 0])
    hit_blocks = histogram[found, 0].astype(np.float64)
    hit_tokens = histogram[found, 1].astype(np.float64)
    distances = found.astype(np.float64)
    missed = float(at[s.SAMPLED]) - float(hit_blocks.sum())
    error_values = np.zeros(len(sizes))
    if rate < 1.0:
        # The sample's misses are what is known of the whole. What its lookups are too many or too few (a
        # block that everybody uses is in it or not) is put right at the smallest distance: SHARDS, FAST'15.
        distances = 1.0 + (distances - 1.0) / rate
        hit_blocks, hit_tokens, missed = hit_blocks / rate, hit_tokens / rate, missed / rate
        looked_up_tokens = _looked_up_tokens(workload, options)
        if len(distances) == 0 or distances[0] > 1.0:
            distances = np.concatenate([[1.0], distances])
            hit_blocks = np.concatenate([[0.0], hit_blocks])
            hit_tokens = np.concatenate([[0.0], hit_tokens])
        hit_blocks[0] += lookups - float(at[s.SAMPLED]) / rate
        hit_tokens[0] += looked_up_tokens - float(at[s.SAMPLED_TOKENS]) / rate
        error_values = _errors(rate, lookups, sizes, hit_blocks, distances, group_hits, group_lookups)
    return HitCurve(
        options=options,
        requests=len(workload),
        lookups=lookups,
        tokens=tokens,
        distinct=round(int(at[s.DISTINCT]) / rate),
        distances=distances,
        hit_blocks=hit_blocks,
        hit_tokens=hit_tokens,
        missed_blocks=missed,
        sampled=int(at[s.SAMPLED]),
        error_sizes=sizes,
        error_values=error_values,
    )


def _looked_up_tokens(workload: Workload, options: CurveOptions) -> int:
    """Prompt tokens in blocks that are looked up."""
    prompt, size = workload.prompt_len.astype(np.int64), options.block_size
    return int((((prompt - 1) // size) * size).sum() if options.rule == "vllm" else prompt.sum())


def _errors(
    rate: float,
    lookups: int,
    sizes: FloatArray,
    hit_blocks: FloatArray,
    distances: FloatArray,
    group_hits: Int64Array,
    group_lookups: Int64Array,
) -> FloatArray:
    """Standard error of the block hit rate at each size.

    Two parts: which blocks the sample holds (the spread of the misses between groups of blocks, by hash),
    and the distances, which are counted in a sample too: the relative error of a size C is that of a
    binomial count of C * rate, and moves the hit rate along the curve's slope.
    """
    groups = len(group_lookups)
    misses = group_lookups[:, None] - np.cumsum(group_hits, axis=1)[:, :-1]
    between = groups * misses.var(axis=0, ddof=1) * (1 - rate)
    blocks = np.sqrt(between) / rate / max(lookups, 1)
    cumulative = np.concatenate([[0.0], np.cumsum(hit_blocks)]) / max(lookups, 1)

    def at(x: FloatArray) -> FloatArray:
        return np.asarray(cumulative[np.searchsorted(distances, x, side="right")])

    away = np.sqrt((1 - rate) / np.maximum(sizes * rate, 1.0))
    slope = (at(sizes * (1 + away)) - at(sizes / (1 + away))) / 2
    return np.asarray(np.hypot(blocks, slope))
