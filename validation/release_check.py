"""`python -m validation releases check | record`: each release's real control plane against its profile.

`check` makes the stored recordings again on the release and on the simulator, then compares random cases,
the defaults of keys and sizes of pools.
`record` chooses those recordings: short cases that, together, show every rule in which the release differs
from the default one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from sim.engine_checks import check_simulated
from sim.engine_settings import EngineSettings, KVCacheGroup
from sim.errors import InputError
from sim.profiles import DEFAULT_RELEASE, rules_of
from sim.switches import SIZE_SWITCHES, SWITCHES
from validation.corpus import RecordedCase, read_cases, write_case
from validation.diff import compare
from validation.fuzz import under_release
from validation.fuzz_cases import Case, Draw, blocks_of_largest
from validation.fuzz_groups import random_group_case
from validation.logical import LogicalRequest
from validation.record import record
from validation.release_defaults import check_defaults
from validation.releases import Worker
from validation.sizing.check import short_check
from validation.steplog import Columns, num_rows
from validation.suite import Row, from_comparison

#: Switches that decide nothing in a step log: what a config resolves to, the size of a pool; the watermark,
#: which releases without the rule have no key for; `empty_batch`: with nothing in flight a batch is empty
#: only where nobody can ever be scheduled, or nobody is left.
NOT_IN_LOGS = (
    "empty_batch",
    "async_default",
    "null_in_check",
    "memory_utilization",
    "graph_estimate",
    "mtp_group",
    "state_draft_retention",
    "watermark",
    *SIZE_SWITCHES,
)
#: Switches that decide nothing where there is one full-attention group, and no drafts.
OF_GROUPS = tuple(
    s.name
    for s in SWITCHES
    if not {"groups", "windows", "sparse", "states", "drafts", "encoder"}.isdisjoint(s.concerns)
)
#: Crowds for each ordinary case: what they are for is rare.
CROWDS = 6
#: Rows of a stored recording at most.
SHORT = 260


def recordings_of(release: str, recorded: Path) -> list[RecordedCase]:
    """The stored recordings of a release."""
    folder = recorded / "releases" / release
    return read_cases(folder) if folder.is_dir() else []


def check(release: str, worker: Worker, recorded: Path, family: str, seeds: int) -> Iterator[Row]:
    """One row for each stored recording on release and simulator, the random cases, defaults and sizes."""
    for stored in recordings_of(release, recorded):
        case = stored.case
        again = worker.record(case.settings, case.requests)
        name = f"{release}/{case.name}"
        yield from_comparison(name, "recording / release", compare(stored.log(), again.log))
        if not check_simulated(case.settings):
            ours = record("sim", case.settings, case.requests)
            yield from_comparison(name, "recording / sim", compare(stored.log(), ours.log))
    yield check_random(release, worker, family, seeds)
    yield check_defaults(worker)
    yield short_check(worker)


def check_random(release: str, worker: Worker, family: str, seeds: int) -> Row:
    """Random cases, release against simulator; the first that differs is named."""
    rows = compared = preemptions = 0
    problems: list[str] = []
    for seed in range(seeds):
        case = under_release(random_group_case(2_000_000 + seed, family), release)
        if check_simulated(case.settings):
            continue
        try:
            real = worker.record(case.settings, case.requests)
        except InputError:
            continue  # this release refuses what a newer one allows
        if real.stuck is not None:
            continue
        compared += 1
        preemptions += sum(map(len, real.log["preempted"]))
        try:
            result = compare(real.log, record("sim", case.settings, case.requests).log)
        except Exception as exc:
            problems.append(f"seed {2_000_000 + seed}: {type(exc).__name__}: {exc}")
            continue
        rows += result.rows_a
        if not result.equal:
            problems.append(f"seed {2_000_000 + seed}: {result.summary()}")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    name = f"{release}: {compared} random cases ({family}), {preemptions} preemptions"
    return Row(
        name,
        "release / sim",
        rows,
        "-" if problems else "34/34",
        problems[0] + more if problems else None,
    )


def changed_switches(release: str, family: str = "full") -> list[str]:
    """Switches of a release that differ from the default release's and that a step log can show."""
    ours, default = rules_of(release), rules_of(DEFAULT_RELEASE)
    silent = NOT_IN_LOGS + (OF_GROUPS if family == "full" else ())
    return [
        s.name for s in SWITCHES if s.name not in silent and getattr(ours, s.name) != getattr(default, s.name)
    ]


def shown_switches(case: Case, log: Columns, target: str = "sim") -> set[str]:
    """Switches without which the simulator would not give this log: each is turned to the default's value.

    A crowd is only asked for what it is made for.
    """
    family = "full" if case.settings.kv_cache_groups == (KVCacheGroup(),) else "groups"
    default = rules_of(DEFAULT_RELEASE)
    shown = set()
    names = changed_switches(case.settings.vllm, family)
    if case.name.startswith("crowd"):
        names = [name for name in names if name == "priority_mode"]
    for name in names:
        settings = replace(case.settings, switches=((name, getattr(default, name)),))
        if name == "full_sequence_reserve":
            settings = replace(settings, scheduler_reserve_full_isl=True)
        if not compare(log, record(target, settings, case.requests).log).equal:
            shown.add(name)
    return shown


def candidates(release: str, family: str, seeds: Iterable[int]) -> Iterator[Case]:
    """Random cases under a release's rules; with the family "full" also crowds under the priority policy."""
    if family == "full":
        yield under_release(loner(), release)
    for seed in seeds:
        yield under_release(random_group_case(seed, family), release)
        if family == "full":
            for number in range(CROWDS * seed, CROWDS * (seed + 1)):
                yield under_release(crowd(number), release)


def loner() -> Case:
    """A request that is alone, then one in company, both with prompts above the long-prefill threshold."""
    settings = EngineSettings(
        block_size=4,
        num_gpu_blocks=21,
        max_num_seqs=4,
        max_num_batched_tokens=16,
        max_model_len=32,
        long_prefill_token_threshold=3,
    )
    requests = tuple(
        LogicalRequest(
            request_id=f"r{i}",
            arrival_step=step,
            prompt_token_ids=tuple(range(10 * i, 10 * i + 9)),
            output_token_ids=(1, 2, 3, 4),
            priority=0,
            cache_salt=None,
            max_tokens=None,
        )
        for i, step in enumerate((0, 12, 13))
    )
    return Case("alone", settings, requests)


def crowd(seed: int) -> Case:
    """Few requests that outgrow a tiny pool under the priority policy: victims in every position."""
    draw = Draw(np.random.default_rng(np.random.SeedSequence([0x63726F7764, seed])))
    block_size, length = draw.one_of(1, 2, 4), draw.between(12, 40)
    requests = []
    for i in range(draw.between(3, 6)):
        prompt = draw.between(1, length // 2 - 1)
        requests.append(
            LogicalRequest(
                request_id=f"r{i}",
                arrival_step=draw.between(0, 3),
                prompt_token_ids=draw.tokens(prompt, 9),
                output_token_ids=draw.tokens(draw.between(1, length - prompt), 9),
                priority=draw.between(0, 2),
                cache_salt=None,
                max_tokens=None,
            )
        )
    settings = EngineSettings(
        block_size=block_size,
        max_num_seqs=4,
        max_num_batched_tokens=draw.between(4, 24),
        max_model_len=length,
        async_scheduling=draw.chance(0.7),
        policy="priority",
        arrival_time="step",
    )
    blocks = 1 + blocks_of_largest(settings, requests) + draw.between(0, 2)
    return Case(f"crowd_{seed}", replace(settings, num_gpu_blocks=blocks), tuple(requests))


def choose(release: str, family: str, seeds: Iterable[int], keep: int) -> Iterator[tuple[Case, set[str]]]:
    """Short random cases of a release that together show the most of its switches, by the simulator."""
    left: list[tuple[Case, int, set[str]]] = []
    for case in candidates(release, family, seeds):
        if check_simulated(case.settings):
            continue
        ours = record("sim", case.settings, case.requests)
        rows = num_rows(ours.log)
        if ours.stuck is None and 8 < rows <= SHORT:
            left.append((case, rows, shown_switches(case, ours.log)))
    seen: set[str] = set()
    for _ in range(min(keep, len(left))):
        if not any(shown - seen for _, _, shown in left):
            seen.clear()
        best = max(range(len(left)), key=lambda i: (len(left[i][2] - seen), -left[i][1]))
        case, _, shown = left.pop(best)
        seen |= shown
        yield case, shown


def record_release(
    release: str, worker: Worker, out: Path, family: str, seeds: int, keep: int, say: Callable[[str], None]
) -> None:
    """Choose cases, record them on the release and write them into `<out>/releases/<release>`."""
    missing = set(changed_switches(release, family))
    for case, shown in choose(release, family, range(seeds), keep):
        real = worker.record(case.settings, case.requests)
        result = compare(real.log, record("sim", case.settings, case.requests).log)
        folder = write_case(out / "releases" / release, case, real.log)
        missing -= shown
        state = "" if result.equal else f"; THE SIMULATOR DIFFERS: {result.summary()}"
        names = ", ".join(sorted(shown)) or "the common rules"
        say(f"{folder}: {num_rows(real.log)} rows, shows {names}{state}")
    if missing:
        say(f"{release}: not shown: {', '.join(sorted(missing))}")


def run_check(
    releases: Iterable[str],
    folder: Path | None,
    recorded: Path,
    family: str,
    seeds: int,
    say: Callable[[str], None],
) -> bool:
    """Check releases one after the other and print the table as it grows. True when nothing differs."""
    from validation.suite import HEADER

    began = time.monotonic()
    found: list[Row] = []
    say(_line(HEADER))
    for release in releases:
        with Worker(release, folder) as worker:
            for row in check(release, worker, recorded, family, seeds):
                found.append(row)
                say(_line(row.cells()))
    failed = [row for row in found if row.problem is not None]
    say(f"{len(found) - len(failed)} of {len(found)} comparisons equal, {time.monotonic() - began:.0f} s")
    for row in failed:
        say(f"DIFFERS {row.case} ({row.compared}): {row.problem}")
    return not failed


def _line(cells: tuple[str, ...]) -> str:
    case, compared, rows, columns, problem = cells
    return f"{case:<58} {compared:<20} {rows:>8} {columns:>8}  {problem}"
