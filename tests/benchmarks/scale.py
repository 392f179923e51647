"""How cost and memory grow with the trace and with the pool: ``python -m tests.benchmarks.scale [--small]``.

Each point is a process of its own, so that its peak memory is its own. Times are processor seconds, since the
machine may be doing other things. ``--out FILE`` writes the points as JSON, ``--plot FILE`` draws them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).with_name("scale.yaml")
ROOT = CONFIG.parents[2]
#: Sessions whose requests are about 10 k, 100 k and 1 M; blocks of the pools.
SESSIONS = (2_800, 28_000, 280_000)
POOLS = (10_000, 100_000, 1_000_000)
MIDDLE = 1


def measure(sessions: int, blocks: int, stream: bool) -> dict[str, Any]:
    """One run in this process, without plots: processor seconds of its parts and peak memory."""
    from sim import runner
    from sim.config import load_config
    from sim.core.engine import run_until
    from sim.resolve import resolve
    from sim.simulate import LogOptions, Simulation
    from workloads.generate import build

    little = resolve(load_config(CONFIG, ["workload.num_sessions=20"]))
    warm = Simulation(little.engine, build(little.spec, 0), little.step_time, LogOptions())
    warm.run()
    assert run_until is not None
    before = peak_mib()
    overrides = [f"workload.num_sessions={sessions}", f"engine.num_gpu_blocks={blocks}"]
    with tempfile.TemporaryDirectory() as folder:
        options = runner.RunOptions(
            overrides=overrides, out=str(Path(folder) / "run"), stream=stream, quiet=True, plots=False
        )
        marks: dict[str, float] = {"begin": time.process_time()}
        requests = runner._requests

        def timed(*arguments: Any) -> Any:
            found = requests(*arguments)
            marks["made"] = time.process_time()
            return found

        runner._requests = timed  # type: ignore[assignment]
        outcome = runner.run(str(CONFIG), options)
        marks["ran"] = time.process_time()
        outcome.write()
        marks["written"] = time.process_time()
    cache, counts = outcome.summary["prefix_cache"], outcome.summary["requests"]
    found = cache["first_lookup_hit_tokens"] + cache["resumed_hit_tokens"]
    block = outcome.summary["engine"]["block_size"]
    tokens = counts["prompt_tokens"] + counts["output_tokens"]
    return {
        "requests": counts["finished"],
        "blocks": blocks,
        "streamed": stream,
        "make_s": marks["made"] - marks["begin"],
        "run_s": marks["ran"] - marks["made"],
        "write_s": marks["written"] - marks["ran"],
        "blocks_handled": tokens // block,
        "blocks_hit": found // block,
        "evicted": cache["evicted_blocks"],
        "peak_mib": peak_mib(),
        "peak_before_mib": before,
        "usage": outcome.summary["usage"]["mean"],
        "steps": outcome.summary["steps"],
    }


def peak_mib() -> float:
    """Most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def points(small: bool) -> list[tuple[int, int, bool]]:
    """Sessions, blocks and whether streamed; small: without the longest traces."""
    sessions = SESSIONS[:-1] if small else SESSIONS
    out = [(n, POOLS[MIDDLE], stream) for stream in (True, False) for n in sessions]
    out += [(SESSIONS[MIDDLE], p, True) for i, p in enumerate(POOLS) if i != MIDDLE]
    return out if small else [*out, (SESSIONS[-1], POOLS[-1], True)]


def line(p: dict[str, Any]) -> str:
    """A point as a row of the table."""
    n, handled = p["requests"], p["blocks_handled"]
    how = "streamed" if p["streamed"] else "in memory"
    return (
        f"| {n:,} | {p['blocks']:,} | {how} | {p['make_s']:.1f} | {p['run_s']:.1f} | {n / p['run_s']:,.0f}"
        f" | {1e9 * p['run_s'] / handled:.0f} | {p['peak_mib']:,.0f} |"
    )


def draw(found: list[dict[str, Any]], file: Path) -> None:
    """Cost a request and memory against the trace, cost a block and memory against the pool."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from sim.report import style

    rc: Any = style.RC
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(rc)
        figure = Figure(figsize=(8.2, 5.4))
        axes = figure.subplots(2, 2, gridspec_kw={"hspace": 0.5, "wspace": 0.28})
        figure.subplots_adjust(left=0.085, right=0.975, top=0.93, bottom=0.09)
        middle = POOLS[MIDDLE]
        for stream, color, name in ((True, style.BLUE, "streamed"), (False, style.ORANGE, "in memory")):
            trace = sorted(
                (p for p in found if p["blocks"] == middle and p["streamed"] == stream),
                key=lambda p: p["requests"],
            )
            x = [p["requests"] for p in trace]
            axes[0, 0].plot(
                x, [1e6 * p["run_s"] / p["requests"] for p in trace], "o-", color=color, label=name
            )
            axes[0, 1].plot(x, [p["peak_mib"] for p in trace], "o-", color=color, label=name)
        longest = max(p["requests"] for p in found)
        for n, color in ((None, style.GREEN), (longest, style.PURPLE)):
            pools = sorted(
                (
                    p
                    for p in found
                    if p["streamed"]
                    and (abs(p["requests"] - (n or longest / 10)) < 0.2 * (n or longest / 10))
                ),
                key=lambda p: p["blocks"],
            )
            if len(pools) < 2:
                continue
            x = [p["blocks"] for p in pools]
            label = f"{round(pools[0]['requests'], -3):,} requests"
            per_block = [1e9 * p["run_s"] / p["blocks_handled"] for p in pools]
            axes[1, 0].plot(x, per_block, "o-", color=color, label=label)
            axes[1, 1].plot(x, [p["peak_mib"] for p in pools], "o-", color=color, label=label)
        titles = (
            (axes[0, 0], "Processor time of a request", "us", "requests in the trace"),
            (axes[0, 1], "Peak memory of the process", "MiB", "requests in the trace"),
            (axes[1, 0], "Processor time of a block", "ns", "blocks of the pool"),
            (axes[1, 1], "Peak memory of the process", "MiB", "blocks of the pool"),
        )
        for ax, title, unit, below in titles:
            ax.set_title(title, color="black", pad=4)
            ax.set_xscale("log")
            ax.set_ylim(0, ax.get_ylim()[1] * 1.08)
            ax.set_ylabel(unit)
            ax.set_xlabel(below, labelpad=2)
            ax.legend(loc="best")
        file.write_bytes(style.save(figure, "png"))


def main() -> None:
    """Measure the points one after the other, each in a process; print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="without the traces of a million requests")
    parser.add_argument("--out", type=Path, help="write the points as JSON")
    parser.add_argument("--plot", type=Path, help="draw the points (PNG)")
    parser.add_argument(
        "--from", dest="read", type=Path, help="draw the points of this file, measure nothing"
    )
    parser.add_argument("--point", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        sessions, blocks, stream = (int(x) for x in options.point)
        print(json.dumps(measure(sessions, blocks, bool(stream))))
        return
    found = []
    if options.read:
        found = json.loads(options.read.read_text())
    else:
        print("| requests | blocks | kept | make, s | run, s | requests/s | ns a block | peak, MiB |")
        print("| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |")
        for point in points(options.small):
            command = [sys.executable, "-m", "tests.benchmarks.scale", "--point"]
            done = subprocess.run(
                [*command, *(str(int(x)) for x in point)],
                cwd=ROOT,
                check=True,
                capture_output=True,
                text=True,
            )
            found.append(json.loads(done.stdout))
            print(line(found[-1]), flush=True)
            if options.out:
                options.out.write_text(json.dumps(found, indent=1) + "\n")
    if options.plot:
        draw(found, options.plot)


if __name__ == "__main__":
    main()
