"""The only place with Numba options, and the key of the on-disk cache of compiled code.

Numba's own cache does not notice an edit of a helper in another file (numba #1833), nor a change of
``NUMBA_*`` variables, so the cache folder is named by a digest over all sources of ``sim/core``, those
variables and the versions of Python, numpy and numba.

``_nrt=False`` switches Numba's reference counting off: it makes an allocation inside the core a compile error
and takes arrays in NamedTuples from microseconds to nanoseconds a call.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.core.typed_passes import NopythonTypeInference

F = TypeVar("F", bound=Callable[..., Any])

_CORE = Path(__file__).resolve().parent


def core_digest() -> str:
    """Sixteen hex digits that change when any source of the core changes."""
    digest = hashlib.sha256()
    for path in sorted(_CORE.glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _cache_key() -> str:
    digest = hashlib.sha256(core_digest().encode())
    for name in sorted(os.environ):
        # the cache folder itself and the warm-up of numba's loader do not change the machine code
        if name.startswith("NUMBA_") and name != "NUMBA_CACHE_DIR":
            digest.update(f"{name}={os.environ[name]}".encode())
    digest.update(f"{sys.version_info[:3]} {np.__version__} {numba.__version__}".encode())
    return digest.hexdigest()[:16]


def cache_dir() -> Path:
    """Folder of the compiled code: ``KVPOOL_CACHE_DIR``, else ``XDG_CACHE_HOME`` or ``~/.cache``, then the key."""
    base = os.environ.get("KVPOOL_CACHE_DIR")
    root = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "kvpool"
    return root / "numba" / _cache_key()


def is_cached() -> bool:
    """Whether the engine's compiled code is on disk (False: the next run compiles it first)."""
    return bool(numba.config.DISABLE_JIT) or any(cache_dir().glob("**/engine.run_until*.nbc"))


numba.config.CACHE_DIR = str(cache_dir())

@register_pass(mutates_CFG=False, analysis_only=True)
class _LinkOnlyLibrary(FunctionPass):
    """Give the function a library whose LLVM module is not optimised.

    Numba optimises the module of each jitted function together with everything that it calls, so a chain of ten
    helpers is optimised ten times over. A helper of the core runs only inside an entry point, whose module holds
    all of them and is optimised once.
    """

    _name = "kvpool_link_only_library"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        library = state.targetctx.codegen().create_library(state.func_id.func_qualname)
        library.enable_object_caching()
        library._optimize_final_module = lambda: None
        state.library = library
        return True


class _HelperCompiler(CompilerBase):
    """Numba's nopython pipeline with a link-only library."""

    def define_pipelines(self) -> list[Any]:
        pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
        pipeline.add_pass_after(_LinkOnlyLibrary, NopythonTypeInference)
        pipeline.finalize()
        return [pipeline]


_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}
_HELPER: dict[str, Any] = {
    **_OPTIONS,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "pipeline_class": _HelperCompiler,
}


def entry(fn: F) -> F:
    """Compile a function that Python calls; its machine code is cached on disk."""
    return numba.njit(cache=True, **_OPTIONS)(fn)


def leaf(fn: F) -> F:
    """Compile a helper that is inlined into its callers."""
    return numba.njit(forceinline=True, **_HELPER)(fn)


def inner(fn: F) -> F:
    """Compile a helper that LLVM inlines only where that pays."""
    return numba.njit(**_HELPER)(fn)
