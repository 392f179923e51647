"""The pool drawn in a terminal: exact text of a small run, differences, times, and the film."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from sim.analysis.rerun import Rerun
from sim.cli import main
from sim.report.draw import ascii_text, color_text, make_grid
from sim.report.folder import read_run
from sim.report.pool_view import blend, block_codes, count_cells, majority, nice_ticks, png_bytes
from sim.report.scene import STATE_CLASSES, Scene, change_scene, marks_of

ROOT = Path(__file__).resolve().parents[2]


def layout(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["layout", *arguments])


def scene(codes: list[int]) -> Scene:
    return Scene("title", STATE_CLASSES, np.array(codes, dtype=np.uint8), ("numbers",))


AT_12_S = """\
pool at 12.0 s
16 blocks, one cell is one block; numbers at the left: first block of the row
 1 oX###oooo###oX##
. free 0 (0.0 %)   o free and cached 6 (37.5 %)   X used 2 (12.5 %)
# used and cached 8 (50.0 %)
usage 62.5 %, 3 free runs, longest 4, external fragmentation 33.3 %, 3 running,
0 waiting
"""

FROM_9_TO_12_S = """\
pool from 9 s to 12.0 s
16 blocks, one cell is one block; numbers at the left: first block of the row
 1 -++++----+++-+##
. still free 0 (0.0 %)   o still free and cached 0 (0.0 %)
# still used 2 (12.5 %)   c newly cached 0 (0.0 %)   e evicted 0 (0.0 %)
- freed 6 (37.5 %)   + allocated 8 (50.0 %)
8 allocated, 11 freed (5 both), 7 evicted, 6 newly cached; 2 unchanged of 16
used 13 to 10, cached 15 to 14
"""


def test_an_instant_in_letters(small_run: Path) -> None:
    result = layout(str(small_run), "--at", "12s")
    assert result.exit_code == 0
    assert result.stdout == AT_12_S


def test_a_difference_in_letters(small_run: Path) -> None:
    result = layout(str(small_run), "--diff", "9s", "0.2min")
    assert result.exit_code == 0
    assert result.stdout == FROM_9_TO_12_S


def test_the_letters_agree_with_the_snapshot(small_run: Path) -> None:
    rerun = Rerun(small_run)
    for at in (0, 3_000_000_000, 12_000_000_000, rerun.end_ns):
        snapshot = rerun.snapshot(at)
        np.testing.assert_array_equal(block_codes(rerun.state_at(at)), snapshot.state[1:])
        shown = layout(str(small_run), "--at", f"{at / 1e9}s").stdout
        letters = "".join(".oX#"[s] for s in snapshot.state[1:])
        assert f"\n 1 {letters}\n" in shown
        assert f"longest {snapshot.largest_free_run}," in shown


def test_a_difference_is_what_the_states_of_both_instants_say(small_run: Path) -> None:
    rerun = Rerun(small_run)
    first, second = 9_000_000_000, 12_000_000_000
    a = rerun.snapshot(first)
    keys_a = np.array(rerun.state_at(first).kv.pool.blocks["block_hash"][1 : a.num_blocks])
    before = marks_of(rerun.state_at(first), first)
    after = marks_of(rerun.state_at(second), second)
    keys_b = np.array(rerun.state_at(second).kv.pool.blocks["block_hash"][1 : a.num_blocks])
    evicted = sum(x not in {0, y} for x, y in zip(keys_a, keys_b, strict=True))
    cached = sum(y not in {0, x} for x, y in zip(keys_a, keys_b, strict=True))
    numbers = change_scene(before, after).numbers[0]
    assert f" {evicted} evicted, {cached} newly cached" in numbers


def test_nothing_changes_in_no_time(small_run: Path) -> None:
    shown = layout(str(small_run), "--diff", "12s", "12s").stdout
    assert "0 allocated, 0 freed (0 both), 0 evicted, 0 newly cached; 16 unchanged of 16" in shown


def test_without_a_time_the_tightest_moment_is_drawn(small_run: Path) -> None:
    worst = read_run(small_run).summary["worst_moment"]["time_s"]
    assert f"pool at {worst:.9g} s" in layout(str(small_run)).stdout


def test_big_pools_are_binned_by_majority() -> None:
    codes = [3] * 5 + [0] * 4 + [1] * 7 + [2] * 4
    grid = make_grid(scene(codes), columns=3, rows=2)
    assert grid.per_cell == 4
    # cells: 3333 | 3000 | 0111 | 1111 | 2222, and none behind them
    assert grid.cells.tolist() == [[3, 0, 1], [1, 2, 255]]
    shown = ascii_text(scene(codes), width=6, rows=2)
    assert " 1 #.o\n13 oX\n" in shown
    assert grid.counts.sum() == len(codes)


def test_a_tie_goes_to_the_class_that_matters_more() -> None:
    assert majority(np.array([[2, 2, 0, 0], [1, 0, 0, 1], [0, 0, 5, 0]])).tolist() == [1, 3, 2]


def test_half_blocks_show_two_rows_a_line() -> None:
    shown = color_text(scene([0, 2, 0, 2, 0, 2, 2]), width=4, rows=10)
    orange = "38;2;230;159;0"
    lines = [line for line in shown.splitlines() if "▀" in line or "▄" in line or "·" in line]
    # two columns: rows (free, used), (free, used), (free, used), (used, -)
    assert re.sub(r"\x1b\[[^m]*m", "", lines[0]) == "1 ·▀"
    assert re.sub(r"\x1b\[[^m]*m", "", lines[1]) == "5 ▄▀"
    assert orange in lines[0]
    assert "38;5;" in color_text(scene([2]), width=4, rows=10, true_color=False)


def test_a_png(small_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "pool.png"
    for arguments in (("--at", "12s"), ("--diff", "9s", "12s")):
        result = layout(str(small_run), *arguments, "--png", str(out))
        assert result.exit_code == 0, result.stderr
        assert result.stdout == ""
        assert out.read_bytes().startswith(b"\x89PNG")


def test_the_colours_of_a_cell_are_the_mean_of_its_blocks() -> None:
    share = np.array([[0, 0, 0, 1], [1, 0, 0, 0], [0.5, 0, 0.5, 0]])
    assert blend(share)[0].tolist() == [0, 0x72, 0xB2, 255]
    assert blend(share)[1, 3] == 0
    assert blend(share)[2].tolist() == [0xE6, 0x9F, 0, 128]
    assert blend(share, opaque=True)[1].tolist() == [255, 255, 255, 255]
    assert count_cells(np.array([0, 3, 3], np.uint8), np.array([0, 0, 1]), 2).tolist() == [
        [1, 0, 0, 1],
        [0, 0, 0, 1],
    ]


def test_a_picture_is_read_back_as_it_was() -> None:
    import io

    from matplotlib.image import imread

    pixels = np.arange(5 * 7 * 4, dtype=np.uint8).reshape(5, 7, 4)
    back = imread(io.BytesIO(png_bytes(pixels)))
    np.testing.assert_array_equal(np.round(back * 255).astype(np.uint8), pixels)


@pytest.mark.parametrize(
    ("end", "ticks"),
    [(15.6, [0, 5, 10, 15]), (1.0, [0, 0.2, 0.4, 0.6, 0.8]), (100.0, [0, 20, 40, 60, 80]), (0.0, [0])],
)
def test_ticks_are_round_numbers(end: float, ticks: list[float]) -> None:
    assert nice_ticks(end) == ticks


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--at", "3h"), "--at: 3h lies beyond the end, which"),
        (("--at", "soon"), "--at: expected a number of seconds"),
        (("--at", "-3s"), "--at: expected a number of seconds"),
        (("--diff", "12s", "9s"), "--diff: the first instant (12s) is later than the second (9s)"),
        (("--diff", "9s", "9h"), "--diff: 9h lies beyond the end, which"),
        (("--at", "9s", "--diff", "1s", "2s"), "layout: --at and --diff exclude each other"),
        (("--watch", "--png", "x.png"), "layout: --watch and --png exclude each other"),
        (("--watch",), "layout: --watch needs a terminal"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    small_run: Path, arguments: tuple[str, ...], said: str
) -> None:
    result = layout(str(small_run), *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(said)
    assert result.stdout == ""


def test_not_a_run_folder(tmp_path: Path) -> None:
    result = layout(str(tmp_path), "--at", "1s")
    assert result.exit_code == 2
    assert "this is not a run folder" in result.stderr


def play(run: Path, *arguments: str, stop: bool, lines: int = 24, columns: int = 80) -> tuple[bytes, int]:
    """Output and exit code of a film in a terminal of this size; `stop`: Ctrl-C after the first frames."""
    command = [sys.executable, "-m", "sim", "layout", str(run), "--watch", *arguments]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        # readline sets LINES and COLUMNS for child processes, where os.environ does not see them
        variables = {k: v for k, v in os.environ.items() if k not in ("LINES", "COLUMNS")}
        variables |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        os.execve(sys.executable, command, variables)
    out, stopped, deadline = b"", False, time.monotonic() + 120
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                data = os.read(terminal, 65536)
            except OSError:
                break
            if not data:
                break
            out += data
        if stop and not stopped and out.count(b"\x1b[H") >= 3:
            os.write(terminal, b"\x03")
            stopped = True
    else:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(terminal)
    return out, code


@pytest.mark.slow
@pytest.mark.parametrize("stop", [False, True])
def test_a_film_gives_the_terminal_back(small_run: Path, stop: bool) -> None:
    speed = ("--speed", "0.5") if stop else ("--speed", "50", "--fps", "20")
    out, code = play(small_run, *speed, stop=stop)
    assert code == 0, out
    assert out.startswith(b"\x1b[?1049h\x1b[?25l\x1b[?7l")
    left = out.rindex(b"\x1b[?7h\x1b[?25h\x1b[?1049l")
    # the last frame stays on the screen, after the terminal is as it was
    assert b"pool at" in out[left:]
    assert b"\x1b[?1049h" not in out[left:]
    assert b"Traceback" not in out
    if not stop:
        assert f"pool at {read_run(small_run).end_ns / 1e9:.1f} s".encode() in out[left:]


@pytest.mark.slow
def test_a_film_stays_within_a_small_terminal(small_run: Path) -> None:
    out, code = play(small_run, "--speed", "50", "--fps", "20", stop=False, lines=5, columns=30)
    assert code == 0, out
    frames = out[: out.rindex(b"\x1b[?7h")].split(b"\x1b[H")[1:]
    assert {frame.count(b"\n") for frame in frames} == {4}
