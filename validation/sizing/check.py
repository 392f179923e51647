"""One release's planner against ours: what `python -m validation sizing` prints, and a short form for CI."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from validation.releases import Worker
from validation.sizing.compare import WEIGHT_TOLERANCE, Tally, compare_mixes, compare_model, compare_question
from validation.sizing.questions import short_list
from validation.suite import Row

#: Mixes of the short form.
SHORT_MIXES = 300


def check_release(
    release: str,
    folder: Path | None,
    models: Sequence[str],
    seeds: range,
    every: int,
    say: Callable[[str], None],
) -> list[str]:
    """Compare models and mixes; the differences.

    Args:
        release: as `Worker` takes it.
        folder: of the releases.
        models: shipped ones.
        seeds: of the mixes.
        every: take every so many-th question about a model.
        say: gets a line for each model.
    """
    tally = Tally()
    with Worker(release, folder) as worker:
        say(f"vLLM {worker.version}")
        for name in models:
            _model(worker, name, tally, every, say)
        if seeds:
            found = len(tally.differences)
            compare_mixes(worker, seeds.start, len(seeds), tally)
            say(f"{'made-up mixes':22}  {len(seeds):5} plans {_state(tally, found)}")
    say(
        f"{release}: {tally.compared} plans, {tally.refused} of them refused by both; weights within"
        f" {100 * tally.worst_weights:.2f} %; {len(tally.differences)} differences"
    )
    reasons = Counter(line.partition("): ")[2][:90] for line in tally.not_built)
    for reason, count in reasons.items():
        say(f"  {count} questions with layers of ours, the release's can't be built: {reason}")
    return tally.differences


def _model(worker: Worker, name: str, tally: Tally, every: int, say: Callable[[str], None]) -> None:
    before, began, found = tally.compared, time.perf_counter(), len(tally.differences)
    compare_model(worker, name, tally, every)
    state = _state(tally, found)
    weights = [abs(b - a) / a for k, (a, b) in tally.weights.items() if k.startswith(f"{name} x")]
    worst = max(weights, default=0.0)
    say(
        f"{name:22}  {tally.compared - before:5} plans {state}, weights within {100 * worst:.2f} %"
        f"  ({time.perf_counter() - began:.1f} s)"
    )
    if worst > WEIGHT_TOLERANCE:
        tally.differences.append(f"{name}: weights differ by {100 * worst:.2f} %")


def _state(tally: Tally, found: int) -> str:
    new = len(tally.differences) - found
    return f"{new} DIFFER" if new else "equal"


def short_check(worker: Worker) -> Row:
    """A few questions about models of each kind, and some mixes, as a row of `validation releases check`."""
    tally = Tally()
    for q in short_list(worker.release):
        compare_question(worker, q, tally)
    compare_mixes(worker, 0, SHORT_MIXES, tally)
    problems = tally.differences + [f"layers not built: {why}" for why in tally.not_built]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Row(
        f"{worker.release}: {tally.compared} plans of pools, {tally.refused} of them refused",
        "release / sim",
        tally.compared,
        "-" if problems else "all",
        problems[0] + more if problems else None,
    )
