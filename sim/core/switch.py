"""Two versions of one rule, of which the type of the state picks one at compile time.

An engine with full attention alone needs none of the rules about windows and states: its ``KVCache`` carries
``plain = True`` as part of its type, so that it is compiled without them, in less time and into faster code.
One with windows too, but without states, encoder, drafts and keys inside blocks, has ``windows_only = True``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from numba.core import types
from numba.core.datamodel import models
from numba.extending import register_model, typeof_impl

from sim.core.struct import StructType

F = TypeVar("F", bound=Callable[..., Any])


def _flag(state: types.Type, name: str) -> bool | None:
    """A flag of the KVCache or Pool that a Numba type stands for or has as ``kv``; None where it has none."""
    if not isinstance(state, StructType):
        return None
    nested = state.field("kv")
    owner = nested[0] if nested else state
    assert isinstance(owner, StructType)
    field = owner.field(name)
    if field is None:
        return None
    assert isinstance(field[0], types.BooleanLiteral)
    return bool(field[0].literal_value)


def version_of(state: types.Type) -> str | None:
    """Version of the engine for a Numba type of its state; None where it is no state of an engine."""
    plain, windows_only = _flag(state, "plain"), _flag(state, "windows_only")
    if plain is None:
        return None
    return "plain" if plain else "windows" if windows_only else "general"


class Switch(Generic[F]):
    """A function that is ``simple`` for a state with the flag, "plain" or "windows_only", else ``general``.

    The first argument is a KVCache, a Pool, or a struct with a KVCache as ``kv``.
    """

    def __init__(self, simple: F, general: F, flag: str = "plain") -> None:
        self.simple = simple
        self.general = general
        self.flag = flag

    def __call__(self, state: Any, *args: Any) -> Any:
        owner = getattr(state, "kv", state)
        return (self.simple if getattr(owner, self.flag) else self.general)(state, *args)

    def chosen(self, state: types.Type) -> Any:
        """Jitted function for a Numba type of the first argument."""
        flag = _flag(state, self.flag)
        assert flag is not None
        return self.simple if flag else self.general


class SwitchType(types.Callable, types.Dummy):
    """Numba type of a Switch; a call of it is a call of the chosen function."""

    def __init__(self, switch: Switch[Any]) -> None:
        self.switch = switch
        super().__init__(f"Switch({id(switch)})")

    def get_call_type(self, context: Any, args: Any, kws: Any) -> Any:
        """Signature of the chosen function for these arguments, which it compiles."""
        return types.Dispatcher(self.switch.chosen(args[0])).get_call_type(context, args, kws)

    def get_call_signatures(self) -> tuple[list[Any], bool]:
        """Signatures known beforehand: none."""
        return [], True

    def get_impl_key(self, sig: Any) -> Any:
        """Compiled function of a signature."""
        return types.Dispatcher(self.switch.chosen(sig.args[0])).get_impl_key(sig)


@typeof_impl.register(Switch)
def _typeof_switch(value: Switch[Any], _context: Any) -> SwitchType:
    return SwitchType(value)


register_model(SwitchType)(models.OpaqueModel)
