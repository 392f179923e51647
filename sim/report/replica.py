"""One replica of a fleet as a run of its own, for reports."""

from __future__ import annotations

from dataclasses import replace

from sim import __version__
from sim.errors import InputError
from sim.report.folder import RunFolder


def refuse_replica(replica: int | None) -> None:
    """Raise InputError if a replica of a recording is asked for."""
    if replica is not None:
        raise InputError("a recording is that of one engine", "--replica", hint="leave it out")


def replica_folder(run: RunFolder, replica: int, again: bool = True) -> RunFolder:
    """A fleet's run folder as that of one replica, with the summary of its own run, which is simulated again.

    Args:
        run: the fleet's.
        replica: its number.
        again: whether simulating is allowed.

    Raises:
        InputError: no fleet, no such replica, or its run is not had again; simulating is not allowed.
    """
    from sim.analysis.rerun import Rerun
    from sim.summary import summarize

    if not again:
        raise InputError(
            "a replica is looked at by simulating it again", "--replica", hint="leave out --no-rerun"
        )
    rerun = Rerun(run.path, replica=replica)
    simulation = rerun.fresh()
    simulation.run(rerun.until_ns)
    result = simulation.result()
    rerun.check_rows(result.steps)
    content = f"{run.summary['content_id']}, replica {replica}"
    summary = summarize(rerun.resolved, result, len(rerun.workload), content, __version__)
    for one in (*summary["unservable"], *summary["rejected"]):
        one["index"] = int(rerun.original[one["index"]])
    return replace(
        run,
        summary=summary,
        config=rerun.resolved.config,
        requests=result.requests,
        _steps=rerun.steps,
        replica=replica,
    )
