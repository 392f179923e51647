"""Mutation check: deliberate faults in the kernel, each of which a named test must catch.

`python -m validation.mutations` plants the faults of `faults.FAULTS`, one after the other, in a copy of the
project, runs each one's test there, and prints fault, test and verdict. docs/mutations.md has the list.
"""
