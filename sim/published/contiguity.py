"""Mergeable transfer descriptors with blocks in free-queue order, as told in vLLM PR #55841 and issue #55434.

Neither tells its traffic, so the first figure is approached by traffic of the same kind, and the second, a
table without two neighbours, by the shortest way to one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.published.data import config_path
from sim.published.table import Row, Table

if TYPE_CHECKING:
    from sim.published.registry import Options

MERGEABLE, COPIES = "9.7", "193"
#: per cent points: the traffic is not that of the PR
BOUND = 2.0


def mergeable() -> tuple[float, int]:
    """Per cent of adjacent pairs that can be merged when prefills end, and the requests looked at."""
    from sim.analysis.handoffs import FIRST_TOKEN, check_source, simulate_handoffs

    h = simulate_handoffs(*check_source(str(config_path("contiguity.yaml"))), FIRST_TOKEN)
    return 100.0 * int(h.ascending.sum()) / int(h.pairs.sum()), len(h.request)


def most_copies() -> tuple[int, int]:
    """Most runs of consecutive ids in a request's table at its end, and the requests looked at."""
    from sim.analysis.handoffs import FINISH, check_source, simulate_handoffs

    h = simulate_handoffs(*check_source(str(config_path("copies.yaml"))), FINISH)
    return int(h.runs.max()), len(h.request)


def make(options: Options) -> Table:
    """The published figures with ours beside them."""
    del options
    share, requests = mergeable()
    copies, sent = most_copies()
    return Table(
        name="contiguity",
        title="vLLM PR #55841 and #55434: transfers of blocks that lie in free-queue order",
        columns=("figure", "published", "ours", "requests"),
        rows=(
            Row("mergeable pairs, %", MERGEABLE, share, (f"{requests:,}",), BOUND),
            Row("copies for 193 blocks, at most", COPIES, float(copies), (f"{sent:,}",), 0.0),
        ),
        met_when=f"within {BOUND:g} points (the PR's traffic is not public), and exactly",
        notes=(
            "Preferring contiguous blocks, which gave 49.4 to 50.7 % in the PR and 3 copies in the issue, is"
            " no rule of vLLM 0.32 and is not simulated. docs/descriptors.md shows how the share falls"
            " as the pool ages."
        ),
    )
