"""The pool over time as parts of a report: heat map and free runs by length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.report import style
from sim.report.curves import histogram_chart
from sim.report.document import Chart, Inline, Part, as_share, plain_text
from sim.report.moments import Moment
from sim.report.pool_view import NAMES, Film, heat_map, letter_map
from sim.report.units import count


def pool_charts(film: Film, moments: Sequence[Moment], end_ns: int, axes: str) -> list[Part]:
    """The heat map, and the free runs by length; `axes` says what lies to the right."""
    mean = film.share.mean(axis=1)
    sizes = np.diff(film.first_block)
    whole = (mean * sizes[:, None]).sum(axis=0) / sizes.sum()
    per_row = int(sizes.max())
    rows = f"; a row is the mean of up to {per_row:,} blocks" if per_row > 1 else ""
    marks = [(m.time_ns, m.label) for m in moments]
    says: Inline = (
        "On average ",
        as_share(float(whole[3])),
        " of the blocks are used and cached, ",
        as_share(float(whole[2])),
        " used only, ",
        as_share(float(whole[1])),
        " free and cached, ",
        as_share(float(whole[0])),
        " free.",
    )
    markup = heat_map(film, marks, end_ns, plain_text(says))
    data = {
        "time_s": (film.times_ns / 1e9).tolist(),
        **{name: (film.share[:, :, i].T @ sizes / sizes.sum()).tolist() for i, name in enumerate(NAMES)},
    }
    pool = Chart(
        "pool_map",
        "The pool over time",
        says,
        markup,
        data,
        wide=True,
        term="block_states",
        look=f"Block id downwards, {axes}{rows}.",
        letters=letter_map(film, marks, end_ns),
    )
    return [pool, *run_length_charts(film)]


def run_length_charts(film: Film) -> list[Chart]:
    """Free runs, and the free blocks in them, by length."""
    labels = [count(int(b)) if b < 10_000 else f"{b // 1024}Ki" for b in film.run_lengths]
    labels = [f"{a}+" if i == len(labels) - 1 else a for i, a in enumerate(labels)]
    single = float(film.runs[0] / film.runs.sum()) if film.runs.sum() else None
    total = float(film.free_blocks.sum())
    half = float(film.free_blocks[film.run_lengths >= 16].sum() / total) if total else None
    n = len(film.times_ns)
    return [
        histogram_chart(
            "run_lengths",
            "Free runs by length",
            (as_share(single), f" of the free runs are single blocks (mean over {n} instants)."),
            labels,
            [("runs", film.runs.tolist(), style.PURPLE)],
            "length in blocks, from ... to below the next",
            "runs",
            "run_length",
        ),
        histogram_chart(
            "free_blocks_by_run",
            "Free blocks by the length of their run",
            (as_share(half), " of the free blocks lie in runs of 16 blocks or more."),
            labels,
            [("blocks", film.free_blocks.tolist(), style.SKY)],
            "length in blocks, from ... to below the next",
            "blocks",
            "run_length",
        ),
    ]
