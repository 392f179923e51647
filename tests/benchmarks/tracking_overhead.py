"""What tracking costs: `python -m tests.benchmarks.tracking_overhead [CONFIG] [--set KEY=VALUE]`.

Runs one config with the engine's probes (free runs, time-weighted sums) taken out, as they are by default,
with the sampled log, with every step logged, and with blocks and requests followed; prints CPU seconds and
overheads. The engine has no switch for the probes, so the first runs in a scratch copy of the sources whose
probes do nothing. The variants take turns, and the least time of each counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
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
    "log.py": ("advance_time_weighted",),
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


def take_turns(config: str, overrides: list[str], probes: bool, repeat: int) -> dict[str, list[float]]:
    """CPU seconds and steps of the best run of each variant with or without probes, in this process."""
    from sim.runner import auto_period, check
    from sim.simulate import LogOptions, Simulation

    resolved, workload = check(config, overrides)
    best: dict[str, list[float]] = {}
    for _ in range(repeat):
        for variant, (given, sampled, has_probes) in VARIANTS.items():
            options = dict(given)
            if has_probes != probes:
                continue
            period = (
                {"sample_period_ns": resolved.sample_period_ns or auto_period(workload)} if sampled else {}
            )
            log = LogOptions(**{**options, **period})
            Simulation(resolved.engine, workload, resolved.step_time, log).run(1)  # compiles, if need be
            simulation = Simulation(resolved.engine, workload, resolved.step_time, log)
            before = time.process_time()
            simulation.run(resolved.until_ns)
            took = time.process_time() - before
            if variant not in best or took < best[variant][0]:
                best[variant] = [took, float(simulation.state.count.steps)]
    return best


def measure(config: str, overrides: list[str], repeat: int, rounds: int = 2) -> dict[str, list[float]]:
    """The best run of each variant."""
    best: dict[str, list[float]] = {}
    sets = [text for override in overrides for text in ("--set", override)]
    with tempfile.TemporaryDirectory() as scratch:
        without_probes(Path(scratch))
        for _ in range(rounds):
            for place, which in ((Path(scratch), "without"), (ROOT, "with")):
                command = [sys.executable, "-m", "tests.benchmarks.tracking_overhead", *sets]
                done = subprocess.run(
                    [*command, str(Path(config).resolve()), "--repeat", str(repeat), "--probes", which],
                    cwd=place,
                    env={**os.environ, "PYTHONPATH": str(place)},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                for variant, found in json.loads(done.stdout).items():
                    if variant not in best or found[0] < best[variant][0]:
                        best[variant] = found
    return best


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", default="configs/chat.yaml")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--probes", choices=("with", "without"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probes:
        print(json.dumps(take_turns(args.config, args.overrides, args.probes == "with", args.repeat)))
        return
    best = measure(args.config, args.overrides, args.repeat)
    bare, plain = (best[name][0] for name in ("no probes, no log", "probes, no log"))
    print(f"{args.config}: {best['probes, no log'][1]:.0f} steps, the best of {2 * args.repeat} runs")
    print(f"{'':26} {'CPU s':>8} {'ns/step':>9} {'over no probes':>15} {'over no log':>12}")
    for variant, (seconds, steps) in best.items():
        print(
            f"{variant:26} {seconds:8.3f} {1e9 * seconds / steps:9.0f}"
            f" {seconds / bare - 1:15.1%} {seconds / plain - 1:12.1%}"
        )


if __name__ == "__main__":
    main()
