"""Record arrays as the core takes them: fields are attributes, and each array begins with a cache line."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from sim.core.records import Record

_CACHE_LINE = 64


def aligned_zeros(dtype: np.dtype[Any], shape: int | tuple[int, ...]) -> np.ndarray:
    """Zeros that begin with a cache line."""
    size = math.prod(shape) if isinstance(shape, tuple) else shape
    raw = np.zeros(size * dtype.itemsize + _CACHE_LINE, dtype=np.uint8)
    start = -raw.ctypes.data % _CACHE_LINE
    return raw[start : start + size * dtype.itemsize].view(dtype).reshape(shape)


@functools.cache
def _as_record(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that numpy would make of it, at some cost, for every view as a record array."""
    return np.dtype((np.record, dtype))


def record_array(dtype: np.dtype[Any], shape: int | tuple[int, ...]) -> Record:
    """Records of zeros, whose fields are attributes."""
    return aligned_zeros(_as_record(dtype), shape).view(np.recarray)


def record(dtype: np.dtype[Any], values: dict[str, int]) -> Record:
    """One record; the fields that are not named are 0."""
    one = record_array(dtype, 1)[0]
    for name, value in values.items():
        setattr(one, name, value)
    return one
