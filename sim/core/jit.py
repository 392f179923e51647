"""The only place with Numba options, and the key of the on-disk cache of compiled code.

Numba's own cache does not notice an edit of a helper in another file (numba #1833), nor a change of
``NUMBA_*`` variables, so the cache folder is named by a digest over all sources of ``sim/core``, those
variables and the versions of Python, numpy and numba.

``_nrt=False`` switches Numba's reference counting off: it makes an allocation inside the core a compile error
and takes arrays in NamedTuples from microseconds to nanoseconds a call.
"""

from __future__ import annotations

import contextlib
import hashlib
import operator
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numba
import numpy as np
from llvmlite.binding import Linkage
from numba import _dynfunc
from numba.core import typed_passes, types, untyped_passes
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import FunctionPass, LoweringPass, register_pass
from numba.core.typed_passes import NativeLowering, NopythonTypeInference
from numba.core.types.misc import unliteral
from numba.np import arrayobj

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


_GENERAL_MARK = "general"


def is_cached(plain: bool = True) -> bool:
    """Whether the engine's compiled code is on disk (False: the next run compiles it first).

    plain: the version for full attention alone, see ``switch``; the general one leaves a mark of its own.
    """
    if numba.config.DISABLE_JIT:
        return True
    compiled = any(cache_dir().glob("engine.run_until*.nbc"))
    return compiled and (plain or (cache_dir() / _GENERAL_MARK).exists())


def note_general() -> None:
    """The general version of the engine is compiled by now (a folder that can't be written holds no code)."""
    with contextlib.suppress(OSError):
        (cache_dir() / _GENERAL_MARK).touch()


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


def _refuse_python() -> None:
    """Stands in for the Python entry point of a helper; its wrapper refuses any argument with a TypeError."""


class _Refusal:
    """Address of the compiled wrapper of ``_refuse_python``, made on first use."""

    _address = 0

    @classmethod
    def address(cls) -> int:
        if not cls._address:
            dispatcher = numba.njit(_refuse_python)
            dispatcher.compile(())
            result = dispatcher.overloads[()]
            cls._address = result.library.get_pointer_to_function(result.fndesc.llvm_cpython_wrapper_name)
        return cls._address


class _Library(JITCodeLibrary):
    """Library that is linked together with all helpers that its functions call, and those that they call."""

    def __init__(self, codegen: Any, name: str) -> None:
        super().__init__(codegen, name)
        self._linked: set[Any] = set()

    def add_linking_library(self, library: Any) -> None:
        """Note a library that finalising this one links in."""
        library._ensure_finalized()
        parts = (*library._linking_libraries, library) if isinstance(library, _HelperLibrary) else (library,)
        for part in parts:
            if part not in self._linked:
                self._linked.add(part)
                self._linking_libraries.append(part)

    def finalize(self) -> None:
        """Link, optimise and compile."""
        # LLVM leaves a function out that nothing calls yet: callers come first
        self._linking_libraries.reverse()
        super().finalize()

    def _optimize_final_module(self) -> None:
        # nobody else calls the helpers: one that is called in one place alone is inlined there
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage == Linkage.linkonce_odr:
                function.linkage = Linkage.internal
        super()._optimize_final_module()


class _HelperLibrary(_Library):
    """Library of one helper alone, which is neither optimised nor turned into machine code.

    Numba does both for each jitted function together with everything that it calls, so a chain of ten helpers
    is linked and optimised ten times over. A helper of the core runs only inside an entry point, whose module
    holds all of them and is optimised and compiled once.
    """

    def finalize(self) -> None:
        """Nothing can be added any more."""
        self._raise_if_finalized()
        self._finalize_dynamic_globals()
        self._finalized = True


class _ApartLibrary(_HelperLibrary):
    """Library of a helper that stays a function of its own."""

    def add_ir_module(self, ir_module: Any) -> None:
        """Take the helper's code, and keep LLVM from inlining it."""
        for function in ir_module.functions:
            if not function.is_declaration and "alwaysinline" not in function.attributes:
                function.attributes.add("noinline")
        super().add_ir_module(ir_module)


@register_pass(mutates_CFG=False, analysis_only=True)
class _MakeHelperLibrary(FunctionPass):
    """Give a helper a library that no code is made of."""

    _name = "kvpool_helper_library"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        kind = state.pipeline.library
        state.library = kind(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        return True


@register_pass(mutates_CFG=False, analysis_only=True)
class _MakeEntryLibrary(FunctionPass):
    """Give an entry point a library with all helpers."""

    _name = "kvpool_entry_library"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        state.library = _Library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        return True


@register_pass(mutates_CFG=False, analysis_only=True)
class _RegisterHelper(LoweringPass):
    """Make a helper known to its callers (what Numba does together with the generation of machine code)."""

    _name = "kvpool_register_helper"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        lowered = state["cr"]
        descriptor = lowered.fndesc
        refusal = _dynfunc.make_function(
            descriptor.lookup_module(),
            descriptor.qualname.split(".")[-1],
            "helper of the core: runs in jitted code only",
            _Refusal.address(),
            lowered.env,
            (state.library,),
        )
        state.targetctx.insert_user_function(refusal, descriptor, [state.library])
        state["cr"] = lowered._replace(cfunc=refusal)
        return True


def _index_as_it_is(context: Any, builder: Any, kind: Any, index: Any, _size: Any) -> Any:
    """An index of the core is never negative, so it needs no wraparound."""
    return context.cast(builder, index, kind, types.intp if kind.signed else types.uintp)


@register_pass(mutates_CFG=True, analysis_only=False)
class _CoreLowering(NativeLowering):
    """Lowering without negative indices, which would cost a compare and a move on every access.

    Numba has no option for that. The compiler lock is held while a function is lowered, so nobody else's
    code is lowered with the substitute.
    """

    _name = "kvpool_lowering"

    def run_pass(self, state: Any) -> bool:
        original = arrayobj.fix_integer_index
        arrayobj.fix_integer_index = _index_as_it_is
        try:
            return bool(super().run_pass(state))
        finally:
            arrayobj.fix_integer_index = original


class _RememberingContext:
    """Typing context that answers a question about Numba's own functions once.

    Numba goes through up to some sixty templates for the type of each ``+``.
    """

    _signatures: ClassVar[dict[tuple[Any, ...], Any]] = {}
    _attributes: ClassVar[dict[tuple[Any, ...], Any]] = {}

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def resolve_function_type(self, func: Any, args: Any, kws: Any) -> Any:
        """Signature of a call."""
        if not isinstance(func, types.Function):
            return self._context.resolve_function_type(func, args, kws)
        key = (func, tuple(args), tuple(dict(kws).items()))
        known = self._signatures.get(key)
        if known is None:
            known = self._context.resolve_function_type(func, args, kws)
            self._signatures[key] = known
        return known

    def resolve_setitem(self, target: Any, index: Any, value: Any) -> Any:
        """Signature of ``target[index] = value``."""
        setitem = self._context.resolve_value_type(operator.setitem)
        return self.resolve_function_type(setitem, (target, index, value), {})

    def resolve_getattr(self, kind: Any, attr: str) -> Any:
        """Type of an attribute."""
        key = (kind, attr)
        known = self._attributes.get(key)
        if known is None:
            known = self._context.resolve_getattr(kind, attr)
            self._attributes[key] = known
        return known


@register_pass(mutates_CFG=True, analysis_only=False)
class _CoreTypeInference(NopythonTypeInference):
    """Type inference that remembers."""

    _name = "kvpool_type_inference"

    def run_pass(self, state: Any) -> bool:
        original = state.typingctx
        state.typingctx = _RememberingContext(original)
        try:
            return bool(super().run_pass(state))
        finally:
            state.typingctx = original


#: Passes for what the core has none of: closures, ``with``, exceptions, literal arguments, array expressions.
_LEFT_OUT = frozenset(
    {
        untyped_passes.WithLifting,
        untyped_passes.InlineClosureLikes,
        untyped_passes.RewriteSemanticConstants,
        untyped_passes.DeadBranchPrune,
        untyped_passes.RewriteDynamicRaises,
        untyped_passes.MakeFunctionToJitFunction,
        untyped_passes.InlineInlinables,
        untyped_passes.FindLiterallyCalls,
        untyped_passes.LiteralUnroll,
        untyped_passes.LiteralPropagationSubPipelinePass,
        typed_passes.InlineOverloads,
        typed_passes.NopythonRewrites,
        typed_passes.DumpParforDiagnostics,
    }
)
_IN_PLACE_OF = {NopythonTypeInference: _CoreTypeInference, NativeLowering: _CoreLowering}


def _core_pipeline(state: Any) -> Any:
    """Numba's nopython pipeline without what the core does not need, not finalised."""
    pipeline = DefaultPassBuilder.define_nopython_pipeline(state)
    pipeline.passes = [
        (_IN_PLACE_OF.get(step, step), why) for step, why in pipeline.passes if step not in _LEFT_OUT
    ]
    return pipeline


class _EntryCompiler(CompilerBase):
    """Pipeline of the entry points."""

    def define_pipelines(self) -> list[Any]:
        pipeline = _core_pipeline(self.state)
        pipeline.add_pass_after(_MakeEntryLibrary, _CoreTypeInference)
        pipeline.finalize()
        return [pipeline]


class _HelperCompiler(CompilerBase):
    """Pipeline of the helpers."""

    library: type[_HelperLibrary] = _HelperLibrary

    def define_pipelines(self) -> list[Any]:
        pipeline = _core_pipeline(self.state)
        pipeline.add_pass_after(_MakeHelperLibrary, _CoreTypeInference)
        pipeline.add_pass_after(_RegisterHelper, _CoreLowering)
        pipeline.finalize()
        return [pipeline]


class _ApartCompiler(_HelperCompiler):
    """Pipeline of the helpers that are never inlined."""

    library = _ApartLibrary


_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}
_HELPER: dict[str, Any] = {
    **_OPTIONS,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}


def entry(fn: F) -> F:
    """Compile a function that Python calls; its machine code is cached on disk."""
    compiled = numba.njit(cache=True, pipeline_class=_EntryCompiler, **_OPTIONS)(fn)
    if not numba.config.DISABLE_JIT and _CORE in Path(fn.__code__.co_filename).resolve().parents:
        compiled._cache = _CoreCache(fn)
    return compiled


def _widened(kind: types.Type) -> Any:
    """Type in which a helper takes an argument: no literals, and signed integers of 64 bits."""
    kind = unliteral(kind)
    return types.int64 if kind in types.signed_domain else kind


def _helper(fn: F, compiler: type[_HelperCompiler] = _HelperCompiler, forceinline: bool = False) -> F:
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
    return _helper(fn, _ApartCompiler)
