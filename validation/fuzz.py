"""`python -m validation fuzz`: random cases on a real vLLM and on the simulator, compared row by row."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sim.engine_checks import check_simulated
from sim.errors import InputError
from validation.corpus import write_case
from validation.diff import compare
from validation.fuzz_cases import Case
from validation.fuzz_groups import random_group_case
from validation.record import record
from validation.shrink import shrink
from validation.steplog import num_rows

#: Cases of one run's seed and of the next never overlap in practice.
_SEED_STRIDE = 10_000_000


@dataclass
class Tally:
    """What a fuzz run has seen."""

    cases: int = 0
    rows: int = 0
    preemptions: int = 0
    differences: int = 0
    not_simulated: int = 0

    def text(self) -> str:
        """One line for a terminal."""
        left_out = f", {self.not_simulated} cases left out: not simulated" if self.not_simulated else ""
        return (
            f"{self.cases} cases, {self.rows} rows, {self.preemptions} preemptions, "
            f"{self.differences} differences{left_out}"
        )


def difference(case: Case, target: str, tally: Tally | None = None) -> str | None:
    """How a target's log of a case differs from the real scheduler's; None when it is equal.

    Raises InputError when the real vLLM can't run the case, which is then no case at all.
    """
    real = record("scheduler", case.settings, case.requests)
    if real.stuck is not None:
        raise InputError(f"case {case.name}: {real.stuck}")
    if tally is not None:
        tally.cases += 1
        tally.rows += num_rows(real.log)
        tally.preemptions += sum(map(len, real.log["preempted"]))
    try:
        simulated = record(target, case.settings, case.requests)
    except Exception as exc:
        # Whatever goes wrong on a case that vLLM can run is a finding, to be shrunk and kept.
        return f"{type(exc).__name__}: {exc}"
    if simulated.stuck is not None:
        return f"{target} is stuck: {simulated.stuck}"
    comparison = compare(real.log, simulated.log)
    return None if comparison.equal else comparison.summary()


def fuzz(
    minutes: float,
    seed: int,
    target: str,
    regressions: Path,
    say: Callable[[str], None],
    stop_after: int = 5,
    groups: str = "full",
) -> Tally:
    """Compare random cases for `minutes`; shrink and save what differs; end early after `stop_after`.

    groups: the family of the cases' KV-cache groups, see `validation.fuzz_groups`.

    A regression is the shrunk case with the real vLLM's log, in `regressions/<target>_seed_<n>`.
    """
    tally = Tally()
    end = time.monotonic() + 60 * minutes
    spoke = time.monotonic()
    for number in itertools.count(seed * _SEED_STRIDE):
        if time.monotonic() >= end or tally.differences >= stop_after:
            break
        case = random_group_case(number, groups)
        if target == "sim" and check_simulated(case.settings):
            tally.not_simulated += 1
            continue
        found = difference(case, target, tally)
        if found is not None:
            tally.differences += 1
            say(f"seed {number}: {found}")
            say(f"  saved as {save_regression(case, target, regressions)}")
        if time.monotonic() - spoke > 10:
            spoke = time.monotonic()
            say(tally.text())
    return tally


def save_regression(case: Case, target: str, regressions: Path) -> Path:
    """Shrink a case that differs and write it, with the real vLLM's log, below `regressions`."""

    def still_differs(smaller: Case) -> bool:
        try:
            return difference(smaller, target) is not None
        except InputError:
            return False

    small = replace(shrink(case, still_differs), name=f"{target}_{case.name.replace('fuzz', 'seed')}")
    return write_case(regressions, small, record("scheduler", small.settings, small.requests).log)
