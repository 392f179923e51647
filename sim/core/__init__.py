"""The jitted, allocation-free core: everything that vLLM decides, on numpy arrays.

numpy and numba only; no Python objects, no I/O. The shell (``sim``) sizes the arrays, fills in the requests
and drains the logs; the core never imports it.
"""
