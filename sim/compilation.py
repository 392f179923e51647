"""Whether a command compiles the core before its first step, and what it says then."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.engine_settings import EngineSettings

NOTE = "compiling the engine once for this machine (some 20 s); later runs start at once"


def is_compiled(engine: EngineSettings | None = None) -> bool:
    """Whether the version of the core for such an engine is on disk; None: the one for full attention alone.

    See ``sim.core.switch``.
    """
    from sim.core.jit import is_cached
    from sim.groups import layout_of

    return is_cached("plain" if engine is None else layout_of(engine).version)


__all__ = ["NOTE", "is_compiled"]
