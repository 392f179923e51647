"""The pool at an instant, or what changed between two: a class for each block, and the numbers beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.report.pool_view import COLORS, FREE, FREE_CACHED, LETTERS, NAMES, USED, block_codes
from sim.report.units import count, plural, seconds, share

if TYPE_CHECKING:
    from sim.core.state import State

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class BlockClass:
    """What a block can be: its name, its letter for lack of colour, its colour (None: the background)."""

    name: str
    letter: str
    color: RGB | None


@dataclass(frozen=True)
class Scene:
    """Something to draw.

    Attributes:
        title: what and when.
        classes: in the order of their codes.
        codes: uint8[N - 1], class of the blocks 1 .. N - 1.
        numbers: lines below the picture.
    """

    title: str
    classes: tuple[BlockClass, ...]
    codes: NDArray[np.uint8]
    numbers: tuple[str, ...]

    def counts(self) -> list[int]:
        """Blocks of each class."""
        return [int(n) for n in np.bincount(self.codes, minlength=len(self.classes))]


STATE_CLASSES = tuple(
    BlockClass(name, letter, color if code != FREE else None)
    for code, (name, letter, color) in enumerate(zip(NAMES, LETTERS, COLORS, strict=True))
)

SAME_FREE, SAME_CACHED, SAME_USED, CACHED, EVICTED, FREED, ALLOCATED = range(7)
CHANGE_CLASSES = (
    BlockClass("still free", ".", None),
    BlockClass("still free and cached", "o", (0xA8, 0xA8, 0xA8)),
    BlockClass("still used", "#", (0x60, 0x60, 0x60)),
    BlockClass("newly cached", "c", (0x56, 0xB4, 0xE9)),
    BlockClass("evicted", "e", (0xCC, 0x79, 0xA7)),
    BlockClass("freed", "-", (0x00, 0x9E, 0x73)),
    BlockClass("allocated", "+", (0xD5, 0x5E, 0x00)),
)


def pool_scene(state: State, time_ns: int) -> Scene:
    """The pool of a simulated engine as it stands."""
    return scene_of(block_codes(state), int(state.ctl.num_running), int(state.ctl.num_waiting), time_ns)


def scene_of(
    codes: NDArray[np.uint8], num_running: int, num_waiting: int, time_ns: int, said: str = ""
) -> Scene:
    """A pool by the states of its blocks 1 .. N - 1; `said` is a line of its own below the numbers."""
    free = codes < USED
    edges = np.flatnonzero(np.diff(free.view(np.int8), prepend=0, append=0))
    lengths = edges[1::2] - edges[::2]
    num_free, longest = int(free.sum()), int(lengths.max(initial=0))
    outside = 1 - longest / num_free if num_free else 0.0
    return Scene(
        f"pool at {_instant(time_ns)}",
        STATE_CLASSES,
        codes,
        (
            f"usage {share(1 - num_free / len(codes))}, {plural(len(lengths), 'free run')}, longest"
            f" {count(longest)}, external fragmentation {share(outside)},"
            f" {count(num_running)} running, {count(num_waiting)} waiting",
            *((said,) if said else ()),
        ),
    )


def _instant(time_ns: int) -> str:
    """A time as people read it, and exactly where that says more."""
    said, exact = seconds(time_ns / 1e9), f"{time_ns / 1e9:.9g} s"
    return said if said.replace(".0 s", " s") == exact else f"{said} ({exact})"


@dataclass(frozen=True)
class Marks:
    """What a comparison needs of an instant: uint8, uint64, int64 [N - 1]; copies, so the run may go on."""

    time_ns: int
    codes: NDArray[np.uint8]
    hashes: NDArray[np.uint64]
    births: NDArray[np.int64]


def marks_of(state: State, time_ns: int) -> Marks:
    """Of a state that follows its blocks."""
    pool = state.kv.pool
    end = state.params.num_blocks
    hashes = np.array(pool.blocks[1:end]["block_hash"])
    return Marks(time_ns, block_codes(state), hashes, np.array(pool.followed[1:end]["birth"]))


def change_scene(before: Marks, after: Marks, said: str = "") -> Scene:
    """What changed from one instant to a later one.

    A block counts as freed and as allocated if it was used at both instants, but was free in between. Drawn
    is the greatest change: allocated, freed, evicted, newly cached. `said` is a line of its own below.
    """
    used_before, used_after = before.codes >= USED, after.codes >= USED
    again = used_before & used_after & (after.births != before.births)
    allocated = used_after & (~used_before | again)
    freed = used_before & (~used_after | again)
    other = before.hashes != after.hashes
    evicted = other & (before.hashes != 0)
    cached = other & (after.hashes != 0)
    codes = np.full(len(before.codes), SAME_FREE, dtype=np.uint8)
    codes[after.codes == FREE_CACHED] = SAME_CACHED
    codes[used_after] = SAME_USED
    for mask, code in ((cached, CACHED), (evicted, EVICTED), (freed, FREED), (allocated, ALLOCATED)):
        codes[mask] = code
    touched = int((codes >= CACHED).sum())
    return Scene(
        f"pool from {_instant(before.time_ns)} to {_instant(after.time_ns)}",
        CHANGE_CLASSES,
        codes,
        (
            f"{count(int(allocated.sum()))} allocated, {count(int(freed.sum()))} freed"
            f" ({count(int(again.sum()))} both), {count(int(evicted.sum()))} evicted,"
            f" {count(int(cached.sum()))} newly cached; {count(len(codes) - touched)} unchanged of"
            f" {count(len(codes))}",
            f"used {count(int(used_before.sum()))} to {count(int(used_after.sum()))}, cached"
            f" {count(int((before.hashes != 0).sum()))} to {count(int((after.hashes != 0).sum()))}",
            *((said,) if said else ()),
        ),
    )
