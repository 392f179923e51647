"""docs/mutations.md, from the list of faults."""

from __future__ import annotations

from validation.mutations.fault import TEST_FILE
from validation.mutations.faults import FAULTS

_HEAD = f"""\
# Mutation check

Deliberate faults in the kernel, each caught by a test of its own. `python -m validation.mutations` plants
them one after the other in a copy of the project, runs the named test there (Numba switched off: the cases
are small) and prints fault, test and verdict; the exit code is 0 only if every fault is caught. A fault
whose text no longer stands in the kernel stops the check with the fault's name: it has to be written anew
in `validation/mutations/faults.py`.

Each test is `{TEST_FILE}::test_rule[FAULT]`. It replays a short recording of a real vLLM, below
`tests/recorded_vllm`, and compares every column of every row. Those in `mutations` were found by
random search on the faulty kernel, made small, and then recorded on the real scheduler, so none of them was
made to fit the kernel: `python -m validation.mutations --make` does it again. The others are random cases
with KV-cache groups, drafts or other releases that were recorded anyway. `make test` runs the tests
without the faults, and the check itself (`tests/validation/test_mutations.py`).

This page is generated: `python -m validation.mutations --document > docs/mutations.md`.

| fault | vLLM | the faulty kernel | where | recording |
| --- | --- | --- | --- | --- |
"""


def render() -> str:
    """The page."""
    lines = [f"| `{f.name}` | {f.rule} | {f.broken} | `{f.file}` | `{f.folder}` |\n" for f in FAULTS]
    return _HEAD + "".join(lines)
