"""Many runs of one config: axes over its keys, several seeds, in parallel, resumable."""
