"""Fragmentation of a paged KV cache: what a pool looks like at an instant, over time, and why."""
