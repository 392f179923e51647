"""``python -m tests.core.fingerprint SEED...``: for each seed and clock a digest of all that a run gives."""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np

from sim.simulate import Simulation
from tests.core.cases import draw_case, snapshot
from tests.core.test_core_cuts import run_in_one


def fingerprint(seed: int, clock: str) -> str:
    """SHA-256 of the step log, the events, the final state and, on the real clock, the shell's result."""
    case = draw_case(seed, clock, events=True, every_step=seed % 2 == 0)
    run = run_in_one(case)
    parts = [run.rows, run.events, snapshot(run.state), case.workload.content_hash()]
    if clock == "time":
        simulation = Simulation(*case)
        simulation.run()
        result = simulation.result()
        parts += [result.totals, result.time_weighted]
        parts += [{k: v.tolist() for k, v in columns.items()} for columns in (result.steps, result.requests)]
    return hashlib.sha256(json.dumps(parts, sort_keys=False).encode()).hexdigest()


def main() -> None:
    """Print the digests of the seeds named on the command line."""
    # numpy warns where unsigned numbers wrap, as they are meant to
    with np.errstate(over="ignore"):
        for seed in map(int, sys.argv[1:]):
            for clock in ("time", "logical"):
                print(seed, clock, fingerprint(seed, clock))


if __name__ == "__main__":
    main()
