"""A hint to the processor: this element will be needed soon.

The pool's work is bound by cache misses once its tables outgrow the caches, and the blocks that come next are
known: they stand in the free queue, in the chain of hashes, in the table being freed.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from sim.core.views import element_address

_FOR_WRITING = 1
_KEEP_IN_ALL_CACHES = 3
_DATA = 1


def _no_prefetch(array: Any, index: int) -> None:
    """Plain Python has no use for the hint."""


def _lower_prefetch(_typing: Any, array: Any, _index: Any) -> Any:
    """Typing and code of ``prefetch(array, index)``: element ``index`` of a 1-D array, not bounds-checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = element_address(context, builder, signature.args[0], arguments[0], [arguments[1]])
        byte_pointer = ir.IntType(8).as_pointer()
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte_pointer, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, word(_FOR_WRITING), word(_KEEP_IN_ALL_CACHES), word(_DATA)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


prefetch = _no_prefetch if numba.config.DISABLE_JIT else intrinsic(_lower_prefetch)
