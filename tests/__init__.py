"""Tests; a package, so that `python -m tests.benchmarks.table` finds its neighbours."""
