"""Structs of arrays that jitted code takes as one pointer.

Numba passes a NamedTuple field by field, seven words an array; with some thirty arrays each function that
takes the state costs half a second of compilation, and a call of one that is not inlined costs more than its
work. A ``Struct`` is a plain Python object with arrays, records and other structs as attributes; jitted code
receives the address of a small table with their addresses and shapes. The table never changes during the
object's life, so its loads are marked invariant and LLVM keeps them in registers across stores.

With NUMBA_DISABLE_JIT the same functions work on the Python objects themselves.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.typing.templates import AttributeTemplate
from numba.extending import (
    NativeValue,
    infer_getattr,
    lower_getattr_generic,
    register_model,
    typeof_impl,
    unbox,
)

from sim.core.views import ViewType, load_word

_WORD = ir.IntType(64)


class Struct:
    """Base of the groups of state; subclasses annotate their attributes and are made with all of them by
    name.

    An attribute is a C-contiguous array, a record (np.record), an int, another Struct, or a bool, which is
    part of the struct's type (see ``switch``). None may be rebound once the struct has been passed to jitted
    code.
    """

    def __init__(self, **values: Any) -> None:
        names = tuple(type(self).__annotations__)
        if set(values) != set(names):
            raise TypeError(f"{type(self).__name__} takes exactly {', '.join(names)}")
        for name in names:
            setattr(self, name, values[name])
        self._table: np.ndarray | None = None
        self._address = 0
        self._numba_type: StructType | None = None

    def native_type(self) -> StructType:
        """Numba type of the struct; builds the table of addresses on first use."""
        if self._numba_type is None:
            fields = []
            words: list[int] = []
            for name in type(self).__annotations__:
                value = getattr(self, name)
                fields.append((name, _field_type(value), len(words)))
                words.extend(_field_words(value))
            self._table = np.array(words, dtype=np.int64)
            self._address = int(self._table.ctypes.data)
            self._numba_type = _struct_type(type(self).__name__, tuple(fields))
        return self._numba_type

    @property
    def native_address(self) -> int:
        """Address of the table."""
        if self._numba_type is None:
            self.native_type()
        return self._address


class StructType(types.Type):
    """Numba type of a Struct: fields are (name, Numba type, offset in words of the table).

    Its name stands in the name of every compiled function that takes the struct, so the fields are in it as a
    digest: spelled out they are some thousand characters.
    """

    def __init__(self, name: str, fields: tuple[tuple[str, types.Type, int], ...]) -> None:
        self.fields = fields
        listing = ",".join(f"{field}:{kind}@{offset}" for field, kind, offset in fields)
        super().__init__(name=f"{name}.{hashlib.sha256(listing.encode()).hexdigest()[:16]}")

    def field(self, name: str) -> tuple[types.Type, int] | None:
        """Type and offset of a field, None when there is no such field."""
        for field, kind, offset in self.fields:
            if field == name:
                return kind, offset
        return None


@functools.cache
def _struct_type(name: str, fields: tuple[tuple[str, types.Type, int], ...]) -> StructType:
    """One type object for all structs with the same fields: building its name takes a while."""
    return StructType(name, fields)


@functools.cache
def _array_type(dtype: np.dtype[Any], dimensions: int) -> ViewType:
    return ViewType(_record_type(dtype), dimensions, dtype.itemsize)


@functools.cache
def _record_type(dtype: np.dtype[Any]) -> types.Type:
    """Numba type of a record; Numba takes it apart field by field each time it is asked."""
    return numba.from_dtype(dtype)


def _field_type(value: Any) -> types.Type:
    if isinstance(value, Struct):
        return value.native_type()
    if isinstance(value, np.ndarray):
        if not value.flags.c_contiguous:
            raise TypeError("arrays of the core are C-contiguous")
        return _array_type(value.dtype, value.ndim)
    if isinstance(value, np.void):
        return _record_type(value.dtype)
    if isinstance(value, bool):
        return types.BooleanLiteral(value)
    return numba.typeof(value)


def _record_address(record: np.void) -> int:
    """Where the record's data are; the array that it is the only element of says so at once."""
    array = record.base
    if isinstance(array, np.ndarray) and array.size == 1:
        return int(array.ctypes.data)
    return int(record.__array_interface__["data"][0])


def _field_words(value: Any) -> list[int]:
    if isinstance(value, Struct):
        return [value.native_address]
    if isinstance(value, np.ndarray):
        return [value.ctypes.data, *value.shape]
    if isinstance(value, np.void):
        return [_record_address(value)]
    # a bool is in the type alone
    return [] if isinstance(value, bool) else [int(value)]


@typeof_impl.register(Struct)
def _typeof_struct(value: Struct, _context: Any) -> StructType:
    return value.native_type()


@register_model(StructType)
class _StructModel(models.PrimitiveModel):
    """The address of the table."""

    def __init__(self, manager: Any, kind: StructType) -> None:
        super().__init__(manager, kind, _WORD)


@unbox(StructType)
def _unbox_struct(_kind: StructType, obj: Any, c: Any) -> NativeValue:
    address = c.pyapi.object_getattr_string(obj, "native_address")
    value = c.pyapi.long_as_longlong(address)
    c.pyapi.decref(address)
    return NativeValue(value, is_error=cgutils.is_not_null(c.builder, c.pyapi.err_occurred()))


@infer_getattr
class _StructAttributes(AttributeTemplate):
    key = StructType

    def generic_resolve(self, kind: StructType, attr: str) -> types.Type | None:
        found = kind.field(attr)
        return found[0] if found else None


@lower_getattr_generic(StructType)
def _lower_struct_attribute(context: Any, builder: Any, kind: StructType, address: Any, attr: str) -> Any:
    found = kind.field(attr)
    assert found is not None
    field, offset = found
    if isinstance(field, ViewType):
        return builder.add(address, ir.Constant(_WORD, 8 * offset))
    if isinstance(field, types.BooleanLiteral):
        return context.get_constant_generic(builder, field, field.literal_value)
    word = load_word(builder, address, offset)
    if isinstance(field, types.Record):
        return builder.inttoptr(word, context.get_value_type(field))
    if isinstance(field, StructType):
        return word
    return context.cast(builder, word, types.int64, field)
