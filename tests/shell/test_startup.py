"""A start goes without garbage collections, and nothing of that stays."""

from __future__ import annotations

import subprocess
import sys

from sim.startup import OBJECTS_OF_A_START

_SCRIPT = """
import gc, sys
from sim.startup import put_off_collection
usual = gc.get_threshold()
put_off_collection()
put_off_collection()
late = gc.get_threshold()
gc.collect()
after = gc.get_threshold()
put_off_collection()
print(late[0], after == usual == gc.get_threshold())
"""


def test_the_first_collection_waits_and_the_thresholds_come_back() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(OBJECTS_OF_A_START), "True"]


def test_a_collector_that_is_off_stays_off() -> None:
    lines = (
        "import gc",
        "from sim.startup import put_off_collection",
        "gc.disable()",
        "before = gc.get_threshold()",
        "put_off_collection()",
        "assert gc.get_threshold() == before and not gc.isenabled()",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)
