"""`python -m sim layout`: the pool at an instant, between two, or as a film."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from sim.errors import InputError
from sim.report.draw import ascii_text, color_text, png_picture
from sim.report.folder import parse_time
from sim.report.layout_source import Source, open_source
from sim.report.scene import Scene, change_scene

_FILM_SECONDS = 30.0
_PLAIN_WIDTH, _PLAIN_ROWS = 80, 32
#: Lines beside the picture: title, scale, legend, numbers, the prompt after it.
_OTHER_LINES = 8
#: The other screen, without a cursor; lines that are too long are cut there.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"


@dataclass(frozen=True)
class LayoutOptions:
    """What the command line says; see `python -m sim layout --help`."""

    at: str | None = None
    diff: tuple[str, str] | None = None
    watch: bool = False
    fps: float = 10.0
    speed: float | None = None
    png: str | None = None
    plain: bool = False
    width: int | None = None
    rows: int | None = None
    replica: int | None = None


def show(folder: str, options: LayoutOptions, stream: TextIO) -> None:
    """Draw to `stream`, or to the PNG file.

    Raises:
        InputError: neither a run folder nor a recording, times that are none or lie outside the run,
            options that exclude each other.
    """
    chosen = [n for n, v in (("--at", options.at), ("--diff", options.diff), ("--watch", options.watch)) if v]
    if len(chosen) > 1:
        raise InputError(f"{' and '.join(chosen)} exclude each other", "layout", hint="give one of them")
    if options.watch and options.png:
        raise InputError("--watch and --png exclude each other", "layout", hint="give --at with --png")
    if options.watch and not stream.isatty():
        raise InputError("--watch needs a terminal", "layout", hint="use --at TIME, or --png FILE")
    source = open_source(folder, options.replica)
    if options.diff:
        first, second = (parse_time(t, source.end_ns, "--diff") for t in options.diff)
        if first > second:
            raise InputError(
                f"the first instant ({options.diff[0]}) is later than the second ({options.diff[1]})",
                "--diff",
                hint="give the earlier one first",
            )
        before = source.marks(first)
        scene = change_scene(before, source.marks(second), source.remark(first, second))
    else:
        at = source.tightest_ns() if options.at is None else parse_time(options.at, source.end_ns, "--at")
        if options.watch:
            _watch(source, options, stream)
            return
        scene = source.scene(at)
    if options.png is not None:
        from sim.report.files import write_whole

        write_whole(Path(options.png), png_picture(scene, source.name))
        return
    stream.write(_text(scene, options, stream))
    stream.flush()


def _text(scene: Scene, options: LayoutOptions, stream: TextIO) -> str:
    colored = stream.isatty() and not options.plain and not os.environ.get("NO_COLOR")
    colored = colored and os.environ.get("TERM") != "dumb"
    if stream.isatty():
        size = shutil.get_terminal_size((_PLAIN_WIDTH, _PLAIN_ROWS + _OTHER_LINES))
        width, rows = size.columns, max(4, size.lines - _OTHER_LINES)
    else:
        width, rows = _PLAIN_WIDTH, _PLAIN_ROWS
    width, rows = options.width or width, options.rows or rows
    if not colored:
        return ascii_text(scene, width, rows)
    true_color = os.environ.get("COLORTERM", "") in ("truecolor", "24bit")
    return color_text(scene, width, rows, true_color)


def _watch(source: Source, options: LayoutOptions, stream: TextIO) -> None:
    """Play the run; the last frame stays on the screen. Ctrl-C stops it."""
    end = source.end_ns
    speed = options.speed or max(end / 1e9 / _FILM_SECONDS, 1e-9)
    frame = ""
    size = shutil.get_terminal_size()
    stream.write(_ENTER)
    try:
        now = 0
        while True:
            started = time.monotonic()
            scene = source.scene(now)
            frame = _text(scene, options, stream)
            resized, size = size != shutil.get_terminal_size(), shutil.get_terminal_size()
            # one line more than the screen has would scroll it
            body = "\x1b[K\n".join(frame.rstrip("\n").split("\n")[: size.lines])
            stream.write(("\x1b[2J" if resized else "") + f"\x1b[H{body}\x1b[K\x1b[J")
            stream.flush()
            if now >= end:
                break
            now = min(end, now + max(1, round(speed / options.fps * 1e9)))
            time.sleep(max(0.0, 1 / options.fps - (time.monotonic() - started)))
    except KeyboardInterrupt:
        pass
    finally:
        stream.write(_LEAVE)
        stream.write(frame)
        stream.flush()
