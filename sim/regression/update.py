"""Make baselines, or show what making them again would change."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sim.config_baseline import BaselineSection
from sim.errors import InputError
from sim.regression.baseline_file import Baseline, read_baseline, to_text
from sim.regression.check import Outcome, change_text, job_of, length_text, when
from sim.regression.compare import compare
from sim.regression.rerun import Job, TraceAbsent, load, run

_EXACT = BaselineSection(exact=True)


@dataclass(frozen=True, eq=False)
class Update:
    """A baseline that was made again.

    Attributes:
        path: its file.
        new: what it is now.
        old: what stood there; None: nothing, or something that can't be read.
        damaged: why it could not be read.
    """

    path: Path
    new: Baseline
    old: Baseline | None
    damaged: str = ""

    @property
    def unchanged(self) -> bool:
        """Whether curves and workload are as they were, so that the file stays as it is."""
        if self.old is None:
            return False
        a, b = self.old.provenance, self.new.provenance
        # who made it and when it was last the same is no news
        same = replace(a, core=b.core, kvpool=b.kvpool, command=b.command) == b
        return (
            same
            and compare(self.old.curves, self.new.curves, _EXACT).verdict == "same"
            and (list(self.old.curves) == list(self.new.curves))
        )

    def lines(self) -> list[str]:
        """What changes, for the terminal; the first line names the file."""
        name = f"{self.path.stem:<16} "
        if self.old is None:
            why = f"damaged, made anew: {self.damaged}" if self.damaged else "new"
            return [f"{name}{why}: {len(self.new.curves)} curves, {self.new.rows} rows"]
        if self.unchanged:
            return [f"{name}unchanged"]
        comparison = compare(self.old.curves, self.new.curves, _EXACT)
        outcome = Outcome(self.path.stem, self.path, "", comparison=comparison, before=self.old)
        period = self.old.provenance.period_ns == self.new.provenance.period_ns
        lines = [f"{name}changed"]
        for label in ("config", "overrides", "seed", "period_ns", "sample_ns", "trace", "requests", "vllm"):
            a, b = getattr(self.old.provenance, label), getattr(self.new.provenance, label)
            if a != b:
                shown = (str(a)[:16], str(b)[:16]) if label == "trace" else (a, b)
                lines.append(f"  {label:<24} {shown[0]} -> {shown[1]}")
        if comparison.old_rows != comparison.new_rows:
            lines.append(
                f"  {'length':<24} {length_text(outcome)}" if period else f"  {'rows':<24} other rows"
            )
        if period:
            lines += [
                f"  {d.curve.key:<24} {d.differs} of {comparison.old_rows} rows; most at"
                f" {when(outcome, d.worst)}: {change_text(d, d.worst)}"
                for d in comparison.curves
                if d.differs
            ]
        lines += [f"  {key:<24} new curve" for key in comparison.not_in_baseline]
        return lines


def targets(
    configs: Sequence[str], folder: Path, overrides: tuple[str, ...], seed: int | None
) -> list[tuple[Path, Job]]:
    """Baseline files and the runs that make them, for configs and for baselines that are there.

    Raises:
        InputError: two of them would be one file, a baseline can't be read, or there is nothing to do.
    """
    found: dict[Path, Job] = {}
    if not configs:
        if overrides or seed is not None:
            raise InputError("for which config?", "--set" if overrides else "--seed", hint="name it")
        configs = [str(path) for path in sorted(folder.glob("*.csv"))]
        if not configs:
            raise InputError("there are no baselines to make again", str(folder), hint="name configs")
    for text in configs:
        path = Path(text)
        if path.suffix == ".csv":
            if overrides or seed is not None:
                raise InputError(
                    "a baseline has its own --set and --seed",
                    text,
                    hint="name the config to make it with others",
                )
            old = read_baseline(path)
            target, job = path, replace(job_of(old, path), period_ns=None, sample_ns=None)
        else:
            job = Job(path, overrides if seed is None else (*overrides, f"seed={seed}"))
            loaded, _ = load(job)
            target = folder / f"{loaded.name}.csv"
        if target in found:
            raise InputError(
                f"two configs make the baseline {target.name}", text, hint="give them other names"
            )
        found[target] = job
    return list(found.items())


def make(
    wanted: Sequence[tuple[Path, Job]], skip_absent: bool | None, say: Callable[[str], None]
) -> list[Update]:
    """Run all that is wanted; nothing is written here.

    Args:
        skip_absent: what to do when a trace is not there; None: as the config says.

    Raises:
        InputError: one of them can't run.
    """
    updates = []
    for path, job in wanted:
        options = [f"--set {shlex.quote(text)}" for text in job.overrides]
        shown = os.path.relpath(job.config)
        command = ["python -m sim baseline update", shown, *options]
        try:
            new = run(job, path.stem, path.parent, command)
        except TraceAbsent as e:
            skip = load(job)[1].trace_absent == "skip" if skip_absent is None else skip_absent
            if not skip:
                raise
            say(f"{path.stem:<16} skipped: {e.message}")
            continue
        old, damaged = None, ""
        if path.exists():
            try:
                old = read_baseline(path)
            except InputError as e:
                damaged = f"{e.place()}: {e.message}"
        updates.append(Update(path, new, old, damaged))
        for line in updates[-1].lines():
            say(line)
    return updates


def write(updates: Sequence[Update]) -> int:
    """Write those that changed, each whole; returns how many."""
    from sim.report.files import write_whole

    changed = [u for u in updates if not u.unchanged]
    for update in changed:
        write_whole(update.path, to_text(update.new).encode())
    return len(changed)
