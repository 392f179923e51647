"""Jitted code that reaches other structs, and the engine, by their addresses.

A loop over many engines takes them as an array of addresses. ``struct_at`` is the struct at one of them, and
``call_engine`` calls the machine code of ``engine.run_until``, which is compiled already: the loop's own
module does not hold the engine a second time, so it compiles in a second or two.

With NUMBA_DISABLE_JIT an address is looked up among the structs whose addresses were asked for.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

import numba
from numba.core import cgutils, types
from numba.extending import intrinsic

from sim.core.engine import run_until
from sim.core.struct import Struct, StructType

_KNOWN: WeakValueDictionary[int, Struct] = WeakValueDictionary()


def address_of(struct: Struct) -> int:
    """Address of a struct's table of addresses; the caller keeps the struct alive."""
    _KNOWN[struct.native_address] = struct
    return struct.native_address


def engine_address(state: Struct) -> int:
    """Address of the machine code of ``run_until`` for states of this type; compiles or loads it when needed.

    0 without the compiler. The code stays where it is as long as the process lives.
    """
    if numba.config.DISABLE_JIT:
        return 0
    signature = (state.native_type(), types.int64, types.int64)
    dispatcher: Any = run_until
    dispatcher.compile(signature)
    compiled = dispatcher.overloads[signature]
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))


def _python_struct_at(_like: Struct, address: int) -> Any:
    return _KNOWN[int(address)]


def _python_call_engine(_code: int, _like: Struct, address: int, t_end: int, max_steps: int) -> int:
    return run_until(_KNOWN[int(address)], t_end, max_steps)


def _lower_struct_at(_typing: Any, like: Any, _address: Any) -> Any:
    """Typing and code of ``struct_at(like, address)``: the struct at the address, of the type of ``like``."""
    if not isinstance(like, StructType):
        return None

    def generate(_context: Any, _builder: Any, _signature: Any, arguments: Any) -> Any:
        return arguments[1]

    return like(like, types.int64), generate


def _lower_call_engine(
    _typing: Any, _code: Any, like: Any, _address: Any, _t_end: Any, _max_steps: Any
) -> Any:
    """Typing and code of ``call_engine(code, like, address, t_end, max_steps)``: ``run_until``."""
    if not isinstance(like, StructType):
        return None
    taken = (like, types.int64, types.int64)

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = context.call_conv.get_function_type(types.int64, taken)
        code = builder.inttoptr(arguments[0], kind.as_pointer())
        status, result = context.call_conv.call_function(builder, code, types.int64, taken, arguments[2:])
        with cgutils.if_unlikely(builder, status.is_error):
            context.call_conv.return_status_propagate(builder, status)
        return result

    return types.int64(types.int64, like, types.int64, types.int64, types.int64), generate


struct_at = _python_struct_at if numba.config.DISABLE_JIT else intrinsic(_lower_struct_at)
call_engine = _python_call_engine if numba.config.DISABLE_JIT else intrinsic(_lower_call_engine)
