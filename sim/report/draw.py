"""Scenes as text (letters, or coloured half blocks) and as PNG."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.report.pool_view import count_cells, majority
from sim.report.scene import RGB, Scene
from sim.report.units import count, plural, share

_RESET = "\x1b[0m"
_GLUE = "\x00"
_DIM = "\x1b[2m"
_PNG_LINE, _PNG_LEGEND = 150, 4


@dataclass(frozen=True)
class Grid:
    """A scene binned to rows and columns of cells.

    Attributes:
        cells: uint8[rows, columns], class of each cell; 255 behind the last block.
        per_cell: blocks of a cell.
        counts: int64[cells, classes].
    """

    cells: NDArray[np.uint8]
    per_cell: int
    counts: NDArray[np.int64]


EMPTY = 255


def make_grid(scene: Scene, columns: int, rows: int) -> Grid:
    """One block a cell if they fit, else the majority of as few as fit."""
    n = len(scene.codes)
    per_cell = max(1, -(-n // (columns * rows)))
    cells = -(-n // per_cell)
    counts = count_cells(scene.codes, np.arange(n) // per_cell, cells, len(scene.classes))
    height = -(-cells // columns)
    out = np.full(height * columns, EMPTY, dtype=np.uint8)
    out[:cells] = majority(counts)
    return Grid(out.reshape(height, columns), per_cell, counts)


def _label_width(scene: Scene) -> int:
    return len(f"{len(scene.codes):,}")


def _legend(scene: Scene) -> list[tuple[int, str]]:
    total = len(scene.codes)
    return [
        (code, f"{c.name} {count(n)} ({share(n / total)})")
        for code, (c, n) in enumerate(zip(scene.classes, scene.counts(), strict=True))
    ]


def _scale(scene: Scene, grid: Grid) -> str:
    cells = (
        "one cell is one block"
        if grid.per_cell == 1
        else f"one cell is the majority of {grid.per_cell} blocks"
    )
    return f"{plural(len(scene.codes), 'block')}, {cells}; numbers at the left: first block of the row"


def ascii_text(scene: Scene, width: int, rows: int) -> str:
    """The scene in letters."""
    label = _label_width(scene)
    grid = make_grid(scene, max(1, width - label - 1), rows)
    letters = [c.letter for c in scene.classes]
    lines = [scene.title, *textwrap.wrap(_scale(scene, grid), width)]
    for i, row in enumerate(grid.cells):
        first = 1 + i * grid.cells.shape[1] * grid.per_cell
        lines.append(f"{first:>{label},} " + "".join("" if c == EMPTY else letters[c] for c in row))
    items = [f"{letters[code]} {text}".replace(" ", _GLUE) for code, text in _legend(scene)]
    lines += [line.replace(_GLUE, " ") for line in textwrap.wrap("   ".join(items), width)]
    for line in scene.numbers:
        lines += textwrap.wrap(line, width)
    return "\n".join(lines) + "\n"


def _sgr(color: RGB, layer: int, true_color: bool) -> str:
    """Escape code parameters of a colour: layer 38 is the letter, 48 what is behind it."""
    r, g, b = color
    if true_color:
        return f"{layer};2;{r};{g};{b}"
    # the 6 x 6 x 6 cube of a terminal with 256 colours
    levels = [min(range(6), key=lambda k: abs((0, 95, 135, 175, 215, 255)[k] - v)) for v in (r, g, b)]
    return f"{layer};5;{16 + 36 * levels[0] + 6 * levels[1] + levels[2]}"


def _pair(top: RGB | None, bottom: RGB | None, true_color: bool) -> tuple[str, str]:
    """Escape code and character of two cells above each other; None: the background."""
    if top is None and bottom is None:
        return "2", "·"
    if bottom is None:
        assert top is not None
        return f"0;{_sgr(top, 38, true_color)}", "▀"
    if top is None:
        return f"0;{_sgr(bottom, 38, true_color)}", "▄"
    return f"0;{_sgr(top, 38, true_color)};{_sgr(bottom, 48, true_color)}", "▀"


def color_text(scene: Scene, width: int, rows: int, true_color: bool = True) -> str:
    """The scene in half blocks: two rows of cells a line, at most `rows` lines of them."""
    label = _label_width(scene)
    grid = make_grid(scene, max(1, width - label - 1), 2 * rows)
    height, columns = grid.cells.shape
    lines = [f"\x1b[1m{scene.title}{_RESET}", *textwrap.wrap(_scale(scene, grid), width)]
    for i in range(0, height, 2):
        first = 1 + i * columns * grid.per_cell
        line, current = [f"{_DIM}{first:>{label},}{_RESET} "], ""
        for j in range(columns):
            top = grid.cells[i, j]
            bottom = grid.cells[i + 1, j] if i + 1 < height else np.uint8(EMPTY)
            if top == EMPTY:
                break
            colors = [None if c == EMPTY else scene.classes[c].color for c in (top, bottom)]
            code, character = _pair(colors[0], colors[1], true_color)
            if code != current:
                line.append(f"\x1b[0;{code}m" if code == "2" else f"\x1b[{code}m")
                current = code
            line.append(character)
        lines.append("".join(line) + _RESET)
    lines += _color_legend(scene, width, true_color)
    for line_ in scene.numbers:
        lines += textwrap.wrap(line_, width)
    return "\n".join(lines) + "\n"


def _color_legend(scene: Scene, width: int, true_color: bool) -> list[str]:
    lines, used = [""], 0
    for code, text in _legend(scene):
        color = scene.classes[code].color
        mark = f"{_DIM}·{_RESET}" if color is None else f"\x1b[{_sgr(color, 38, true_color)}m█{_RESET}"
        length = len(text) + 2
        if used and used + 3 + length > width:
            lines.append("")
            used = 0
        lines[-1] += ("   " if used else "") + f"{mark} {text}"
        used += (3 if used else 0) + length
    return lines


def png_picture(scene: Scene, name: str) -> bytes:
    """The scene as a PNG of about 1500 x 900 pixels, with legend and numbers; bins show their mean colour."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from sim.report import style

    n = len(scene.codes)
    columns = int(min(400, max(16, np.ceil(np.sqrt(n * 1.9)))))
    grid = make_grid(scene, columns, 210)
    palette = np.array([c.color or (255, 255, 255) for c in scene.classes], dtype=np.float64)
    mixed = grid.counts @ palette / grid.counts.sum(axis=1, keepdims=True)
    height = grid.cells.shape[0]
    image = np.full((height * columns, 3), 238.0)
    image[: len(mixed)] = mixed
    pixels = np.round(image).astype(np.uint8).reshape(height, columns, 3)
    with mpl.rc_context():
        mpl.rcdefaults()
        rc: Any = {**style.RC, "axes.grid": False}
        mpl.rcParams.update(rc)
        said = [line for text in scene.numbers for line in textwrap.wrap(text, _PNG_LINE)]
        # inches below the picture: the legend, then the numbers
        legend = 0.12 + 0.2 * -(-len(scene.classes) // _PNG_LEGEND)
        below = legend + 0.17 * len(said) + 0.1
        tall = min(9.0, max(2.2, 10.6 * height / columns)) + 0.75 + below
        figure = Figure(figsize=(11.5, tall))
        ax = figure.add_axes((0.075, below / tall, 0.905, 1 - (0.75 + below) / tall))
        ax.imshow(pixels, aspect="auto", interpolation="nearest", extent=(0, columns, height, 0))
        ticks = np.unique(np.linspace(0, height - 1, min(height, 8)).round().astype(int))
        ax.set_yticks(ticks + 0.5, [f"{1 + t * columns * grid.per_cell:,}" for t in ticks])
        ax.set_xticks([])
        if height <= 60 and columns <= 130:
            ax.set_xticks(np.arange(columns + 1), minor=True)
            ax.set_yticks(np.arange(height + 1), minor=True)
            ax.grid(which="minor", color="white", linewidth=0.6)
            ax.tick_params(which="minor", length=0)
        ax.set_ylabel("first block of the row")
        figure.text(
            0.075, 1 - 0.25 / tall, f"{name}: {scene.title}", fontsize=12, fontweight="bold", va="center"
        )
        figure.text(0.075, 1 - 0.5 / tall, _scale(scene, grid).split(";")[0], color="#444444", va="center")
        faces = ["#{:02x}{:02x}{:02x}".format(*(c.color or (255, 255, 255))) for c in scene.classes]
        handles = [
            Patch(facecolor=f, edgecolor="#999999", label=text)
            for f, (_, text) in zip(faces, _legend(scene), strict=True)
        ]
        figure.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(0.07, (below - 0.06) / tall),
            borderaxespad=0.0,
            ncols=_PNG_LEGEND,
            fontsize=8.5,
        )
        for i, line in enumerate(said):
            y = (below - legend - 0.1 - 0.17 * i) / tall
            figure.text(0.075, y, line, color="#444444", va="center")
        return style.save(figure, "png")
