"""Validation of the simulator against a real vLLM: record, compare, fuzz, report.

This package is the only place in the project that may import vllm, and it does so inside functions:
everything here can be imported, and `python -m validation --help` runs, with no vLLM installed.
"""
