"""``python -m tests.benchmarks.first_step CONFIG OUT``: ``python -m sim run``, stopped after its first phase.

Prints the CPU seconds of this process and CLOCK_MONOTONIC at that moment, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Run the command line with an engine that reports its first phase and leaves."""
    from sim import simulate
    from sim.cli import main as command
    from sim.core.jit import is_cached

    real = simulate.run_until
    cached = is_cached()

    def first_phase(state: Any, end: int, _steps: int) -> int:
        real(state, end, 1)
        print(
            json.dumps({"cpu_s": time.process_time(), "at": time.monotonic(), "cached": cached}), flush=True
        )
        os._exit(0)

    simulate.run_until = first_phase  # type: ignore[assignment]
    command(["run", sys.argv[1], "--quiet", "--no-plots", "--out", sys.argv[2]])


if __name__ == "__main__":
    main()
