"""`vllm serve` command lines and vLLM's own YAML config files as the engine section of a simulation.

`table` says what each option of vLLM 0.32.0 means here, `parse` reads a command line or a file as vLLM
does, `apply` turns them into edits of a config, and says what was ignored.
"""

from sim.serve_args.apply import ServeSource, serve_edit

__all__ = ["ServeSource", "serve_edit"]
