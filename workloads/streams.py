"""Random numbers: one independent stream for each purpose of each client, found by name.

A stream depends on the seed and on its name and on nothing else, so a client added to a mixture, or a new
draw added to a client, leaves every other stream as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Draws are made so many at a time.
CHUNK = 1024


def generator(seed: int, name: str) -> np.random.Generator:
    """The generator of one stream.

    Args:
        seed: seed of the run, >= 0.
        name: what the stream is for, such as "chat/user_len".
    """
    digest = hashlib.sha256(name.encode()).digest()
    key = tuple(int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4))
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy=seed, spawn_key=key)))


def one_by_one(draw: Callable[[int], NDArray[Any]]) -> Iterator[Any]:
    """Python numbers, one by one, of a function that draws n at a time."""
    while True:
        yield from draw(CHUNK).tolist()


def uniforms(rng: np.random.Generator) -> Iterator[float]:
    """Uniform numbers in [0, 1)."""
    return one_by_one(rng.random)


def zipf_ranks(rng: np.random.Generator, n: int, exponent: float) -> Iterator[int]:
    """Ranks 0 .. n - 1 with probabilities proportional to 1 / (rank + 1) ** exponent."""
    weights = np.arange(1, n + 1, dtype=np.float64) ** -exponent
    cumulative = np.cumsum(weights)
    cumulative /= cumulative[-1]
    return one_by_one(lambda k: np.minimum(np.searchsorted(cumulative, rng.random(k), side="right"), n - 1))


def geometric_counts(rng: np.random.Generator, mean: float, least: int, most: int) -> Iterator[int]:
    """Geometric counts of `least` or more with the given mean (before they are cut to `most`)."""
    probability = 1.0 / (mean - least + 1.0)
    return one_by_one(lambda k: np.minimum(rng.geometric(probability, k) - 1 + least, most))
