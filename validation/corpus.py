"""Recorded cases on disk: a folder with config.json, workload.jsonl.gz and steps.jsonl.gz (or steps.parquet).

The conformance set and `tests/recorded_vllm` have this form. The short recordings of the latter are chosen
from many random cases so that, together, they show as much as possible; `python -m validation corpus` makes
them again.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sim.errors import InputError
from validation import steplog
from validation.fuzz_cases import Case, settings_to_json
from validation.logical import dump_requests, read_requests
from validation.record import load_settings
from validation.steplog import Columns, Recording

LOG_NAMES = ("steps.jsonl.gz", "steps.parquet")


@dataclass(frozen=True)
class RecordedCase:
    """A case and what a real vLLM did with it."""

    case: Case
    folder: Path
    log_path: Path

    def log(self) -> Columns:
        """The recorded step log."""
        return steplog.read(self.log_path)


def read_case(folder: Path) -> RecordedCase:
    """The recorded case in a folder. Raises InputError if a file is missing or can't be used."""
    logs = [folder / name for name in LOG_NAMES if (folder / name).is_file()]
    if not logs:
        raise InputError(f"no recorded log: expected one of {', '.join(LOG_NAMES)}", str(folder))
    settings = load_settings(folder / "config.json", "scheduler")
    requests = tuple(read_requests(folder / "workload.jsonl.gz"))
    return RecordedCase(Case(folder.name, settings, requests), folder, logs[0])


def read_cases(folder: Path) -> list[RecordedCase]:
    """All recorded cases below a folder, by name."""
    return [read_case(found.parent) for found in sorted(folder.glob("**/config.json"))]


def write_case(parent: Path, case: Case, log: Columns) -> Path:
    """Write a case and its log into `parent/<name>`; same case, same bytes."""
    folder = parent / case.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(settings_to_json(case.settings, case.name))
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as file:
        file.write(dump_requests(case.requests))
    (folder / "workload.jsonl.gz").write_bytes(packed.getvalue())
    steplog.write(folder / "steps.jsonl.gz", log)
    return folder


def features(case: Case, log: Columns) -> set[str]:
    """What a recorded case shows: settings away from their defaults, events, and pairs of both."""
    s = case.settings
    settings = {
        "async": s.async_scheduling,
        "priority": s.policy == "priority",
        "ties": s.policy == "priority" and s.arrival_time == "step",
        "block size 1": s.block_size == 1,
        "block size odd": s.block_size in (3, 5),
        "block size 32": s.block_size == 32,
        "caching off": not s.enable_prefix_caching,
        "chunking off": not s.enable_chunked_prefill,
        "threshold": s.long_prefill_token_threshold > 0,
        "adaptive": s.long_prefill_token_threshold_adaptive,
        "scheduled tokens": s.max_num_scheduled_tokens is not None,
        "active seqs": s.max_num_active_seqs is not None,
        "watermark": s.watermark > 0,
        "reserve off": not s.scheduler_reserve_full_isl,
        "retention none": s.prefix_cache_retention_interval is None,
        "idle run": s.idle_steps == "run",
    }
    settings |= _group_features(case)
    requests = case.requests
    last = {name: log[name][-1] for name in ("prefix_hits", "preempted_hits", "preempted_requests")}
    gaps = [b - a for a, b in zip(log["step"], log["step"][1:], strict=False)]
    hashed = list(zip(log["num_cached_blocks"], log["num_cached_hashes"], strict=True))
    events = {
        "end token": any(r.stops_by_end_token for r in requests),
        "salt": any(r.cache_salt for r in requests),
        "past the length limit": any(
            len(r.prompt_token_ids) + len(r.output_token_ids) > s.max_model_len for r in requests
        ),
        "preemption": any(log["preempted"]),
        "several preempted": any(len(p) > 1 for p in log["preempted"]),
        "several finished": any(len(f) > 1 for f in log["finished"]),
        "hits": last["prefix_hits"] > 0,
        "hits after preemption": last["preempted_hits"] > 0,
        "resumed": last["preempted_requests"] > 0,
        "duplicates": any(blocks > hashes for blocks, hashes in hashed),
        "several keys a block": any(hashes > blocks for blocks, hashes in hashed),
        "full pool": 0 in log["num_free_blocks"],
        "gap": max(gaps, default=0) > 1,
        "empty batch": any(n == 0 for n in log["num_scheduled_reqs"]),
    }
    shown = {name for name, there in (settings | events).items() if there}
    pairs = {f"{a} + {b}" for a in shown & settings.keys() for b in shown}
    return shown | pairs


def _group_features(case: Case) -> dict[str, bool]:
    s = case.settings
    types = [group.type for group in s.kv_cache_groups]
    sizes = {group.block_size or s.block_size for group in s.kv_cache_groups}
    windows = {g.sliding_window for g in s.kv_cache_groups if g.type == "sliding_window"}
    return {
        "one group": len(types) == 1,
        "three groups": len(types) > 2,
        "full first": types[0] == "full" and len(types) > 1,
        "full later": "full" in types[1:],
        "window": bool(windows),
        "two windows": len(windows) > 1,
        "window of one token": 1 in windows,
        "chunked": "chunked_local" in types,
        "mamba": "mamba" in types,
        "three types": len(set(types)) > 2,
        "three block sizes": len(sizes) > 2,
        "unequal block sizes": len(sizes) > 1,
        "hash unit": s.prefix_match_unit is not None,
        "retention interval": bool(s.prefix_cache_retention_interval),
        "cross": "cross_attention" in types,
        "encoder inputs": any(r.encoder_tokens is not None for r in case.requests),
        "exported states": any(g.prefill_checkpoint_alignment for g in s.kv_cache_groups),
        "drafts": s.num_speculative_tokens > 0,
        "dropped blocks": s.speculative_method in ("eagle", "mtp"),
        "draft model": s.speculative_method == "draft_model",
        "ngram": s.speculative_method == "ngram",
        "a drafter's group": any(g.is_eagle_group for g in s.kv_cache_groups),
    }


def choose(
    recorded: Iterable[tuple[Case, Recording]], keep: int, max_rows: int = 400, min_requests: int = 0
) -> Iterator[tuple[Case, Recording]]:
    """The `keep` short cases that together show the most, most first; of equals the shorter, the earlier.

    When everything has been shown once the count begins again, so that the rest shows it in other ways.
    """
    left = [
        (case, recording, features(case, recording.log))
        for case, recording in recorded
        if recording.stuck is None and steplog.num_rows(recording.log) <= max_rows
        if len(case.requests) >= min_requests
    ]
    seen: set[str] = set()
    for _ in range(min(keep, len(left))):
        if not any(shown - seen for _, _, shown in left):
            seen.clear()
        at = max(
            range(len(left)),
            key=lambda i: (len(left[i][2] - seen), -steplog.num_rows(left[i][1].log), -i),
        )
        case, recording, shown = left.pop(at)
        seen |= shown
        yield case, recording
