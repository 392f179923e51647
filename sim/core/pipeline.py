"""How Numba compiles the core: one module for an entry point and all its helpers, and nothing twice.

Numba's own way is to optimise each function with everything that it calls, to compile it once for each
constant and each width of integers, and to look through all types for the meaning of each ``+``.
"""

from __future__ import annotations

import operator
from typing import Any, ClassVar

import numba
from llvmlite.binding import Linkage
from numba import _dynfunc
from numba.core import typed_passes, types, untyped_passes
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import FunctionPass, LoweringPass, register_pass
from numba.core.typed_passes import NativeLowering, NopythonTypeInference
from numba.np import arrayobj


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
        self._linking_libraries: list[Any] = []
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
        callers_first = reversed(self._linking_libraries)
        self._linking_libraries = [
            _OneHelper(part) if isinstance(part, _HelperLibrary) else part for part in callers_first
        ]
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

    def _get_module_for_linking(self) -> Any:
        # the module lacks what the helper calls, and the process would crash there
        raise TypeError(
            f"{self.name} is a helper of the core, and called by a function that is no part of it: compile "
            "that one with sim.core.jit.entry"
        )

    def finalize(self) -> None:
        """Nothing can be added any more."""
        self._raise_if_finalized()
        self._finalize_dynamic_globals()
        self._finalized = True


class _OneHelper:
    """What a helper brings into the library of an entry point, which takes its callees by themselves."""

    def __init__(self, library: _HelperLibrary) -> None:
        self._library = library
        self._reload_init = library._reload_init

    def _get_module_for_linking(self) -> Any:
        return JITCodeLibrary._get_module_for_linking(self._library)


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


class EntryCompiler(CompilerBase):
    """Pipeline of the entry points."""

    def define_pipelines(self) -> list[Any]:
        pipeline = _core_pipeline(self.state)
        pipeline.add_pass_after(_MakeEntryLibrary, _CoreTypeInference)
        pipeline.finalize()
        return [pipeline]


class HelperCompiler(CompilerBase):
    """Pipeline of the helpers."""

    library: type[_HelperLibrary] = _HelperLibrary

    def define_pipelines(self) -> list[Any]:
        pipeline = _core_pipeline(self.state)
        pipeline.add_pass_after(_MakeHelperLibrary, _CoreTypeInference)
        pipeline.add_pass_after(_RegisterHelper, _CoreLowering)
        pipeline.finalize()
        return [pipeline]


class ApartCompiler(HelperCompiler):
    """Pipeline of the helpers that are never inlined."""

    library = _ApartLibrary
