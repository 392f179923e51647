"""The config models of `engine.vllm` and `engine.switches`, made from the table in `sim.switches`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, create_model

from sim.config_types import Strict, key
from sim.profiles import FIRST_RELEASE, LAST_RELEASE, releases
from sim.switches import SWITCHES, Switch


def _as_text(value: object) -> object:
    """`1.5`, `on` and `true` in YAML are a number, a text and a boolean: all name a value of a switch."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return repr(value) if isinstance(value, int | float) else value


def _field(switch: Switch) -> tuple[Any, Any]:
    values = Literal[tuple(switch.values)]  # type: ignore[valid-type]
    meaning = "; ".join(f"`{value}`: {text}" for value, text in switch.values.items() if value != text)
    text = f"{switch.effect} {meaning[:1].upper() + meaning[1:]}." if meaning else switch.effect
    return Annotated[values, BeforeValidator(_as_text)] | None, key(None, text)


class Switches(Strict):
    """Single rules that differ from those of the release in `vllm`; null: as in that release."""

    def changed(self) -> tuple[tuple[str, str], ...]:
        """(switch, value) pairs of those that are given, in the table's order."""
        given = ((s.name, getattr(self, s.name)) for s in SWITCHES)
        return tuple((name, value) for name, value in given if value is not None)


if TYPE_CHECKING:
    SwitchKeys = Switches
else:
    SwitchKeys = create_model(
        "Switches", __base__=Switches, __doc__=Switches.__doc__, **{s.name: _field(s) for s in SWITCHES}
    )


def known_release(value: object) -> object:
    """Refuse a release whose rules are not in the table; anything but text is left to the type check."""
    if not isinstance(value, str) or value in releases():
        return value
    minor = ".".join(value.split(".")[:2])
    if minor in releases():
        raise ValueError(f"must name a minor release: '{minor}' instead of '{value}'")
    raise ValueError(f"must be a release from '{FIRST_RELEASE}' to '{LAST_RELEASE}', got '{value}'")


#: A vLLM release, "0.MINOR".
Release = Annotated[str, BeforeValidator(known_release), Field(json_schema_extra={"enum": [*releases()]})]
