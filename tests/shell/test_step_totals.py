"""What a summary says of the step log does not depend on the pieces in which the rows come."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.core.codes import LOG_COLUMNS
from sim.step_totals import StepTotals


def table(n: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = {name: rng.integers(0, 50, n) for name in LOG_COLUMNS}
    return rows | {"time_ns": np.cumsum(rng.integers(0, 1000, n))}


def totals(parts: list[dict[str, np.ndarray]], warmup: int) -> StepTotals:
    out = StepTotals(warmup)
    for part in parts:
        out(part)
    return out


@given(
    n=st.integers(0, 60),
    seed=st.integers(0, 999),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    warmup=st.sampled_from([0, 5_000, 10**9]),
)
def test_pieces_change_nothing(n: int, seed: int, cuts: list[int], warmup: int) -> None:
    rows = table(n, seed)
    at = [0, *sorted(min(cut, n) for cut in cuts), n]
    parts = [{name: column[a:b] for name, column in rows.items()} for a, b in itertools.pairwise(at)]
    whole, cut = totals([rows], warmup), totals(parts, warmup)
    end = int(rows["time_ns"].max(initial=0)) + 77
    for found in (whole, cut):
        assert found.num_rows == n
        if not n:
            assert found.mean_wasted_slots(end) is None
            assert found.worst_moment() is None
            continue
        spans = np.diff(np.maximum(np.append(rows["time_ns"], end), warmup))
        weights = spans if spans.sum() else np.ones(n)
        assert found.mean_wasted_slots(end) == pytest.approx(
            np.average(rows["wasted_slots"], weights=weights)
        )
    for ask in ("table_contiguity", "worst_moment", "most_waste"):
        assert getattr(whole, ask)() == getattr(cut, ask)()
    assert whole.mean_wasted_slots(end) == cut.mean_wasted_slots(end)
    assert (whole.last, whole.last_ns) == (cut.last, cut.last_ns)
    if n:
        i = int(np.lexsort((rows["time_ns"], -rows["num_waiting"], rows["num_free_blocks"]))[0])
        moment = whole.worst_moment()
        assert moment is not None
        assert moment["time_s"] == rows["time_ns"][i] / 1e9
