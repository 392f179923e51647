"""Benchmarks: deselected by default, run by ``make bench``. None of them asserts a time."""
