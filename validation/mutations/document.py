"""docs/mutations.md, from the list of faults."""

from __future__ import annotations

from validation.mutations.faults import FAULTS, TEST_FILE

_HEAD = f"""\
# Mutation check

Deliberate faults in the kernel, each caught by a test of its own. `python -m validation.mutations` plants
them one after the other in a copy of the project, runs the named test there (Numba switched off: the cases
are small) and prints fault, test and verdict; the exit code is 0 only if every fault is caught. A fault
whose text no longer stands in the kernel stops the check with the fault's name: it has to be written anew
in `validation/mutations/faults.py`.

Each test is `{TEST_FILE}::test_rule[FAULT]`. It replays a short recording of a real vLLM 0.32.0
(`tests/recorded_vllm/mutations/FAULT`) and compares every column of every row. The recordings were found by
random search on the faulty kernel, made small, and then recorded on the real scheduler, so none of them was
made to fit the kernel: `python -m validation.mutations --make` does it again. `make test` runs the tests
without the faults, and the check itself (`tests/validation/test_mutations.py`).

This page is generated: `python -m validation.mutations --document > docs/mutations.md`.

| fault | vLLM | the faulty kernel | where |
| --- | --- | --- | --- |
"""


def render() -> str:
    """The page."""
    lines = [f"| `{f.name}` | {f.rule} | {f.broken} | `{f.file}` |\n" for f in FAULTS]
    return _HEAD + "".join(lines)
