"""What a summary says of the step log, added up as its rows come.

Sums are of whole numbers, so that they do not depend on the pieces in which the rows come.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import mul
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analysis.runs import table_pairs

Rows = Mapping[str, NDArray[Any]]
_MOMENT = ("num_free_blocks", "num_running", "num_waiting", "wasted_slots", "allocated_slots", "free_runs")
_NS = 1e9


class StepTotals:
    """Sums and extremes over the rows of the step log; call it with each piece, in order of time.

    Args:
        warmup_ns: means leave out what was before.
        num_groups: KV-cache groups: a running request has a block table in each.

    Attributes:
        num_rows: rows so far.
        last: the last row, {} before the first one.
        last_ns: greatest time.
        pairs: adjacent pairs of blocks in the running requests' tables, over the rows after the warm-up.
        adjacent: of these, the pairs whose ids are consecutive.
    """

    def __init__(self, warmup_ns: int, num_groups: int = 1) -> None:
        self._warmup = warmup_ns
        self._groups = num_groups
        self.num_rows = self.last_ns = self.pairs = self.adjacent = 0
        self.last: dict[str, int] = {}
        self._wasted = self._wasted_ns = self._weight = 0
        self._worst: tuple[tuple[int, int, int], dict[str, Any]] | None = None
        self._most_waste: tuple[int, dict[str, Any]] | None = None

    def __call__(self, rows: Rows) -> None:
        times, wasted = rows["time_ns"], rows["wasted_slots"]
        n = len(times)
        if n == 0:
            return
        if self.last:
            self._weigh([self.last["wasted_slots"]], np.array([self.last["time_ns"], times[0]]))
        self._weigh(wasted[:-1].tolist(), times)
        self._wasted += int(wasted.sum())
        pairs, adjacent = table_pairs(rows, self._groups)
        late = times >= self._warmup
        self.pairs += int(pairs[late].sum())
        self.adjacent += int(adjacent[late].sum())
        self._find(rows)
        self.num_rows += n
        self.last_ns = max(self.last_ns, int(times.max()))
        self.last = {name: int(column[-1]) for name, column in rows.items()}

    def _weigh(self, wasted: list[int], times: NDArray[np.int64]) -> None:
        """Let `wasted` stand from each of `times` to the next one."""
        spans = np.diff(np.maximum(times, self._warmup))
        self._weight += int(spans.sum())
        self._wasted_ns += sum(map(mul, wasted, spans.tolist()))

    def _find(self, rows: Rows) -> None:
        free, waiting = rows["num_free_blocks"], rows["num_waiting"]
        i = int(np.lexsort((rows["time_ns"], -waiting, free))[0])
        key = (int(free[i]), -int(waiting[i]), int(rows["time_ns"][i]))
        if self._worst is None or key < self._worst[0]:
            self._worst = (key, _moment(rows, i))
        i = int(np.argmax(rows["wasted_slots"]))
        most = int(rows["wasted_slots"][i])
        if most > (self._most_waste[0] if self._most_waste else 0):
            self._most_waste = (most, _moment(rows, i))

    def mean_wasted_slots(self, end_ns: int) -> float | None:
        """Mean over time after the warm-up; the last row stands up to `end_ns`. None: there is no row."""
        if not self.num_rows:
            return None
        end = max(end_ns, self.last["time_ns"])
        rest = max(end, self._warmup) - max(self.last["time_ns"], self._warmup)
        weight = self._weight + rest
        if weight <= 0:
            return self._wasted / self.num_rows
        return (self._wasted_ns + self.last["wasted_slots"] * rest) / weight

    def table_contiguity(self) -> float | None:
        """Pairs of neighbours whose ids are consecutive / all pairs; None: there are none."""
        return None if self.pairs <= 0 else self.adjacent / self.pairs

    def worst_moment(self) -> dict[str, Any] | None:
        """The row with the fewest free blocks: of those with most waiting requests the first."""
        return self._worst[1] if self._worst else None

    def most_waste(self) -> dict[str, Any] | None:
        """The first row with the most wasted slots; None: nothing was ever wasted."""
        return self._most_waste[1] if self._most_waste else None


def _moment(rows: Rows, i: int) -> dict[str, Any]:
    return {"time_s": int(rows["time_ns"][i]) / _NS, **{name: int(rows[name][i]) for name in _MOMENT}}
