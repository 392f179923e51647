"""What tracking costs: `python -m tests.benchmarks.tracking_overhead [CONFIG] [--set KEY=VALUE]`.

Runs one config with the engine's probes (free runs, time-weighted sums) taken out, as they are by default,
with the sampled log, with every step logged, and with blocks and requests followed; prints CPU seconds and
overheads. The engine has no switch for the probes, so the first runs in a scratch copy of the sources whose
probes do nothing.

Two processes, one with the sources as they are and one with the copy, take turns on command: each run of a
variant stands between two of the baseline, and gives one ratio to their mean. What is printed is the median
of the ratios with the order statistics that enclose it with 95 % confidence, and the same of baseline against
baseline, which is the method's own noise.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

#: variant -> options of the log, whether the period is the config's own, and whether the probes stay
VARIANTS: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "no probes, no log": ({"sample_period_ns": 0}, False, False),
    "probes, no log": ({"sample_period_ns": 0}, False, True),
    "probes, default period": ({}, True, True),
    "probes, every step": ({"every_step": True}, False, True),
    "all of it, default period": ({"request_events": True, "follow_blocks": True}, True, True),
    "all of it, every step": (
        {"request_events": True, "follow_blocks": True, "every_step": True},
        False,
        True,
    ),
}

#: functions of the scratch copy that do nothing: file -> names
PROBES = {
    "probes.py": ("probe_free", "probe_take"),
    "time_weighted.py": ("note_time",),
}


def without_probes(folder: Path) -> None:
    """Copy the sources into a folder and let the probes return at once."""
    for package in ("sim", "workloads", "configs", "tests"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, names in PROBES.items():
        path = folder / "sim" / "core" / file
        text = path.read_text()
        for name in names:
            begin = text.index(f"def {name}(")
            body = text.index(":\n", text.index(") -> None", begin)) + 2
            text = text[:body] + "    return\n" + text[body:]
        path.write_text(text)


def work(config: str, overrides: list[str]) -> None:
    """Answer each name of a variant on stdin with the CPU seconds and the steps of a run, until EOF."""
    from sim.runner import auto_period, check
    from sim.simulate import LogOptions, Simulation

    resolved, workload = check(config, overrides)
    warm: set[str] = set()
    for line in sys.stdin:
        variant = line.strip()
        given, sampled, _ = VARIANTS[variant]
        period = {"sample_period_ns": resolved.sample_period_ns or auto_period(workload)} if sampled else {}
        log = LogOptions(**{**given, **period})
        if variant not in warm:  # compiles, if need be
            Simulation(resolved.engine, workload, resolved.step_time, log).run(resolved.until_ns)
            warm.add(variant)
        simulation = Simulation(resolved.engine, workload, resolved.step_time, log)
        gc.collect()
        gc.disable()
        before = time.process_time()
        simulation.run(resolved.until_ns)
        took = time.process_time() - before
        gc.enable()
        print(took, int(simulation.state.count.steps), flush=True)


class Worker:
    """A process that runs variants on command, with the sources of a folder."""

    def __init__(self, place: Path, config: str, overrides: list[str]) -> None:
        sets = [text for override in overrides for text in ("--set", override)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.tracking_overhead", config, *sets, "--worker"],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(place)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, variant: str) -> tuple[float, int]:
        """CPU seconds and steps of one run."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(variant + "\n")
        self._process.stdin.flush()
        took, steps = self._process.stdout.readline().split()
        return float(took), int(steps)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@dataclass(frozen=True)
class Overhead:
    """Of one variant: least CPU seconds of a run, and its ratio to the baseline with a 95 % interval."""

    seconds: float
    steps: int
    ratio: float
    low: float
    high: float


def median_interval(ratios: list[float]) -> tuple[float, float, float]:
    """The median and the order statistics that enclose the true median with 95 % confidence."""
    ordered = sorted(ratios)
    n = len(ordered)
    half = 0.98 * n**0.5
    low, high = max(0, int(n / 2 - half)), min(n - 1, int(n / 2 + half))
    return statistics.median(ordered), ordered[low], ordered[high]


def measure(config: str, overrides: list[str], rounds: int) -> dict[str, Overhead]:
    """All variants, the baseline first: its ratio is that of baseline to baseline."""
    base = next(iter(VARIANTS))
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    ratios: dict[str, list[float]] = {name: [] for name in VARIANTS}
    steps = dict.fromkeys(VARIANTS, 0)
    with tempfile.TemporaryDirectory() as scratch:
        without_probes(Path(scratch))
        path = str(Path(config).resolve())
        workers = {
            probes: Worker(ROOT if probes else Path(scratch), path, overrides) for probes in (True, False)
        }
        try:
            for name, (_, _, probes) in VARIANTS.items():
                workers[probes].run(name)
            before = workers[False].run(base)[0]
            for _ in range(rounds):
                for name, (_, _, probes) in VARIANTS.items():
                    took, steps[name] = workers[probes].run(name)
                    after = workers[False].run(base)[0]
                    seconds[name].append(took)
                    ratios[name].append(2 * took / (before + after))
                    before = after
        finally:
            for worker in workers.values():
                worker.close()
    return {
        name: Overhead(min(seconds[name]), steps[name], *median_interval(ratios[name])) for name in VARIANTS
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", default="configs/chat.yaml")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.config, args.overrides)
        return
    found = measure(args.config, args.overrides, args.rounds)
    base = next(iter(found.values()))
    print(f"{args.config}: {base.steps} steps, {args.rounds} rounds; CPU time of the process")
    print(f"{'':26} {'least s':>8} {'ns/step':>8} {'over no probes: least':>22} {'median':>8} {'95 %':>18}")
    for variant, o in found.items():
        cost, least = 1e9 * o.seconds / o.steps, o.seconds / base.seconds - 1
        interval = f"{o.low - 1:+.1%} to {o.high - 1:+.1%}"
        print(f"{variant:26} {o.seconds:8.3f} {cost:8.0f} {least:+22.1%} {o.ratio - 1:+8.1%} {interval:>18}")


if __name__ == "__main__":
    main()
