"""`python -m validation run`: everything that a real vLLM can confirm, as one table.

Checks, in this order: each recording of the conformance set and of tests/recorded_vllm made again on the
live scheduler (those of its release) and on the simulator; random cases on both; whole CPU engines. One row a
comparison: what was compared, rows, equal columns, first difference.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sim.errors import InputError
from sim.profiles import DEFAULT_RELEASE
from validation.corpus import RecordedCase, read_cases
from validation.diff import Comparison, compare
from validation.fuzz import Tally, difference, installed_vllm
from validation.fuzz_cases import Case, random_case
from validation.record import record
from validation.steplog import Recording

#: Requests of a case that a whole engine runs: it computes the tiny model, some 10 ms a step.
ENGINE_REQUESTS = 30
HEADER = ("case", "compared", "rows", "columns", "first difference")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    case: str
    compared: str
    rows: int
    columns: str
    problem: str | None

    def cells(self) -> tuple[str, ...]:
        """The cells as text, in the order of `HEADER`."""
        return (self.case, self.compared, str(self.rows), self.columns, self.problem or "-")


def from_comparison(case: str, compared: str, result: Comparison) -> Row:
    """A table row of a comparison of two logs."""
    equal = len(result.columns) - len(result.differing)
    columns = f"{equal}/{len(result.columns) + len(result.only_in_a) + len(result.only_in_b)}"
    return Row(case, compared, result.rows_a, columns, None if result.equal else result.summary())


def check_recording(recorded: RecordedCase, target: str, compared: str) -> Row:
    """A stored recording against the same case on a target."""
    case = recorded.case
    try:
        again = record(target, case.settings, case.requests)
    except InputError as exc:
        return Row(case.name, compared, 0, "-", " ".join(str(exc).split()))
    if again.stuck is not None:
        return Row(case.name, compared, 0, "-", f"stuck: {again.stuck}")
    return from_comparison(case.name, compared, compare(recorded.log(), again.log))


def check_random(seeds: range) -> Row:
    """Random cases, live scheduler against simulator; the first case that differs is named."""
    tally = Tally()
    problems = []
    for seed in seeds:
        found = difference(random_case(seed), "sim", installed_vllm, tally)
        if found is not None:
            problems.append(f"seed {seed}: {found}")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    problem = problems[0] + more if problems else None
    name = f"{len(seeds)} random cases, {tally.preemptions} preemptions"
    return Row(name, "scheduler / sim", tally.rows, "34/34" if problem is None else "-", problem)


def record_engines(recorded: Iterable[RecordedCase]) -> Iterator[tuple[Case, Recording]]:
    """The cases that a CPU engine can run, in the form that it can, and what it did with each."""
    from validation.engine_cases import for_cpu_engine

    for stored in recorded:
        case = for_cpu_engine(stored.case, ENGINE_REQUESTS)
        if case is not None:
            yield case, record("engine", case.settings, case.requests)


def check_engine(case: Case, engine: Recording) -> Iterator[Row]:
    """What a whole CPU engine did against the live scheduler and the simulator."""
    for target in ("scheduler", "sim"):
        other = record(target, case.settings, case.requests)
        yield from_comparison(case.name, f"engine / {target}", compare(engine.log, other.log))


def simulated(recorded: RecordedCase) -> bool:
    """Whether the simulator claims this case."""
    from sim.engine_checks import check_simulated

    return not check_simulated(recorded.case.settings)


def of_installed_release(recorded: RecordedCase) -> bool:
    """Whether the vLLM that is run here has the case's rules; `validation releases check` runs the others."""
    settings = recorded.case.settings
    return settings.vllm == DEFAULT_RELEASE and not settings.switches


def run(
    conformance: Path, recorded: Path, random_cases: int, engines: bool, say: Callable[[str], None]
) -> bool:
    """Run all checks and print the table as it grows. True when nothing differs.

    conformance: folder of the long recordings; may be absent, which is said.
    recorded: folder of the short recordings. random_cases: how many. engines: whether to run CPU engines.
    """
    began = time.monotonic()
    rows: list[Row] = []

    def show(row: Row) -> None:
        rows.append(row)
        say(_line(row.cells()))

    say(_line(HEADER))
    if conformance.is_dir():
        long = read_cases(conformance)
    else:
        long = []
        say(f"(no conformance recordings: {conformance} is not there)")
    short = read_cases(recorded)
    # Engines come first, and are shown last: none starts any more once the simulator has loaded Numba.
    if engines:
        say("(whole engines run first, for some minutes; their rows come last)")
    whole = list(record_engines(long or short)) if engines else []
    for case in [*long, *short]:
        if of_installed_release(case):
            show(check_recording(case, "scheduler", "recording / scheduler"))
        if simulated(case):
            show(check_recording(case, "sim", "recording / sim"))
    show(check_random(range(1_000_000, 1_000_000 + random_cases)))
    for engine_case, engine in whole:
        for row in check_engine(engine_case, engine):
            show(row)
    failed = [row for row in rows if row.problem is not None]
    total = sum(row.rows for row in rows)
    say(
        f"{len(rows) - len(failed)} of {len(rows)} comparisons equal, {total} rows, "
        f"{time.monotonic() - began:.0f} s"
    )
    for row in failed:
        say(f"DIFFERS {row.case} ({row.compared}): {row.problem}")
    return not failed


def _line(cells: tuple[str, ...]) -> str:
    case, compared, rows, columns, problem = cells
    return f"{case:<42} {compared:<23} {rows:>8} {columns:>8}  {problem}"
