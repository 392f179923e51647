"""The settings that advice may change: values to try, and how `vllm serve` takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sim.serve_args.table import serve_option

if TYPE_CHECKING:
    from sim.resolve import Resolved

Value = int | float | bool

SETTINGS = (
    "max_num_batched_tokens",
    "max_num_seqs",
    "enable_prefix_caching",
    "watermark",
    "block_size",
    "gpu_memory_utilization",
)

#: Sizes that vLLM's attention backends on CUDA take.
BLOCK_SIZES = (16, 32, 64, 128)
WATERMARKS = (0.0, 0.01, 0.02, 0.05, 0.1)
#: Above .95 the estimate of what else needs memory is no base for advice.
UTILIZATIONS = (0.9, 0.92, 0.95)
MOST_SEQS, MOST_TOKENS = 8192, 131072


@dataclass(frozen=True)
class Space:
    """What the config has, and what is tried in its place.

    Attributes:
        base: value of each setting in the config as resolved.
        tried: values other than the base's, by setting, in the order in which they are tried.
        given_blocks: `engine.num_gpu_blocks` where the config gives it, None where it follows from memory.
    """

    base: dict[str, Value]
    tried: dict[str, tuple[Value, ...]]
    given_blocks: int | None


@dataclass(frozen=True)
class Candidate:
    """A set of changed settings, sorted by name; () is the config itself."""

    changes: tuple[tuple[str, Value], ...] = ()

    def having(self, name: str, value: Value | None) -> Candidate:
        """The same with one setting changed, or put back (None)."""
        kept = {k: v for k, v in self.changes if k != name}
        if value is not None:
            kept[name] = value
        return Candidate(tuple(sorted(kept.items())))

    def __str__(self) -> str:
        return ", ".join(f"{k}={show(v)}" for k, v in self.changes) or "as configured"


def show(value: Value) -> str:
    """A value as in YAML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def space_of(resolved: Resolved) -> Space:
    """Values to try for each setting of a config."""
    e = resolved.engine
    estimated = resolved.pool.how == "estimated"
    base: dict[str, Value] = {
        "max_num_batched_tokens": e.max_num_batched_tokens,
        "max_num_seqs": e.max_num_seqs,
        "enable_prefix_caching": e.enable_prefix_caching,
        "watermark": e.watermark,
        "block_size": e.block_size,
    }
    if estimated:
        base["gpu_memory_utilization"] = float(resolved.config["engine"]["gpu_memory_utilization"])
    tokens, seqs = e.max_num_batched_tokens, e.max_num_seqs
    tried: dict[str, tuple[Value, ...]] = {
        "max_num_batched_tokens": _around(tokens, e.max_num_seqs, MOST_TOKENS),
        "max_num_seqs": _around(seqs, 1, min(MOST_SEQS, tokens)),
        "enable_prefix_caching": (not e.enable_prefix_caching,),
        "watermark": tuple(w for w in WATERMARKS if w != e.watermark),
        "block_size": tuple(b for b in BLOCK_SIZES if b != e.block_size),
    }
    if estimated:
        used = base["gpu_memory_utilization"]
        tried["gpu_memory_utilization"] = tuple(u for u in UTILIZATIONS if u > used)
    return Space(base, tried, e.num_gpu_blocks if resolved.pool.how == "given" else None)


def _around(value: int, least: int, most: int) -> tuple[int, ...]:
    wanted = (value // 4, value // 2, value * 2, value * 4)
    return tuple(v for v in wanted if max(1, least) <= v <= most)


def further(space: Space, name: str, value: Value) -> Value | None:
    """The next value beyond the last one tried, in the direction that helped; None where the range ends."""
    if name not in ("max_num_batched_tokens", "max_num_seqs") or isinstance(value, bool):
        return None
    before = space.base[name]
    most = MOST_TOKENS if name == "max_num_batched_tokens" else MOST_SEQS
    following = int(value) * 2 if value > before else int(value) // 2
    return following if 1 <= following <= most else None


def overrides_of(candidate: Candidate, space: Space) -> list[str]:
    """The candidate as `--set` texts. A pool of given size keeps its tokens when the block size changes."""
    texts = [f"engine.{name}={show(value)}" for name, value in candidate.changes]
    blocks = _scaled_blocks(candidate, space)
    return texts if blocks is None else [*texts, f"engine.num_gpu_blocks={blocks}"]


def _scaled_blocks(candidate: Candidate, space: Space) -> int | None:
    size = dict(candidate.changes).get("block_size")
    if size is None or space.given_blocks is None:
        return None
    return max(2, (space.given_blocks - 1) * int(space.base["block_size"]) // int(size) + 1)


def serve_flags(candidate: Candidate, space: Space) -> list[str]:
    """The changed settings as arguments of `vllm serve`."""
    flags = [word for name, value in candidate.changes for word in serve_option(name, value)]
    blocks = _scaled_blocks(candidate, space)
    if blocks is not None:
        flags += serve_option("num_gpu_blocks", blocks)
    return flags


def as_json(candidate: Candidate, base: Mapping[str, Any]) -> dict[str, Any]:
    """Changed settings with their values before and after."""
    return {name: {"from": base[name], "to": value} for name, value in candidate.changes}
