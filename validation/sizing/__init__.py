"""The simulator's sizing against a real vLLM: layer specs, groups, pages, blocks, concurrency and weights."""
