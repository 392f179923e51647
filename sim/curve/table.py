"""The numbers of a hit curve: its sizes, rows, key figures, and as text, JSON, CSV or Parquet."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.curve.distances import HitCurve
from sim.curve.source import Pool
from sim.errors import InputError
from sim.report.units import count, plural, share, size

_WIDTH = 80
_BAR = 24
_DENSE = 256
_TIB = 2**40
#: Standard errors either way that are shown: 95 %.
SHOWN_ERRORS = 1.96
RULES = {
    "lru": "plain LRU over the blocks of all prompts, a partial last block too",
    "vllm": "vLLM's rule: full blocks, outputs cached, freed last first; one request at a time",
}


@dataclass(frozen=True)
class Result:
    """A curve with what is shown about it.

    Attributes:
        name: of the source.
        curve: the hit curve.
        sizes: int64[k], blocks, ascending: rows of the table.
        dense: int64[m], sizes of the files and the plot.
        pools: marked pools.
        notes: what a reader has to know.
    """

    name: str
    curve: HitCurve
    sizes: NDArray[np.int64]
    dense: NDArray[np.int64]
    pools: Sequence[Pool]
    notes: Sequence[str]

    @property
    def token_bytes(self) -> float | None:
        """Bytes of a token's KV, where all marked pools agree on them."""
        known = {pool.token_bytes for pool in self.pools}
        return known.pop() if len(known) == 1 else None


def parse_sizes(text: str) -> NDArray[np.int64]:
    """Sizes from the command line: `1000,3000,10k,1M`.

    Raises:
        InputError: one of them is no whole number of blocks from 1.
    """
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmM]?)\s*", part)
        value = float(match[1]) * {"": 1, "k": 1000, "m": 1_000_000}[match[2].lower()] if match else 0.0
        if value < 1 or not value.is_integer() or value > 2**40:
            raise InputError(
                f"'{part.strip()}' is no number of blocks", "--sizes", hint="as in --sizes 1000,3000,10k,1M"
            )
        found.append(int(value))
    return np.unique(np.array(found, dtype=np.int64))


def default_sizes(curve: HitCurve) -> NDArray[np.int64]:
    """1, 2 and 5 times powers of ten, from a fiftieth of the ceiling to the ceiling."""
    top = max(curve.largest_distance, 1)
    steps = [m * 10**k for k in range(len(str(top)) + 1) for m in (1, 2, 5)]
    last = next(v for v in steps if v >= top)
    rates = curve.hit_rates([float(v) for v in steps])
    first = next((v for v, r in zip(steps, rates, strict=True) if r > curve.ceiling / 50), last)
    return np.array([v for v in steps if first <= v <= last], dtype=np.int64)


def dense_sizes(curve: HitCurve, sizes: NDArray[np.int64], pools: Sequence[Pool]) -> NDArray[np.int64]:
    """Sizes that draw the curve well, and those that are shown."""
    grid = np.geomspace(max(1, sizes[0] / 4), max(sizes[-1], curve.largest_distance, 2), _DENSE)
    marked = np.array([pool.blocks for pool in pools], dtype=np.int64)
    return np.unique(np.concatenate([np.ceil(grid).astype(np.int64), sizes, marked]))


def columns(result: Result, sizes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """The curve at some sizes, by column."""
    curve = result.curve
    out: dict[str, NDArray[Any]] = {
        "blocks": sizes,
        "tokens": sizes * curve.options.block_size,
        "block_hit_rate": curve.hit_rates(sizes),
        "token_hit_rate": curve.token_hit_rates(sizes),
    }
    if result.token_bytes is not None:
        out["bytes"] = np.round(out["tokens"] * result.token_bytes).astype(np.int64)
    if not curve.exact:
        out["block_hit_rate_standard_error"] = curve.errors(sizes)
    return out


def as_json(result: Result) -> dict[str, Any]:
    """Everything as plain data."""
    curve = result.curve
    knee = curve.knee()

    def at(blocks: int | None) -> dict[str, Any] | None:
        if not blocks:
            return None
        rates = [float(curve.hit_rates([blocks])[0]), float(curve.token_hit_rates([blocks])[0])]
        return {"blocks": blocks, "block_hit_rate": rates[0], "token_hit_rate": rates[1]}

    table = columns(result, result.sizes)
    rows = zip(*(values.tolist() for values in table.values()), strict=True)
    return {
        "name": result.name,
        "requests": curve.requests,
        "block_size": curve.options.block_size,
        "rule": curve.options.rule,
        "sample": curve.options.sample,
        "blocks_looked_up": curve.lookups,
        "blocks_in_sample": curve.sampled,
        "prompt_tokens": curve.tokens,
        "distinct_blocks": curve.distinct,
        "compulsory_misses": round(curve.missed_blocks),
        "ceiling": {"block_hit_rate": curve.ceiling, "token_hit_rate": curve.token_ceiling},
        "holds_everything_used_again": curve.largest_distance,
        "knee": at(knee),
        "reaches": {f"{p}%": at(curve.size_for(p / 100)) for p in (50, 90, 99)},
        "pools": [
            {"label": p.label, "how": p.how, "token_bytes": p.token_bytes, **(at(p.blocks) or {})}
            for p in result.pools
        ],
        "curve": [dict(zip(table, row, strict=True)) for row in rows],
        "notes": list(result.notes),
    }


def csv_text(result: Result, sizes: NDArray[np.int64]) -> str:
    """The curve as CSV, rates to six decimals."""
    table = columns(result, sizes)
    lines = [",".join(table)]
    for row in zip(*(v.tolist() for v in table.values()), strict=True):
        lines.append(",".join(f"{v:.6f}" if isinstance(v, float) else str(v) for v in row))
    return "\n".join(lines) + "\n"


def parquet_bytes(result: Result, sizes: NDArray[np.int64]) -> bytes:
    """The curve as Parquet; the key figures stand in its metadata."""
    import json

    from sim.results import to_parquet

    known = {
        "blocks": ("blocks", "size of the cache"),
        "tokens": ("tokens", "size of the cache"),
        "bytes": ("bytes", "size of the cache"),
        "block_hit_rate": ("", "blocks that hit / blocks looked up"),
        "token_hit_rate": ("", "tokens of blocks that hit / prompt tokens"),
        "block_hit_rate_standard_error": ("", "of the sample"),
    }
    figures = {k: v for k, v in as_json(result).items() if k != "curve"}
    return to_parquet(columns(result, sizes), known, {"curve": json.dumps(figures)})


def _aligned(rows: Sequence[Sequence[str]], left: int = 0) -> list[str]:
    """Columns of equal width; the first `left` of them to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            f"{c:<{w}}" if i < left else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def memory_text(n: float) -> str:
    """Bytes, also where they are many: `55.0 GiB`, `1.91 TiB`."""
    return size(n) if n < _TIB else f"{n / _TIB:,.3g} TiB"


def _rows(result: Result) -> list[list[str]]:
    curve, token_bytes = result.curve, result.token_bytes
    head = ["blocks", "tokens", *(["memory"] if token_bytes else []), "block hit rate", "token hit rate", ""]
    rows = [head]
    ceiling = max(curve.ceiling, 1e-12)
    sizes = result.sizes
    errors = curve.errors(sizes)
    values = zip(sizes, curve.hit_rates(sizes), curve.token_hit_rates(sizes), errors, strict=True)
    for blocks, rate, token_rate, error in values:
        tokens = int(blocks) * curve.options.block_size
        shown = (
            share(float(rate)) if curve.exact else f"{share(float(rate))} ± {100 * SHOWN_ERRORS * error:.2f}"
        )
        memory = [memory_text(tokens * token_bytes)] if token_bytes else []
        bar = "█" * round(_BAR * float(rate) / ceiling) if curve.ceiling > 0 else ""
        rows.append([count(int(blocks)), count(tokens), *memory, shown, share(float(token_rate)), bar])
    memory = [""] if token_bytes else []
    rows.append(["no limit", "", *memory, share(curve.ceiling), share(curve.token_ceiling), ""])
    width = max(len(row[-1]) for row in rows)
    return [[*row[:-1], row[-1].ljust(width)] for row in rows]


def text(result: Result) -> str:
    """For the terminal."""
    curve = result.curve
    options = curve.options
    lines = [
        f"{result.name}: {plural(curve.requests, 'request')}, {curve.lookups:,} lookups of blocks of"
        f" {options.block_size} tokens",
        RULES[options.rule],
    ]
    if not curve.exact:
        lines.append(
            f"sample: {100 * options.sample:g} % of the blocks, {curve.sampled:,} lookups; ±: 95 % interval"
        )
    lines += ["", *_aligned(_rows(result)), ""]
    about = "" if curve.exact else "about "
    compulsory = curve.missed_blocks / max(curve.lookups, 1)
    facts = [
        (
            "compulsory misses",
            f"{about}{curve.missed_blocks:,.0f} blocks are looked up for the first time, {share(compulsory)}"
            f" of the lookups: no cache hits them; {about}{curve.distinct:,} different blocks in all",
        )
    ]
    knee = curve.knee()
    if knee:
        at = share(float(curve.hit_rates([knee])[0]))
        facts.append(
            (
                "knee",
                f"{knee:,} blocks, hit rate {at}: from here the next block brings less than the average block"
                f" of a cache that holds everything used again ({curve.largest_distance:,} blocks)",
            )
        )
        reached = ", ".join(f"{p} % with {curve.size_for(p / 100):,}" for p in (50, 90, 99))
        facts.append(("of the ceiling", f"{reached} blocks"))
    for name, value in facts:
        lines += textwrap.wrap(
            value, _WIDTH, initial_indent=f"  {name:<19}", subsequent_indent=" " * 21, break_on_hyphens=False
        )
    if result.pools:
        rows = [["pool", "blocks", "block hit rate", "token hit rate", "of the ceiling"]]
        for pool in result.pools:
            rate = float(curve.hit_rates([pool.blocks])[0])
            token_rate = float(curve.token_hit_rates([pool.blocks])[0])
            part = share(rate / curve.ceiling) if curve.ceiling > 0 else "-"
            rows.append([pool.label, count(pool.blocks), share(rate), share(token_rate), part])
        lines += ["", *_aligned(rows, left=1)]
    for note in result.notes:
        lines += textwrap.wrap(f"note: {note}", _WIDTH, initial_indent="  ", subsequent_indent="        ")
    return "\n".join(lines) + "\n"


def render_json(result: Result) -> str:
    """JSON text."""
    from sim.results import to_json

    return to_json(as_json(result)).decode()
