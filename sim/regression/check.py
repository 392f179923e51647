"""Check baselines: run their configs again and say what became of each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sim.errors import InputError
from sim.regression.baseline_file import Baseline, Provenance, read_baseline
from sim.regression.compare import MOVED, SAME, Comparison, CurveDifference, compare
from sim.regression.rerun import Job, TraceAbsent, load, run
from sim.report.units import seconds, span

#: Where baselines lie unless a command says otherwise.
FOLDER = Path("configs/baselines")
SKIPPED, FAILED = "skipped", "failed"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one baseline.

    Attributes:
        name: of the baseline.
        path: its file.
        status: "same", "within", "moved", "skipped" or "failed" (it could not run).
        reason: why it was skipped or failed.
        comparison: None where it was skipped or failed.
        before, after: the baseline and what it is now.
        notes: what else differs, such as the trace.
        wall_s: seconds that it took.
    """

    name: str
    path: Path
    status: str
    reason: str = ""
    comparison: Comparison | None = None
    before: Baseline | None = None
    after: Baseline | None = None
    notes: tuple[str, ...] = field(default=())
    wall_s: float = 0.0


def baseline_paths(given: Sequence[str], folder: Path = FOLDER) -> list[Path]:
    """The files to check: as given, by path or by name; all of the folder when none is given.

    Raises:
        InputError: the folder has no baselines.
    """
    if given:
        return [_path(text, folder) for text in given]
    found = sorted(folder.glob("*.csv"))
    if not found:
        raise InputError(
            "there are no baselines", str(folder), hint="make some: python -m sim baseline update CONFIG..."
        )
    return found


def _path(text: str, folder: Path) -> Path:
    path = Path(text)
    if path.suffix in (".yaml", ".yml"):
        path = path.with_suffix(".csv")
        if not path.exists():
            path = folder / path.name
    elif path.suffix != ".csv" and not path.exists():
        path = folder / f"{path.name}.csv"
    return path


def job_of(baseline: Baseline, path: Path) -> Job:
    """The run that a baseline stands for."""
    p = baseline.provenance
    return Job(path.parent / p.config, p.overrides, p.period_ns, p.sample_ns)


def check_one(path: Path, skip_absent: bool | None = None) -> Outcome:
    """Run a baseline's config again and compare.

    Args:
        skip_absent: what to do when a trace is not there; None: as the config says.
    """
    began = time.perf_counter()
    name = path.stem
    try:
        before = read_baseline(path)
        job = job_of(before, path)
        _, section = load(job)
        try:
            after = run(job, name, path.parent, ())
        except TraceAbsent as e:
            skip = section.trace_absent == "skip" if skip_absent is None else skip_absent
            if not skip:
                raise
            return Outcome(name, path, SKIPPED, e.message, wall_s=time.perf_counter() - began)
    except InputError as e:
        reason = "\n".join(str(p) for p in e.problems)
        return Outcome(name, path, FAILED, reason, wall_s=time.perf_counter() - began)
    comparison = compare(before.curves, after.curves, section)
    return Outcome(
        name,
        path,
        comparison.verdict,
        comparison=comparison,
        before=before,
        after=after,
        notes=tuple(_notes(before.provenance, after.provenance, comparison)),
        wall_s=time.perf_counter() - began,
    )


def _notes(old: Provenance, new: Provenance, comparison: Comparison) -> list[str]:
    notes = []
    if old.trace != new.trace:
        requests = (
            f"{old.requests:,} requests then, {new.requests:,} now"
            if old.requests != new.requests
            else f"{old.requests:,} requests as before"
        )
        notes.append(
            f"the workload is another one ({requests}; trace hash {old.trace[:12]}, now {new.trace[:12]})"
        )
    if old.vllm != new.vllm:
        notes.append(f"the rules are those of vLLM {new.vllm}, then {old.vllm}")
    if comparison.verdict != SAME and old.core != new.core:
        notes.append(f"the core has changed since ({old.core} then, {new.core} now)")
    if comparison.not_in_baseline:
        notes.append(f"not in the baseline, so not compared: {', '.join(comparison.not_in_baseline)}")
    return notes


def check_all(
    paths: Sequence[Path], skip_absent: bool | None, say: Callable[[Outcome], None]
) -> list[Outcome]:
    """Check baselines one after the other; `say` hears each outcome as it comes."""
    outcomes = []
    for path in paths:
        outcomes.append(check_one(path, skip_absent))
        say(outcomes[-1])
    return outcomes


# -- in words ---------------------------------------------------------------------------------------------


def value_text(difference: CurveDifference, value: float) -> str:
    """One value of a curve: a share in percent, a count with thousands separated."""
    if math.isnan(value):
        return "none"
    if difference.curve.is_share:
        return f"{100 * value:.4g} %"
    return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"


def change_text(difference: CurveDifference, row: int) -> str:
    """`12.3 % -> 14.5 %` at a row."""
    old, new = float(difference.old[row]), float(difference.new[row])
    return f"{value_text(difference, old)} -> {value_text(difference, new)}"


def when(outcome: Outcome, row: int) -> str:
    """Simulated time at the end of a row."""
    assert outcome.before is not None
    return span((row + 1) * outcome.before.provenance.period_ns / 1e9)


def moved_text(outcome: Outcome, d: CurveDifference) -> str:
    """Where and by how much a curve has moved, in one line."""
    assert outcome.before is not None
    rows = min(len(d.old), len(d.new))
    parts = []
    if d.first >= 0:
        parts.append(f"first at {when(outcome, d.first)}")
    parts.append(f"most at {when(outcome, d.worst)}: {change_text(d, d.worst)}")
    parts.append(f"{d.rows_outside} of {rows} rows outside")
    parts.append(f"area {100 * d.area:.3g} %")
    return f"{', '.join(parts)} (allowed: {d.tolerance.text(d.curve.is_share)})"


def length_text(outcome: Outcome) -> str:
    """How long the two runs are."""
    assert outcome.before is not None
    assert outcome.comparison is not None
    period = outcome.before.provenance.period_ns / 1e9
    c = outcome.comparison
    return f"the run takes {seconds(c.new_rows * period)}, the baseline {seconds(c.old_rows * period)}"


def lines_of(outcome: Outcome) -> list[str]:
    """An outcome for the terminal; the first line names the baseline."""
    c = outcome.comparison
    head = f"{outcome.name:<16} "
    if c is None:
        first, *rest = outcome.reason.split("\n")
        word = "skipped" if outcome.status == SKIPPED else "COULD NOT RUN"
        return [f"{head}{word}: {first}", *(f"  {line}" for line in rest)]
    n = len(c.curves)
    if outcome.status == SAME:
        return [f"{head}same: {n} curves, {c.old_rows} rows", *_note_lines(outcome)]
    if outcome.status != MOVED:
        changed = [d.curve.key for d in c.curves if d.differs]
        return [
            f"{head}within tolerance: {len(changed)} of {n} curves differ ({', '.join(changed)})",
            *_note_lines(outcome),
        ]
    lines = [f"{head}MOVED: {len(c.moved)} of {n} curves"]
    if c.length_moved:
        lines.append(f"  {'length':<24} {length_text(outcome)}")
    return [*lines, *_moved_lines(outcome, c.moved), *_note_lines(outcome)]


def _moved_lines(outcome: Outcome, moved: Sequence[CurveDifference]) -> list[str]:
    """A table of the curves that moved: where they leave the tolerance, and the largest difference."""
    if not moved:
        return []
    table: list[tuple[str, ...]] = [
        ("curve", "first at", "most at", "baseline", "now", "rows", "area", "allowed")
    ]
    for d in moved:
        values = [value_text(d, float(v[d.worst])) for v in (d.old, d.new)]
        table.append(
            (
                d.curve.key,
                when(outcome, d.first) if d.first >= 0 else "-",
                when(outcome, d.worst),
                *values,
                f"{d.rows_outside}/{min(len(d.old), len(d.new))}",
                f"{100 * d.area:.3g} %",
                d.tolerance.text(d.curve.is_share),
            )
        )
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    last = len(widths) - 1
    lines = []
    for row in table:
        cells = [
            f"{c:<{w}}" if i in (0, last) else f"{c:>{w}}"
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def _note_lines(outcome: Outcome) -> list[str]:
    return [f"  note: {note}" for note in outcome.notes]


def summary_text(outcomes: Sequence[Outcome]) -> str:
    """One line over all."""
    words = {
        SAME: "same",
        "within": "within tolerance",
        MOVED: "moved",
        SKIPPED: "skipped",
        FAILED: "could not run",
    }
    counts = {status: sum(o.status == status for o in outcomes) for status in words}
    said = ", ".join(f"{n} {words[status]}" for status, n in counts.items() if n)
    noun = "baseline" if len(outcomes) == 1 else "baselines"
    return f"{len(outcomes)} {noun}: {said}"
