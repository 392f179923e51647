"""`python -m validation fuzz`: random cases on a real vLLM and on the simulator, compared row by row."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sim.engine_checks import check_simulated
from sim.errors import InputError
from sim.profiles import DEFAULT_RELEASE, rules_of
from validation.corpus import write_case
from validation.diff import compare
from validation.fuzz_cases import Case
from validation.fuzz_groups import random_group_case
from validation.record import record
from validation.shrink import shrink
from validation.steplog import Columns, Recording, num_rows


class Stuck(InputError):
    """The real vLLM gets nowhere with a case, nor does the target, after the same steps."""


#: Records a case on a real vLLM; InputError where that can't run it.
Real = Callable[[Case], Recording]

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
    refused: int = 0
    stuck: int = 0

    def text(self) -> str:
        """One line for a terminal."""
        left_out = f", {self.not_simulated} cases left out: not simulated" if self.not_simulated else ""
        if self.refused:
            left_out += f", {self.refused} that the release can't run"
        if self.stuck:
            left_out += f", {self.stuck} in which neither gets anywhere"
        return (
            f"{self.cases} cases, {self.rows} rows, {self.preemptions} preemptions, "
            f"{self.differences} differences{left_out}"
        )


def installed_vllm(case: Case) -> Recording:
    """Record a case on the scheduler of the vLLM that is installed here."""
    return record("scheduler", case.settings, case.requests)


@contextmanager
def real_release(release: str | None, folder: Path | None) -> Iterator[tuple[str, Real]]:
    """The release whose rules apply ("0.25") and a recorder of it; None: of the vLLM installed here.

    Raises InputError when the release is not at hand, or its rules are not known.
    """
    from sim.profiles import VERSIONS
    from validation.releases import Worker, full_version

    if release is None:
        yield DEFAULT_RELEASE, installed_vllm
        return
    minor = ".".join(release.split(".")[:2])
    if minor not in VERSIONS:
        raise InputError(
            f"no release '{release}' whose rules are known", "--release", hint=f"one of {', '.join(VERSIONS)}"
        )
    with Worker(full_version(release), folder) as worker:
        yield minor, lambda case: worker.record(case.settings, case.requests)


def difference(case: Case, target: str, real_vllm: Real, tally: Tally | None = None) -> str | None:
    """How a target's log of a case differs from a real scheduler's; None when it is equal.

    Raises InputError when the real vLLM can't run the case, which is then no case at all; Stuck when vLLM
    would never end and the target says so too. They notice it at different times: the rows of both count.
    """
    real = real_vllm(case)
    if tally is not None and real.stuck is None:
        tally.cases += 1
        tally.rows += num_rows(real.log)
        tally.preemptions += sum(map(len, real.log["preempted"]))
    try:
        simulated = record(target, case.settings, case.requests)
    except Exception as exc:
        # Whatever goes wrong on a case that vLLM can run is a finding, to be shrunk and kept.
        return f"{type(exc).__name__}: {exc}"
    if (simulated.stuck is None) != (real.stuck is None):
        return f"{target} is stuck: {simulated.stuck}" if simulated.stuck else f"vLLM is stuck: {real.stuck}"
    shared = min(num_rows(real.log), num_rows(simulated.log)) if real.stuck else None
    comparison = compare(_head(real.log, shared), _head(simulated.log, shared))
    if not comparison.equal:
        return comparison.summary()
    if real.stuck is not None:
        raise Stuck(f"case {case.name}: {real.stuck}")
    return None


def _head(log: Columns, rows: int | None) -> Columns:
    return {name: values[:rows] for name, values in log.items()}


def fuzz(
    minutes: float,
    seed: int,
    target: str,
    regressions: Path,
    say: Callable[[str], None],
    stop_after: int = 5,
    groups: str = "full",
    release: str | None = None,
    folder: Path | None = None,
    max_cases: int | None = None,
) -> Tally:
    """Compare random cases for `minutes`; shrink and save what differs; end early after `stop_after`.

    A regression is the shrunk case with the real vLLM's log, in `regressions/<target>_seed_<n>`.

    Args:
        minutes: at most.
        seed: another seed, other cases.
        target: `sim` or `reference`.
        regressions: folder for what differs.
        say: hears of each difference, and of the progress.
        stop_after: differences after which to end.
        groups: the family of the cases' KV-cache groups, see `validation.fuzz_groups`.
        release: a release to compare with under its own rules, None for the vLLM installed here; what that
            release refuses is left out.
        folder: of the releases.
        max_cases: end after so many compared cases, None: when the time is over.
    """
    tally = Tally()
    with real_release(release, folder) as (rules, real_vllm):
        if groups == "mamba_all" and rules_of(rules).state_tables != "chosen":
            hint = "give --release 0.15 to 0.31"
            raise InputError(f"vLLM {rules} can't be asked for mamba_cache_mode all", "--groups", hint=hint)
        end = time.monotonic() + 60 * minutes
        spoke = time.monotonic()
        for number in itertools.count(seed * _SEED_STRIDE):
            if time.monotonic() >= end or tally.differences >= stop_after or tally.cases == max_cases:
                break
            case = random_group_case(number, groups)
            if release is not None:
                case = under_release(case, rules)
            if target == "sim" and check_simulated(case.settings):
                tally.not_simulated += 1
                continue
            try:
                found = difference(case, target, real_vllm, tally)
            except Stuck:
                tally.stuck += 1
                continue
            except InputError:
                if release is None:
                    raise
                tally.refused += 1  # an older release refuses what a newer one allows
                continue
            if found is not None:
                tally.differences += 1
                say(f"seed {number}: {found}")
                say(f"  saved as {save_regression(case, target, regressions, real_vllm)}")
            if time.monotonic() - spoke > 10:
                spoke = time.monotonic()
                say(tally.text())
    return tally


def under_release(case: Case, release: str) -> Case:
    """The case under a release's rules, without keys that the release does not have."""
    return replace(case, settings=replace(case.settings, vllm=release).without_later_keys())


def save_regression(case: Case, target: str, regressions: Path, real_vllm: Real = installed_vllm) -> Path:
    """Shrink a case that differs and write it, with the real vLLM's log, below `regressions`."""

    def still_differs(smaller: Case) -> bool:
        try:
            return difference(smaller, target, real_vllm) is not None
        except InputError:
            return False

    release = case.settings.vllm
    under = "" if release == DEFAULT_RELEASE else f"_{release}"
    name = f"{target}{under}_{case.name.replace('fuzz', 'seed')}"
    small = replace(shrink(case, still_differs), name=name)
    return write_case(regressions, small, real_vllm(small).log)
