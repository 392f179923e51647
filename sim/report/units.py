"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

GIB = 2**30


def seconds(s: float | None) -> str:
    """A span: `12.3 ms`, `4.56 s`, `12 min 03 s`, `1 h 02 min`."""
    if s is None:
        return "-"
    if s < 0.9995e-3:
        return f"{s * 1e6:.3g} us" if s else "0 s"
    if s < 0.9995:
        return f"{s * 1e3:.3g} ms"
    if s < 99.95:
        return f"{s:.3g} s" if s < 9.995 else f"{s:.1f} s"
    whole = round(s)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def span(s: float | None) -> str:
    """A span in one number, for tables: `12.3 ms`, `45.6 s`, `53.0 min`, `2.64 h`."""
    if s is None or s < 99.95:
        return seconds(s)
    return f"{s / 60:.1f} min" if s < 5997 else f"{s / 3600:.2f} h"


def share(x: float | None) -> str:
    """A fraction in percent: `0.43 %`, `61.2 %`."""
    if x is None:
        return "-"
    p = 100 * x
    if p == 0 or p >= 9.995:
        return f"{p:.1f} %"
    return f"{p:.2f} %"


def size(b: float | None) -> str:
    """Bytes: `55.0 GiB`, `312 MiB`."""
    if b is None:
        return "-"
    if b >= GIB:
        return f"{b / GIB:.1f} GiB"
    return f"{b / 2**20:.0f} MiB" if b >= 10 * 2**20 else f"{b / 2**20:.1f} MiB"


def count(n: float | None) -> str:
    """A count with thousands separated; three digits if it is not whole."""
    if n is None:
        return "-"
    if float(n).is_integer() or abs(n) >= 100:
        return f"{n:,.0f}"
    return f"{n:.1f}" if abs(n) >= 10 else f"{n:.2f}"


def plural(n: int, word: str) -> str:
    """`1 request`, `12,031 requests`."""
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def thousands(v: float) -> str:
    """A count on an axis: `1,200`, `15k`, `3.2M`."""
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(v) >= scale:
            return f"{v / (1e3 if unit == 'k' else scale):g}{unit}"
    return f"{v:,.6g}"


def clock_time(unix_ns: int, date: bool = True) -> str:
    """An instant in UTC, to the millisecond: `2026-01-31 12:00:00.250 UTC`, or without the date."""
    when = datetime.fromtimestamp(unix_ns // 1_000_000_000, timezone.utc)
    milliseconds = unix_ns // 1_000_000 % 1000
    day = f"{when:%Y-%m-%d} " if date else ""
    return f"{day}{when:%H:%M:%S}.{milliseconds:03d}" + (" UTC" if date else "")


def blocks_text(blocks: int, block_size: int, of_states: bool) -> str:
    """`12,472 blocks of 16 tokens`, or `200 blocks, each for one state` where no group has token slots."""
    return f"{count(blocks)} blocks" + (", each for one state" if of_states else f" of {block_size} tokens")


def pool_text(engine: Mapping[str, Any], note: str = "") -> str:
    """`12,472 blocks of 16 tokens (24.4 GiB, estimated)`; `engine` is a summary's section."""
    text = blocks_text(engine["usable_blocks"], engine["block_size"], engine["pool_tokens"] is None)
    if engine["pool_bytes"] is not None:
        text += f" ({size(engine['pool_bytes'])}{note and ', ' + note})"
    return text


def rules_name(engine: Mapping[str, Any]) -> str:
    """`vLLM 0.25`, with the switches that differ from that release; `engine` is a summary's section."""
    changed = ", ".join(f"{name}={value}" for name, value in (engine.get("switches") or {}).items())
    return f"vLLM {engine['vllm']}" + (f" with {changed}" if changed else "")
