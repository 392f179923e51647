"""What the models of the `workload:` section have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

MAX_VOCAB_SIZE = 2**31 - 1
DEFAULT_VOCAB_SIZE = 128_000

Tokens = Annotated[int, Field(ge=1, lt=2**31)]
TokensOrZero = Annotated[int, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(ge=1, le=100_000_000)]
Rate = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
VocabSize = Annotated[int, Field(ge=1, le=MAX_VOCAB_SIZE)]


class Model(BaseModel):
    """Unknown keys are errors; an int is an int ("4k" and 3.0 are refused)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def key(default: Any, description: str, unit: str | None = None, **constraints: Any) -> Any:
    """A documented field: `default` (... = required), its description and, for a quantity, its unit."""
    extra: dict[str, Any] | None = {"unit": unit} if unit is not None else None
    return Field(default, description=description, json_schema_extra=extra, **constraints)


class AlsoBare:
    """Marks a union of models that is also written as a bare value, for the JSON schema."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [self.schema, handler(core)]}
