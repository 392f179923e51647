"""Arrays of a struct in jitted code.

Numba's own arrays carry seven words and all of numpy's ways to index them, so that an access of one element
becomes some sixty instructions, and a field of a record array an array of its own. A view of the core knows
the type of its elements, their distance and its place in the struct's table, and takes one integer for each
dimension: an access is a multiplication, an addition and a load. Indices are never negative.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.types.containers import BaseTuple, UniTuple
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer_global
from numba.extending import infer_getattr, lower_builtin, lower_getattr_generic, register_model

_WORD = ir.IntType(64)
_BYTE = ir.IntType(8)


class ViewType(types.Type):
    """Numba type of an array, or of one field of a record array.

    Args:
        dtype: of an element; a record is taken by its address.
        ndim: number of dimensions.
        stride: bytes from one element to the next.
        offset: bytes from the beginning of the array, or of a record, to an element's.
    """

    def __init__(self, dtype: types.Type, ndim: int, stride: int, offset: int = 0) -> None:
        self.dtype = dtype
        self.ndim = ndim
        self.stride = stride
        self.offset = offset
        super().__init__(name=f"View({dtype},{ndim},{stride},{offset})")

    def column(self, name: str) -> ViewType | None:
        """One field of the records, None when they have no such field."""
        if not isinstance(self.dtype, types.Record) or name not in self.dtype.fields:
            return None
        offset = self.offset + self.dtype.offset(name)
        return ViewType(self.dtype.typeof(name), self.ndim, self.stride, offset)

    def takes(self, index: types.Type) -> bool:
        """Whether the index is one integer for each dimension."""
        parts = tuple(index) if isinstance(index, BaseTuple) else (index,)
        return len(parts) == self.ndim and all(isinstance(part, types.Integer) for part in parts)


@register_model(ViewType)
class _ViewModel(models.PrimitiveModel):
    """The address of the words that say where the array is and what shape it has."""

    def __init__(self, manager: Any, kind: ViewType) -> None:
        super().__init__(manager, kind, _WORD)


@infer_global(operator.getitem)
class _GetItem(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        view, index = args
        if isinstance(view, ViewType) and view.takes(index):
            return signature(view.dtype, view, index)
        return None


@infer_global(operator.setitem)
class _SetItem(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        view, index, value = args
        if isinstance(view, ViewType) and view.takes(index) and self.context.can_convert(value, view.dtype):
            return signature(types.none, view, index, view.dtype)
        return None


@infer_getattr
class _Attributes(AttributeTemplate):
    key = ViewType

    def generic_resolve(self, view: ViewType, attr: str) -> types.Type | None:
        if attr == "size":
            return types.intp
        if attr == "shape":
            return UniTuple(types.intp, view.ndim)
        return view.column(attr)


def load_word(builder: Any, table: Any, place: int) -> Any:
    """Word of a struct's table, which never changes; ``table`` is its address."""
    address = builder.gep(builder.inttoptr(table, _WORD.as_pointer()), [ir.Constant(_WORD, place)])
    word = builder.load(address)
    word.set_metadata("invariant.load", builder.module.add_metadata([]))
    return word


def _shape(builder: Any, view: ViewType, value: Any) -> list[Any]:
    return [load_word(builder, value, 1 + axis) for axis in range(view.ndim)]


def element_address(context: Any, builder: Any, kind: Any, value: Any, indices: list[Any]) -> Any:
    """Pointer to the bytes of an element of a view or, for what a test brings, of a Numba array of one
    dimension; the indices are words.
    """
    if isinstance(kind, types.Array):
        data = context.make_array(kind)(context, builder, value).data
        return builder.bitcast(builder.gep(data, indices), _BYTE.as_pointer())
    place = indices[0]
    for axis in range(1, kind.ndim):
        place = builder.add(builder.mul(place, load_word(builder, value, 1 + axis)), indices[axis])
    place = builder.mul(place, ir.Constant(_WORD, kind.stride))
    if kind.offset:
        place = builder.add(place, ir.Constant(_WORD, kind.offset))
    data = builder.inttoptr(load_word(builder, value, 0), _BYTE.as_pointer())
    return builder.gep(data, [place])


def _item_pointer(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    view, index = sig.args[:2]
    if isinstance(index, BaseTuple):
        parts = cgutils.unpack_tuple(builder, args[1], view.ndim)
        indices = [
            context.cast(builder, part, kind, types.intp) for part, kind in zip(parts, index, strict=True)
        ]
    else:
        indices = [context.cast(builder, args[1], index, types.intp)]
    if context.enable_boundscheck:
        for axis, (place, extent) in enumerate(zip(indices, _shape(builder, view, args[0]), strict=True)):
            cgutils.do_boundscheck(context, builder, place, extent, axis)
    address = element_address(context, builder, view, args[0], indices)
    return builder.bitcast(address, context.get_data_type(view.dtype).as_pointer())


@lower_builtin(operator.getitem, ViewType, types.Any)
def _lower_getitem(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return context.unpack_value(builder, sig.return_type, _item_pointer(context, builder, sig, args))


@lower_builtin(operator.setitem, ViewType, types.Any, types.Any)
def _lower_setitem(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    context.pack_value(builder, sig.args[2], args[2], _item_pointer(context, builder, sig, args))
    return context.get_dummy_value()


@lower_getattr_generic(ViewType)
def _lower_attribute(context: Any, builder: Any, view: ViewType, value: Any, attr: str) -> Any:
    if attr == "shape":
        return context.make_tuple(builder, UniTuple(types.intp, view.ndim), _shape(builder, view, value))
    if attr == "size":
        size, *others = _shape(builder, view, value)
        for extent in others:
            size = builder.mul(size, extent)
        return size
    return value
