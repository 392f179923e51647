"""The body of `python -m sim recommend`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.advice.evaluate import Runner, default_jobs, seeds_matter
from sim.advice.metrics import DEFAULT_OBJECTIVE, find_metric, parse_constraint
from sim.advice.render import data, text
from sim.advice.search import Found, Plan, search
from sim.advice.settings import overrides_of, space_of
from sim.advice.verdict import Verdict, judge
from sim.compilation import NOTE, is_compiled
from sim.errors import InputError

if TYPE_CHECKING:
    from sim.resolve import Resolved

#: Seeds of the search; the confirmation has `Options.seeds` others.
SCREENING_SEEDS = 4
_SAY_EVERY_S = 5.0


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        objective: name or alias of a metric.
        constraints: texts such as `ttft_s.p99<=2`.
        seeds: fresh seeds of the confirmation, at least 2.
        runs: most simulations of the search.
        level: confidence of the intervals.
        min_gain: relative gain that a change must bring.
        jobs: worker processes; None: one a processor.
        overrides: `key=value` texts of `--set`.
        seed: of `--seed`, or None.
        out: folder for the results, or None.
        quiet: nothing on stderr.
        command: the command line, for provenance.
    """

    objective: str = DEFAULT_OBJECTIVE
    constraints: Sequence[str] = ()
    seeds: int = 8
    runs: int = 200
    level: float = 0.95
    min_gain: float = 0.01
    jobs: int | None = None
    overrides: Sequence[str] = ()
    seed: int | None = None
    out: str | None = None
    quiet: bool = False
    command: Sequence[str] = ()


@dataclass(frozen=True)
class Advice:
    """The verdict, as text and as data."""

    verdict: Verdict
    text: str
    data: dict[str, Any]
    interrupted: bool


def recommend(config: str, options: Options) -> Advice:
    """Search for better settings of a config; writes `options.out` if it is given.

    Raises:
        InputError: a bad config, metric or constraint, or an output folder that is in use.
    """
    from sim.config import load_config
    from sim.resolve import resolve
    from sim.results import check_target

    objective = find_metric(options.objective, "--objective")
    constraints = tuple(parse_constraint(c) for c in options.constraints)
    overrides = tuple(options.overrides)
    loaded = load_config(config, overrides, options.seed)
    resolved = resolve(loaded)
    if options.out is not None:
        check_target(Path(options.out))
    space = space_of(resolved)
    first = resolved.seed
    matter = seeds_matter(config, overrides, first)
    screen = tuple(range(first, first + (SCREENING_SEEDS if matter else 1)))
    confirm = tuple(range(screen[-1] + 1, screen[-1] + 1 + options.seeds)) if matter else ()
    plan = Plan(objective, constraints, screen, confirm, options.level, options.min_gain, options.runs)
    jobs = options.jobs or default_jobs()
    talk = _Talk(options.quiet)
    talk.line(f"{resolved.name}: wanted is {objective.label}, {len(screen)} screening seeds, {jobs} workers")
    found = Found(done={})
    compiled = is_compiled(resolved.engine)
    runner = Runner(config, overrides, space, jobs, lambda n: talk.progress(n, found), found.done, compiled)
    if not compiled:
        talk.line(NOTE)
    search(space, plan, runner, found)
    refused = [f"{c}: {o}" for (c, _), o in found.done.items() if isinstance(o, str) and not c.changes]
    if refused:
        raise InputError(refused[0], config)
    verdict = judge(found, plan, space)
    shown = text(resolved.name, config, found, plan, space, verdict, _fleet(resolved))
    numbers = data(resolved.name, config, found, plan, space, verdict)
    numbers["replicas"] = resolved.fleet.replicas if resolved.fleet else 1
    advice = Advice(verdict, shown, numbers, found.interrupted)
    if options.out is not None:
        changed = resolve(
            load_config(config, [*overrides, *overrides_of(verdict.candidate, space)], options.seed)
        )
        _write(Path(options.out), advice, resolved, changed if verdict.change else None, config, options)
        talk.line(f"results in {options.out}")
    return advice


def _fleet(resolved: Resolved) -> str:
    if resolved.fleet is None:
        return ""
    from sim.report.fleet_text import router_text

    return f"{resolved.fleet.replicas} replicas behind {router_text(resolved.config['router'])}"


def _write(
    folder: Path, advice: Advice, base: Resolved, changed: Resolved | None, config: str, options: Options
) -> None:
    from sim import __version__
    from sim.core.jit import core_digest
    from sim.results import to_json, to_yaml, write_run

    files = {
        "recommendation.json": to_json(advice.data),
        "recommendation.txt": advice.text.encode(),
        "config.yaml": to_yaml(base.config, f"kvpool {__version__}: {base.name} as resolved"),
    }
    if changed is not None:
        files["recommended.yaml"] = to_yaml(
            changed.config, f"kvpool {__version__}: {base.name} with the changes that `recommend` advises"
        )
    record = {
        "version": __version__,
        "name": base.name,
        "seed": base.seed,
        "vllm_profile": base.engine.vllm,
        "core_digest": core_digest(),
        "config_file": config,
        "command": list(options.command),
    }
    write_run(folder, files, record)


class _Talk:
    """Progress on stderr, a line every few seconds."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._next = time.monotonic() + _SAY_EVERY_S

    def line(self, message: str) -> None:
        if not self._quiet:
            print(message, file=sys.stderr, flush=True)

    def progress(self, runs: int, found: Found) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _SAY_EVERY_S
            best = f", best so far: {found.winner}" if found.winner.changes else ""
            self.line(f"{found.stage}: {runs} simulations, {len(found.tried)} settings{best}")
