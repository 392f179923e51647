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
from numba.core import types
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.types.misc import unliteral

from sim.core.pipeline import ApartCompiler, EntryCompiler, HelperCompiler
from sim.core.switch import version_of

F = TypeVar("F", bound=Callable[..., Any])

#: Variables that do not change the machine code; joblib sets the second one in its workers.
_NOT_IN_KEY = frozenset({"NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS"})

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
        if name.startswith("NUMBA_") and name not in _NOT_IN_KEY:
            digest.update(f"{name}={os.environ[name]}".encode())
    digest.update(f"{sys.version_info[:3]} {np.__version__} {numba.__version__}".encode())
    return digest.hexdigest()[:16]


def cache_dir() -> Path:
    """Folder of the compiled code: ``KVPOOL_CACHE_DIR``, else ``XDG_CACHE_HOME`` or ``~/.cache``, then the
    key.
    """
    base = os.environ.get("KVPOOL_CACHE_DIR")
    root = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "kvpool"
    return root / "numba" / _cache_key()


def is_cached(version: str = "plain") -> bool:
    """Whether a version of the engine is on disk as compiled code (False: the next run compiles it first).

    version: "plain", "windows" or "general", see ``switch``.
    """
    return numba.config.DISABLE_JIT or _mark("run_until", version).exists()


def _mark(entry_point: str, version: str) -> Path:
    """File that says that a version of an entry point is compiled: Numba's own index tells by types alone."""
    return cache_dir() / f"{entry_point}.{version}"


numba.config.CACHE_DIR = str(cache_dir())


class _CoreLocator:
    """Place of an entry point's machine code: the key's folder, whatever the path and time of the sources.

    Numba names the folder by the source's path and checks its time, so a second clone, a reinstall or a
    container made again would compile the same code again. The key holds a digest of all sources instead.
    """

    def __init__(self, py_func: Callable[..., Any]) -> None:
        self._line = py_func.__code__.co_firstlineno
        self._folder = cache_dir()

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], _py_file: str) -> _CoreLocator:
        return cls(py_func)

    def ensure_cache_path(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)

    def get_cache_path(self) -> str:
        return str(self._folder)

    def get_source_stamp(self) -> str:
        return self._folder.name

    def get_disambiguator(self) -> str:
        return str(self._line)


class _CoreCacheImpl(CompileResultCacheImpl):
    _locator_classes = (_CoreLocator,)


class _CoreCache(FunctionCache):
    _impl_class = _CoreCacheImpl

    def save_overload(self, sig: Any, data: Any) -> None:
        super().save_overload(sig, data)
        version = version_of(sig[0])
        if version is not None:
            _mark(self._py_func.__name__, version).touch()


_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}
_HELPER: dict[str, Any] = {
    **_OPTIONS,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}


def entry(fn: F) -> F:
    """Compile a function that Python calls; its machine code is cached on disk."""
    compiled = numba.njit(cache=True, pipeline_class=EntryCompiler, **_OPTIONS)(fn)
    if not numba.config.DISABLE_JIT and _CORE in Path(fn.__code__.co_filename).resolve().parents:
        compiled._cache = _CoreCache(fn)
    return compiled


def _widened(kind: types.Type) -> Any:
    """Type in which a helper takes an argument: no literals, and signed integers of 64 bits."""
    kind = unliteral(kind)
    return types.int64 if kind in types.signed_domain else kind


def _helper(fn: F, compiler: type[HelperCompiler] = HelperCompiler, forceinline: bool = False) -> F:
    """Compile a helper once for all integers.

    Numba would compile it for each constant and each width that some caller passes. LLVM finds the constants
    again where it inlines, and arithmetic of the narrow integers is of 64 bits anyway.
    """
    # what is left open would be taken from the caller that is being compiled
    compiled = numba.njit(pipeline_class=compiler, forceinline=forceinline, **_HELPER)(fn)
    if not numba.config.DISABLE_JIT:
        template_of = compiled.get_call_template

        def template_of_widened(args: Any, kws: Any) -> Any:
            _, folded = compiled.fold_argument_types(args, kws)
            return template_of(tuple(_widened(kind) for kind in folded), {})

        compiled.get_call_template = template_of_widened
    return compiled


def leaf(fn: F) -> F:
    """Compile a helper that is inlined into its callers."""
    return _helper(fn, forceinline=True)


def inner(fn: F) -> F:
    """Compile a helper that LLVM inlines only where that pays."""
    return _helper(fn)


def apart(fn: F) -> F:
    """Compile a helper that is never inlined: it does much at a time, and several others call it."""
    return _helper(fn, ApartCompiler)
