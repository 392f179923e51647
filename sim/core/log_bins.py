"""Bins of the engine's histograms of counts and nanoseconds."""

from __future__ import annotations

import numpy as np

from sim.core.bits import leading_zeros
from sim.core.jit import leaf


@leaf
def log_bin(v: int) -> int:
    """Histogram bin of a count: exact below 256, then 128 bins an octave (under 1 % wide)."""
    beyond = 56 - leading_zeros(np.uint64(v | 255))
    return beyond * 128 + (v >> beyond)
