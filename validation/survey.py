"""`python -m validation survey A B`: where two vLLM releases, or a release and our profile, differ.

Random cases run on both sides. Each case that differs is reduced to the features that the difference needs;
cases with the same features and the same first column are one kind of difference, which is shown once, with
the rule (`sim.profiles`) that explains it where both sides' rules are known.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from sim.engine_settings import EngineSettings, KVCacheGroup
from sim.errors import InputError
from sim.profiles import rules_of
from sim.report.units import plural
from sim.switches import SWITCHES
from validation.diff import Comparison, compare
from validation.fuzz_cases import Case, blocks_of_largest, settings_to_json
from validation.logical import LogicalRequest
from validation.record import record
from validation.steplog import NOT_COMPARED, PREFIX_COLUMNS, Recording
from validation.survey_sides import Side, adapt

_DEFAULTS = EngineSettings()
#: What one kind of column tells; each kind is compared by itself, so that one difference hides fewer others.
COLUMN_KINDS: dict[str, tuple[str, ...]] = {
    "scheduling": (
        "num_running",
        "num_waiting",
        "num_scheduled_tokens",
        "num_scheduled_reqs",
        "preempted",
        "finished",
        "computed_crc",
        "running_ids_crc",
        "waiting_ids_crc",
        "sched_crc",
    ),
    "statistics": PREFIX_COLUMNS,
    "cache": ("num_cached_hashes", "num_cached_blocks", "cached_crc"),
    "blocks": (
        "num_free_blocks",
        "used_blocks",
        "allocated_slots",
        "held_tokens",
        "wasted_slots",
        "wasted_by_group",
        "free_runs",
        "largest_free_run",
        "free_queue_crc",
        "tables_crc",
        "tables_crc_by_group",
        "refcnt_crc_nonull",
    ),
}
_STEPS = ("step", "phase", "batch_step")


@dataclass
class Kind:
    """One kind of difference.

    Attributes:
        columns: scheduling, statistics, cache or blocks; "(rows)" and "(refused)" for what has no column.
        column: the first column that differs.
        needs: features without which the two sides agree.
        switch: the rules that explain it, as far as they are known.
        cases: seeds of the cases that show it.
        case: the first of them, reduced, as side A has it.
        comparison: of the reduced case.
    """

    columns: str
    column: str
    needs: tuple[str, ...]
    switch: tuple[str, ...]
    case: Case
    comparison: Comparison
    cases: list[int] = field(default_factory=list)


@dataclass
class Survey:
    """The result: counts and kinds."""

    a: str
    b: str
    cases: int = 0
    rows: int = 0
    equal: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    kinds: list[Kind] = field(default_factory=list)


Neutral = tuple[str, Callable[[Case], Case]]


def _set(name: str, value: Any) -> Callable[[Case], Case]:
    return lambda case: replace(case, settings=replace(case.settings, **{name: value}))


def _requests(change: Callable[[LogicalRequest], LogicalRequest]) -> Callable[[Case], Case]:
    return lambda case: replace(case, requests=tuple(change(r) for r in case.requests))


def _roomy(case: Case) -> Case:
    blocks = 2 + len(case.requests) * blocks_of_largest(case.settings, case.requests)
    groups = len(case.settings.kv_cache_groups)
    return replace(case, settings=replace(case.settings, num_gpu_blocks=1 + groups * blocks))


#: A feature and the case without it, in the order in which they are tried.
_NEUTRAL: tuple[Neutral, ...] = (
    ("several groups", _set("kv_cache_groups", (KVCacheGroup(),))),
    ("a tight pool", _roomy),
    ("async_scheduling", _set("async_scheduling", False)),
    ("policy priority", _set("policy", "fcfs")),
    ("ties in arrival", _set("arrival_time", "seq")),
    ("idle steps", _set("idle_steps", "skip")),
    ("caching off", _set("enable_prefix_caching", True)),
    ("chunked prefill off", _set("enable_chunked_prefill", True)),
    ("adaptive threshold", _set("long_prefill_token_threshold_adaptive", False)),
    ("long_prefill_token_threshold", _set("long_prefill_token_threshold", 0)),
    ("max_num_scheduled_tokens", _set("max_num_scheduled_tokens", None)),
    ("max_num_active_seqs", _set("max_num_active_seqs", None)),
    ("watermark", _set("watermark", 0.0)),
    ("full-sequence reserve", _set("scheduler_reserve_full_isl", False)),
    ("end tokens", _requests(lambda r: replace(r, max_tokens=None))),
    ("priorities", _requests(lambda r: replace(r, priority=0))),
    ("cache salts", _requests(lambda r: replace(r, cache_salt=None))),
)


class _Surveyor:
    def __init__(self, a: Side, b: Side) -> None:
        self.a, self.b = a, b
        self.result = Survey(a.name, b.name)

    def both(self, case: Case, by_default: bool) -> tuple[Recording, Recording] | str:
        """Both recordings, or why one side has none."""
        found = []
        for side, other in ((self.a, self.b), (self.b, self.a)):
            try:
                recording = side.record(adapt(case, side, other, by_default))
            except InputError as exc:
                return f"{side.name}: {' '.join(str(exc).split())[:160]}"
            except Exception as exc:
                return f"{side.name}: {type(exc).__name__}: {exc}"[:160]
            found.append(recording)
        return found[0], found[1]

    def differs(self, case: Case, by_default: bool, kind: str) -> Comparison | None:
        """The comparison in one kind of columns, None where it is equal or a side has no recording."""
        logs = self.both(case, by_default)
        if isinstance(logs, str):
            return None
        result = compare(logs[0].log, logs[1].log, (*_STEPS, *COLUMN_KINDS[kind]))
        return None if result.equal else result

    def look(self, seed: int, case: Case, by_default: bool) -> None:
        """Compare one case and file what differs."""
        self.result.cases += 1
        logs = self.both(case, by_default)
        if isinstance(logs, str):
            self.result.refused[logs] = self.result.refused.get(logs, 0) + 1
            return
        whole = compare(logs[0].log, logs[1].log)
        self.result.rows += whole.rows_a
        if whole.equal:
            self.result.equal += 1
            return
        firsts: dict[str, tuple[int, Comparison]] = {}
        for kind, columns in COLUMN_KINDS.items():
            part = compare(logs[0].log, logs[1].log, (*_STEPS, *columns))
            if part.first is not None:
                firsts[kind] = (part.first.row, part)
        # What differs first is the cause; a kind of columns that differs later may have the same one.
        row = min(found for found, _ in firsts.values())
        for kind, (first, part) in firsts.items():
            if first == row:
                self._file(seed, case, by_default, kind, part)
                break

    def _file(self, seed: int, case: Case, by_default: bool, kind: str, part: Comparison) -> None:
        needs, smaller, comparison = self._reduce(case, by_default, kind, part)
        assert comparison.first is not None
        known = self._explain(smaller, by_default, kind)
        for seen in self.result.kinds:
            same = (seen.columns, seen.needs) == (kind, needs)
            if same and seen.switch == known:
                seen.cases.append(seed)
                return
        shown = adapt(smaller, self.a, self.b, by_default)
        new = Kind(kind, comparison.first.column, needs, known, shown, comparison, [seed])
        self.result.kinds.append(new)

    def _reduce(
        self, case: Case, by_default: bool, kind: str, part: Comparison
    ) -> tuple[tuple[str, ...], Case, Comparison]:
        needs = []
        for name, neutral in _NEUTRAL:
            try:
                without = neutral(case)
            except InputError:
                continue
            if without == case:
                continue
            found = self.differs(without, by_default, kind)
            if found is None:
                needs.append(name)
            else:
                case, part = without, found
        return tuple(needs), case, part

    def _explain(self, case: Case, by_default: bool, kind: str) -> tuple[str, ...]:
        """Switches of which one alone makes the first difference go away or come later, on the simulator."""
        rules = [rules_of(s.release, s.changed) for s in (self.a, self.b)]
        changed = [s.name for s in SWITCHES if getattr(rules[0], s.name) != getattr(rules[1], s.name)]
        if not changed:
            return ()
        columns = (*_STEPS, *COLUMN_KINDS[kind])
        try:
            mine = adapt(case, self.a, self.b, by_default)
            theirs = adapt(case, self.b, self.a, by_default)
            target = record("sim", theirs.settings, case.requests).log
            row = compare(record("sim", mine.settings, case.requests).log, target, columns).first
            found = []
            for name in changed:
                switches = dict(mine.settings.switches) | {name: getattr(rules[1], name)}
                ours = replace(mine.settings, switches=tuple(switches.items()))
                if name == "full_sequence_reserve":
                    ours = replace(
                        ours, scheduler_reserve_full_isl=theirs.settings.scheduler_reserve_full_isl
                    )
                if name == "retention":
                    interval = theirs.settings.prefix_cache_retention_interval
                    ours = replace(ours, prefix_cache_retention_interval=interval)
                now = compare(record("sim", ours, case.requests).log, target, columns).first
                if row is not None and (now is None or now.row > row.row):
                    found.append(name)
        except (InputError, ValueError):
            return ()
        return tuple(found)


def survey(
    a: Side, b: Side, cases: Iterable[tuple[int, Case]], say: Callable[[str], None] | None = None
) -> Survey:
    """Compare two sides on cases (seed, case); odd seeds leave the retention interval to each release."""
    surveyor = _Surveyor(a, b)
    for seed, case in cases:
        kinds = len(surveyor.result.kinds)
        surveyor.look(seed, case, by_default=seed % 2 == 1)
        if say is not None and len(surveyor.result.kinds) > kinds:
            kind = surveyor.result.kinds[-1]
            say(f"seed {seed}: new kind of difference, {kind.columns} ({kind.column})")
    surveyor.result.kinds.sort(key=lambda k: -len(k.cases))
    return surveyor.result


def render(result: Survey) -> str:
    """The survey as text for a terminal."""
    refused = sum(result.refused.values())
    different = result.cases - result.equal - refused
    head = f"A: {result.a}    B: {result.b}"
    lines = [
        head,
        f"{plural(result.cases, 'case')}, {plural(result.rows, 'row')}: {result.equal} equal,"
        f" {different} differ in {plural(len(result.kinds), 'way')}, {refused} could not be compared",
    ]
    for reason, count in sorted(result.refused.items(), key=lambda item: -item[1])[:5]:
        lines.append(f"  not compared, {count}: {reason}")
    for number, kind in enumerate(result.kinds, 1):
        f = kind.comparison.first
        assert f is not None
        where = f"step {f.at['step']}, {f.at['phase']}, batch {f.at['batch_step']}"
        lines += [
            "",
            f"{number}. {kind.columns}: {plural(len(kind.cases), 'case')}, the first is seed {kind.cases[0]}",
            f"   needs: {', '.join(kind.needs) or 'nothing special'}",
            f"   rule:  {', '.join(kind.switch) or '(none of the table explains it alone)'}",
            f"   first: {where}, column {f.column}: A {f.a}, B {f.b}",
        ]
        for side, context in (("A", f.context_a), ("B", f.context_b)):
            if context:
                lines.append(f"   {side} there: " + ", ".join(f"{k}={v}" for k, v in context.items()))
        lines.append(f"   config: {' '.join(settings_to_json(kind.case.settings).split())}")
    return "\n".join(lines)


def to_json(result: Survey) -> str:
    """The survey as JSON."""
    kinds = [
        {
            "columns": k.columns,
            "needs": list(k.needs),
            "switches": list(k.switch),
            "seeds": k.cases,
            "first": k.comparison.to_json()["first"],
            "config": json.loads(settings_to_json(k.case.settings)),
        }
        for k in result.kinds
    ]
    values = {f.name: getattr(result, f.name) for f in fields(Survey) if f.name != "kinds"}
    return json.dumps({**values, "kinds": kinds}, indent=1)


def not_surveyed() -> set[str]:
    """Compared columns that belong to no kind; a test keeps it empty."""
    from validation.steplog import COLUMNS

    surveyed = {name for columns in COLUMN_KINDS.values() for name in columns}
    return set(COLUMNS) - surveyed - set(_STEPS) - set(NOT_COMPARED)
