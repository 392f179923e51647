"""A short account of a live recording."""

from __future__ import annotations

from typing import Any

from validation.live.reader import Recording


def summary(recording: Recording) -> dict[str, Any]:
    """Plain data: what was recorded, over how long, what is missing, what it cost."""
    rows = recording.rows
    end = recording.end
    return {
        "vllm": recording.header.get("vllm"),
        "pid": recording.header["pid"],
        "data_parallel_rank": recording.header.get("data_parallel_rank"),
        "num_gpu_blocks": recording.header["settings"]["num_gpu_blocks"],
        "groups": [f"{g['spec']}({g['block_size']})" for g in recording.header["groups"]],
        "options": recording.header["options"],
        "rows": len(rows),
        "states": sum("state" in row for row in rows),
        "ops": len(recording.ops),
        "requests": sum(line["kind"] == "added" for line in recording.requests),
        "calls": end["calls"] if end else (rows[-1]["call"] if rows else 0),
        "seconds": (rows[-1]["time_ns"] - rows[0]["time_ns"]) / 1e9 if rows else 0.0,
        "lost": recording.lost,
        "errors": [text.strip().splitlines()[-1] for text in recording.errors],
        "closed": end is not None,
        "torn_bytes": recording.torn_bytes,
        "recorder_share": end["cost_ns"] / end["busy_ns"] if end and end["busy_ns"] else None,
    }


def render(found: dict[str, Any], name: str) -> str:
    """The summary for a terminal."""
    missing = [f"{count} {kind} lines lost" for kind, count in sorted(found["lost"].items())]
    missing += [f"switched itself off: {text}" for text in found["errors"]]
    if not found["closed"]:
        missing.append("not closed (the process is still running, was killed, or the disk was full)")
    if found["torn_bytes"]:
        missing.append(f"{found['torn_bytes']} bytes at the end are no whole member")
    share = found["recorder_share"]
    lines = [
        f"{name}: vLLM {found['vllm']}, process {found['pid']}, {found['num_gpu_blocks']} blocks, "
        f"groups {', '.join(found['groups'])}",
        f"  {found['rows']} rows of {found['calls']} calls in {found['seconds']:.1f} s, "
        f"{found['states']} with the whole state, {found['ops']} block operations, "
        f"{found['requests']} requests",
        f"  missing: {'; '.join(missing) if missing else 'nothing'}",
    ]
    if share is not None:
        lines.append(f"  rows and states took {share:.2%} of the time of schedule() and update_from_output()")
    return "\n".join(lines)
