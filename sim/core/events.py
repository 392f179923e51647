"""The optional event stream: one row of six integers an event, drained by the shell between calls."""

from __future__ import annotations

from sim.core import codes as c
from sim.core.jit import apart, leaf
from sim.core.state import Pool


@leaf
def emit(pool: Pool, kind: int, request: int, block: int, a: int, b: int) -> None:
    """Append an event when the stream takes it; the engine has made sure that there is room."""
    level = pool.params.log_events
    if level == c.LOG_ALL or (level == c.LOG_REQUESTS and kind >= c.EV_ADMITTED):
        _append(pool, kind, request, block, a, b)


@apart
def _append(pool: Pool, kind: int, request: int, block: int, a: int, b: int) -> None:
    i = pool.ctl.num_events
    if i >= pool.events.shape[0]:
        pool.ctl.events_lost += 1
        return
    pool.events[i, 0] = pool.ctl.now
    pool.events[i, 1] = kind
    pool.events[i, 2] = request
    pool.events[i, 3] = block
    pool.events[i, 4] = a
    pool.events[i, 5] = b
    pool.ctl.num_events = i + 1


@leaf
def event_headroom(pool: Pool, num_slots: int) -> int:
    """Rows that one phase can add at the most: blocks evicted and stored twice over, every request moved."""
    blocks = (
        4 * pool.params.num_blocks * (1 + pool.params.partial_width)
        if pool.params.log_events == c.LOG_ALL
        else 0
    )
    return blocks + 8 * num_slots + 64
