"""The pool as a picture: blocks binned to cells, cells coloured by what their blocks are."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.report.series import spread, time_unit

if TYPE_CHECKING:
    from sim.core.state import State

FREE, FREE_CACHED, USED, USED_CACHED = range(4)
NAMES = ("free", "free and cached", "used", "used and cached")
LETTERS = ".oX#"
#: RGB of each state; free is the page itself.
COLORS = ((255, 255, 255), (0x56, 0xB4, 0xE9), (0xE6, 0x9F, 0x00), (0x00, 0x72, 0xB2))
MAX_ROWS, COLUMNS = 512, 300
#: Room that the number of a marked moment takes, of the width of the map.
_MARK_WIDTH = 0.03

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]


def block_codes(state: State) -> U8:
    """uint8[N - 1]: FREE, FREE_CACHED, USED or USED_CACHED of the blocks 1 .. N - 1."""
    blocks = state.kv.pool.blocks[1 : state.params.num_blocks]
    used = np.asarray(blocks["ref_cnt"]) > 0
    cached = np.asarray(blocks["block_hash"]) != 0
    return (used.view(np.uint8) << 1) | cached.view(np.uint8)


def cell_of_block(num_blocks: int, cells: int) -> I64:
    """int64[num_blocks]: the cell of each block when they are spread evenly and in order over `cells`."""
    return np.arange(num_blocks, dtype=np.int64) * cells // num_blocks


def count_cells(codes: U8, cell: I64, cells: int, classes: int = 4) -> I64:
    """int64[cells, classes]: blocks of each class in each cell."""
    return np.bincount(cell * classes + codes, minlength=cells * classes).reshape(cells, classes)


def majority(counts: NDArray[Any]) -> U8:
    """uint8[cells]: the most frequent class of each cell; a tie goes to the greater class."""
    last = counts.shape[1] - 1
    return (last - np.argmax(counts[:, ::-1], axis=1)).astype(np.uint8)


@dataclass(frozen=True)
class Film:
    """The pool at equally spaced instants.

    Attributes:
        times_ns: int64[T].
        first_block: int64[R + 1], the first block of each row, and one past the last block.
        share: float32[R, T, 4], share of a row's blocks in each state.
        run_lengths: int64[L], lower bounds 1, 2, 4 ... of the classes of free runs.
        runs: float64[L], free runs of each class, mean over the instants.
        free_blocks: float64[L], free blocks in them, mean over the instants.
    """

    times_ns: I64
    first_block: I64
    share: NDArray[np.float32]
    run_lengths: I64
    runs: NDArray[np.float64]
    free_blocks: NDArray[np.float64]


class FilmMaker:
    """Takes the pool's picture at each instant that it is shown."""

    def __init__(self, num_blocks: int, instants: int) -> None:
        usable = num_blocks - 1
        self.rows = min(usable, MAX_ROWS)
        self._cell = cell_of_block(usable, self.rows)
        self._slot = 4 * self._cell
        self._size = np.bincount(self._cell, minlength=self.rows)
        self._share = np.zeros((self.rows, instants, 4), dtype=np.float32)
        self._times: list[int] = []
        self._runs = np.zeros(48, dtype=np.int64)
        self._blocks = np.zeros(48, dtype=np.int64)

    def take(self, time_ns: int, codes: U8) -> None:
        """One picture; `codes` as of `block_codes`."""
        counts = np.bincount(self._slot + codes, minlength=4 * self.rows).reshape(self.rows, 4)
        self._share[:, len(self._times)] = counts / self._size[:, None]
        self._times.append(time_ns)
        free = codes < USED
        edges = np.flatnonzero(np.diff(free.view(np.int8), prepend=0, append=0))
        lengths = edges[1::2] - edges[::2]
        octave = np.frexp(lengths.astype(np.float64))[1] - 1
        self._runs += np.bincount(octave, minlength=48)
        self._blocks += np.bincount(octave, weights=lengths, minlength=48).astype(np.int64)

    def film(self) -> Film:
        """All pictures."""
        n = max(len(self._times), 1)
        classes = int(np.flatnonzero(self._runs).max(initial=0)) + 1
        first = np.append(np.searchsorted(self._cell, np.arange(self.rows)), len(self._cell)) + 1
        return Film(
            np.asarray(self._times, dtype=np.int64),
            first,
            self._share[:, : len(self._times)],
            1 << np.arange(classes, dtype=np.int64),
            self._runs[:classes] / n,
            self._blocks[:classes] / n,
        )


def film_times(end_ns: int, columns: int = COLUMNS) -> I64:
    """The middles of equal stretches of a run."""
    return ((2 * np.arange(columns, dtype=np.int64) + 1) * end_ns) // (2 * columns)


def blend(share: NDArray[Any], opaque: bool = False) -> U8:
    """uint8[..., 4] RGBA of cells: the mean colour of their blocks, the less opaque the more are free.

    Args:
        share: [..., 4], share of the blocks in each state; rounded to sixteenths, which the eye does not see.
        opaque: free blocks are white, not the page.
    """
    part = np.round(np.asarray(share, np.float32) * 16) / 16
    color = np.asarray(COLORS, np.float32)
    solid = part[..., 1:].sum(axis=-1)
    if opaque:
        mixed = part[..., 1:] @ color[1:] + (1 - solid[..., None]) * 255
        alpha = np.full(solid.shape, 255.0, np.float32)
    else:
        mixed = part[..., 1:] @ color[1:] / np.maximum(solid[..., None], 1e-6)
        alpha = np.minimum(solid, 1.0) * 255
    return np.round(np.clip(np.concatenate([mixed, alpha[..., None]], axis=-1), 0, 255)).astype(np.uint8)


def png_bytes(rgba: U8) -> bytes:
    """A PNG file of uint8[height, width, 4]; the same bytes each time."""
    height, width = rgba.shape[:2]
    raw = np.concatenate(
        [np.zeros((height, 1), np.uint8), np.ascontiguousarray(rgba).reshape(height, width * 4)], axis=1
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw.tobytes(), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def data_uri(png: bytes) -> str:
    """The picture inside its own address."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def nice_ticks(end: float, most: int = 6) -> list[float]:
    """Round numbers from 0 to nearly `end`: steps of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(end, 1e-9) / most))
    step = next(s * power for s in (1, 2, 5, 10) if end / (s * power) <= most)
    return [round(k * step, 9) for k in range(int(end / step * 0.97) + 1)]


def heat_map(film: Film, marks: Sequence[tuple[int, str]], end_ns: int, says: str) -> str:
    """HTML of the heat map: block id downwards, time to the right.

    Args:
        film: of the run.
        marks: (time in ns, label) of moments to mark.
        end_ns: where the time axis ends.
        says: what it shows, for those who do not see it.
    """
    from markupsafe import escape

    scale, unit = time_unit(float(end_ns))
    image = data_uri(png_bytes(blend(film.share)))
    rows = [
        film.first_block[0],
        *(film.first_block[-1] * k // 4 for k in (1, 2, 3)),
        film.first_block[-1] - 1,
    ]
    y = "".join(f"<span>{int(b):,}</span>" for b in rows)
    x = "".join(
        f'<span style="left:{100 * t * scale / max(end_ns, 1):.2f}%">{t:g} {unit}</span>'
        for t in nice_ticks(end_ns / scale)
    )
    lines = "".join(f'<i style="left:{100 * t / max(end_ns, 1):.2f}%"></i>' for t, _ in marks)
    places = spread([t / max(end_ns, 1) for t, _ in marks], _MARK_WIDTH)
    lines += "".join(
        f'<b style="left:{100 * x:.2f}%">{escape(label)}</b>'
        for x, (_, label) in zip(places, marks, strict=True)
    )
    swatches = "".join(
        f'<li><span class="swatch" style="background:rgb({r},{g},{b})"></span>{name}</li>'
        if code
        else f'<li><span class="swatch"></span>{name}</li>'
        for code, (name, (r, g, b)) in enumerate(zip(NAMES, COLORS, strict=True))
    )
    return (
        f'<ul class="legend">{swatches}</ul>'
        f'<div class="heat"><div class="y">{y}</div>'
        f'<div class="map"><img src="{image}" alt="{escape(says)}">{lines}</div>'
        f'<div class="x">{x}</div></div>'
    )


def letter_map(
    film: Film, marks: Sequence[tuple[int, str]], end_ns: int, rows: int = 16, columns: int = 64
) -> tuple[str, ...]:
    """The heat map in letters, for text: what most blocks of a cell are, with the marked moments above.

    Arguments as of ``heat_map``.
    """
    high, instants = film.share.shape[:2]
    size = np.diff(film.first_block)
    row = np.arange(high) * min(rows, high) // high
    column = np.arange(instants) * min(columns, instants) // max(instants, 1)
    width = int(column.max(initial=0)) + 1
    blocks = np.zeros((int(row.max(initial=0)) + 1, width, 4))
    np.add.at(blocks, (row[:, None], column[None, :]), film.share * size[:, None, None])
    label = len(f"{int(film.first_block[-1]):,}")
    top = [" "] * width
    for place, (_, text) in zip(
        spread([t * width // max(end_ns, 1) for t, _ in marks], 1, width - 1), marks, strict=True
    ):
        top[int(place)] = text[0]
    lines = [" " * (label + 1) + "".join(top).rstrip()] if marks else []
    first = film.first_block[np.searchsorted(row, np.arange(len(blocks)))]
    for begin, cells in zip(first.tolist(), majority(blocks.reshape(-1, 4)).reshape(-1, width), strict=True):
        lines.append(f"{begin:>{label},} " + "".join(LETTERS[c] for c in cells))
    lines.append("   ".join(f"{letter} {name}" for letter, name in zip(LETTERS, NAMES, strict=True)))
    return tuple(lines)
