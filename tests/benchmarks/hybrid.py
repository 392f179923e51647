"""What several groups cost: `python -m tests.benchmarks.hybrid [--rounds N]`.

Runs configs/chat.yaml and the Mooncake hour with full attention alone, and with full attention and four
sliding windows of 1,024 tokens in a pool of five times the blocks; prints the CPU seconds of both, and their
ratio. The runs take turns, and medians are shown.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from tests.benchmarks import cases

CHAT = cases.ROOT / "configs" / "chat.yaml"
MOONCAKE = cases.ROOT / "configs" / "mooncake.yaml"
WINDOW = 1024
GROUPS = 5
TARGET = 3.0
#: Runs that are timed together: those of chat are short.
_CHAT_RUNS = 5


@dataclass
class Pair:
    """One workload under both engines.

    Attributes:
        one: CPU seconds of each round with full attention alone.
        five: the same with full attention and four windows.
        blocks: blocks taken in a run, of both.
    """

    one: list[float]
    five: list[float]
    blocks: tuple[int, int] = (0, 0)

    @property
    def ratio(self) -> float:
        """Median over the rounds of the second by the first."""
        return statistics.median(b / a for a, b in zip(self.one, self.five, strict=True))


class Case:
    """A config, ready to be run with one group and with five."""

    def __init__(self, config: Path, overrides: list[str], runs: int = 1) -> None:
        from sim.engine_settings import KVCacheGroup
        from sim.runner import check

        self.runs = runs
        self._checked, self._workload = check(str(config), overrides)
        full = self._checked.engine
        windows = (KVCacheGroup("sliding_window", sliding_window=WINDOW),) * (GROUPS - 1)
        blocks = (full.num_gpu_blocks - 1) * GROUPS + 1
        five = replace(full, kv_cache_groups=(KVCacheGroup(), *windows), num_gpu_blocks=blocks)
        self._engines = (full, five)
        self.pair = Pair([], [])

    def _run(self, engine: Any) -> tuple[float, int]:
        """CPU seconds of one run without state and result, and the blocks it took."""
        from sim.simulate import LogOptions, Simulation

        simulations = [
            Simulation(engine, self._workload, self._checked.step_time, LogOptions())
            for _ in range(self.runs)
        ]
        clock = cases.Clock()
        for simulation in simulations:
            simulation.run(self._checked.until_ns)
        seconds = clock.read()[0] / self.runs
        return seconds, simulations[0].result().totals["allocations"]

    def warm_up(self) -> None:
        """One run of each, which compiles the engine if need be."""
        one, five = (self._run(engine)[1] for engine in self._engines)
        self.pair.blocks = (one, five)

    def measure(self) -> None:
        """One round."""
        one, five = (self._run(engine)[0] for engine in self._engines)
        self.pair.one.append(one)
        self.pair.five.append(five)


def ready(chat: list[str] | None = None, mooncake: list[str] | None = None) -> dict[str, Case]:
    """The workloads that are there, warmed up; without the trace Mooncake is left out."""
    found = {"chat": Case(CHAT, chat or [], _CHAT_RUNS)}
    if mooncake is not None or cases.data_file(cases.MOONCAKE) is not None:
        found["Mooncake hour"] = Case(MOONCAKE, mooncake or cases.mooncake_overrides())
    for case in found.values():
        case.warm_up()
    return found


def lines(found: dict[str, Case]) -> list[str]:
    """One line of text for each workload."""
    out = []
    for name, case in found.items():
        pair = case.pair
        one, five = statistics.median(pair.one), statistics.median(pair.five)
        met = "met" if pair.ratio <= TARGET else "NOT MET"
        out.append(
            f"{name}: one group {one:.3g} s ({pair.blocks[0]:,} blocks), five {five:.3g} s "
            f"({pair.blocks[1]:,} blocks): {pair.ratio:.2f} times (aim: {TARGET:g}, {met}; "
            f"least of all rounds {min(pair.five) / min(pair.one):.2f})"
        )
    return out


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Rounds of all runs.")
def main(rounds: int) -> None:
    """Measure what five groups cost by what one does."""
    found = ready()
    if len(found) == 1:
        print(f"no {cases.MOONCAKE}: its case is left out (README.md says where to get it)", file=sys.stderr)
    for _ in range(rounds):
        for case in found.values():
            case.measure()
    click.echo("\n".join(lines(found)))


if __name__ == "__main__":
    main()
