"""Simulating a run again for its report, once: the pool over time, failures, lifetimes, causes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sim.errors import InputError
from sim.report.content import Analysis
from sim.report.folder import RunFolder
from sim.report.moments import Moment, find_moments

#: Block states that the layout analysis may look at: bounds its time on big pools.
_BLOCKS_LOOKED_AT = 40_000_000
_MOST_SNAPSHOTS = 100
_FEWEST_SNAPSHOTS = 8


def analyse(run: RunFolder, say: Callable[[str], None]) -> Analysis:
    """Simulate a run again and look at it; what can't be had is said in the report, and why.

    Args:
        run: the run folder.
        say: told what is being done.
    """
    say("simulating the run again to look into the pool (--no-rerun leaves this out)")
    try:
        return look(run)
    except InputError as e:
        problem = "; ".join(p.message for p in e.problems)
        say(f"the run can't be simulated again: {problem}")
        return Analysis(note=problem)


def look(run: RunFolder) -> Analysis:
    """One pass over the run, stopping at the instants of the film and at the worst moments.

    Raises:
        InputError: as ``sim.analysis.rerun.Rerun``; the run's rows are not had again.
    """
    from sim.analysis.findings import WorstMoment
    from sim.analysis.layout import BlockLayoutAnalyzer, causes_of
    from sim.analysis.rerun import Rerun
    from sim.analysis.snapshot import FragmentationSnapshot
    from sim.analysis.tracker import FragmentationTracker
    from sim.report.group_table import names_of
    from sim.report.pool_view import FilmMaker, block_codes, film_times

    rerun = Rerun(run.path, replica=run.replica)
    run.adopt_steps(rerun.steps)
    moments = find_moments(run.steps, run.summary["engine"]["usable_blocks"], run.warmup_ns)
    num_blocks = rerun.resolved.engine.num_gpu_blocks
    times = [int(t) for t in film_times(rerun.end_ns)]
    wanted = min(_MOST_SNAPSHOTS, max(_FEWEST_SNAPSHOTS, _BLOCKS_LOOKED_AT // num_blocks))
    looked_at = set(times[:: max(1, -(-len(times) // wanted))])
    film, analyzer = FilmMaker(num_blocks, len(times)), BlockLayoutAnalyzer()
    worst = []
    simulation = rerun.fresh()
    stops: list[tuple[int, Moment | None]] = [(t, None) for t in times]
    stops += [(m.time_ns, m) for m in moments]
    for time, moment in sorted(stops, key=lambda s: s[0]):
        simulation.run(time)
        if moment is None:
            film.take(time, block_codes(simulation.state))
        if moment is not None or time in looked_at:
            snapshot = FragmentationSnapshot.from_state(
                simulation.state, rerun.workload, time, layout_only=True
            )
            if moment is None:
                analyzer.add(snapshot)
            else:
                causes = causes_of(snapshot, moment.metric)
                worst.append(WorstMoment(moment.metric, time, moment.value, causes))
    tracked = FragmentationTracker(simulation, rerun.until_ns).run()
    rerun.check_rows(tracked.steps)
    # the rows are those of the folder: held once is enough
    tracked = replace(tracked, steps={}, curves={}, requests={})
    layout = analyzer.report(worst=worst)
    return Analysis(film.film(), tracked, layout, names_of(rerun.resolved))
