"""The options of `vllm serve`, taken from vLLM's own parser: names, numbers of values, other spellings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: What the simulator's table has: written by this module, read by sim.serve_args.
TABLE = Path(__file__).parent.parent / "sim" / "serve_args" / "options.json"


def real_options() -> dict[str, dict[str, Any]]:
    """Every option of `vllm serve`: name -> {"takes": ..., "aliases": [...]} in the parser's order.

    `takes` is none (a switch without a value), flag (also as --no-NAME), one, many, optional, or append
    (one value, may be repeated).
    """
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = ServeSubcommand().subparser_init(FlexibleArgumentParser().add_subparsers())
    found: dict[str, dict[str, Any]] = {}
    for action in parser._actions:
        kind = type(action).__name__
        if not action.option_strings or kind == "_HelpAction":
            continue
        spellings = [s for s in action.option_strings if not s.startswith("--no-")]
        name = next((s for s in spellings if s.startswith("--")), spellings[0])
        if kind == "BooleanOptionalAction":
            takes = "flag"
        elif action.nargs == 0:
            takes = "none"
        elif kind == "_AppendAction":
            takes = "append"
        else:
            takes = {"+": "many", "*": "many", "?": "optional"}.get(str(action.nargs), "one")
        entry: dict[str, Any] = {"takes": takes}
        aliases = [s for s in spellings if s != name]
        if aliases:
            entry["aliases"] = aliases
        found[name] = entry
    return found


def as_text(options: dict[str, dict[str, Any]], version: str) -> str:
    """The table as it is committed: one option a line."""
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in options.items())
    return f'{{\n  "vllm": "{version}",\n  "options": {{\n{lines}\n  }}\n}}\n'


def differences() -> list[str]:
    """How the committed table differs from the parser of the vLLM that is installed."""
    real = real_options()
    ours = json.loads(TABLE.read_text(encoding="utf-8"))["options"]
    out = [f"{name} is new" for name in real if name not in ours]
    out += [f"{name} is gone" for name in ours if name not in real]
    out += [
        f"{n}: {real[n]} in vLLM, {ours[n]} in the table" for n in real if n in ours and real[n] != ours[n]
    ]
    return out
