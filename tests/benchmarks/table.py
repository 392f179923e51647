"""``python -m tests.benchmarks.table``: one table of speeds, memory and ratios, all measured in this run.

Cases take turns, several rounds of them, and medians are shown: on a shared machine only figures of one run
can be compared. Times are CPU seconds of the process (one thread), which a busy neighbour disturbs less than
wall time; ``--json`` has both. No figure is asserted: the table says what is reached and what is not.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import click

from tests.benchmarks import cases, hybrid
from tests.benchmarks.lifecycle import LifeCycle
from tests.benchmarks.processes import (
    Command,
    VllmWorker,
    compile_time,
    first_step,
    run_simulation,
    vllm_python,
)

CONTROL_REQUESTS = 3000
POOLS = (10_000, 100_000, 1_000_000)
CHAT = cases.ROOT / "configs" / "chat.yaml"
MOONCAKE = cases.ROOT / "configs" / "mooncake.yaml"
COLUMNS = (
    "case",
    "ours",
    "target",
    "",
    "x twin",
    "x vLLM",
    "requests/s",
    "ns/block",
    "ns/req-step",
    "peak MB",
)


@dataclass
class Row:
    """One line of the table: medians over the rounds; None: does not apply or was not measured."""

    case: str
    ours: float
    unit: str
    target: float | None = None
    more_is_better: bool = False
    x_twin: float | None = None
    x_vllm: float | None = None
    requests_per_s: float | None = None
    ns_per_block: float | None = None
    ns_per_request_step: float | None = None
    peak_mb: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None when there is none."""
        if self.target is None:
            return None
        return self.ours >= self.target if self.more_is_better else self.ours <= self.target

    def cells(self) -> tuple[str, ...]:
        """The row as texts, in the order of COLUMNS."""
        sign = ">=" if self.more_is_better else "<="
        return (
            self.case,
            f"{_number(self.ours)} {self.unit}",
            "" if self.target is None else f"{sign} {_number(self.target)} {self.unit}",
            {True: "met", False: "NOT MET", None: ""}[self.met],
            *map(
                _number,
                (
                    self.x_twin,
                    self.x_vllm,
                    self.requests_per_s,
                    self.ns_per_block,
                    self.ns_per_request_step,
                    self.peak_mb,
                ),
            ),
        )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class Rounds:
    """What each round measured, by case."""

    life: dict[int, list[float]] = field(default_factory=lambda: {n: [] for n in POOLS})  # ns a block
    control: list[cases.Timing] = field(default_factory=list)
    twin: list[cases.Timing] = field(default_factory=list)
    vllm: list[dict[str, Any]] = field(default_factory=list)
    ten_thousand: list[cases.Timing] = field(default_factory=list)
    ten_thousand_command: list[Command] = field(default_factory=list)
    mooncake: list[cases.Timing] = field(default_factory=list)
    mooncake_command: list[Command] = field(default_factory=list)
    first_step: list[dict[str, Any]] = field(default_factory=list)
    hybrid: dict[str, hybrid.Case] = field(default_factory=dict)


def _life(pool: LifeCycle) -> float:
    clock = cases.Clock()
    blocks = pool.run(1_000_000)
    return clock.read()[0] / blocks * 1e9


def _control(workload: Any) -> cases.Timing:
    """The median of several runs, which are short."""
    runs = sorted((cases.run_control(workload) for _ in range(5)), key=lambda t: t.cpu_s)
    return runs[len(runs) // 2]


def measure(rounds: int) -> Rounds:
    """All cases in turn, ``rounds`` times."""
    out = Rounds()
    cases.warm_up()
    workload = cases.control_workload(CONTROL_REQUESTS)
    sample = cases.control_workload(cases.TWIN_REQUESTS)
    lines = cases.control_lines(sample)
    pools = {n: LifeCycle(n) for n in POOLS}
    mooncake = cases.data_file(cases.MOONCAKE)
    if mooncake is None:
        _say(f"no {cases.MOONCAKE}: its case is left out (README.md says where to get it)")
    python = vllm_python()
    if python is None:
        _say("no real vLLM: set KVPOOL_VLLM_PYTHON to a Python that has it; its ratio is left out")
    overrides = cases.mooncake_overrides()
    out.hybrid = hybrid.ready()
    with ExitStack() as stack:
        vllm = stack.enter_context(VllmWorker(python, CONTROL_REQUESTS)) if python else None
        for i in range(rounds):
            _say(f"round {i + 1} of {rounds}")
            for n, pool in pools.items():
                out.life[n].append(_life(pool))
            out.control.append(_control(workload))
            if vllm is not None:
                out.vllm.append(vllm.serve())
            out.twin.append(cases.run_twin(sample, lines))
            out.ten_thousand.append(cases.run_config(cases.TEN_THOUSAND, []))
            out.ten_thousand_command.append(run_simulation(cases.TEN_THOUSAND, []))
            if mooncake is not None:
                out.mooncake.append(cases.run_config(MOONCAKE, overrides))
                out.mooncake_command.append(run_simulation(MOONCAKE, overrides))
            for case in out.hybrid.values():
                case.measure()
            out.first_step.append(first_step(CHAT))
    return out


def _control_rows(r: Rounds) -> list[Row]:
    ours = _median(t.cpu_s for t in r.control)
    steps = r.control[0].request_steps
    scaled = [cases.scaled(t, steps) for t in r.twin]
    x_twin = _median(t.cpu_s / o.cpu_s for t, o in zip(scaled, r.control, strict=True))
    x_vllm = _median(v["cpu_s"] / o.cpu_s for v, o in zip(r.vllm, r.control, strict=True)) if r.vllm else None
    row = Row(
        f"{CONTROL_REQUESTS:,} requests of 800/76",
        ours,
        "s",
        x_twin=x_twin,
        x_vllm=x_vllm,
        requests_per_s=CONTROL_REQUESTS / ours,
        ns_per_request_step=ours / steps * 1e9,
        detail={
            "wall_s": _median(t.wall_s for t in r.control),
            "steps": r.control[0].steps,
            "twin_cpu_s_scaled": _median(t.cpu_s for t in scaled),
            "twin_requests": cases.TWIN_REQUESTS,
            "vllm": r.vllm,
        },
    )
    rows = [row]
    if x_vllm is not None:
        rows.append(Row("  speed over the real vLLM's", x_vllm, "x", 300, True))
    return rows


def _config_rows(
    name: str, timings: list[cases.Timing], commands: list[Command], target_s: float, target_mb: float | None
) -> list[Row]:
    if not timings:
        return []
    ours = _median(t.cpu_s for t in timings)
    first = timings[0]
    whole = _median(c.cpu_s for c in commands)
    peak = max(c.peak_mb for c in commands)
    rows = [
        Row(
            name,
            ours,
            "s",
            target_s,
            requests_per_s=first.requests / ours,
            ns_per_block=ours / first.detail["allocations"] * 1e9,
            ns_per_request_step=ours / first.request_steps * 1e9,
            detail={"wall_s": _median(t.wall_s for t in timings), "steps": first.steps, **first.detail},
        ),
        Row(
            "  the whole command",
            whole,
            "s",
            requests_per_s=first.requests / whole,
            peak_mb=peak,
            detail={"wall_s": _median(c.wall_s for c in commands)},
        ),
    ]
    if target_mb is not None:
        rows.append(Row("  its peak memory", peak, "MB", target_mb))
    return rows


def to_rows(r: Rounds, compiled: dict[str, Any] | None) -> list[Row]:
    """The lines of the table."""
    rows = [
        Row(
            f"block life cycle, {n:,} blocks",
            _median(values),
            "ns",
            40 if n == 100_000 else None,
            ns_per_block=_median(values),
        )
        for n, values in r.life.items()
    ]
    rows += _config_rows("10,000 requests of 1000/200", r.ten_thousand, r.ten_thousand_command, 0.3, None)
    rows += _config_rows("Mooncake hour, 12,031 requests", r.mooncake, r.mooncake_command, 1.5, 500)
    rows += _control_rows(r)
    for name, case in r.hybrid.items():
        ours = case.pair.ratio
        rows.append(Row(f"{name}: five groups by one", ours, "x", hybrid.TARGET, detail=vars(case.pair)))
    step = {key: _median(s[key] for s in r.first_step) for key in ("cpu_s", "wall_s")}
    rows.append(Row("chat.yaml to its first step, warm", step["cpu_s"], "s", 1.0, detail=step))
    if compiled is not None:
        rows.append(Row("the same, first run ever", compiled["cpu_s"], "s", 20, detail=compiled))
    return rows


def render(rows: list[Row]) -> str:
    """The table as aligned text."""
    lines = [COLUMNS, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    align: Callable[[int], str] = lambda i: "<" if i in (0, 3) else ">"  # noqa: E731
    shown = ["  ".join(f"{c:{align(i)}{widths[i]}}" for i, c in enumerate(line)).rstrip() for line in lines]
    return "\n".join(shown)


NOTES = f"""
CPU seconds of one thread, medians of interleaved rounds; a target is for one idle core. x twin, x vLLM: CPU
time of the plain-Python twin and of the real vLLM scheduler over ours, same requests, same engine; the twin
serves {cases.TWIN_REQUESTS} of them and is scaled by request-steps (one request in one batch). ns/block of a
whole run: its time over the blocks it allocated. A run: allocation of the state, run and result, not the
making of the requests.
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Rounds of all cases.")
@click.option(
    "--compile/--no-compile", "cold", default=True, help="Time a first run with an empty cache too."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(rounds: int, cold: bool, as_json: bool) -> None:
    """Measure all cases and print the table."""
    measured = measure(rounds)
    rows = to_rows(measured, compile_time(CHAT) if cold else None)
    if as_json:
        click.echo(json.dumps([{**vars(row), "met": row.met} for row in rows], indent=2))
    else:
        click.echo(render(rows))
        click.echo(NOTES)


if __name__ == "__main__":
    main()
